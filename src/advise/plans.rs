//! The plans of a training at one depth, and what they take at a machine's pace.

use crate::freeze::FreezeMask;
use crate::measure::Pace;
use crate::model::Network;
use crate::plan::accumulate::{Accumulated, accumulate};
use crate::plan::prefix::{
    Prefix, compile_cached, compile_cached_forward, compile_prefixes, prefix_of,
};
use crate::plan::{Counts, Layout, Plan, StepOptions, compile};

/// One depth, with nothing cached and with what is frozen in a cache.
pub(super) struct DepthPlans {
    /// The step as it runs with nothing cached.
    pub step: Plan,
    pub plain: TrainingPlans,
    /// None where nothing lies below what trains.
    pub cut: Option<Cut>,
}

/// A depth, cut at its frost line.
pub(super) struct Cut {
    pub prefix: Prefix,
    /// The forward pass that fills the cache.
    pub below: Plan,
    pub above: TrainingPlans,
}

/// What a training runs.
pub(super) struct TrainingPlans {
    /// A forward pass that keeps nothing, in front of every batch of a step.
    below: Option<Plan>,
    step: Plan,
    /// The step where it has several batches.
    parts: Accumulated,
    evaluation: Plan,
}

impl DepthPlans {
    /// Compiles the steps that `mask` leaves, and evaluations of `forward`.
    pub fn new(
        network: &Network,
        mask: &FreezeMask,
        step: &StepOptions,
        forward: &StepOptions,
    ) -> Self {
        let whole = compile(network, mask, step);
        let evaluation = compile(network, &FreezeMask::all(network.params.len()), forward);
        let cut = prefix_of(network, mask, step).and_then(|prefix| {
            let (below, _) = compile_prefixes(network, &[prefix.above], step)?;
            let above = compile_cached(network, mask, step)?;
            let evaluation = compile_cached_forward(network, prefix.above, forward)?;
            Some(Cut { prefix, below, above: TrainingPlans::new(None, above, evaluation) })
        });
        let plain = match &cut {
            // What is frozen keeps nothing and drops nothing, and is so much faster.
            Some(Cut { below, above, .. }) => {
                TrainingPlans::new(Some(below.clone()), above.step.clone(), evaluation)
            }
            None => TrainingPlans::new(None, whole.clone(), evaluation),
        };
        Self { step: whole, plain, cut }
    }
}

impl TrainingPlans {
    fn new(below: Option<Plan>, step: Plan, evaluation: Plan) -> Self {
        Self { below, parts: accumulate(&step), step, evaluation }
    }

    /// What runs for each of a step's batches.
    fn of_step<'a>(
        &'a self,
        batches: &'a [Counts],
    ) -> impl Iterator<Item = (Option<&'a Plan>, &'a Plan, &'a Counts)> {
        let last = batches.len().saturating_sub(1);
        let part = move |at| match at {
            _ if last == 0 => &self.step,
            0 => &self.parts.first,
            _ if at < last => &self.parts.next,
            _ => &self.parts.last,
        };
        let below = self.below.as_ref();
        batches.iter().enumerate().map(move |(at, counts)| (below, part(at), counts))
    }

    /// Seconds of a step of these batches.
    pub fn step_seconds(&self, pace: &Pace, batches: &[Counts]) -> f64 {
        let of = |(below, part, counts): (Option<&Plan>, &Plan, &Counts)| {
            below.map_or(0.0, |below| pace.forward_seconds(below, counts))
                + pace.seconds(part, counts)
        };
        self.of_step(batches).map(of).sum()
    }

    /// FLOPs of a step of these batches.
    pub fn step_flops(&self, batches: &[Counts]) -> f64 {
        let flops = |plan: &Plan, counts: &Counts| plan.total_cost(counts).flops as f64;
        let of = |(below, part, counts): (Option<&Plan>, &Plan, &Counts)| {
            below.map_or(0.0, |below| flops(below, counts)) + flops(part, counts)
        };
        self.of_step(batches).map(of).sum()
    }

    /// Seconds of an evaluation of these batches.
    pub fn evaluation_seconds(&self, pace: &Pace, batches: &[Counts]) -> f64 {
        batches.iter().map(|counts| pace.forward_seconds(&self.evaluation, counts)).sum()
    }

    /// Bytes that a session reserves and sets for the step, beside the weights.
    pub fn room_bytes(&self) -> usize {
        room_bytes(&Layout::new(&self.step))
    }
}

/// What a step needs beside the weights.
pub(super) fn room_bytes(layout: &Layout) -> usize {
    layout.memory.total() - layout.memory.weights
}
