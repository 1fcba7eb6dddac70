//! Resident memory of this process, as Linux counts it.
//!
//! Elsewhere, and where `/proc` is closed to us, every function says that it does not know. The kernel
//! keeps these counts per thread and adds them up late: they may be wrong by some hundred KiB.

use std::fs;

const STATUS: &str = "/proc/self/status";
const CLEAR_REFS: &str = "/proc/self/clear_refs";

/// Bytes of this process that lie in memory now; None where that cannot be known.
pub fn resident_bytes() -> Option<usize> {
    status_bytes("VmRSS")
}

/// The most bytes that lay in memory since the start, or since [`reset_peak`]; None where that cannot
/// be known.
pub fn peak_resident_bytes() -> Option<usize> {
    status_bytes("VmHWM")
}

/// Makes the peak what is resident now; returns whether that worked.
pub fn reset_peak() -> bool {
    // proc(5): "5" resets the high water mark, and does nothing else.
    fs::write(CLEAR_REFS, "5").is_ok()
}

fn status_bytes(field: &str) -> Option<usize> {
    parse_status(&fs::read_to_string(STATUS).ok()?, field)
}

/// The value of a line such as `VmRSS:\t    1234 kB`, where a kB is 1024 bytes.
fn parse_status(status: &str, field: &str) -> Option<usize> {
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: usize = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// Measures how far the process's peak rises above what was resident at the start.
///
/// It sees the whole process, whatever its other threads do. Only one may run at a time, for there is
/// one peak to be reset.
#[derive(Clone, Copy, Debug)]
pub struct PeakMeter {
    start_bytes: usize,
}

impl PeakMeter {
    /// Resets the peak and notes what is resident; None where that does not work.
    pub fn start() -> Option<Self> {
        if !reset_peak() {
            return None;
        }
        Some(PeakMeter { start_bytes: resident_bytes()? })
    }

    /// Bytes between what was resident at the start and the peak since; None where the peak cannot be
    /// read any more.
    pub fn growth_bytes(&self) -> Option<usize> {
        Some(peak_resident_bytes()?.saturating_sub(self.start_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `f`; returns its result and by how many bytes the peak grew meanwhile.
    fn peak_growth<T>(f: impl FnOnce() -> T) -> (T, Option<usize>) {
        let meter = PeakMeter::start();
        let result = f();
        (result, meter.and_then(|meter| meter.growth_bytes()))
    }

    #[test]
    fn fields_of_a_status_file() {
        let status = "Name:\tVmRSS: 5 kB\nVmPeak:\t  300 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n";
        assert_eq!(parse_status(status, "VmHWM"), Some(2 << 20));
        assert_eq!(parse_status(status, "VmRSS"), Some(12 << 10));
        assert_eq!(parse_status(status, "Vm"), None);
        assert_eq!(parse_status(status, "VmSwap"), None);
        for line in ["VmRSS:", "VmRSS:\t12", "VmRSS:\t-1 kB", "VmRSS:\t12 MB", "VmRSS:\tkB"] {
            assert_eq!(parse_status(line, "VmRSS"), None, "{line}");
        }
        assert_eq!(parse_status(&format!("VmRSS: {} kB", usize::MAX), "VmRSS"), None);
    }

    /// Other tests allocate as well, so it runs again as the only test of a process.
    #[cfg(target_os = "linux")]
    #[test]
    fn sees_64_mib_that_are_gone_again() {
        const ALONE: &str = "FROSTLINE_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = "measure::memory::tests::sees_64_mib_that_are_gone_again";
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--test-threads", "1"])
                .env(ALONE, "1")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        const SIZE: usize = 64 << 20;
        // Within 5 %: the allocator, the harness and the kernel's late counts take some of it.
        let is_near = |bytes: usize, expected: usize| bytes.abs_diff(expected) <= SIZE / 20;
        let touch = |size| std::hint::black_box(vec![1u8; size]).len();

        if !reset_peak() {
            eprintln!("skipped: {CLEAR_REFS} cannot be written here");
            assert_eq!(peak_growth(|| touch(SIZE)).1, None);
            return;
        }
        // A higher peak before, which the meter must not see.
        touch(2 * SIZE);
        assert!(peak_resident_bytes().unwrap() >= resident_bytes().unwrap() + SIZE);
        let (touched, growth) = peak_growth(|| touch(SIZE));
        assert_eq!(touched, SIZE);
        assert!(is_near(growth.unwrap(), SIZE), "{growth:?}");
        let (_, nothing) = peak_growth(|| ());
        assert!(is_near(nothing.unwrap(), 0), "{nothing:?}");

        let before = resident_bytes().unwrap();
        let kept = std::hint::black_box(vec![1u8; SIZE]);
        assert!(is_near(resident_bytes().unwrap() - before, SIZE));
        drop(kept);
        assert!(is_near(resident_bytes().unwrap(), before));
    }
}
