//! What the backend needs of a machine that runs kernels: memory by address, launches by name, events and
//! graphs. Two things are one: a GPU behind its driver, and the emulator.

use std::time::Duration;

use crate::Result;
use crate::backend::LaunchCounts;

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// An address in the device's memory, 0 for none.
    Address(u64),
    I32(i32),
    U32(u32),
    F32(f32),
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch<'a> {
    /// The kernel's symbol.
    pub kernel: &'a str,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block, all in x.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
    pub args: &'a [Arg],
}

/// A point in the device's queue, to be timed against another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub(super) usize);

/// A recorded sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub(super) usize);

/// A machine that runs kernels, one after the other in the order of the calls.
///
/// Every call fails with [`crate::Error::Device`] where the device is at fault; memory that cannot be had
/// is [`crate::Error::Run`].
pub trait Device {
    /// `NVIDIA H100 80GB HBM3`, `emulator`, ...
    fn name(&self) -> String;

    /// Multiprocessors, which decide how some kernels cut their work.
    fn n_processors(&self) -> u32;

    /// Bytes that could still be allocated, where it is known.
    fn free_bytes(&self) -> Result<Option<usize>>;

    /// Bytes in use, as the device counts them: a GPU also counts what other programs have.
    fn used_bytes(&self) -> Result<usize>;

    /// Memory for `n_bytes`, aligned to 256 bytes, every byte 0xFF (NaN in every floating type).
    fn allocate(&mut self, n_bytes: usize) -> Result<u64>;

    /// Gives back what [`Device::allocate`] gave.
    fn release(&mut self, address: u64);

    /// Copies to the device, in order with the launches. The bytes may be reused at once.
    fn upload(&mut self, bytes: &[u8], to: u64) -> Result<()>;

    /// Copies from the device, after all that was launched before.
    fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Sets `n_bytes` bytes, in order with the launches.
    fn fill(&mut self, to: u64, byte: u8, n_bytes: usize) -> Result<()>;

    /// From here to [`Device::end_counting`] a device that can counts what launches do.
    fn begin_counting(&mut self);

    /// The counts of each launch since [`Device::begin_counting`]; empty where the device counts nothing.
    fn end_counting(&mut self) -> Vec<LaunchCounts>;

    /// Starts a kernel.
    fn launch(&mut self, launch: &Launch) -> Result<()>;

    /// Waits for all that was started.
    fn synchronize(&mut self) -> Result<()>;

    /// Marks a point in the queue. Marks are numbered anew after [`Device::forget_marks`].
    fn mark(&mut self) -> Result<Mark>;

    /// Time on the device between two marks that have been reached.
    fn elapsed(&mut self, from: Mark, to: Mark) -> Result<Duration>;

    /// Lets marks be used again.
    fn forget_marks(&mut self);

    /// Whether launches can be recorded and replayed.
    fn has_graphs(&self) -> bool;

    /// From here to [`Device::end_recording`] launches are recorded, not run.
    fn begin_recording(&mut self) -> Result<()>;

    /// The launches since [`Device::begin_recording`].
    fn end_recording(&mut self) -> Result<Graph>;

    /// Runs a recorded sequence.
    fn replay(&mut self, graph: Graph) -> Result<()>;

    /// Gives back what a recorded sequence holds, once its last replay is over.
    fn forget_graph(&mut self, graph: Graph) -> Result<()>;

    /// Whether anybody sees ranges.
    fn shows_ranges(&self) -> bool;

    /// From here to [`Device::end_range`] profilers show what is started under `name`; ranges nest.
    fn begin_range(&mut self, name: &str);

    /// Ends the range that began last.
    fn end_range(&mut self);

    /// Tells a profiler that waits for it to begin with its records, or to stop.
    fn capture(&mut self, on: bool) -> Result<()>;
}
