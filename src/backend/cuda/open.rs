//! Backends on the first GPU, and on the emulator.

#[cfg(feature = "emulator")]
use super::emulated;
use super::{CudaBackend, CudaDevice, driver};
use crate::Result;
use crate::backend::Backend;

/// Whether the kernels can run on a GPU here.
///
/// # Errors
/// What is missing, and its cure.
pub fn check_gpu() -> Result<()> {
    driver::probe(0).map(|_| ())
}

/// The backend on the first GPU.
///
/// # Errors
/// As [`check_gpu`].
pub fn gpu(use_graphs: bool) -> Result<CudaBackend<CudaDevice>> {
    Ok(CudaBackend::new(CudaDevice::open(0)?, "cuda", use_graphs))
}

/// The backend on the emulator.
#[cfg(feature = "emulator")]
pub fn emulator(use_graphs: bool) -> CudaBackend<emulated::Emulator> {
    CudaBackend::new(emulated::Emulator::default(), "emulated", use_graphs)
}

/// Whether the emulator is built in.
pub const HAS_EMULATOR: bool = cfg!(feature = "emulator");

/// The error of a program that was built without the emulator.
pub fn no_emulator() -> crate::Error {
    crate::Error::Device(
        "--device emulated: this program was built without the emulator; build it with `cargo build \
         --release --features emulator`"
            .into(),
    )
}

/// The kernels on the first GPU.
///
/// # Errors
/// As [`check_gpu`].
pub fn on_gpu(use_graphs: bool) -> Result<Box<dyn Backend>> {
    Ok(Box::new(gpu(use_graphs)?))
}

/// The kernels on the emulator.
///
/// # Errors
/// When this program was built without it.
#[cfg(feature = "emulator")]
pub fn on_emulator(use_graphs: bool) -> Result<Box<dyn Backend>> {
    Ok(Box::new(emulator(use_graphs)))
}

/// The kernels on the emulator.
///
/// # Errors
/// Always: this program was built without it.
#[cfg(not(feature = "emulator"))]
pub fn on_emulator(_use_graphs: bool) -> Result<Box<dyn Backend>> {
    Err(no_emulator())
}
