//! The emulator as a device: the same kernels, compiled for the CPU, one fibre a CUDA thread.

#![allow(unsafe_code)]

use std::alloc::{Layout as HostLayout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::time::{Duration, Instant};

use super::device::{Arg, Device, Graph, Launch, Mark};
use crate::backend::LaunchCounts;
use crate::{Error, Result};

/// In which order the emulator runs what may run in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Threads in turn.
    Fifo,
    /// The last that became ready first.
    Lifo,
    /// Random priorities of warps, drawn again rarely: one warp runs as far ahead as barriers let it.
    RandomWarps { seed: u64 },
}

/// How the emulator runs kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub order: Order,
    /// Whether asynchronous copies happen as late as is legal, else as early.
    pub deferred: bool,
    /// Whether products on tensor cores cut off, as theirs do, the bits that their sums have no room for; else they
    /// are rounded.
    pub truncated: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule { order: Order::Fifo, deferred: false, truncated: false }
    }
}

#[repr(C)]
struct Options {
    policy: c_int,
    deferred_async: c_int,
    seed: u64,
    os_threads: c_int,
    check_blocks: c_int,
    truncate_mma: c_int,
}

unsafe extern "C" {
    fn frostline_emulator_launch(
        kernel: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: usize,
        params: *mut *mut c_void,
        options: *const Options,
        counts: *mut LaunchCounts,
    ) -> *const c_char;
}

/// Blocks of this many bytes and above start at such a multiple, as the arena's places assume.
const ALIGNMENT_BYTES: usize = 256;

/// Multiprocessors that the emulator says it has: few, so that last-arriver reductions meet.
const N_PROCESSORS: u32 = 4;

/// What a graph holds: arguments by value, as a GPU's graph does.
#[derive(Debug)]
enum Recorded {
    Launch { kernel: String, grid: [u32; 3], block: u32, shared_bytes: usize, args: Vec<Arg> },
    Fill { to: u64, byte: u8, n_bytes: usize },
}

/// A fault that the emulator makes on purpose, for tests of what should find it.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kernel after whose launches it is made.
    pub kernel: String,
    /// Launches of it that stay right before.
    pub n_right: usize,
    /// Number of the argument, from 0 and without the step's state, that is the address of a matrix.
    pub argument: usize,
    /// Number of the element of that matrix that is spoiled.
    pub element: usize,
    /// What its bytes are set to.
    pub bytes: Vec<u8>,
}

/// A device in this process's memory.
#[derive(Debug, Default)]
pub struct Emulator {
    schedule: Schedule,
    /// Multiprocessors that it says it has; None for [`N_PROCESSORS`].
    n_processors: Option<u32>,
    fault: Option<Fault>,
    blocks: HashMap<u64, HostLayout>,
    marks: Vec<Instant>,
    /// What was started since recording began, while it lasts.
    recording: Option<Vec<Recorded>>,
    /// None where one was forgotten.
    graphs: Vec<Option<Vec<Recorded>>>,
    /// Of each launch, while they are counted: that takes several times as long.
    counts: Option<Vec<LaunchCounts>>,
    checks_races: bool,
    /// Names of the ranges since the last capture began, indented by what they are in.
    ranges: Vec<String>,
    range_depth: usize,
    is_captured: bool,
}

impl Emulator {
    /// An emulator that runs kernels in the order of `schedule`.
    pub fn new(schedule: Schedule) -> Self {
        let mut emulator = Emulator::default();
        emulator.schedule = schedule;
        emulator
    }

    /// Makes it an error when two threads, of one block or of two, access the same bytes with nothing
    /// between them that orders the two and one of them writes. Each launch takes several times as long.
    pub fn checking_races(mut self) -> Self {
        self.checks_races = true;
        self
    }

    /// Says that it has so many multiprocessors, which decide how kernels cut their work.
    pub fn with_processors(mut self, n: u32) -> Self {
        self.n_processors = Some(n);
        self
    }

    /// Makes a fault after each launch of a kernel; None for no more faults.
    pub fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// Makes the fault of a kernel that has just run.
    fn spoil(&mut self, launch: &Launch) -> Result<()> {
        let Some(mut planned) = self.fault.take_if(|fault| fault.kernel == launch.kernel) else {
            return Ok(());
        };
        if planned.n_right > 0 {
            planned.n_right -= 1;
            self.fault = Some(planned);
            return Ok(());
        }
        // The state's address goes before all other arguments.
        let argument = launch.args.get(planned.argument + 1);
        let Some(Arg::Address(address)) = argument else {
            return Err(fault(&format!("{planned:?}: {argument:?} is no address")));
        };
        let to = address + (planned.element * planned.bytes.len()) as u64;
        self.upload(&planned.bytes, to)?;
        self.fault = Some(planned);
        Ok(())
    }

    /// Graphs that are held.
    pub fn n_graphs(&self) -> usize {
        self.graphs.iter().flatten().count()
    }

    /// The ranges that a profiler would have seen, each indented by two blanks for every range around it.
    pub fn ranges(&self) -> &[String] {
        &self.ranges
    }

    /// A GPU refuses the same.
    fn refuse_while_recording(&self, what: &str) -> Result<()> {
        match self.recording {
            Some(_) => Err(fault(&format!("{what} cannot be part of a recording"))),
            None => Ok(()),
        }
    }

    /// Panics if `n_bytes` at `address` are not within one block: every copy is of our own buffers.
    fn check(&self, address: u64, n_bytes: usize) {
        let holds = |(start, layout): (&u64, &HostLayout)| {
            *start <= address && address + n_bytes as u64 <= start + layout.size() as u64
        };
        assert!(self.blocks.iter().any(holds), "{n_bytes} bytes at {address:#x} are not allocated");
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for (address, layout) in self.blocks.drain() {
            // SAFETY: the block came from `alloc` with this layout and was not released.
            unsafe { dealloc(address as *mut u8, layout) };
        }
    }
}

impl Device for Emulator {
    fn name(&self) -> String {
        "emulator".into()
    }

    fn n_processors(&self) -> u32 {
        self.n_processors.unwrap_or(N_PROCESSORS)
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(crate::backend::host::available_bytes())
    }

    fn used_bytes(&self) -> Result<usize> {
        Ok(self.blocks.values().map(HostLayout::size).sum())
    }

    fn allocate(&mut self, n_bytes: usize) -> Result<u64> {
        let layout = HostLayout::from_size_align(n_bytes.max(1), ALIGNMENT_BYTES)
            .map_err(|e| Error::Run(format!("a block of {n_bytes} bytes: {e}")))?;
        // SAFETY: the layout's size is not zero.
        let block = unsafe { alloc(layout) };
        if block.is_null() {
            return Err(Error::Run(format!("no memory for a block of {n_bytes} bytes")));
        }
        // SAFETY: the block has just been allocated with this size.
        unsafe { block.write_bytes(0xFF, layout.size()) };
        self.blocks.insert(block as u64, layout);
        Ok(block as u64)
    }

    fn release(&mut self, address: u64) {
        if let Some(layout) = self.blocks.remove(&address) {
            // SAFETY: the block came from `alloc` with this layout, and is forgotten here.
            unsafe { dealloc(address as *mut u8, layout) };
        }
    }

    fn upload(&mut self, bytes: &[u8], to: u64) -> Result<()> {
        self.refuse_while_recording("a copy from the host")?;
        self.check(to, bytes.len());
        // SAFETY: the bytes lie within one block, which no reference points into.
        unsafe { (to as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.refuse_while_recording("a copy to the host")?;
        self.check(from, bytes.len());
        // SAFETY: the bytes lie within one block and are initialised: blocks start filled.
        unsafe { (from as *const u8).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn fill(&mut self, to: u64, byte: u8, n_bytes: usize) -> Result<()> {
        self.check(to, n_bytes);
        if let Some(recording) = &mut self.recording {
            recording.push(Recorded::Fill { to, byte, n_bytes });
            return Ok(());
        }
        // SAFETY: the bytes lie within one block, which no reference points into.
        unsafe { (to as *mut u8).write_bytes(byte, n_bytes) };
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        if let Some(recording) = &mut self.recording {
            let Launch { kernel, grid, block, shared_bytes, args } = *launch;
            let (kernel, args) = (kernel.to_owned(), args.to_vec());
            recording.push(Recorded::Launch { kernel, grid, block, shared_bytes, args });
            return Ok(());
        }
        let fault = |problem: &str| Error::Run(format!("kernel {}: {problem}", launch.kernel));
        let kernel = CString::new(launch.kernel).map_err(|e| fault(&e.to_string()))?;
        // Each argument in a word of its own; little-endian, so that its first bytes are the value.
        let mut words: Vec<u64> = launch
            .args
            .iter()
            .map(|arg| match *arg {
                Arg::Address(address) => address,
                Arg::I32(value) => u64::from(value as u32),
                Arg::U32(value) => u64::from(value),
                Arg::F32(value) => u64::from(value.to_bits()),
            })
            .collect();
        let mut params: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let (policy, seed) = match self.schedule.order {
            Order::Fifo => (0, 0),
            Order::Lifo => (1, 0),
            Order::RandomWarps { seed } => (3, seed),
        };
        let options = Options {
            policy,
            deferred_async: c_int::from(self.schedule.deferred),
            seed,
            os_threads: 1,
            check_blocks: c_int::from(self.checks_races),
            truncate_mma: c_int::from(self.schedule.truncated),
        };
        let block = [launch.block, 1, 1];
        let mut counts = self.counts.as_ref().map(|_| LaunchCounts::default());
        let counts_or_null = counts.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut);
        // SAFETY: the kernel takes as many arguments as the launch function gives, which tests run for
        // every kernel; their addresses lie in blocks of this device; the emulator keeps no pointer; the
        // counts are of its layout, or null.
        let problem = unsafe {
            frostline_emulator_launch(
                kernel.as_ptr(),
                launch.grid.as_ptr(),
                block.as_ptr(),
                launch.shared_bytes,
                params.as_mut_ptr(),
                &options,
                counts_or_null,
            )
        };
        if !problem.is_null() {
            // SAFETY: the emulator gives a C string that stays until the next launch of this thread.
            let text = unsafe { CStr::from_ptr(problem) };
            return Err(fault(&text.to_string_lossy()));
        }
        if let (Some(all), Some(counts)) = (&mut self.counts, counts) {
            all.push(counts);
        }
        self.spoil(launch)
    }

    fn begin_counting(&mut self) {
        self.counts = Some(Vec::new());
    }

    fn end_counting(&mut self) -> Vec<LaunchCounts> {
        self.counts.take().unwrap_or_default()
    }

    fn synchronize(&mut self) -> Result<()> {
        self.refuse_while_recording("waiting")?;
        Ok(())
    }

    fn mark(&mut self) -> Result<Mark> {
        self.refuse_while_recording("a mark")?;
        self.marks.push(Instant::now());
        Ok(Mark(self.marks.len() - 1))
    }

    fn elapsed(&mut self, from: Mark, to: Mark) -> Result<Duration> {
        Ok(self.marks[to.0] - self.marks[from.0])
    }

    fn forget_marks(&mut self) {
        self.marks.clear();
    }

    fn has_graphs(&self) -> bool {
        true
    }

    fn begin_recording(&mut self) -> Result<()> {
        self.refuse_while_recording("recording")?;
        self.recording = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&mut self) -> Result<Graph> {
        let recording = self.recording.take();
        self.graphs.push(Some(recording.ok_or_else(|| fault("nothing was being recorded"))?));
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: Graph) -> Result<()> {
        self.refuse_while_recording("replaying")?;
        let recorded = self.graphs[graph.0].take().ok_or_else(|| fault("a forgotten graph"))?;
        let done = recorded.iter().try_for_each(|command| match command {
            Recorded::Launch { kernel, grid, block, shared_bytes, args } => self.launch(&Launch {
                kernel,
                grid: *grid,
                block: *block,
                shared_bytes: *shared_bytes,
                args,
            }),
            Recorded::Fill { to, byte, n_bytes } => self.fill(*to, *byte, *n_bytes),
        });
        self.graphs[graph.0] = Some(recorded);
        done
    }

    fn forget_graph(&mut self, graph: Graph) -> Result<()> {
        self.graphs[graph.0] = None;
        Ok(())
    }

    fn shows_ranges(&self) -> bool {
        self.is_captured
    }

    fn begin_range(&mut self, name: &str) {
        if self.is_captured {
            self.ranges.push(format!("{}{name}", "  ".repeat(self.range_depth)));
        }
        self.range_depth += 1;
    }

    fn end_range(&mut self) {
        self.range_depth = self.range_depth.checked_sub(1).expect("a range ends that never began");
    }

    fn capture(&mut self, on: bool) -> Result<()> {
        self.is_captured = on;
        if on {
            self.ranges.clear();
        }
        Ok(())
    }
}

fn fault(problem: &str) -> Error {
    Error::Device(format!("emulator: {problem}"))
}
