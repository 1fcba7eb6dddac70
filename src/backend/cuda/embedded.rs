//! The GPU kernels in this binary: their code, and what the compiler said that they need.
//!
//! `build.rs` writes the list. It is empty where nvcc was not found.

use std::collections::BTreeSet;

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// A file of `kernels/`, compiled.
#[derive(Debug)]
pub struct EmbeddedFile {
    /// `layernorm` for `kernels/layernorm.cu`.
    pub name: &'static str,
    /// A fatbin: machine code for sm_80 and sm_90a, PTX for later GPUs.
    pub image: &'static [u8],
    /// The output of `ptxas -v`.
    pub ptxas_report: &'static str,
}

/// The driver reads an image in place: no field of it may lie askew.
#[allow(dead_code)] // Nothing is embedded where nvcc was not found.
#[repr(C, align(64))]
struct Aligned<const N: usize>([u8; N]);

/// What is embedded, by name.
pub fn kernels() -> &'static [EmbeddedFile] {
    FILES
}

/// The symbols of all kernels that are embedded.
pub fn kernel_names() -> BTreeSet<String> {
    let resources = FILES.iter().flat_map(EmbeddedFile::resources);
    resources.map(|resources| resources.kernel).collect()
}

/// The CUDA release whose nvcc compiled the kernels, as (13, 0); none where there was no nvcc.
pub fn nvcc_release() -> Option<(u32, u32)> {
    NVCC
}

/// What one kernel needs on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The kernel's symbol.
    pub kernel: String,
    /// `sm_80`.
    pub architecture: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block; what a launch asks for comes on top.
    pub shared_bytes: u32,
    /// Local memory of a thread: arrays that found no place in registers.
    pub stack_bytes: u32,
    pub spill_store_bytes: u32,
    pub spill_load_bytes: u32,
}

impl EmbeddedFile {
    /// The kernels of the file, by architecture and in the compiler's order.
    pub fn resources(&self) -> Vec<Resources> {
        parse_report(self.ptxas_report)
    }
}

/// Reads what `ptxas -v` prints. Functions that were not inlined are reported after the kernel that calls
/// them, and count as part of it.
fn parse_report(report: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function ") {
            let mut quoted = rest.split('\'').skip(1).step_by(2);
            let mut next = || quoted.next().unwrap_or_default().to_owned();
            let (kernel, architecture) = (next(), next());
            found.push(Resources { kernel, architecture, ..Resources::default() });
        } else if let Some(kernel) = found.last_mut() {
            let note = |field: &mut u32, unit: &str| {
                *field = (*field).max(number_before(line, unit).unwrap_or(0));
            };
            note(&mut kernel.registers, " registers");
            note(&mut kernel.shared_bytes, " bytes smem");
            note(&mut kernel.stack_bytes, " bytes stack frame");
            note(&mut kernel.stack_bytes, " bytes cumulative stack size");
            note(&mut kernel.spill_store_bytes, " bytes spill stores");
            note(&mut kernel.spill_load_bytes, " bytes spill loads");
        }
    }
    found
}

/// 168 for `Used 168 registers, ...` and ` registers`.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'two_f32' for 'sm_80'
ptxas info    : Function properties for two_f32
    160 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 160 bytes cumulative stack size, 512 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 33.366 ms
ptxas info    : Compiling entry function 'one_f32' for 'sm_90a'
ptxas info    : Function properties for one_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Function properties for _Z6helperIfEfT_Pf
    16 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
";

    #[test]
    fn a_report_is_read() {
        let two = Resources {
            kernel: "two_f32".into(),
            architecture: "sm_80".into(),
            registers: 56,
            shared_bytes: 512,
            stack_bytes: 160,
            spill_store_bytes: 8,
            spill_load_bytes: 12,
        };
        let one = Resources {
            kernel: "one_f32".into(),
            architecture: "sm_90a".into(),
            registers: 8,
            stack_bytes: 16,
            spill_load_bytes: 4,
            ..Resources::default()
        };
        assert_eq!(parse_report(REPORT), [two, one]);
        assert_eq!(parse_report(""), []);
    }

    /// Reports and images come from the same run of nvcc.
    #[test]
    fn what_is_embedded_is_whole() {
        const FATBIN_MAGIC: [u8; 4] = 0xBA55_ED50_u32.to_le_bytes();
        assert_eq!(kernels().is_empty(), nvcc_release().is_none());
        for file in kernels() {
            assert_eq!(file.image[..4], FATBIN_MAGIC, "{}", file.name);
            assert_eq!(file.image.as_ptr().align_offset(64), 0, "{}", file.name);
            let resources = file.resources();
            assert!(!resources.is_empty(), "{} holds no kernel", file.name);
            assert!(resources.iter().all(|r| r.registers > 0), "{resources:?}");
        }
    }
}
