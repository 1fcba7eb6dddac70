//! A run's legs: what each state of a schedule compiles to, and when it begins.

use std::collections::BTreeMap;

use super::{LogLine, TrainOptions};
use crate::batch::Batch;
use crate::freeze::{FreezeMask, FreezeState};
use crate::model::{Network, ParamId};
use crate::plan::op::TensorRate;
use crate::plan::{Counts, StepOptions, compile};
use crate::session::{Session, Step, StepParts};
use crate::{Error, Result};

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
/// A state that does not begin behind the one before it and before the end, a run in which nothing trains, rates that
/// apply to nothing, a device without the memory.
pub(super) fn compile_legs(
    session: &mut Session,
    states: &[FreezeState],
    step_options: &StepOptions,
    options: &TrainOptions,
    (per_epoch, n_steps): (u64, u64),
    is_cached: bool,
) -> Result<Vec<Leg>> {
    let network = session.network().clone();
    let scales =
        options.rates.scales(&network, options.learning_rate, options.head_learning_rate)?;
    let begins = begins(states, per_epoch, n_steps)?;
    let mut n_trained_steps: BTreeMap<ParamId, u64> = BTreeMap::new();
    let mut legs: Vec<Leg> = Vec::with_capacity(states.len());
    for (at, state) in states.iter().enumerate() {
        let begin = begins[at];
        // Steps of a run are batches that were computed: they fit into 32 bits for the next centuries.
        let skipped = |id: &ParamId| (begin - n_trained_steps.get(id).unwrap_or(&0)) as u32;
        let rate = |id: ParamId| TensorRate { scale: scales[id.0], skipped_steps: skipped(&id) };
        let step = match is_cached {
            true => session.compile_cached(&state.mask, step_options, rate)?,
            false => session.compile_with(&state.mask, step_options, rate)?,
        };
        let end = begins.get(at + 1).copied().unwrap_or(n_steps);
        for id in step.plan().trained() {
            *n_trained_steps.entry(id).or_default() += end - begin;
        }
        let parts = match options.batches_per_step {
            1 => None,
            _ => Some(session.compile_parts(&step)?),
        };
        let trained = n_trained_steps.keys().copied().collect();
        legs.push(Leg { begin, freeze: state.freeze.clone(), step, parts, trained });
    }
    if n_trained_steps.is_empty() {
        return Err(Error::usage(
            "nothing trains under this freeze: let something train, or measure it with bench",
        ));
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

/// Steps before each state.
fn begins(states: &[FreezeState], per_epoch: u64, n_steps: u64) -> Result<Vec<u64>> {
    let mut begins: Vec<u64> = Vec::with_capacity(states.len());
    for state in states {
        let name = format!("{}:{}", state.begin, state.freeze);
        let begin = state.begin.step(per_epoch).filter(|begin| *begin < n_steps || *begin == 0);
        let Some(begin) = begin else {
            return Err(Error::usage(format!(
                "--schedule: {name} begins behind the end: the run has {n_steps} steps, {per_epoch} an epoch"
            )));
        };
        if begins.last().is_some_and(|last| begin <= *last) {
            return Err(Error::usage(format!(
                "--schedule: {name} does not begin behind the state before it: an epoch has {per_epoch} steps"
            )));
        }
        begins.push(begin);
    }
    Ok(begins)
}
