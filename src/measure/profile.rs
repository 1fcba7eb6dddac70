//! Where the time of a step goes: op by op, and launch by launch where ops are kernels.

use std::ops::Range;

use super::ceilings::{Ceilings, predicted_op_seconds};
use super::scenarios::{MeasureOptions, Scenario, step_options};
use super::stats::median;
use crate::Result;
use crate::backend::{KernelLaunch, LaunchCounts, StepTimes, Timing};
use crate::batch::Batch;
use crate::plan::{Capacity, Cost, Counts, Phase};
use crate::session::{Session, Step};

/// One scenario's step, op by op.
#[derive(Clone, Debug)]
pub struct Profile {
    pub freeze: String,
    /// In the order of the plan.
    pub ops: Vec<OpProfile>,
}

/// One op of a step.
#[derive(Clone, Debug)]
pub struct OpProfile {
    /// Its name, which the kernels bear too.
    pub op: &'static str,
    /// What it writes or updates.
    pub targets: Vec<String>,
    pub phase: Phase,
    pub cost: Cost,
    /// Median over the rounds.
    pub seconds: f64,
    /// What it would take at the machine's ceilings.
    pub floor_seconds: f64,
    /// Its kernels; empty on the CPU.
    pub launches: Vec<LaunchProfile>,
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub struct LaunchProfile {
    pub launch: KernelLaunch,
    /// Median over the rounds.
    pub seconds: f64,
    /// What the emulator counted in the last round.
    pub counts: Option<LaunchCounts>,
}

impl Profile {
    /// The sum over the ops.
    pub fn seconds(&self) -> f64 {
        self.ops.iter().map(|op| op.seconds).sum()
    }
}

/// Times every op of each scenario's step on one batch, round by round in turn, those before the first that
/// counts included in their numbers. A profiler that waits for it sees the rounds of `capture`. `progress` is told
/// after every step.
///
/// Ops are timed one by one, so that a step takes a little longer than when it runs unobserved.
///
/// # Errors
/// When the device fails or a loss is not finite.
pub fn profile(
    session: &mut Session,
    scenarios: &[Scenario],
    batch: &Batch,
    ceilings: &Ceilings,
    options: &MeasureOptions,
    capture: Option<&Range<usize>>,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Profile>> {
    let step = step_options(Capacity::of([batch]), session.compute(), options.max_grad_norm);
    let steps = (scenarios.iter())
        .map(|scenario| session.compile(&scenario.mask, &step))
        .collect::<Result<Vec<_>>>()?;
    let mut times: Vec<Vec<StepTimes>> = vec![Vec::new(); steps.len()];
    let n_warmup = options.n_warmup.unwrap_or(0);
    for round in 0..n_warmup + options.n_rounds {
        if capture.is_some_and(|rounds| rounds.start == round) {
            session.capture(true)?;
        }
        for (at, step) in steps.iter().enumerate() {
            let state = options.state(round as u64 + 1);
            let outcome = session.run(step, batch, &state, Timing::Ops)?;
            if round >= n_warmup {
                times[at].push(outcome.times);
            }
            progress(&scenarios[at].freeze);
        }
        if capture.is_some_and(|rounds| rounds.end == round + 1) {
            session.capture(false)?;
        }
    }
    let counts = Counts::of(batch);
    (scenarios.iter().zip(&steps).zip(&times))
        .map(|((scenario, step), times)| {
            let ops = ops_of(session, step, &counts, ceilings, times)?;
            Ok(Profile { freeze: scenario.freeze.clone(), ops })
        })
        .collect()
}

fn ops_of(
    session: &Session,
    step: &Step,
    counts: &Counts,
    ceilings: &Ceilings,
    times: &[StepTimes],
) -> Result<Vec<OpProfile>> {
    let plan = step.plan();
    let last_counts = times.last().map_or(&[][..], |last| &last.counts);
    let mut n_launches = 0;
    let mut ops = Vec::with_capacity(plan.ops.len());
    for (at, op) in plan.ops.iter().enumerate() {
        let mut launches = Vec::new();
        for launch in session.launches(step).get(at).into_iter().flatten() {
            launches.push(LaunchProfile {
                launch: launch.clone(),
                seconds: median_of(times, |times| times.launches[n_launches])?,
                counts: last_counts.get(n_launches).copied(),
            });
            n_launches += 1;
        }
        let targets = op.writes().into_iter().chain(op.updates());
        ops.push(OpProfile {
            op: op.name(),
            targets: targets.map(|buf| plan.buffer(buf).name.clone()).collect(),
            phase: op.phase(),
            cost: plan.cost(op, counts),
            seconds: median_of(times, |times| times.ops[at])?,
            floor_seconds: predicted_op_seconds(plan, op, counts, ceilings),
            launches,
        });
    }
    Ok(ops)
}

fn median_of(times: &[StepTimes], one: impl Fn(&StepTimes) -> std::time::Duration) -> Result<f64> {
    median(&times.iter().map(|times| one(times).as_secs_f64()).collect::<Vec<_>>())
}
