//! The A/A test: what measuring shows where there is nothing to be seen.

use super::scenarios::{MeasureOptions, Run, Scenario, largest, one_round, shuffled, step_options};
use super::stats::{Interval, ratio_interval};
use crate::Result;
use crate::backend::Timing;
use crate::batch::Batch;
use crate::data::SplitMix64;
use crate::plan::Capacity;
use crate::session::Session;

/// A scenario against itself, `n_repeats` times, each with as many interleaved rounds as a
/// measurement has. Nothing differs but chance, so a 95 % interval should miss 1 in a twentieth of the
/// repeats, and its width is the least difference that a measurement here can show.
///
/// # Errors
/// As [`super::scenarios::measure`].
pub fn against_itself(
    session: &mut Session,
    scenario: &Scenario,
    batches: &[Batch],
    options: &MeasureOptions,
    n_repeats: usize,
    mut progress: impl FnMut(),
) -> Result<Vec<Interval>> {
    let step = step_options(Capacity::of(batches), session.compute(), options.max_grad_norm);
    let step = session.compile(&scenario.mask, &step)?;
    let mut runs = [Run::new(step.clone()), Run::new(step)];
    let mut random = SplitMix64::new(options.seed);
    for run in &mut runs {
        run.step(session, largest(batches), options, Timing::Phases)?;
    }
    (0..n_repeats as u64)
        .map(|repeat| {
            for run in &mut runs {
                (run.times_ms, run.phases_ms) = Default::default();
            }
            for round in 0..options.n_rounds {
                let batch = &batches[round % batches.len()];
                for at in shuffled(2, &mut random) {
                    one_round(session, &mut runs[at], batch, options)?;
                }
            }
            progress();
            ratio_interval(&runs[0].times_ms, &runs[1].times_ms, options.seed ^ repeat)
        })
        .collect()
}
