//! What is here, and whether the kernels can run on it. Nothing below this module is called before
//! [`probe`] has succeeded: cudarc panics where the driver's library or one of its functions is missing.

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{DriverError, result};

use super::super::embedded;
use crate::{Error, Result};

/// The oldest driver interface that the calls of this module's siblings exist in.
const OLDEST_DRIVER: Release = (13, 0);

/// The oldest GPU that the kernels are compiled for.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// A CUDA release, as (13, 0).
pub type Release = (u32, u32);

/// What the driver says of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, as (9, 0).
    pub capability: (u32, u32),
    /// The CUDA release that the driver serves.
    pub driver: Release,
    /// Multiprocessors.
    pub n_processors: u32,
    pub total_bytes: usize,
    /// Shared memory that one block may have.
    pub shared_bytes: usize,
}

/// The facts of GPU `ordinal`, if the kernels of this binary can run on it.
///
/// # Errors
/// [`Error::Device`] with what is missing and its cure.
pub fn probe(ordinal: usize) -> Result<Facts> {
    // SAFETY: it loads the driver's library, whose initialisers every CUDA program runs.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Device(
            "no NVIDIA driver: libcuda.so.1 cannot be loaded; install driver 580 or later (a container \
             must be given the GPU, as by `docker run --gpus all`), or use --device cpu"
                .into(),
        ));
    }
    result::init().map_err(cannot_start)?;
    let driver = driver_release()?;
    refuse_old_driver(driver)?;
    let n_devices = result::device::get_count().map_err(|e| fault("counting the GPUs", e))?;
    if usize::try_from(n_devices).is_ok_and(|n| ordinal >= n) {
        return Err(Error::Device(format!(
            "GPU {ordinal}: the driver shows {n_devices} (counted from 0); check \
             CUDA_VISIBLE_DEVICES, or use --device cpu"
        )));
    }
    let facts =
        facts_of(ordinal, driver).map_err(|e| fault("asking for the GPU's properties", e))?;
    refuse_old_gpu(&facts)?;
    refuse_without_code(&facts, embedded::nvcc_release())?;
    Ok(facts)
}

/// The UUID of GPU `ordinal` as the driver's tools write it, `GPU-...`, once [`probe`] has succeeded.
///
/// # Errors
/// [`Error::Device`] when the driver does not say.
pub fn uuid(ordinal: usize) -> Result<String> {
    let asking = |e| fault("asking for the GPU's UUID", e);
    let device = result::device::get(ordinal as i32).map_err(asking)?;
    let uuid = result::device::get_uuid(device).map_err(asking)?;
    Ok(uuid_text(uuid.bytes.map(|byte| byte as u8)))
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = String::from("GPU");
    for (at, byte) in bytes.iter().enumerate() {
        if [0, 4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

fn driver_release() -> Result<Release> {
    let mut version = 0;
    // SAFETY: the library is loaded, and the argument is a place for one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| fault("asking for the driver's version", e))?;
    // 13020 is CUDA 13.2.
    let version = u32::try_from(version).unwrap_or(0);
    Ok((version / 1000, version % 1000 / 10))
}

fn facts_of(ordinal: usize, driver: Release) -> std::result::Result<Facts, DriverError> {
    // An ordinal below the number of devices, which is a C int.
    let device = result::device::get(ordinal as i32)?;
    let attribute = |attribute| {
        // SAFETY: the device was given by the driver just now.
        let value = unsafe { result::device::get_attribute(device, attribute) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    Ok(Facts {
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        driver,
        n_processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: as above.
        total_bytes: unsafe { result::device::total_mem(device) }?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as usize,
    })
}

fn refuse_old_driver(driver: Release) -> Result<()> {
    // Machine code runs on every driver of its own major release.
    let compiled_by = embedded::nvcc_release().unwrap_or((0, 0));
    let oldest = OLDEST_DRIVER.max((compiled_by.0, 0));
    if driver >= oldest {
        return Ok(());
    }
    let ((major, minor), (needs, _)) = (driver, oldest);
    Err(Error::Device(format!(
        "the NVIDIA driver serves CUDA {major}.{minor} and the kernels need CUDA {needs}.0 (driver 580 is \
         the first of CUDA 13): update the driver, or use --device cpu"
    )))
}

fn refuse_old_gpu(facts: &Facts) -> Result<()> {
    if facts.capability >= OLDEST_CAPABILITY {
        return Ok(());
    }
    let (name, (major, minor)) = (&facts.name, facts.capability);
    Err(Error::Device(format!(
        "{name} has compute capability {major}.{minor} and the kernels need 8.0 (Ampere: A100, RTX 30 and \
         later): use another GPU, or --device cpu"
    )))
}

/// There is machine code for 8.x and 9.0; the driver makes the rest from PTX, if it is not older than that.
fn refuse_without_code(facts: &Facts, compiled_by: Option<Release>) -> Result<()> {
    let Some(compiled_by) = compiled_by else {
        return Err(Error::Device(
            "this program was built without GPU kernels, since nvcc was not found: run `bash \
             scripts/install_cuda_toolchain.sh` and build again, or use --device cpu"
                .into(),
        ));
    };
    let has_machine_code = facts.capability.0 == 8 || facts.capability == (9, 0);
    if has_machine_code || facts.driver >= compiled_by {
        return Ok(());
    }
    let Facts { name, driver: (major, minor), .. } = facts;
    let (needs_major, needs_minor) = compiled_by;
    Err(Error::Device(format!(
        "{name}: the driver must translate the kernels for this GPU, which takes one that serves CUDA \
         {needs_major}.{needs_minor}; it serves {major}.{minor}: update the driver, or use --device cpu"
    )))
}

/// The driver's library is there and its start failed.
fn cannot_start(error: DriverError) -> Error {
    let cure = match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => {
            "no GPU is visible: check CUDA_VISIBLE_DEVICES and `nvidia-smi`, or use --device cpu"
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "libcuda is the toolkit's stub: take its folder from LD_LIBRARY_PATH, or use --device cpu"
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver was updated while its old kernel module runs: reboot, or use --device cpu"
        }
        CUresult::CUDA_ERROR_OPERATING_SYSTEM => {
            "the driver's device files cannot be opened: a container must be given the GPU, as by `docker \
             run --gpus all`; or use --device cpu"
        }
        _ => "check that `nvidia-smi` works, or use --device cpu",
    };
    Error::Device(format!("the NVIDIA driver does not start ({}): {cure}", text_of(error)))
}

/// A call of the driver that failed, while `doing` something.
pub(super) fn fault(doing: &str, error: DriverError) -> Error {
    let text = text_of(error);
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Run(format!(
            "{doing}: the GPU's memory is used up ({text}); use a smaller --batch-size or --max-length, or \
             end other programs on it"
        )),
        // A fault of a kernel shows at a later call, and spoils all that follow.
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC => Error::Run(format!(
            "a kernel failed on the GPU ({text}, seen at {doing}): this is a fault of frostline; \
             `compute-sanitizer` in front of the same command names the kernel"
        )),
        // The device was there when it was opened.
        _ => Error::Run(format!("{doing}: {text}")),
    }
}

/// `CUDA_ERROR_NO_DEVICE, no CUDA-capable device is detected`.
fn text_of(error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{name}, {text}"),
        _ => format!("error {}", error.0 as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(capability: (u32, u32), driver: Release) -> Facts {
        let (total_bytes, shared_bytes) = (80 << 30, 227 << 10);
        let name = "NVIDIA Test".into();
        Facts { name, capability, driver, n_processors: 132, total_bytes, shared_bytes }
    }

    fn message(outcome: Result<()>) -> String {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Device(_)), "{error:?}");
        assert_eq!(error.exit_code(), 3);
        let text = error.to_string();
        assert!(text.contains("--device cpu"), "no way out: {text}");
        text
    }

    #[test]
    fn a_uuid_is_written_as_the_tools_do() {
        let bytes = std::array::from_fn(|at| 0x11 * at as u8);
        assert_eq!(uuid_text(bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn an_old_driver_is_refused_by_both_releases() {
        let text = message(refuse_old_driver((12, 8)));
        assert!(text.contains("CUDA 12.8") && text.contains("CUDA 13.0"), "{text}");
        assert!(text.contains("580"), "{text}");
        assert!(refuse_old_driver((13, 0)).is_ok() && refuse_old_driver((13, 2)).is_ok());
    }

    #[test]
    fn an_old_gpu_is_refused_by_its_name() {
        let text = message(refuse_old_gpu(&facts((7, 5), (13, 0))));
        assert!(text.contains("NVIDIA Test") && text.contains("7.5"), "{text}");
        for capability in [(8, 0), (8, 9), (9, 0), (12, 0)] {
            assert!(refuse_old_gpu(&facts(capability, (13, 0))).is_ok());
        }
    }

    #[test]
    fn later_gpus_need_a_driver_that_reads_our_ptx() {
        let check = |capability, driver, compiled_by| {
            refuse_without_code(&facts(capability, driver), compiled_by)
        };
        for capability in [(8, 0), (8, 6), (9, 0)] {
            assert!(check(capability, (13, 0), Some((13, 2))).is_ok());
        }
        for capability in [(9, 1), (10, 0), (12, 0)] {
            let text = message(check(capability, (13, 0), Some((13, 2))));
            assert!(text.contains("CUDA 13.2") && text.contains("13.0"), "{text}");
            assert!(check(capability, (13, 2), Some((13, 2))).is_ok());
        }
        let text = message(check((9, 0), (13, 0), None));
        assert!(text.contains("install_cuda_toolchain.sh"), "{text}");
    }
}
