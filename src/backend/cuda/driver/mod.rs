//! A GPU behind its driver, through cudarc.
//!
//! One stream carries everything, so that copies and kernels follow each other in the order of the calls;
//! cudarc's own tracking of who uses what is off. Memory, launches and uploads are the driver's plain calls:
//! addresses and graphs outlive any borrow that cudarc's slices could check.

#![allow(unsafe_code)]

mod checks;
mod code;
mod nvtx;
mod staging;

use std::collections::HashSet;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::{self, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaStream, DriverError, profiler_start, profiler_stop,
    result,
};

use self::checks::fault;
pub use self::checks::{Facts, probe, uuid};
use self::code::Code;
use self::nvtx::Nvtx;
use self::staging::Staging;
use super::device::{Arg, Device, Graph, Launch, Mark};
use crate::backend::LaunchCounts;
use crate::{Error, Result};

/// A GPU.
pub struct CudaDevice {
    // Fields are dropped in this order: the context goes last.
    /// None where one was forgotten.
    graphs: Vec<Option<CudaGraph>>,
    marks: Vec<CudaEvent>,
    n_marks: usize,
    staging: Staging,
    code: Code,
    allocations: HashSet<u64>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    is_recording: bool,
    /// None where no library takes ranges.
    nvtx: Option<Nvtx>,
    facts: Facts,
}

impl CudaDevice {
    /// Opens GPU `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no driver, no such GPU, either is too old, or the kernels are not
    /// in this binary; each with its cure.
    pub fn open(ordinal: usize) -> Result<Self> {
        let facts = probe(ordinal)?;
        let opening = |e| fault(&format!("opening GPU {ordinal}, {}", facts.name), e);
        let context = CudaContext::new(ordinal).map_err(opening)?;
        // SAFETY: there is one stream, whose order is the order of use, and no slice of cudarc's.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(opening)?;
        Ok(CudaDevice {
            graphs: Vec::new(),
            marks: Vec::new(),
            n_marks: 0,
            staging: Staging::new(&context).map_err(opening)?,
            code: Code::load(&context, facts.shared_bytes)?,
            allocations: HashSet::new(),
            stream,
            context,
            is_recording: false,
            nvtx: Nvtx::load(),
            facts,
        })
    }

    /// What the driver says of this GPU.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The stream, with the context current: other devices of this thread may have changed that.
    fn stream(&self) -> std::result::Result<sys::CUstream, DriverError> {
        self.context.bind_to_thread()?;
        Ok(self.stream.cu_stream())
    }

    /// Most calls would be refused by the driver while recording, and an upload recorded.
    fn refuse_while_recording(&self, doing: &str) -> Result<()> {
        match self.is_recording {
            true => Err(Error::Device(format!("{doing} while launches are recorded"))),
            false => Ok(()),
        }
    }

    fn wait(&self, doing: &str) -> Result<()> {
        self.stream.synchronize().map_err(|e| fault(doing, e))
    }
}

impl Device for CudaDevice {
    fn name(&self) -> String {
        self.facts.name.clone()
    }

    fn n_processors(&self) -> u32 {
        self.facts.n_processors
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        let (free, _) =
            self.context.mem_get_info().map_err(|e| fault("asking for free memory", e))?;
        Ok(Some(free))
    }

    fn used_bytes(&self) -> Result<usize> {
        let (free, total) =
            self.context.mem_get_info().map_err(|e| fault("asking for memory in use", e))?;
        Ok(total - free)
    }

    fn allocate(&mut self, n_bytes: usize) -> Result<u64> {
        self.refuse_while_recording("allocating")?;
        let allocating = |e| fault(&format!("allocating {n_bytes} bytes"), e);
        self.context.bind_to_thread().map_err(allocating)?;
        // The driver allocates no empty blocks.
        let n_bytes = n_bytes.max(1);
        // SAFETY: the context is current and the size is not zero. The driver aligns to 256 bytes.
        let address = unsafe { result::malloc_sync(n_bytes) }.map_err(allocating)?;
        self.allocations.insert(address);
        self.fill(address, 0xFF, n_bytes)?;
        Ok(address)
    }

    fn release(&mut self, address: u64) {
        if self.allocations.remove(&address) {
            let freed = self.stream.synchronize().and_then(|()| {
                // SAFETY: the block came from `allocate` and is forgotten here; all that could use it is
                // done. Waiting has made the context current.
                unsafe { result::free_sync(address) }
            });
            // The next call that can fail tells.
            self.context.record_err(freed);
        }
    }

    fn upload(&mut self, bytes: &[u8], to: u64) -> Result<()> {
        self.refuse_while_recording("uploading")?;
        // SAFETY: the backend uploads into blocks of this device that hold the bytes; nothing is recorded.
        unsafe { self.staging.upload(bytes, to, &self.stream) }
            .map_err(|e| fault(&format!("uploading {} bytes", bytes.len()), e))
    }

    fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.refuse_while_recording("downloading")?;
        let doing = format!("downloading {} bytes", bytes.len());
        let copied = self.stream().and_then(|stream| {
            // SAFETY: the backend downloads from blocks of this device that hold as many bytes, and waits
            // below before anyone reads them.
            unsafe { result::memcpy_dtoh_async(bytes, from, stream) }
        });
        // Whatever was started writes to the caller's bytes: wait before any return.
        let waited = self.wait(&doing);
        copied.map_err(|e| fault(&doing, e))?;
        waited
    }

    fn fill(&mut self, to: u64, byte: u8, n_bytes: usize) -> Result<()> {
        let filled = self.stream().and_then(|stream| {
            // SAFETY: the backend fills blocks of this device, which hold as many bytes.
            unsafe { result::memset_d8_async(to, byte, n_bytes, stream) }
        });
        filled.map_err(|e| fault(&format!("filling {n_bytes} bytes"), e))
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let function = self.code.function(launch.kernel, launch.shared_bytes)?;
        let mut params: Vec<*mut c_void> = launch.args.iter().map(pointer_to_value).collect();
        let [x, y, z] = launch.grid;
        let started = self.stream().and_then(|stream| {
            // SAFETY: the function is loaded in this context. There is a pointer for each of the kernel's
            // parameters, of its type: the emulator's tests run every launch function with the same kernels.
            // The driver copies the values before it returns, and addresses are of blocks of this device.
            unsafe {
                result::launch_kernel(
                    function,
                    (x, y, z),
                    (launch.block, 1, 1),
                    // Checked against the GPU's limit, which is a C int.
                    launch.shared_bytes as u32,
                    stream,
                    &mut params,
                )
            }
        });
        started.map_err(|e| {
            let Launch { kernel, grid, block, shared_bytes, .. } = launch;
            fault(
                &format!(
                    "starting {kernel} ({grid:?} blocks of {block} threads, {shared_bytes} bytes of \
                     shared memory)"
                ),
                e,
            )
        })
    }

    fn begin_counting(&mut self) {}

    fn end_counting(&mut self) -> Vec<LaunchCounts> {
        Vec::new()
    }

    fn synchronize(&mut self) -> Result<()> {
        self.refuse_while_recording("waiting")?;
        self.wait("waiting for the GPU")
    }

    fn mark(&mut self) -> Result<Mark> {
        self.refuse_while_recording("marking")?;
        let marking = |e| fault("marking a point in time", e);
        if self.n_marks == self.marks.len() {
            let with_time = Some(CUevent_flags::CU_EVENT_DEFAULT);
            self.marks.push(self.context.new_event(with_time).map_err(marking)?);
        }
        self.marks[self.n_marks].record(&self.stream).map_err(marking)?;
        self.n_marks += 1;
        Ok(Mark(self.n_marks - 1))
    }

    fn elapsed(&mut self, from: Mark, to: Mark) -> Result<Duration> {
        let marks = &self.marks[..self.n_marks];
        let ms = marks[from.0].elapsed_ms(&marks[to.0]).map_err(|e| fault("taking a time", e))?;
        // From a clock that never goes back, but for its last digit.
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }

    fn forget_marks(&mut self) {
        self.n_marks = 0;
    }

    fn has_graphs(&self) -> bool {
        true
    }

    fn begin_recording(&mut self) -> Result<()> {
        self.refuse_while_recording("recording")?;
        // Other threads may use the driver meanwhile.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|e| fault("starting to record launches", e))?;
        self.is_recording = true;
        Ok(())
    }

    fn end_recording(&mut self) -> Result<Graph> {
        self.is_recording = false;
        let ending = |e| fault("recording launches", e);
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0)).map_err(ending)?;
        let graph = graph.ok_or_else(|| Error::Device("no launches were being recorded".into()))?;
        graph.upload().map_err(ending)?;
        let free = self.graphs.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.graphs.push(None);
            self.graphs.len() - 1
        });
        self.graphs[slot] = Some(graph);
        Ok(Graph(slot))
    }

    fn replay(&mut self, graph: Graph) -> Result<()> {
        self.refuse_while_recording("replaying")?;
        let recorded = self.graphs[graph.0].as_ref();
        let recorded =
            recorded.ok_or_else(|| Error::Device("these launches were forgotten".into()))?;
        recorded.launch().map_err(|e| fault("replaying recorded launches", e))
    }

    fn forget_graph(&mut self, graph: Graph) -> Result<()> {
        self.synchronize()?;
        self.graphs[graph.0] = None;
        Ok(())
    }

    fn shows_ranges(&self) -> bool {
        self.nvtx.is_some()
    }

    fn begin_range(&mut self, name: &str) {
        if let Some(nvtx) = &mut self.nvtx {
            nvtx.push(name);
        }
    }

    fn end_range(&mut self) {
        if let Some(nvtx) = &mut self.nvtx {
            nvtx.pop();
        }
    }

    fn capture(&mut self, on: bool) -> Result<()> {
        self.synchronize()?;
        let switched = if on { profiler_start() } else { profiler_stop() };
        switched.map_err(|e| fault("telling the profiler", e))
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure.
        let _ = self.stream.synchronize();
        for address in std::mem::take(&mut self.allocations) {
            // SAFETY: the block came from `allocate`, and all that used it is done; `synchronize` has
            // made the context current.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

/// Where the driver finds an argument's value; it only reads there.
fn pointer_to_value(arg: &Arg) -> *mut c_void {
    match arg {
        Arg::Address(address) => std::ptr::from_ref(address).cast_mut().cast(),
        Arg::I32(value) => std::ptr::from_ref(value).cast_mut().cast(),
        Arg::U32(value) => std::ptr::from_ref(value).cast_mut().cast(),
        Arg::F32(value) => std::ptr::from_ref(value).cast_mut().cast(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Speaks past the test runner's capture of output.
    fn skip(test: &str, why: &str) {
        let line = format!("{test}: skipped: {why}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }

    /// The GPU of this machine; a test without one says so.
    fn device(test: &str) -> Option<CudaDevice> {
        match CudaDevice::open(0) {
            Ok(device) => Some(device),
            Err(why) => {
                assert!(matches!(why, Error::Device(_)), "{why:?}");
                skip(test, &why.to_string());
                None
            }
        }
    }

    fn download(device: &mut CudaDevice, from: u64, n_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0x55; n_bytes];
        device.download(from, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn without_a_driver_the_error_names_its_library_and_the_cure() {
        // SAFETY: it loads the driver's library, if there is one.
        if unsafe { sys::is_culib_present() } {
            return skip("without_a_driver", "there is one");
        }
        let error = CudaDevice::open(0).err().unwrap();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 3);
        for part in ["libcuda.so.1", "driver 580", "--gpus all", "--device cpu"] {
            assert!(text.contains(part), "no {part} in: {text}");
        }
        assert_eq!(probe(7).unwrap_err().to_string(), text);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        let Err(error) = CudaDevice::open(4096) else { panic!("4097 GPUs") };
        assert!(matches!(error, Error::Device(_)), "{error:?}");
    }

    #[test]
    fn arguments_are_passed_by_where_their_values_lie() {
        let args = [Arg::Address(0x1234_5678_9ABC_DEF0), Arg::I32(-2), Arg::U32(7), Arg::F32(0.5)];
        let pointers = args.each_ref().map(pointer_to_value);
        // SAFETY: each pointer was made of a value of the type that is read.
        unsafe {
            assert_eq!(pointers[0].cast::<u64>().read(), 0x1234_5678_9ABC_DEF0);
            assert_eq!(pointers[1].cast::<i32>().read(), -2);
            assert_eq!(pointers[2].cast::<u32>().read(), 7);
            assert_eq!(pointers[3].cast::<f32>().read(), 0.5);
        }
    }

    /// More than the ring of page-locked memory holds, by an odd number of bytes, from bytes that change
    /// as soon as the call has returned.
    #[test]
    fn uploads_arrive_whole() {
        let Some(mut device) = device("uploads_arrive_whole") else { return };
        const N: usize = (20 << 20) + 7;
        let address = device.allocate(N).unwrap();
        assert!(download(&mut device, address, N).iter().all(|byte| *byte == 0xFF));
        let expected: Vec<u8> = (0..N).map(|at| (at % 251) as u8).collect();
        let mut bytes = expected.clone();
        device.upload(&bytes, address).unwrap();
        bytes.fill(0);
        assert!(download(&mut device, address, N) == expected);
        for at in 0..100_u8 {
            device.upload(&[at; 3], address + 3 * u64::from(at)).unwrap();
        }
        let got = download(&mut device, address, 300);
        assert!(got.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 3));
        device.release(address);
        device.upload(&[], 0).unwrap();
    }

    #[test]
    fn marks_are_counted_anew_and_time_goes_forward() {
        let Some(mut device) = device("marks") else { return };
        let address = device.allocate(1 << 20).unwrap();
        for _ in 0..2 {
            device.forget_marks();
            let first = device.mark().unwrap();
            device.fill(address, 1, 1 << 20).unwrap();
            let second = device.mark().unwrap();
            assert_eq!((first, second), (Mark(0), Mark(1)));
            assert!(device.elapsed(first, second).unwrap() < Duration::from_secs(1));
        }
    }

    #[test]
    fn a_recording_runs_when_it_is_replayed() {
        let Some(mut device) = device("recording") else { return };
        let address = device.allocate(16).unwrap();
        device.begin_recording().unwrap();
        device.fill(address, 3, 16).unwrap();
        assert!(device.upload(&[1], address).is_err(), "an upload was recorded");
        assert!(device.begin_recording().is_err());
        let graph = device.end_recording().unwrap();
        assert_eq!(download(&mut device, address, 16), [0xFF; 16]);
        for _ in 0..2 {
            device.fill(address, 0, 16).unwrap();
            device.replay(graph).unwrap();
            assert_eq!(download(&mut device, address, 16), [3; 16]);
        }
        assert!(device.end_recording().is_err());
        device.forget_graph(graph).unwrap();
        assert!(device.replay(graph).is_err());
        device.begin_recording().unwrap();
        device.fill(address, 4, 16).unwrap();
        assert_eq!(device.end_recording().unwrap(), graph, "the place of what was forgotten");
    }

    /// GELU of a row, once as a launch should be and once with more shared memory than comes unasked.
    #[test]
    fn a_kernel_reads_its_arguments() {
        let Some(mut device) = device("a_kernel_reads_its_arguments") else { return };
        const N: usize = 256;
        let x: Vec<f32> = (0..N).map(|at| at as f32 - 8.0).collect();
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let [state, from, to] = [64, 4 * N, 4 * N].map(|n_bytes| device.allocate(n_bytes).unwrap());
        device.fill(state, 0, 64).unwrap();
        device.upload(&bytes, from).unwrap();
        for shared_bytes in [0, 64 << 10] {
            device.fill(to, 0xFF, 4 * N).unwrap();
            let addresses = [state, from, to].map(Arg::Address);
            let args = &[addresses[0], Arg::I32(1), Arg::I32(N as i32), addresses[1], addresses[2]];
            let (kernel, grid, block) = ("gelu_fwd_f32", [1; 3], 256);
            device.launch(&Launch { kernel, grid, block, shared_bytes, args }).unwrap();
            let got = download(&mut device, to, 4 * N);
            for (x, got) in x.iter().zip(got.chunks(4)) {
                let got = f32::from_le_bytes(got.try_into().unwrap());
                // GELU is nothing on one side and the value itself on the other.
                let expected = if *x <= -6.0 { 0.0 } else { *x };
                let is_flat = x.abs() >= 6.0 || *x == 0.0;
                assert!(!is_flat || (got - expected).abs() <= 1e-6, "{x}: {got}");
            }
        }
    }

    #[test]
    fn what_cannot_be_launched_is_named() {
        let Some(mut device) = device("launch") else { return };
        let (grid, block, args) = ([1; 3], 32, &[][..]);
        let mut launch = Launch { kernel: "no_such_kernel", grid, block, shared_bytes: 0, args };
        let text = device.launch(&launch).unwrap_err().to_string();
        assert!(text.contains("no_such_kernel"), "{text}");
        launch.shared_bytes = 1 << 30;
        let text = device.launch(&launch).unwrap_err().to_string();
        assert!(text.contains(&(1 << 30).to_string()), "{text}");
    }
}
