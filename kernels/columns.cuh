// Sums over the rows of a matrix, column by column and in a fixed order, and the block that arrives last.
#pragma once
#include "common.cuh"

// A block of 8 warps sums 256 neighbouring columns. Warp w takes the rows begin + w, begin + w + 8, ...,
// eight columns a lane; then thread t adds the 8 warps' sums of column t, in the order of the warps.
constexpr int COLUMN_WARPS = 8;
constexpr int BLOCK_COLUMNS = 256;
constexpr int LANE_COLUMNS = BLOCK_COLUMNS / 32;
static_assert(COLUMN_WARPS * 32 == BLOCK_COLUMNS, "in the end each thread holds one column");
static_assert(LANE_COLUMNS == 8, "a lane's columns are one load8");

// A lane's eight columns are neighbours.
template <class E>
__device__ __forceinline__ void sum_rows_aligned(const E* x, int cols, int first_col, int begin, int end,
                                                 float* to) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int col = first_col + LANE_COLUMNS * lane;
  float sums[8] = {};
  if (col < cols) {
#pragma unroll 4
    for (int row = begin + warp; row < end; row += COLUMN_WARPS) {
      float values[8];
      load8(x + static_cast<size_t>(row) * cols + col, values);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] += values[i];
    }
  }
  store8(to + warp * BLOCK_COLUMNS + LANE_COLUMNS * lane, sums);
}

// A lane's eight columns are 32 apart, so that a warp reads neighbours where 16-byte loads are impossible.
template <class E>
__device__ __forceinline__ void sum_rows_ragged(const E* x, int cols, int first_col, int begin, int end,
                                                float* to) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  float sums[8] = {};
  for (int row = begin + warp; row < end; row += COLUMN_WARPS) {
    const E* values = x + static_cast<size_t>(row) * cols;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int col = first_col + lane + 32 * i;
      if (col < cols) sums[i] += to_float(values[col]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) to[warp * BLOCK_COLUMNS + lane + 32 * i] = sums[i];
}

// The sum over the rows begin .. end - 1 of column first_col + threadIdx.x of x, a matrix of `cols` columns
// (0 beyond its last column). `shared` holds COLUMN_WARPS x BLOCK_COLUMNS floats, 16-byte aligned.
template <class E>
__device__ __forceinline__ float column_sum(const E* x, int cols, int first_col, int begin, int end,
                                            float* shared) {
  if (cols % 8 == 0) {
    sum_rows_aligned(x, cols, first_col, begin, end, shared);
  } else {
    sum_rows_ragged(x, cols, first_col, begin, end, shared);
  }
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < COLUMN_WARPS; ++warp) sum += shared[warp * BLOCK_COLUMNS + threadIdx.x];
  return sum;
}

// Whether this block is the last of `n_blocks` to come here, in every thread; all that the others wrote
// before is then visible to it. The last one sets the counter back to 0. `shared` may hold anything that no
// thread needs any more; a barrier must come before its next use.
__device__ __forceinline__ bool is_last_block(unsigned* counter, unsigned n_blocks, float* shared) {
  unsigned* is_last = reinterpret_cast<unsigned*>(shared);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *is_last = atomicAdd(counter, 1u) + 1 == n_blocks;
    if (*is_last) *counter = 0;
  }
  __syncthreads();
  const bool last = *is_last != 0;
  __threadfence();
  return last;
}
