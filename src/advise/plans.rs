//! The plans of a training at one depth, and what they take at a machine's pace.

use crate::freeze::FreezeMask;
use crate::measure::Pace;
use crate::model::Network;
use crate::plan::accumulate::{Accumulated, accumulate};
use crate::plan::prefix::{
    Prefix, compile_cached, compile_cached_forward, compile_prefixes, prefix_of,
};
use crate::plan::{Counts, Layout, Plan, StepOptions, compile};

/// Compiles depths of one network for one way of training.
pub(super) struct Compiler<'a> {
    network: &'a Network,
    step: StepOptions,
    forward: StepOptions,
    /// An evaluation with nothing cached, the same for all depths.
    pub evaluation: Plan,
}

/// One depth, with nothing cached and with what is frozen in a cache.
pub(super) struct DepthPlans {
    pub plain: TrainingPlans,
    /// None where nothing lies below what trains, or where it drops something else every time.
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
    pub step: Plan,
    /// The step where it has several batches.
    parts: Accumulated,
    /// Of the step's ops those that are a forward pass and keep nothing.
    below: Option<Plan>,
    evaluation: Plan,
}

impl<'a> Compiler<'a> {
    /// For steps of `step`, and evaluations of `forward`.
    pub fn new(network: &'a Network, step: StepOptions, forward: StepOptions) -> Self {
        let evaluation = compile(network, &FreezeMask::all(network.params.len()), &forward);
        Self { network, step, forward, evaluation }
    }

    /// The plans that a mask leaves.
    pub fn depth(&self, mask: &FreezeMask) -> DepthPlans {
        let cut = self.cut(mask);
        let below = cut.as_ref().map(|cut| cut.below.clone());
        let step = compile(self.network, mask, &self.step);
        DepthPlans { plain: TrainingPlans::new(step, below, self.evaluation.clone()), cut }
    }

    fn cut(&self, mask: &FreezeMask) -> Option<Cut> {
        let Self { network, step, forward, .. } = self;
        if step.frozen_dropout {
            return None;
        }
        let prefix = prefix_of(network, mask, step)?;
        let (below, _) = compile_prefixes(network, &[prefix.above], step)?;
        let above = compile_cached(network, mask, step)?;
        let evaluation = compile_cached_forward(network, prefix.above, forward)?;
        Some(Cut { prefix, below, above: TrainingPlans::new(above, None, evaluation) })
    }
}

impl TrainingPlans {
    fn new(step: Plan, below: Option<Plan>, evaluation: Plan) -> Self {
        Self { parts: accumulate(&step), step, below, evaluation }
    }

    /// What runs for each of a step's batches.
    fn of_step<'a>(
        &'a self,
        batches: &'a [Counts],
    ) -> impl Iterator<Item = (&'a Plan, &'a Counts)> {
        let last = batches.len().saturating_sub(1);
        let part = move |at| match at {
            _ if last == 0 => &self.step,
            0 => &self.parts.first,
            _ if at < last => &self.parts.next,
            _ => &self.parts.last,
        };
        batches.iter().enumerate().map(move |(at, counts)| (part(at), counts))
    }

    /// Seconds of a step of these batches.
    pub fn step_seconds(&self, pace: &Pace, batches: &[Counts]) -> f64 {
        let below = self.below.as_ref();
        self.of_step(batches).map(|(part, counts)| pace.step_seconds(part, below, counts)).sum()
    }

    /// FLOPs of a step of these batches.
    pub fn step_flops(&self, batches: &[Counts]) -> f64 {
        self.of_step(batches).map(|(part, counts)| part.total_cost(counts).flops as f64).sum()
    }

    /// Seconds of an evaluation of these batches.
    pub fn evaluation_seconds(&self, pace: &Pace, batches: &[Counts]) -> f64 {
        batches.iter().map(|counts| pace.forward_seconds(&self.evaluation, counts)).sum()
    }
}

/// Bytes that a step needs beside the weights, which a session reserves and sets.
pub(super) fn room_bytes(layout: &Layout) -> usize {
    layout.memory.total() - layout.memory.weights
}
