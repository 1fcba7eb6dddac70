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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freeze::FreezeSpec;
    use crate::measure::Ceilings;
    use crate::measure::pace::tests::network;
    use crate::plan::Capacity;
    use crate::tensor::DType;

    const CAPACITY: Capacity = Capacity { tokens: 64, sequences: 4, max_length: 16 };

    fn with_depth(spec: &str, frozen_dropout: bool, check: impl Fn(&DepthPlans, &[Counts])) {
        let network = network();
        let forward = StepOptions::plain(CAPACITY, DType::F32);
        let step = StepOptions { dropout: true, frozen_dropout, ..forward };
        let mask = FreezeSpec::parse(spec).unwrap().mask(&network).unwrap();
        let small = Capacity { tokens: 20, sequences: 2, max_length: 10 };
        let batches = [CAPACITY, small, CAPACITY].map(|capacity| Counts::full(capacity, 1));
        check(&Compiler::new(&network, step, forward).depth(&mask), &batches);
    }

    #[test]
    fn a_step_of_several_batches_updates_once() {
        with_depth("lower:1", false, |plans, batches| {
            let plain = &plans.plain;
            let flops = |plan: &Plan, at: usize| plan.total_cost(&batches[at]).flops as f64;
            let Accumulated { first, next, last } = &plain.parts;
            assert_eq!(plain.step_flops(&batches[..1]), flops(&plain.step, 0));
            assert_eq!(plain.step_flops(&batches[..2]), flops(first, 0) + flops(last, 1));
            let all = flops(first, 0) + flops(next, 1) + flops(last, 2);
            assert_eq!(plain.step_flops(batches), all);
            let each: f64 = (0..3).map(|at| flops(&plain.step, at)).sum();
            assert!(all < each, "an update of every batch costs more");
        });
    }

    #[test]
    fn what_is_frozen_runs_as_a_forward_pass_alone() {
        let ceilings =
            Ceilings { gemm_flops_per_second: 1e9, copy_bytes_per_second: 1e9, op_seconds: 0.0 };
        let pace = |forward_factor| Pace { ceilings, factors: [3.0; 3], forward_factor };
        with_depth("lower:1", false, |plans, batches| {
            let cut = plans.cut.as_ref().unwrap();
            let seconds = |factor| plans.plain.step_seconds(&pace(factor), &batches[..1]);
            let below = pace(1.0).forward_seconds(&cut.below, &batches[0]);
            // A factor of 2 less saves twice what the ceilings say of the frozen part; a few roundings.
            assert!((seconds(3.0) - seconds(1.0) - 2.0 * below).abs() <= 1e-12 * seconds(3.0));
            let cached = |factor| cut.above.step_seconds(&pace(factor), &batches[..1]);
            assert_eq!(cached(3.0), cached(1.0), "nothing below is left");
        });
    }

    #[test]
    fn nothing_is_cut_where_nothing_stays_the_same() {
        with_depth("none", false, |plans, _| assert!(plans.cut.is_none()));
        with_depth("lower:1", true, |plans, _| assert!(plans.cut.is_none()));
    }
}
