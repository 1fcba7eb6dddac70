//! A network on a backend: plans are compiled for a freeze and run on batches. Training and measuring
//! both go through here.

use std::sync::Arc;

use crate::backend::cpu::Cpu;
use crate::backend::host::HostBackend;
use crate::backend::{Backend, Bound, StepState, StepTimes, Timing};
use crate::batch::Batch;
use crate::freeze::FreezeMask;
use crate::model::{Network, ParamId};
use crate::plan::{Layout, Plan, StepOptions, compile};
use crate::{Error, Result};

/// A network's values on a backend.
pub struct Session {
    network: Network,
    backend: Box<dyn Backend>,
}

/// A compiled step of a session.
#[derive(Clone)]
pub struct Step {
    bound: Bound,
}

/// What a run of a step says at once; the rest is read by name.
#[derive(Clone, Debug)]
pub struct StepOutcome {
    /// The mean cross-entropy of each task, in head order.
    pub losses: Vec<f32>,
    /// The global gradient norm before clipping, where the step clips.
    pub grad_norm: Option<f32>,
    pub times: StepTimes,
}

impl StepOutcome {
    /// The loss that training minimises: the sum over the tasks.
    pub fn loss(&self) -> f32 {
        self.losses.iter().sum()
    }
}

impl Session {
    /// Puts `values`, in table order, on the CPU.
    pub fn on_cpu(network: Network, values: Vec<Vec<f32>>) -> Self {
        Self::new(network, values, Box::new(HostBackend::new(Cpu)))
    }

    /// Puts `values`, in table order, on a backend.
    pub fn new(network: Network, values: Vec<Vec<f32>>, mut backend: Box<dyn Backend>) -> Self {
        for (id, value) in network.param_ids().zip(values) {
            backend.write_value(id, value);
        }
        Self { network, backend }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Compiles the step that `mask` leaves and makes room for it.
    ///
    /// # Errors
    /// When the device lacks the memory.
    pub fn compile(&mut self, mask: &FreezeMask, options: &StepOptions) -> Result<Step> {
        let plan = compile(&self.network, mask, options);
        plan.verify().map_err(|fault| Error::Run(format!("the plan is unsound: {fault}")))?;
        let layout = Layout::new(&plan);
        let bound = self.backend.bind(Arc::new(plan), Arc::new(layout))?;
        Ok(Step { bound })
    }

    /// Runs one step.
    ///
    /// # Errors
    /// When the device fails, or a loss or the gradient norm is not finite.
    pub fn run(
        &mut self,
        step: &Step,
        batch: &Batch,
        state: &StepState,
        timing: Timing,
    ) -> Result<StepOutcome> {
        let times = self.backend.run(&step.bound, batch, state, timing)?;
        let plan = step.plan();
        let mut losses = Vec::with_capacity(plan.tasks.len());
        for task in &plan.tasks {
            let loss = self.backend.read(&step.bound, task.loss)[0];
            if !loss.is_finite() {
                return Err(Error::Run(format!(
                    "the loss of task {} is {loss} in step {}: a smaller --learning-rate may help",
                    task.task, state.step
                )));
            }
            losses.push(loss);
        }
        let grad_norm = plan.grad_norm().map(|buf| self.backend.read(&step.bound, buf)[0]);
        if let Some(norm) = grad_norm.filter(|norm| !norm.is_finite()) {
            return Err(Error::Run(format!(
                "the gradient norm is {norm} in step {}: a smaller --learning-rate may help",
                state.step
            )));
        }
        Ok(StepOutcome { losses, grad_norm, times })
    }

    /// The logits of a task after a run, `[B, C]`.
    pub fn logits(&self, step: &Step, task: usize) -> Vec<f32> {
        self.backend.read(&step.bound, step.plan().tasks[task].logits)
    }

    /// The encoder's last hidden state after a run of a step that trains nothing, `[T, D]`.
    pub fn last_hidden(&self, step: &Step) -> Vec<f32> {
        self.backend.read(&step.bound, step.plan().last_hidden)
    }

    /// A parameter's gradient after a run, before clipping; None where the step makes none.
    pub fn gradient(&self, step: &Step, param: ParamId) -> Option<Vec<f32>> {
        step.plan().gradient(param).map(|buf| self.backend.read(&step.bound, buf))
    }

    /// A parameter as it is now.
    pub fn value(&self, param: ParamId) -> Vec<f32> {
        self.backend.read_value(param)
    }
}

impl Step {
    /// The plan that runs.
    pub fn plan(&self) -> &Plan {
        &self.bound.plan
    }

    /// Its memory.
    pub fn layout(&self) -> &Layout {
        &self.bound.layout
    }
}
