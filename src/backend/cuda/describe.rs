//! What the first GPU and the kernels of this program are, in words.

use super::{HAS_EMULATOR, driver, embedded};
use crate::Result;

/// The first GPU's name, and the CUDA release that its driver serves.
///
/// # Errors
/// As [`super::check_gpu`].
pub fn gpu_and_driver() -> Result<(String, String)> {
    let facts = driver::probe(0)?;
    let (major, minor) = facts.driver;
    Ok((facts.name, format!("CUDA {major}.{minor}")))
}

/// The first GPU's compute capability, as (9, 0).
///
/// # Errors
/// As [`super::check_gpu`].
pub fn gpu_capability() -> Result<(u32, u32)> {
    Ok(driver::probe(0)?.capability)
}

/// The first GPU's UUID, as `GPU-...`.
///
/// # Errors
/// As [`super::check_gpu`].
pub fn gpu_uuid() -> Result<String> {
    driver::probe(0)?;
    driver::uuid(0)
}

/// What the first GPU is, as names and values, if the kernels can run on it.
///
/// # Errors
/// As [`super::check_gpu`].
pub fn describe_gpu() -> Result<Vec<(String, String)>> {
    let facts = driver::probe(0)?;
    let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    let described = [
        ("gpu", facts.name.clone()),
        ("compute capability", version(facts.capability)),
        ("driver serves CUDA", version(facts.driver)),
        ("multiprocessors", facts.n_processors.to_string()),
        ("memory", format!("{:.1} GB", facts.total_bytes as f64 / 1e9)),
        ("shared memory", format!("{} KB a block", facts.shared_bytes / 1024)),
    ];
    Ok(described.map(|(name, value)| (name.to_owned(), value)).to_vec())
}

/// What kernels this program holds, as names and values.
pub fn describe_kernels() -> Vec<(String, String)> {
    let compiled_by = match embedded::nvcc_release() {
        Some((major, minor)) => format!("nvcc {major}.{minor}"),
        None => "no nvcc: GPU kernels are left out".into(),
    };
    let mut described = vec![("kernels".to_owned(), compiled_by)];
    for file in embedded::kernels() {
        let resources = file.resources();
        let mut names: Vec<&str> = resources.iter().map(|one| one.kernel.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let most_registers = resources.iter().map(|one| one.registers).max().unwrap_or(0);
        let text = format!("{} kernels, at most {most_registers} registers", names.len());
        described.push((format!("  {}", file.name), text));
    }
    let emulator = if HAS_EMULATOR { "built in" } else { "not built in" };
    described.push(("emulator".to_owned(), emulator.to_owned()));
    described
}
