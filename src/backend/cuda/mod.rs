//! The CUDA backend: hand-written kernels on a GPU, or on the emulator, through the same launch code.
//!
//! Memory is allocated when a plan is bound and never within a step. A step writes its inputs in one
//! copy and starts its kernels; from the second run of a plan on they are replayed as recorded graphs,
//! one a phase.

mod describe;
mod device;
mod driver;
pub mod embedded;
#[cfg(feature = "emulator")]
pub mod emulated;
mod inputs;
mod launch;
mod memory;
pub mod occupancy;
mod open;
mod tiles;

use std::sync::Arc;
use std::time::Duration;

pub use self::describe::{
    describe_gpu, describe_kernels, gpu_and_driver, gpu_capability, gpu_uuid,
};
pub use self::device::{Arg, Device, Graph, Launch, Mark};
pub use self::driver::CudaDevice;
use self::launch::{Context, Needs, Places, Stage};
use self::memory::{Addresses, Block, Memory};
#[cfg(feature = "emulator")]
pub use self::open::emulator;
pub use self::open::{HAS_EMULATOR, check_gpu, gpu, no_emulator, on_emulator, on_gpu};
use super::host::refuse_if_short;
use super::{Backend, Bound, KernelLaunch, PrefixRows, StepState, StepTimes, Timing};
use crate::Result;
use crate::batch::Batch;
use crate::model::ParamId;
use crate::plan::{BufId, Layout, Phase, Plan, Role};
use crate::tensor::DType;

/// What the backend keeps for a plan that it has bound.
struct BoundPlan {
    needs: Needs,
    places: Places,
    /// One a phase, once recorded.
    graphs: Option<Vec<Graph>>,
    has_run: bool,
}

/// A backend over a device.
pub struct CudaBackend<D: Device> {
    device: D,
    name: &'static str,
    memory: Memory,
    scratch: Option<Block>,
    counters: Option<Block>,
    bound: Vec<BoundPlan>,
    use_graphs: bool,
    /// The cache of the frozen prefix where it stays on the host.
    staged: Option<PrefixRows>,
    /// Tokens and sequences of the last run, whose counts say how much of a buffer means anything.
    live: (usize, usize),
}

impl<D: Device> CudaBackend<D> {
    /// A backend without parameters, called `name`; `use_graphs` replays steps as recorded graphs where
    /// the device can.
    pub fn new(device: D, name: &'static str, use_graphs: bool) -> Self {
        let use_graphs = use_graphs && device.has_graphs();
        CudaBackend {
            device,
            name,
            memory: Memory::default(),
            scratch: None,
            counters: None,
            bound: Vec::new(),
            use_graphs,
            staged: None,
            live: (0, 0),
        }
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Gives back all memory, and forgets parameters and bound plans: as new, on a device that stays open.
    /// `use_graphs` is as in [`CudaBackend::new`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn clear(&mut self, use_graphs: bool) -> Result<()> {
        self.forget_recordings()?;
        self.device.synchronize()?;
        let blocks = [self.scratch.take(), self.counters.take()].into_iter().flatten();
        for address in blocks.map(|block| block.address).chain(self.memory.take_addresses()) {
            self.device.release(address);
        }
        for BoundPlan { places, .. } in self.bound.drain(..) {
            for address in places.tables.into_iter().chain([places.inputs]) {
                self.device.release(address);
            }
        }
        self.use_graphs = use_graphs && self.device.has_graphs();
        self.staged = None;
        self.live = (0, 0);
        Ok(())
    }

    /// Copies batch and state to the device.
    pub(crate) fn begin(&mut self, bound: &Bound, batch: &Batch, state: &StepState) -> Result<()> {
        assert!(bound.plan.capacity.serves(batch), "the batch is larger than the plan's capacity");
        self.live = (batch.n_tokens(), batch.n_sequences());
        let this = &self.bound[bound.index];
        let block = match &self.staged {
            Some(prefix) if !batch.prefix_rows.is_empty() => {
                let (values, place) = ((*prefix.values).as_ref(), self.memory.prefix);
                let row = |&row: &i32| &values[row as usize * prefix.cols..][..prefix.cols];
                let rows: Vec<f32> = batch.prefix_rows.iter().flat_map(row).copied().collect();
                let place = place.expect("room for a batch's rows was made with the cache");
                self.device.upload(bytemuck::cast_slice(&rows), place.address)?;
                // There they lie in the batch's own order.
                let prefix_rows = (0..batch.prefix_rows.len() as i32).collect();
                this.needs.inputs.fill(&Batch { prefix_rows, ..batch.clone() }, state)
            }
            _ => this.needs.inputs.fill(batch, state),
        };
        self.device.upload(&block, this.places.inputs)
    }

    /// Starts the kernels of the ops `ops`.
    pub(crate) fn perform(
        &mut self,
        bound: &Bound,
        ops: impl Iterator<Item = usize>,
    ) -> Result<()> {
        self.perform_marked(bound, ops, None)
    }

    /// As [`CudaBackend::perform`], with a mark after each launch.
    fn perform_marked(
        &mut self,
        bound: &Bound,
        ops: impl Iterator<Item = usize>,
        marks: Option<&mut Vec<Mark>>,
    ) -> Result<()> {
        let (plan, layout) = (&bound.plan, &bound.layout);
        let addresses = Addresses { memory: &self.memory, plan, layout };
        let this = &mut self.bound[bound.index];
        let n_processors = self.device.n_processors();
        let stage = Stage::Performance { device: &mut self.device, places: &this.places, marks };
        let mut context = Context::new(plan, &addresses, &mut this.needs, stage, n_processors);
        for op in ops {
            context.perform(op)?;
        }
        Ok(())
    }

    /// Fills a buffer with NaN, so that what an op leaves out can be seen.
    pub(crate) fn poison(&mut self, bound: &Bound, buf: BufId) -> Result<()> {
        let (plan, layout) = (&bound.plan, &bound.layout);
        let address = Addresses { memory: &self.memory, plan, layout }.of(buf);
        let buffer = plan.buffer(buf);
        let n = buffer.n_elements(self.live.0, self.live.1);
        self.device.fill(address, 0xFF, n * buffer.dtype.size_bytes())
    }

    /// Does something under a name that profilers show.
    fn within<R>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> R) -> R {
        let shows = self.device.shows_ranges();
        if shows {
            self.device.begin_range(name);
        }
        let result = f(self);
        if shows {
            self.device.end_range();
        }
        result
    }

    fn run_plainly(&mut self, bound: &Bound, timing: Timing) -> Result<StepTimes> {
        let mut times = StepTimes::default();
        let mut marks = Vec::new();
        if timing != Timing::Off {
            self.device.forget_marks();
            marks.push(self.device.mark()?);
        }
        if timing == Timing::Ops {
            self.device.begin_counting();
        }
        let performed = self.perform_phases(bound, timing, &mut marks);
        if timing == Timing::Ops {
            times.counts = self.device.end_counting();
        }
        performed?;
        match timing {
            Timing::Off => {}
            Timing::Phases => {
                let elapsed = self.elapsed(&marks)?;
                for (op, elapsed) in bound.plan.ops.iter().zip(elapsed) {
                    times.phases[op.phase() as usize] += elapsed;
                }
            }
            Timing::Ops => {
                times.launches = self.elapsed(&marks)?;
                let mut rest = times.launches.iter();
                for (op, launches) in bound.plan.ops.iter().zip(self.launches(bound)) {
                    let elapsed = rest.by_ref().take(launches.len()).sum();
                    times.ops.push(elapsed);
                    times.phases[op.phase() as usize] += elapsed;
                }
            }
        }
        Ok(times)
    }

    /// Starts all ops, phase by phase as the plan lists them, and marks their ends: of every op for the times of
    /// phases, of every launch for those of ops.
    fn perform_phases(
        &mut self,
        bound: &Bound,
        timing: Timing,
        marks: &mut Vec<Mark>,
    ) -> Result<()> {
        let plan = bound.plan.clone();
        let mut begin = 0;
        for ops in plan.ops.chunk_by(|a, b| a.phase() == b.phase()) {
            let range = begin..begin + ops.len();
            begin = range.end;
            self.within(ops[0].phase().name(), |this| match timing {
                Timing::Off => this.perform(bound, range),
                Timing::Phases => range.into_iter().try_for_each(|op| {
                    this.perform(bound, op..op + 1)?;
                    marks.push(this.device.mark()?);
                    Ok(())
                }),
                Timing::Ops => this.perform_marked(bound, range, Some(marks)),
            })?;
        }
        Ok(())
    }

    /// The times between marks, once all of them are reached.
    fn elapsed(&mut self, marks: &[Mark]) -> Result<Vec<Duration>> {
        self.device.synchronize()?;
        marks.windows(2).map(|ends| self.device.elapsed(ends[0], ends[1])).collect()
    }

    fn record(&mut self, bound: &Bound) -> Result<Vec<Graph>> {
        let plan = bound.plan.clone();
        let mut graphs = Vec::with_capacity(Phase::ALL.len());
        for phase in Phase::ALL {
            self.device.begin_recording()?;
            let ops = (0..plan.ops.len()).filter(|&op| plan.ops[op].phase() == phase);
            let performed = self.perform(bound, ops);
            graphs.push(self.device.end_recording()?);
            performed?;
        }
        Ok(graphs)
    }

    fn replay(&mut self, bound: &Bound, timing: Timing) -> Result<StepTimes> {
        let graphs = match self.bound[bound.index].graphs.take() {
            Some(graphs) => graphs,
            None => self.record(bound)?,
        };
        self.device.forget_marks();
        let mut marks = Vec::with_capacity(graphs.len() + 1);
        for (graph, phase) in graphs.iter().zip(Phase::ALL) {
            if timing != Timing::Off {
                marks.push(self.device.mark()?);
            }
            self.within(phase.name(), |this| this.device.replay(*graph))?;
        }
        self.bound[bound.index].graphs = Some(graphs);
        let mut times = StepTimes::default();
        if timing != Timing::Off {
            marks.push(self.device.mark()?);
            for (phase, elapsed) in times.phases.iter_mut().zip(self.elapsed(&marks)?) {
                *phase = elapsed;
            }
        }
        Ok(times)
    }

    /// Memory for what the plan's launches asked for, and their tables.
    fn settle(&mut self, needs: &Needs) -> Result<Places> {
        let device = &mut self.device;
        let mut has_moved = grow(device, &mut self.scratch, needs.scratch_bytes, None)?;
        has_moved |= grow(device, &mut self.counters, needs.n_counters * 4, Some(0))?;
        let inputs = Block::new(device, needs.inputs.n_bytes())?.address;
        let mut tables = Vec::with_capacity(needs.tables.len());
        for (_, words) in &needs.tables {
            let block = Block::new(device, size_of_val(words.as_slice()))?;
            device.upload(bytemuck::cast_slice(words), block.address)?;
            tables.push(block.address);
        }
        let address = |block: &Option<Block>| block.map_or(0, |block| block.address);
        let (scratch, counters) = (address(&self.scratch), address(&self.counters));
        if has_moved {
            for earlier in &mut self.bound {
                (earlier.places.scratch, earlier.places.counters) = (scratch, counters);
            }
            self.forget_recordings()?;
        }
        Ok(Places { inputs, scratch, counters, tables })
    }

    /// Recorded launches hold addresses: where memory moved, they are recorded anew.
    fn forget_recordings(&mut self) -> Result<()> {
        for bound in &mut self.bound {
            for graph in bound.graphs.take().into_iter().flatten() {
                self.device.forget_graph(graph)?;
            }
        }
        Ok(())
    }
}

/// Makes sure that a block holds `n_bytes`; says whether it moved.
fn grow(
    device: &mut dyn Device,
    slot: &mut Option<Block>,
    n_bytes: usize,
    fill: Option<u8>,
) -> Result<bool> {
    if n_bytes == 0 || slot.is_some_and(|block| block.n_bytes >= n_bytes) {
        return Ok(false);
    }
    if let Some(block) = slot.take() {
        device.synchronize()?;
        device.release(block.address);
    }
    let block = Block::new(device, n_bytes)?;
    if let Some(byte) = fill {
        device.fill(block.address, byte, n_bytes)?;
    }
    *slot = Some(block);
    Ok(true)
}

impl<D: Device> Backend for CudaBackend<D> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn bind(&mut self, plan: Arc<Plan>, layout: Arc<Layout>) -> Result<Bound> {
        if let Some(free) = self.device.free_bytes()? {
            let missing = self.memory.missing_bytes(&plan, &layout);
            refuse_if_short(missing, free, plan.capacity, &layout)?;
        }
        let has_moved = self.memory.make_room(&mut self.device, &plan, &layout)?;
        if has_moved {
            self.forget_recordings()?;
        }
        let mut needs = Needs::default();
        let addresses = Addresses { memory: &self.memory, plan: &plan, layout: &layout };
        let n_processors = self.device.n_processors();
        let mut rehearsal =
            Context::new(&plan, &addresses, &mut needs, Stage::Rehearsal, n_processors);
        for op in 0..plan.ops.len() {
            rehearsal.perform(op)?;
        }
        let places = self.settle(&needs)?;
        self.bound.push(BoundPlan { needs, places, graphs: None, has_run: false });
        Ok(Bound { plan, layout, index: self.bound.len() - 1 })
    }

    fn write_value(&mut self, param: ParamId, dtype: DType, values: Vec<f32>) -> Result<()> {
        self.memory.write_value(&mut self.device, param, dtype, values)
    }

    fn read_value(&mut self, param: ParamId) -> Result<Vec<f32>> {
        self.memory.read_value(&mut self.device, param)
    }

    fn set_prefix(&mut self, prefix: PrefixRows, capacity_rows: usize) -> Result<()> {
        let values = (*prefix.values).as_ref();
        let n_values = if prefix.on_device { values.len() } else { capacity_rows * prefix.cols };
        let n_bytes = n_values * size_of::<f32>();
        if grow(&mut self.device, &mut self.memory.prefix, n_bytes, None)? {
            self.forget_recordings()?;
        }
        if let (true, Some(block)) = (prefix.on_device, self.memory.prefix) {
            self.device.upload(bytemuck::cast_slice(values), block.address)?;
        }
        self.staged = (!prefix.on_device).then_some(prefix);
        Ok(())
    }

    fn read_moments(&mut self, param: ParamId) -> Result<Option<[Vec<f32>; 2]>> {
        self.memory.read_moments(&mut self.device, param)
    }

    fn write_moments(&mut self, param: ParamId, moments: [Vec<f32>; 2]) -> Result<()> {
        self.memory.write_moments(&mut self.device, param, moments)
    }

    fn run(
        &mut self,
        bound: &Bound,
        batch: &Batch,
        state: &StepState,
        timing: Timing,
    ) -> Result<StepTimes> {
        self.begin(bound, batch, state)?;
        // The first run loads kernels, which a recording must not.
        let has_run = std::mem::replace(&mut self.bound[bound.index].has_run, true);
        self.within("step", |this| {
            if this.use_graphs && has_run && timing != Timing::Ops {
                this.replay(bound, timing)
            } else {
                this.run_plainly(bound, timing)
            }
        })
    }

    fn used_bytes(&self) -> Result<Option<usize>> {
        self.device.used_bytes().map(Some)
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.device.free_bytes()
    }

    fn capture(&mut self, on: bool) -> Result<()> {
        self.device.synchronize()?;
        self.device.capture(on)
    }

    fn launches(&self, bound: &Bound) -> &[Vec<KernelLaunch>] {
        &self.bound[bound.index].needs.launches
    }

    fn read(&mut self, bound: &Bound, buf: BufId) -> Result<Vec<f32>> {
        let (plan, layout) = (&bound.plan, &bound.layout);
        let buffer = plan.buffer(buf);
        let is_in_arena = matches!(buffer.role, Role::Transient | Role::Result);
        if is_in_arena && layout.place(buf).is_none() {
            return Ok(Vec::new());
        }
        let address = Addresses { memory: &self.memory, plan, layout }.of(buf);
        let n = buffer.n_elements(self.live.0, self.live.1);
        memory::read(&mut self.device, address, buffer.dtype, n)
    }
}
