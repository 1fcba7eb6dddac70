//! Uploads that return before the copy is done: bytes pass through a ring of page-locked memory.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

/// A step's inputs fit one slot, in general.
const SLOT_BYTES: usize = 256 << 10;

/// Enough for the host to be many steps ahead before it has to wait.
const N_SLOTS: usize = 32;

/// The ring. Each slot has an event: when it is reached, the copy out of the slot is done.
pub(super) struct Staging {
    /// Page-locked, `N_SLOTS * SLOT_BYTES` bytes.
    host: *mut u8,
    is_done: Vec<CudaEvent>,
    next: usize,
    context: Arc<CudaContext>,
}

impl Staging {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING));
        let is_done = (0..N_SLOTS).map(|_| event()).collect::<Result<_, _>>()?;
        context.bind_to_thread()?;
        // SAFETY: the context is current. Flag 0 is ordinary cached memory.
        let host = unsafe { result::malloc_host(N_SLOTS * SLOT_BYTES, 0) }?.cast();
        Ok(Staging { host, is_done, next: 0, context: context.clone() })
    }

    /// Copies `bytes` to `to`, in the stream's order. They may be reused at once.
    ///
    /// # Safety
    /// `to` is the address of at least that many bytes of the context's memory, and the stream is not
    /// recording.
    pub unsafe fn upload(
        &mut self,
        bytes: &[u8],
        to: u64,
        stream: &CudaStream,
    ) -> Result<(), DriverError> {
        for (at, piece) in bytes.chunks(SLOT_BYTES).enumerate() {
            let event = &self.is_done[self.next];
            // At once for a slot that was never used.
            event.synchronize()?;
            // SAFETY: the slot lies within the ring, pieces are no longer than a slot, and the copy that
            // last read the slot is done.
            let slot = unsafe {
                let slot = self.host.add(self.next * SLOT_BYTES);
                slot.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                std::slice::from_raw_parts(slot, piece.len())
            };
            let to = to + (at * SLOT_BYTES) as u64;
            // SAFETY: the target holds the bytes, as the caller promised; the slot is not written before
            // its event is reached.
            unsafe { result::memcpy_htod_async(to, slot, stream.cu_stream()) }?;
            event.record(stream)?;
            self.next = (self.next + 1) % N_SLOTS;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure.
        let _ = self.context.bind_to_thread();
        // SAFETY: the memory came from `malloc_host`, and the device has waited for the copies.
        let _ = unsafe { result::free_host(self.host.cast()) };
    }
}
