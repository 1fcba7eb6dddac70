//! How fast a machine really is, beside what its ceilings promise: predictions in seconds that one can plan a day by.

use super::Ceilings;
use super::ceilings::{IDLE, predicted_phase_seconds};
use super::scenarios::step_options;
use super::stats::median;
use crate::Result;
use crate::backend::Timing;
use crate::batch::Batch;
use crate::freeze::FreezeMask;
use crate::plan::{Capacity, Counts, Phase, Plan, StepOptions};
use crate::session::{Session, Step};

/// Ceilings, and what steps take beside them.
///
/// Ceilings are the best that single ops reach, so that a step takes longer than they say, by about the same factor
/// whatever is frozen. Some steps that train as much as there is memory for tell that factor for each phase, and some
/// forward passes alone that of those.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Pace {
    pub ceilings: Ceilings,
    /// Measured over predicted: forward, backward, optimizer.
    pub factors: [f64; 3],
    /// The same of a forward pass alone, which drops nothing and keeps nothing for a backward pass.
    pub forward_factor: f64,
}

/// Steps that are timed, after one that is not.
const N_STEPS: usize = 3;

/// Of a step's predicted time, the share from which on a phase tells a factor.
const LEAST_SHARE: f64 = 0.01;

impl Pace {
    /// Times a few steps on `batch` that train what `mask` leaves, which should be all that there is memory for, and a few
    /// forward passes. They change no value; AdamW's moments they do. A phase that has next to nothing to do tells no
    /// factor of its own and has the forward pass's.
    ///
    /// # Errors
    /// When the device lacks the memory or fails.
    pub fn of(
        session: &mut Session,
        batch: &Batch,
        mask: &FreezeMask,
        ceilings: Ceilings,
    ) -> Result<Self> {
        let capacity = Capacity::of([batch]);
        let step = step_options(capacity, session.compute(), Some(1.0));
        let step = session.compile(mask, &step)?;
        let measured = phase_seconds(session, &step, batch)?;
        let counts = Counts::of(batch);
        let predicted = |plan, phase| predicted_phase_seconds(plan, phase, &counts, &ceilings);
        let phases = Phase::ALL.map(|phase| predicted(step.plan(), phase));
        let all: f64 = phases.iter().sum();
        let mut factors = [f64::NAN; 3];
        for (at, own) in phases.into_iter().enumerate() {
            let tells = at == 0 || own >= LEAST_SHARE * all;
            factors[at] = if tells { measured[at] / own } else { factors[0] };
        }
        let all = FreezeMask::all(session.network().params.len());
        let forward = session.compile(&all, &StepOptions::plain(capacity, session.compute()))?;
        let [forward_seconds, ..] = phase_seconds(session, &forward, batch)?;
        let forward_factor = forward_seconds / predicted(forward.plan(), Phase::Forward);
        Ok(Self { ceilings, factors, forward_factor })
    }

    /// What a step should take on a batch of these counts: the time by the ceilings, but not less than starting its
    /// ops does. Of its ops those of `below` are a forward pass that keeps nothing.
    pub fn step_seconds(&self, plan: &Plan, below: Option<&Plan>, counts: &Counts) -> f64 {
        let predicted = |plan, phase| predicted_phase_seconds(plan, phase, counts, &self.ceilings);
        let phases = Phase::ALL.into_iter().zip(self.factors);
        let work: f64 = phases.map(|(phase, factor)| factor * predicted(plan, phase)).sum();
        let below = below.map_or(0.0, |below| predicted(below, Phase::Forward));
        (work + (self.forward_factor - self.factors[0]) * below).max(self.least_seconds(plan))
    }

    /// What a forward pass that keeps nothing should take, no less than starting its ops does.
    pub fn forward_seconds(&self, plan: &Plan, counts: &Counts) -> f64 {
        let work = predicted_phase_seconds(plan, Phase::Forward, counts, &self.ceilings);
        (self.forward_factor * work).max(self.least_seconds(plan))
    }

    fn least_seconds(&self, plan: &Plan) -> f64 {
        plan.ops.len() as f64 * self.ceilings.op_seconds
    }
}

/// Medians of some runs of a step, by phase.
fn phase_seconds(session: &mut Session, step: &Step, batch: &Batch) -> Result<[f64; 3]> {
    session.run(step, batch, &IDLE, Timing::Phases)?;
    let mut seconds: [Vec<f64>; 3] = Default::default();
    for _ in 0..N_STEPS {
        let phases = session.run(step, batch, &IDLE, Timing::Phases)?.times.phases;
        for (all, phase) in seconds.iter_mut().zip(phases) {
            all.push(phase.as_secs_f64());
        }
    }
    let mut medians = [f64::NAN; 3];
    for (median_of, seconds) in medians.iter_mut().zip(&seconds) {
        *median_of = median(seconds)?;
    }
    Ok(medians)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::measure::ceilings::batch_of;
    use crate::model::{Config, Network, Pooling};
    use crate::philox::normal;
    use crate::plan::{StepOptions, compile};
    use crate::session::Engine;
    use crate::tensor::DType;

    /// Two narrow layers and a head of two labels.
    pub(crate) fn network() -> Network {
        let config = Config {
            hidden_size: 32,
            n_heads: 2,
            n_layers: 2,
            intermediate_size: 64,
            vocab_size: 50,
            ..Config::published("bert-base").unwrap()
        };
        Network::new(&config, None, &[("task".to_owned(), 2)], Pooling::Mean).unwrap()
    }

    #[test]
    fn phases_count_by_their_own_factors_and_ops_at_least() {
        let network = network();
        let capacity = Capacity { tokens: 64, sequences: 4, max_length: 16 };
        let mask = FreezeMask::none(network.params.len());
        let plan = compile(&network, &mask, &StepOptions::plain(capacity, DType::F32));
        let counts = Counts::full(capacity, 1);
        let ceilings =
            Ceilings { gemm_flops_per_second: 1e9, copy_bytes_per_second: 1e9, op_seconds: 1e-9 };
        let of = |phase| predicted_phase_seconds(&plan, phase, &counts, &ceilings);
        let [forward, backward, optimizer] = Phase::ALL.map(of);
        let pace = Pace { ceilings, factors: [2.0, 3.0, 5.0], forward_factor: 7.0 };
        let expected = 2.0 * forward + 3.0 * backward + 5.0 * optimizer;
        let found = pace.step_seconds(&plan, None, &counts);
        // A few roundings.
        assert!((found - expected).abs() <= 1e-12 * expected, "{found}, not {expected}");
        assert_eq!(pace.forward_seconds(&plan, &counts), 7.0 * forward);
        // All of the forward pass keeps nothing.
        let all = pace.step_seconds(&plan, Some(&plan), &counts);
        assert!((all - (expected + 5.0 * forward)).abs() <= 1e-12 * all);
        let slow = Pace { ceilings: Ceilings { op_seconds: 1.0, ..ceilings }, ..pace };
        assert_eq!(slow.step_seconds(&plan, None, &counts), plan.ops.len() as f64);
        assert_eq!(slow.forward_seconds(&plan, &counts), plan.ops.len() as f64);
    }

    #[test]
    fn steps_that_are_timed_change_no_value() {
        let network = network();
        let values: Vec<Vec<f32>> = (network.param_ids())
            .map(|id| normal(1, id.0 as u32, network.param(id).n_elements(), 0.02))
            .collect();
        let mut session = Engine::CPU.session(network.clone(), values.clone()).unwrap();
        let batch = batch_of(&network, &[8]);
        let ceilings =
            Ceilings { gemm_flops_per_second: 1e9, copy_bytes_per_second: 1e9, op_seconds: 1e-9 };
        let n_params = network.params.len();
        let none = FreezeMask::none(n_params);
        let pace = Pace::of(&mut session, &batch, &none, ceilings).unwrap();
        let [forward, backward, optimizer] = pace.factors;
        for factor in [forward, backward, optimizer, pace.forward_factor] {
            assert!(factor > 0.0 && factor.is_finite(), "{pace:?}");
        }
        let all = FreezeMask::all(n_params);
        let idle = Pace::of(&mut session, &batch, &all, ceilings).unwrap();
        assert_eq!(idle.factors, [idle.factors[0]; 3], "nothing trains");
        for (id, value) in network.param_ids().zip(values) {
            assert_eq!(session.value(id).unwrap(), value);
        }
    }
}
