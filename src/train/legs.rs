//! A run's legs: what each state of a schedule compiles to, and when it begins.

use std::collections::BTreeMap;

use super::course::Course;
use super::{LogLine, TrainOptions};
use crate::Result;
use crate::batch::Batch;
use crate::freeze::{FreezeMask, FreezeState};
use crate::model::{Network, ParamId};
use crate::plan::op::TensorRate;
use crate::plan::{Counts, StepOptions, compile};
use crate::session::{Session, Step, StepParts};

/// A stretch of steps with one freeze.
pub(super) struct Leg {
    /// Steps before it.
    pub begin: u64,
    pub freeze: String,
    step: Step,
    /// Where steps go over several batches.
    parts: Option<StepParts>,
    /// What has trained once it has begun, in table order.
    pub trained: Vec<ParamId>,
}

impl Leg {
    /// What runs batch `at` of the `n` of a step.
    pub fn part(&self, at: usize, n: usize) -> &Step {
        match &self.parts {
            Some(parts) if n > 1 => parts.of(at, n),
            _ => &self.step,
        }
    }

    /// What is said when it begins with `batch`.
    pub fn line(
        &self,
        network: &Network,
        options: &StepOptions,
        batch: &Batch,
        epoch: f64,
    ) -> LogLine {
        let counts = Counts::of(batch);
        let all = compile(network, &FreezeMask::none(network.params.len()), options);
        let plan = self.step.plan();
        LogLine::Freeze {
            step: self.begin,
            epoch,
            freeze: self.freeze.clone(),
            trainable_parameters: plan.n_trained_values(),
            flops_share: plan.total_cost(&counts).flops as f64
                / all.total_cost(&counts).flops.max(1) as f64,
            memory_bytes: match &self.parts {
                Some(parts) => parts.memory_bytes(),
                None => self.step.layout().memory.total(),
            },
        }
    }
}

/// Compiles all states before anything runs, so that a device that is too small for one of them is known then.
///
/// With `is_cached` the frozen prefix of every state is read from a cache.
///
/// A tensor's bias correction counts the steps in which it trained, as PyTorch's does.
///
/// # Errors
/// A device without the memory.
pub(super) fn compile_legs(
    session: &mut Session,
    states: &[FreezeState],
    step_options: &StepOptions,
    options: &TrainOptions,
    course: &Course,
    is_cached: bool,
) -> Result<Vec<Leg>> {
    let mut n_trained_steps: BTreeMap<ParamId, u64> = BTreeMap::new();
    let mut legs: Vec<Leg> = Vec::with_capacity(states.len());
    for (at, state) in states.iter().enumerate() {
        let begin = course.begins[at];
        // Steps of a run are batches that were computed: they fit into 32 bits for the next centuries.
        let skipped = |id: &ParamId| (begin - n_trained_steps.get(id).unwrap_or(&0)) as u32;
        let rate = |id: ParamId| TensorRate {
            scale: course.rate_scales[id.0],
            skipped_steps: skipped(&id),
        };
        let step = match is_cached {
            true => session.compile_cached(&state.mask, step_options, rate)?,
            false => session.compile_with(&state.mask, step_options, rate)?,
        };
        let end = course.begins.get(at + 1).copied().unwrap_or(course.epochs.n_steps());
        for id in step.plan().trained() {
            *n_trained_steps.entry(id).or_default() += end - begin;
        }
        let parts = match options.batches_per_step {
            1 => None,
            _ => Some(session.compile_parts(&step, options.batches_per_step)?),
        };
        let trained = n_trained_steps.keys().copied().collect();
        legs.push(Leg { begin, freeze: state.freeze.clone(), step, parts, trained });
    }
    Ok(legs)
}

/// The leg of the step behind `n_done` steps.
pub(super) fn leg_behind(legs: &[Leg], n_done: u64) -> &Leg {
    // The first begins at 0.
    legs.iter().rev().find(|leg| leg.begin <= n_done).unwrap_or(&legs[0])
}

/// What has trained in the first `n_done` steps, of which there is one at least.
pub(super) fn trained_by(legs: &[Leg], n_done: u64) -> &[ParamId] {
    &leg_behind(legs, n_done.saturating_sub(1)).trained
}
