//! Backends run plans. They know buffers and ops; no model, mask, file or scenario.
//!
//! [`host`] walks a plan over host memory and leaves the arithmetic to a table of functions:
//! [`mod@reference`] (plain loops in f64, the meaning of each op) or [`cpu`] (f32, fast). [`cuda`] launches
//! kernels on a GPU or on the emulator; [`shadow`] holds a step of it against the reference, op by op.

pub mod cpu;
pub mod cuda;
pub mod dropout;
pub mod host;
pub mod reference;
pub mod shadow;

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use crate::Result;
use crate::batch::Batch;
use crate::model::ParamId;
use crate::plan::{BufId, Layout, Plan};
use crate::tensor::DType;

/// What changes from step to step without changing the plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepState {
    /// Number of this optimizer step, from 1 (AdamW's bias correction).
    pub step: u64,
    pub learning_rate: f32,
    pub head_learning_rate: f32,
    pub weight_decay: f32,
    /// Key of the dropout masks.
    pub seed: u64,
}

impl StepState {
    /// That of a forward pass, in which nothing is drawn and nothing learned.
    pub const FORWARD: StepState = StepState {
        step: 1,
        learning_rate: 0.0,
        head_learning_rate: 0.0,
        weight_decay: 0.0,
        seed: 0,
    };
}

/// AdamW's constants, the defaults of `torch.optim.AdamW`.
pub mod adamw {
    pub const BETA1: f64 = 0.9;
    pub const BETA2: f64 = 0.999;
    pub const EPS: f64 = 1e-8;
}

/// What a run should time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    Off,
    /// Forward, backward and optimizer.
    Phases,
    /// Every op.
    Ops,
}

/// Times of one run, and with [`Timing::Ops`] what its launches did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Forward, backward, optimizer; zero where timing is off.
    pub phases: [Duration; 3],
    /// By op of the plan, empty unless [`Timing::Ops`].
    pub ops: Vec<Duration>,
    /// By launch, in the order of [`Backend::launches`], empty unless [`Timing::Ops`].
    pub launches: Vec<Duration>,
    /// By launch, on the emulator alone.
    pub counts: Vec<LaunchCounts>,
}

/// How an op starts a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLaunch {
    /// The kernel's symbol.
    pub kernel: String,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
}

/// What a launch did on the emulator. The fields are those of `EmulatorCounts` in
/// `kernels/emulator/abi.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LaunchCounts {
    /// Switches between threads.
    pub switches: u64,
    /// Barriers of a block.
    pub barriers: u64,
    /// Shuffles, votes and matrix loads of a warp.
    pub collectives: u64,
    /// Asynchronous copies of 16 bytes.
    pub async_copies: u64,
    /// Tensor-core products of a warp.
    pub mma: u64,
    /// Sectors of 32 bytes that accesses to global memory touch.
    pub global_sectors: u64,
    /// Bytes that these accesses ask for.
    pub global_bytes: u64,
    /// Further passes that bank conflicts cost in shared memory.
    pub shared_conflicts: u64,
}

impl AddAssign for LaunchCounts {
    fn add_assign(&mut self, other: Self) {
        self.switches += other.switches;
        self.barriers += other.barriers;
        self.collectives += other.collectives;
        self.async_copies += other.async_copies;
        self.mma += other.mma;
        self.global_sectors += other.global_sectors;
        self.global_bytes += other.global_bytes;
        self.shared_conflicts += other.shared_conflicts;
    }
}

/// The cached output of a frozen prefix, one row a token or a sequence, in f32.
#[derive(Clone)]
pub struct PrefixRows {
    pub cols: usize,
    /// `[rows, cols]`.
    pub values: Arc<dyn AsRef<[f32]> + Send + Sync>,
    /// Whether a device keeps them in its own memory; else each batch brings its rows.
    pub on_device: bool,
}

/// A plan that a backend has made room for.
#[derive(Clone)]
pub struct Bound {
    pub plan: Arc<Plan>,
    pub layout: Arc<Layout>,
    /// The backend's own number for it.
    pub(crate) index: usize,
}

/// Memory and arithmetic of one device.
///
/// Parameters, gradients and moments belong to the backend and are shared by all plans that it has
/// bound, so that a schedule may change plans between steps; the arena serves one step at a time.
pub trait Backend {
    /// `cpu`, ...
    fn name(&self) -> &'static str;

    /// Makes room for a plan: moments that it needs and that do not exist start at zero.
    ///
    /// # Errors
    /// When the device has not enough memory.
    fn bind(&mut self, plan: Arc<Plan>, layout: Arc<Layout>) -> Result<Bound>;

    /// Sets a parameter, which ops read as `dtype`.
    ///
    /// # Errors
    /// When the device has not enough memory, or fails.
    fn write_value(&mut self, param: ParamId, dtype: DType, values: Vec<f32>) -> Result<()>;

    /// The parameter as it is now, as exactly as the backend knows it.
    ///
    /// # Errors
    /// When the device fails.
    fn read_value(&mut self, param: ParamId) -> Result<Vec<f32>>;

    /// What [`Op::PrefixLoad`](crate::plan::Op::PrefixLoad) reads from now on, in steps of at most `capacity_rows` rows.
    ///
    /// # Errors
    /// When the device has not enough memory.
    fn set_prefix(&mut self, prefix: PrefixRows, capacity_rows: usize) -> Result<()>;

    /// AdamW's moments of a parameter; None where no bound plan trains it.
    ///
    /// # Errors
    /// When the device fails.
    fn read_moments(&mut self, param: ParamId) -> Result<Option<[Vec<f32>; 2]>>;

    /// Sets AdamW's moments of a parameter that a bound plan trains.
    ///
    /// # Errors
    /// When the device fails.
    fn write_moments(&mut self, param: ParamId, moments: [Vec<f32>; 2]) -> Result<()>;

    /// Runs one step of a bound plan on a batch that its capacity serves.
    ///
    /// # Errors
    /// When the device fails.
    fn run(
        &mut self,
        bound: &Bound,
        batch: &Batch,
        state: &StepState,
        timing: Timing,
    ) -> Result<StepTimes>;

    /// The launches of each op of a bound plan, in the order of its ops; empty where ops are no kernels.
    fn launches(&self, bound: &Bound) -> &[Vec<KernelLaunch>];

    /// Bytes in use on the device as its driver counts them; None where the device is this process.
    ///
    /// # Errors
    /// When the device fails.
    fn used_bytes(&self) -> Result<Option<usize>>;

    /// Bytes that are free on the device; None where the device is this process.
    ///
    /// # Errors
    /// When the device fails.
    fn free_bytes(&self) -> Result<Option<usize>>;

    /// Tells a profiler that waits for it to begin with its records (`on`), or to stop.
    ///
    /// # Errors
    /// When the device fails.
    fn capture(&mut self, on: bool) -> Result<()>;

    /// The live elements of a buffer after a run of this plan: a result, a gradient, or an activation
    /// that nothing has overwritten.
    ///
    /// # Errors
    /// When the device fails.
    fn read(&mut self, bound: &Bound, buf: BufId) -> Result<Vec<f32>>;
}
