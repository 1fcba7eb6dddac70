//! A network on a backend: plans are compiled for a freeze and run on batches. Training and measuring
//! both go through here.

use std::sync::Arc;

use crate::backend::cpu::Cpu;
use crate::backend::cuda;
use crate::backend::host::HostBackend;
use crate::backend::{Backend, Bound, KernelLaunch, PrefixRows, StepState, StepTimes, Timing};
use crate::batch::Batch;
use crate::freeze::FreezeMask;
use crate::model::{Group, Network, ParamId};
use crate::plan::accumulate::{Accumulated, accumulate};
use crate::plan::op::TensorRate;
use crate::plan::{BufId, Layout, Plan, StepOptions, compile, hidden, prefix};
use crate::tensor::DType;
use crate::{Error, Result};

/// A network's values on a backend.
pub struct Session {
    network: Network,
    backend: Box<dyn Backend>,
    compute: DType,
}

/// What computes, and in which type: sessions are opened on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Engine {
    pub device: Device,
    /// The type of activations and matrices.
    pub compute: DType,
}

/// Where steps run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// The kernels on a GPU; `graphs` replays steps as recorded graphs.
    Cuda {
        graphs: bool,
    },
    /// The kernels on the emulator; `graphs` as on a GPU.
    Emulated {
        graphs: bool,
    },
}

impl Device {
    /// Whether kernels are emulated: their times say nothing.
    pub fn is_emulated(self) -> bool {
        matches!(self, Device::Emulated { .. })
    }
}

impl Engine {
    /// The CPU, in f32.
    pub const CPU: Engine = Engine { device: Device::Cpu, compute: DType::F32 };

    /// Puts `values`, in table order, on the device.
    ///
    /// # Errors
    /// When the device is not there, has not enough memory, or fails.
    pub fn session(self, network: Network, values: Vec<Vec<f32>>) -> Result<Session> {
        Session::new(network, values, self.backend()?, self.compute)
    }

    /// The device alone, with nothing on it yet.
    ///
    /// # Errors
    /// As [`Engine::session`].
    pub fn backend(self) -> Result<Box<dyn Backend>> {
        match self.device {
            Device::Cpu => Ok(Box::new(HostBackend::new(Cpu))),
            Device::Cuda { graphs } => cuda::on_gpu(graphs),
            Device::Emulated { graphs } => cuda::on_emulator(graphs),
        }
    }
}

/// A compiled step of a session.
#[derive(Clone)]
pub struct Step {
    bound: Bound,
}

/// The parts of a compiled step over several batches.
pub struct StepParts {
    first: Step,
    /// None where a step has two batches at most.
    next: Option<Step>,
    last: Step,
}

impl StepParts {
    /// The part that runs batch `at` of `n`, which are two at least.
    pub fn of(&self, at: usize, n: usize) -> &Step {
        match at {
            0 => &self.first,
            _ if at + 1 < n => self.next.as_ref().unwrap_or(&self.last),
            _ => &self.last,
        }
    }

    /// Planned peak memory.
    pub fn memory_bytes(&self) -> usize {
        let parts = [Some(&self.first), self.next.as_ref(), Some(&self.last)];
        parts.into_iter().flatten().map(|step| step.layout().memory.total()).max().unwrap_or(0)
    }
}

/// A compiled forward pass of a prefix, or of several in one.
#[derive(Clone)]
pub struct PrefixStep {
    step: Step,
    outputs: Vec<BufId>,
}

/// A compiled forward pass that keeps the hidden states of all layers.
#[derive(Clone)]
pub struct HiddenStep {
    step: Step,
    states: Vec<BufId>,
}

const NO_PREFIX: &str =
    "nothing to cache: what trains begins with the embeddings, or nothing trains";

/// What a run of a step says at once; the rest is read by name.
#[derive(Clone, Debug)]
pub struct StepOutcome {
    /// What the batch adds to the loss of each task, in head order: the mean cross-entropy over its labelled rows, or the
    /// sum by the weights that they bring.
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
    /// Puts `values`, in table order, on a backend, matrices and activations being of type `compute`.
    ///
    /// # Errors
    /// When the device has not enough memory, or fails.
    pub fn new(
        network: Network,
        values: Vec<Vec<f32>>,
        mut backend: Box<dyn Backend>,
        compute: DType,
    ) -> Result<Self> {
        for (id, value) in network.param_ids().zip(values) {
            backend.write_value(id, network.param(id).dtype(compute), value)?;
        }
        Ok(Self { network, backend, compute })
    }

    /// The type of activations and matrices.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// What the backend is called.
    pub fn backend_name(&self) -> &'static str {
        self.backend.name()
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
        self.compile_with(mask, options, |_| TensorRate::default())
    }

    /// As [`Session::compile`], with rates of the tensors' own.
    ///
    /// # Errors
    /// As [`Session::compile`].
    pub fn compile_with(
        &mut self,
        mask: &FreezeMask,
        options: &StepOptions,
        rate: impl Fn(ParamId) -> TensorRate,
    ) -> Result<Step> {
        let mut plan = compile(&self.network, mask, options);
        plan.set_rates(rate);
        self.bind(plan)
    }

    /// As [`Session::compile_with`], the frozen prefix being read from the cache of [`Session::set_prefix`].
    ///
    /// # Errors
    /// A mask without a frozen prefix; as [`Session::compile`].
    pub fn compile_cached(
        &mut self,
        mask: &FreezeMask,
        options: &StepOptions,
        rate: impl Fn(ParamId) -> TensorRate,
    ) -> Result<Step> {
        let plan = prefix::compile_cached(&self.network, mask, options);
        let mut plan = plan.ok_or_else(|| Error::usage(NO_PREFIX))?;
        plan.set_rates(rate);
        self.bind(plan)
    }

    /// A compiled step, to be spread over at most `n_batches` batches.
    ///
    /// # Errors
    /// As [`Session::compile`].
    pub fn compile_parts(&mut self, step: &Step, n_batches: usize) -> Result<StepParts> {
        let Accumulated { first, next, last } = accumulate(step.plan());
        Ok(StepParts {
            first: self.bind(first)?,
            next: if n_batches > 2 { Some(self.bind(next)?) } else { None },
            last: self.bind(last)?,
        })
    }

    /// The forward pass of the whole network, of which what lies below `above` is read from the cache of
    /// [`Session::set_prefix`].
    ///
    /// # Errors
    /// As [`Session::compile_cached`].
    pub fn compile_cached_forward(&mut self, above: Group, options: &StepOptions) -> Result<Step> {
        let plan = prefix::compile_cached_forward(&self.network, above, options);
        self.bind(plan.ok_or_else(|| Error::usage(NO_PREFIX))?)
    }

    /// The forward pass up to where `above` begins, for [`Session::prefix_rows`].
    ///
    /// # Errors
    /// As [`Session::compile_cached`].
    pub fn compile_prefix(&mut self, above: Group, options: &StepOptions) -> Result<PrefixStep> {
        self.compile_prefixes(&[above], options)
    }

    /// One forward pass for several prefixes, for [`Session::all_prefix_rows`].
    ///
    /// # Errors
    /// As [`Session::compile_cached`].
    pub fn compile_prefixes(
        &mut self,
        above: &[Group],
        options: &StepOptions,
    ) -> Result<PrefixStep> {
        let plan = prefix::compile_prefixes(&self.network, above, options);
        let (plan, outputs) = plan.ok_or_else(|| Error::usage(NO_PREFIX))?;
        Ok(PrefixStep { step: self.bind(plan)?, outputs })
    }

    /// What a frozen prefix gives for a batch, one row a token or a sequence.
    ///
    /// # Errors
    /// When the device fails.
    pub fn prefix_rows(&mut self, prefix: &PrefixStep, batch: &Batch) -> Result<Vec<f32>> {
        self.backend.run(&prefix.step.bound, batch, &StepState::FORWARD, Timing::Off)?;
        self.backend.read(&prefix.step.bound, prefix.outputs[0])
    }

    /// As [`Session::prefix_rows`], of every prefix that was compiled, in their order.
    ///
    /// # Errors
    /// When the device fails.
    pub fn all_prefix_rows(&mut self, all: &PrefixStep, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        self.backend.run(&all.step.bound, batch, &StepState::FORWARD, Timing::Off)?;
        all.outputs.iter().map(|output| self.backend.read(&all.step.bound, *output)).collect()
    }

    /// The forward pass of the encoder, for [`Session::hidden_states`].
    ///
    /// # Errors
    /// When the device lacks the memory.
    pub fn compile_hidden(&mut self, options: &StepOptions) -> Result<HiddenStep> {
        let (plan, states) = hidden::compile_hidden(&self.network, options);
        Ok(HiddenStep { step: self.bind(plan)?, states })
    }

    /// The hidden states of a batch's tokens, `[T, D]` each: behind the embeddings, then behind every layer.
    ///
    /// # Errors
    /// When the device fails.
    pub fn hidden_states(&mut self, hidden: &HiddenStep, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        self.backend.run(&hidden.step.bound, batch, &StepState::FORWARD, Timing::Off)?;
        hidden.states.iter().map(|state| self.backend.read(&hidden.step.bound, *state)).collect()
    }

    /// What cached steps read from now on, in batches of at most `capacity_rows` rows.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn set_prefix(&mut self, prefix: PrefixRows, capacity_rows: usize) -> Result<()> {
        self.backend.set_prefix(prefix, capacity_rows)
    }

    fn bind(&mut self, plan: Plan) -> Result<Step> {
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
            let loss = self.backend.read(&step.bound, task.loss)?[0];
            if !loss.is_finite() {
                return Err(Error::Run(format!(
                    "the loss of task {} is {loss} in step {}: a smaller --learning-rate may help",
                    task.task, state.step
                )));
            }
            losses.push(loss);
        }
        let grad_norm = match plan.grad_norm() {
            Some(buf) => Some(self.backend.read(&step.bound, buf)?[0]),
            None => None,
        };
        if let Some(norm) = grad_norm.filter(|norm| !norm.is_finite()) {
            return Err(Error::Run(format!(
                "the gradient norm is {norm} in step {}: a smaller --learning-rate may help",
                state.step
            )));
        }
        Ok(StepOutcome { losses, grad_norm, times })
    }

    /// The launches of each op of a step, in the order of its ops; empty where ops are no kernels.
    pub fn launches(&self, step: &Step) -> &[Vec<KernelLaunch>] {
        self.backend.launches(&step.bound)
    }

    /// Bytes in use on the device as its driver counts them; None where the device is this process.
    ///
    /// # Errors
    /// When the device fails; so for all that follows.
    pub fn used_bytes(&self) -> Result<Option<usize>> {
        self.backend.used_bytes()
    }

    /// Bytes that are free on the device; None where the device is this process.
    ///
    /// # Errors
    /// As [`Session::used_bytes`].
    pub fn free_bytes(&self) -> Result<Option<usize>> {
        self.backend.free_bytes()
    }

    /// Tells a profiler that waits for it (`nsys profile --capture-range=cudaProfilerApi`) to begin with its
    /// records, or to stop.
    ///
    /// # Errors
    /// As [`Session::used_bytes`].
    pub fn capture(&mut self, on: bool) -> Result<()> {
        self.backend.capture(on)
    }

    /// The logits of a task after a run, `[B, C]`.
    ///
    /// # Errors
    /// As [`Session::used_bytes`].
    pub fn logits(&mut self, step: &Step, task: usize) -> Result<Vec<f32>> {
        self.backend.read(&step.bound, step.plan().tasks[task].logits)
    }

    /// The encoder's last hidden state after a run of a step that trains nothing, `[T, D]`.
    ///
    /// # Errors
    /// As [`Session::used_bytes`].
    pub fn last_hidden(&mut self, step: &Step) -> Result<Vec<f32>> {
        self.backend.read(&step.bound, step.plan().last_hidden)
    }

    /// The pooled vectors after a run of a step that trains nothing, `[B, D]`.
    ///
    /// # Errors
    /// As [`Session::used_bytes`].
    pub fn pooled(&mut self, step: &Step) -> Result<Vec<f32>> {
        self.backend.read(&step.bound, step.plan().pooled)
    }

    /// A parameter's gradient after a run, before clipping; None where the step makes none.
    ///
    /// # Errors
    /// As [`Session::used_bytes`].
    pub fn gradient(&mut self, step: &Step, param: ParamId) -> Result<Option<Vec<f32>>> {
        step.plan().gradient(param).map(|buf| self.backend.read(&step.bound, buf)).transpose()
    }

    /// A parameter as it is now.
    ///
    /// # Errors
    /// As [`Session::used_bytes`].
    pub fn value(&mut self, param: ParamId) -> Result<Vec<f32>> {
        self.backend.read_value(param)
    }

    /// AdamW's moments of a parameter; None where no compiled step trains it.
    ///
    /// # Errors
    /// As [`Session::used_bytes`].
    pub fn moments(&mut self, param: ParamId) -> Result<Option<[Vec<f32>; 2]>> {
        self.backend.read_moments(param)
    }

    /// Sets AdamW's moments of a parameter that a compiled step trains.
    ///
    /// # Errors
    /// As [`Session::used_bytes`].
    pub fn set_moments(&mut self, param: ParamId, moments: [Vec<f32>; 2]) -> Result<()> {
        self.backend.write_moments(param, moments)
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
