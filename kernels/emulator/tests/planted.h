// Kernels of the self-test and the faults that can be planted in each.
#pragma once
#include "cuda_bf16.h"

// F(fault, what it is)
#define STANDARDIZE_FAULTS(F)                                              \
  F(none, "no fault")                                                      \
  F(no_barrier_before_read, "sums read before all warps have written")     \
  F(no_barrier_before_reuse, "sums overwritten before all have read them") \
  F(shared_overrun, "one element past the end of shared memory")           \
  F(global_overrun, "one element past the end of the input")

#define PRODUCT_FAULTS(F)                                                    \
  F(none, "no fault")                                                        \
  F(no_barrier_after_wait, "tiles read before the others' copies landed")    \
  F(no_barrier_before_refill, "tiles refilled while others still read them") \
  F(weak_wait, "cp.async wait lets the needed group stay open")              \
  F(swapped_fragment, "the halves of B's fragment swapped")

#define COLUMN_SUMS_FAULTS(F)                                                         \
  F(none, "no fault")                                                                 \
  F(no_fence_before_arrival, "partial sums not published before the atomic")          \
  F(no_fence_after_arrival, "others' partial sums read without a fence")              \
  F(no_barrier_before_arrival, "a block arrives before all its threads have written") \
  F(two_writers, "all blocks write one value")                                        \
  F(first_arriver, "the first block to arrive adds up")

#define ROTATE_FAULTS(F)                                              \
  F(none, "no fault")                                                 \
  F(no_warp_barrier, "a neighbour's value read without __syncwarp")   \
  F(barrier_in_branch, "threads wait in different barriers")          \
  F(shuffle_in_branch, "half of a warp calls a shuffle of all lanes") \
  F(misaligned, "8 bytes loaded from a multiple of 4")

constexpr int PRODUCT_TILE = 64;
constexpr size_t PRODUCT_SHARED_BYTES = 2 * 2 * PRODUCT_TILE * 40 * sizeof(__nv_bfloat16);

#define DECLARE_STANDARDIZE(fault, text) \
  extern "C" __global__ void standardize_##fault(const float* x, float* y, int n);
#define DECLARE_PRODUCT(fault, text)                                                                   \
  extern "C" __global__ void product_##fault(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, \
                                             int n, int k);
#define DECLARE_COLUMN_SUMS(fault, text)                                                   \
  extern "C" __global__ void column_sums_##fault(const float* x, float* y, float* scratch, \
                                                 unsigned* counter, int rows_per_block, int n_columns);
#define DECLARE_ROTATE(fault, text) extern "C" __global__ void rotate_##fault(const float* x, float* y);

STANDARDIZE_FAULTS(DECLARE_STANDARDIZE)
PRODUCT_FAULTS(DECLARE_PRODUCT)
COLUMN_SUMS_FAULTS(DECLARE_COLUMN_SUMS)
ROTATE_FAULTS(DECLARE_ROTATE)
