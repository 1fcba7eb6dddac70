//! How much of a kernel one multiprocessor holds at a time.

use super::embedded;

/// What a multiprocessor has, from the table of technical specifications in NVIDIA's CUDA C++ Programming
/// Guide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiprocessor {
    /// Resident warps of 32 threads.
    pub max_warps: u32,
    /// Resident blocks.
    pub max_blocks: u32,
    /// Shared memory of all resident blocks, in bytes.
    pub shared_bytes: u32,
}

/// Registers of every multiprocessor from compute capability 8.0 on, and what a warp takes of them at a time.
const REGISTERS: u32 = 64 << 10;
const REGISTER_UNIT: u32 = 256;
/// Shared memory that the system keeps of each block.
const RESERVED_BYTES: u32 = 1 << 10;
/// What blocks get shared memory in.
const SHARED_UNIT: u32 = 128;

impl Multiprocessor {
    /// That of a GPU of this compute capability; an unknown one is taken to be as small as 8.6, the smallest.
    pub fn of(capability: (u32, u32)) -> Self {
        let (max_warps, max_blocks, shared_kb) = match capability {
            (8, 0) => (64, 32, 164),
            (8, 7) => (48, 16, 164),
            (8, 9) => (48, 24, 100),
            (9, _) | (10, _) => (64, 32, 228),
            (11, _) => (48, 24, 228),
            (12, _) => (48, 24, 100),
            _ => (48, 16, 100),
        };
        Multiprocessor { max_warps, max_blocks, shared_bytes: shared_kb << 10 }
    }

    /// Blocks of `block` threads with `registers` a thread and `shared_bytes` that are resident at a time.
    pub fn resident_blocks(&self, registers: u32, block: u32, shared_bytes: u32) -> u32 {
        let warps = block.div_ceil(32).max(1);
        let of_warp = (registers * 32).next_multiple_of(REGISTER_UNIT).max(REGISTER_UNIT);
        // Warps lie in four partitions, each with a quarter of the registers.
        let by_registers = REGISTERS / 4 / of_warp * 4 / warps;
        let shared_bytes = (shared_bytes + RESERVED_BYTES).next_multiple_of(SHARED_UNIT);
        let by_shared = self.shared_bytes / shared_bytes;
        by_registers.min(by_shared).min(self.max_warps / warps).min(self.max_blocks)
    }

    /// The share of the warps it could hold.
    pub fn occupancy(&self, registers: u32, block: u32, shared_bytes: u32) -> f64 {
        let warps = self.resident_blocks(registers, block, shared_bytes) * block.div_ceil(32);
        f64::from(warps) / f64::from(self.max_warps)
    }
}

/// What the compiler said of a kernel for GPUs of this capability; none where the driver translates it, or
/// where no kernels are embedded.
pub fn resources_of(kernel: &str, capability: (u32, u32)) -> Option<embedded::Resources> {
    let architecture = match capability {
        (8, _) => "sm_80",
        (9, 0) => "sm_90a",
        _ => return None,
    };
    let all = embedded::kernels().iter().flat_map(|file| file.resources());
    all.into_iter().find(|one| one.kernel == kernel && one.architecture == architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand from the limits.
    #[test]
    fn the_scarcest_thing_decides() {
        let (a100, h100) = (Multiprocessor::of((8, 0)), Multiprocessor::of((9, 0)));
        // Threads: 2048 are 8 blocks of 256.
        assert_eq!(h100.resident_blocks(32, 256, 0), 8);
        assert_eq!(h100.occupancy(32, 256, 0), 1.0);
        // Registers: 128 for each of 256 threads are half of them.
        assert_eq!(h100.resident_blocks(128, 256, 0), 2);
        assert_eq!(h100.occupancy(128, 256, 0), 0.25);
        // 129 are given as 136: 3 warps in each quarter of the registers, 12 in all.
        assert_eq!(h100.resident_blocks(129, 32, 0), 12);
        assert_eq!(h100.resident_blocks(129, 256, 0), 1);
        // Shared memory: 100 KiB and what the system keeps, twice in 228, once in 164.
        assert_eq!(h100.resident_blocks(32, 128, 100 << 10), 2);
        assert_eq!(a100.resident_blocks(32, 128, 100 << 10), 1);
        // Blocks: 32 of one warp.
        assert_eq!(h100.occupancy(16, 32, 0), 0.5);
        // No room at all.
        assert_eq!(a100.resident_blocks(32, 128, 200 << 10), 0);
    }
}
