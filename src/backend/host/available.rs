//! How much memory is left, asked before it is taken: a process that runs out is killed without a word.

use crate::plan::{Capacity, Layout};
use crate::{Error, Result};

/// Bytes that the system, or the container that this process runs in, could still give, where they say
/// (Linux, cgroup v2).
pub fn available_bytes() -> Option<usize> {
    let read = |file: &str| -> Option<usize> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    let container = read("memory.max")
        .zip(read("memory.current"))
        .map_or(usize::MAX, |(limit, used)| limit.saturating_sub(used));
    Some(system_available_bytes()?.min(container))
}

fn system_available_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// Refuses a step whose memory is not to be had: of `missing_bytes` that are not yet allocated
/// `free_bytes` could be.
///
/// # Errors
/// Both figures, where the memory goes, and what would help.
pub fn refuse_if_short(
    missing_bytes: usize,
    free_bytes: usize,
    capacity: Capacity,
    layout: &Layout,
) -> Result<()> {
    if missing_bytes <= free_bytes {
        return Ok(());
    }
    let gigabytes = |bytes: usize| bytes as f64 / 1e9;
    let memory = layout.memory;
    Err(Error::Run(format!(
        "a step on {} tokens in {} sequences needs {:.1} GB more, and {:.1} GB are free (weights \
         {:.1}, gradients {:.1}, optimizer {:.1}, activations {:.1}, workspace {:.1} GB): a smaller \
         --batch-size or --max-length or a freeze of more layers takes less",
        capacity.tokens,
        capacity.sequences,
        gigabytes(missing_bytes),
        gigabytes(free_bytes),
        gigabytes(memory.weights),
        gigabytes(memory.gradients),
        gigabytes(memory.optimizer),
        gigabytes(memory.activations),
        gigabytes(memory.workspace),
    )))
}
