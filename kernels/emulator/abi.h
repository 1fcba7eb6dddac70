// The emulator's C interface, called from Rust (src/backend/cuda/emulated.rs) and from testing.h.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

struct EmulatorOptions {
  int policy;          // order of threads: 0 first in first out, 1 last in first out, 2 uniform, 3 random
                       // priorities of warps, which finds the most faults
  int deferred_async;  // asynchronous copies happen as late (1) or as early (0) as is allowed: run both
  uint64_t seed;
  int os_threads;    // blocks run on so many threads; with check_blocks or with counts always on one
  int check_blocks;  // races between blocks and between threads are errors; kernels must be observed
  int truncate_mma;  // mma adds as tensor cores do (1): terms aligned to the largest exponent among the 16
                     // products and the accumulator, cut off below float's 24 bits, the sum cut off again
                     // (see truncated_sum.h); else (0) float sums, each rounded
};

struct EmulatorCounts {
  uint64_t switches;          // between fibres
  uint64_t barriers;          // of a block, each counted once
  uint64_t collectives;       // of a warp, each counted once: shuffles, votes, ldmatrix, mma
  uint64_t async_copies;      // of 16 bytes
  uint64_t mma;               // instructions of a warp
  uint64_t global_sectors;    // 32-byte sectors that the warps' accesses to global memory touch
  uint64_t global_bytes;      // distinct bytes that these accesses ask for
  uint64_t shared_conflicts;  // extra passes that bank conflicts cost in shared memory
};

// Runs a kernel to its end. Null, or an error text that lives until this thread's next launch. `counts` is
// added to, or null; memory traffic is counted only where it is not, and only of observed kernels (see cuda_host.h).
const char* frostline_emulator_launch(const char* kernel, const unsigned grid[3], const unsigned block[3],
                                      size_t shared_bytes, void** params, const EmulatorOptions* options,
                                      EmulatorCounts* counts);

// Whether a kernel of this name is linked in.
int frostline_emulator_has(const char* kernel);

}  // extern "C"
