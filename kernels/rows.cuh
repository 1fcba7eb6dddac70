// One warp, one row: how the kernels of the embeddings, LayerNorm and dropout hold a row of `width`
// elements, and LayerNorm's forward pass over a row that is held.
#pragma once
#include "common.cuh"

// Threads of a block, at most: 8 warps with a row each. Two blocks fit a processor at 128 registers.
constexpr int ROW_THREADS = 256;

constexpr int VECTOR = 4;                  // elements of one access (16 bytes of f32, 8 of bf16)
constexpr int WARP_COLUMNS = 32 * VECTOR;  // columns that a warp covers with one vector a lane
constexpr int PANEL = 2 * WARP_COLUMNS;    // columns by which the variants of a kernel differ

__device__ __forceinline__ int lane_of_warp() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_of_block() { return threadIdx.x / 32; }
__device__ __forceinline__ int warps_of_block() { return blockDim.x / 32; }
__device__ __forceinline__ int warp_of_grid() { return blockIdx.x * warps_of_block() + warp_of_block(); }

// The `index`-th vector of a lane, which begins at column `col`.
struct Place {
  int index;
  int col;
};

// A row in registers: N panels, two vectors a lane each. Only the last panel may lie beyond the row's end, so
// that PANEL * (N - 1) < width <= PANEL * N.
template <int N>
struct RegisterRow {
  static constexpr int N_VECTORS = N * (PANEL / WARP_COLUMNS);
  float values[N_VECTORS][VECTOR];

  // The arguments are those of SharedRow.
  __device__ __forceinline__ RegisterRow(unsigned char*, int, int) {}

  template <class Body>
  static __device__ __forceinline__ void for_each(int width, Body body) {
#pragma unroll
    for (int index = 0; index < N_VECTORS; ++index) {
      const int col = index * WARP_COLUMNS + lane_of_warp() * VECTOR;
      if (col < (N - 1) * PANEL || col < width) body(Place{index, col});
    }
  }

  __device__ __forceinline__ void get(Place at, float (&to)[VECTOR]) const {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) to[i] = values[at.index][i];
  }

  __device__ __forceinline__ void set(Place at, const float (&from)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) values[at.index][i] = from[i];
  }
};

// A row in shared memory, of any width. A lane reads only what it wrote itself: no barrier. A warp holds
// two of them, so that a block needs 8 * width bytes a warp.
struct SharedRow {
  float* values;

  __device__ __forceinline__ SharedRow(unsigned char* shared, int width, int number)
      : values(reinterpret_cast<float*>(shared) + static_cast<size_t>(warp_of_block() * 2 + number) * width) {
  }

  template <class Body>
  static __device__ __forceinline__ void for_each(int width, Body body) {
    for (int col = lane_of_warp() * VECTOR; col < width; col += WARP_COLUMNS) body(Place{0, col});
  }

  __device__ __forceinline__ void get(Place at, float (&to)[VECTOR]) const { load4(values + at.col, to); }
  __device__ __forceinline__ void set(Place at, const float (&from)[VECTOR]) {
    store4(values + at.col, from);
  }
};

__device__ __forceinline__ void add4(float (&to)[VECTOR], const float (&more)[VECTOR]) {
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) to[i] += more[i];
}

// row = from[0 .. width]
template <class E, class Row>
__device__ __forceinline__ void load_row(Row& row, const E* from, int width) {
  Row::for_each(width, [&](Place at) {
    float values[VECTOR];
    load4(from + at.col, values);
    row.set(at, values);
  });
}

// row += from[0 .. width]
template <class E, class Row>
__device__ __forceinline__ void add_to_row(Row& row, const E* from, int width) {
  Row::for_each(width, [&](Place at) {
    float values[VECTOR], more[VECTOR];
    row.get(at, values);
    load4(from + at.col, more);
    add4(values, more);
    row.set(at, values);
  });
}

// What LayerNorm's forward pass reads of its parameters and writes; stream, xhat and rstd may be null.
template <class E>
struct NormOutputs {
  const float* gamma;
  const float* beta;
  float eps;
  E* out;
  float* stream;
  E* xhat;
  float* rstd;
};

// Mean and 1 / standard deviation of the row. The deviations are squared about the mean that is already
// known, as torch does: sums of squares would cancel where the mean is large.
template <class Row>
__device__ __forceinline__ float2 row_statistics(const Row& row, int width, float eps) {
  float sum = 0.0f;
  Row::for_each(width, [&](Place at) {
    float values[VECTOR];
    row.get(at, values);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) sum += values[i];
  });
  const float mean = warp_sum(sum) / width;
  float squares = 0.0f;
  Row::for_each(width, [&](Place at) {
    float values[VECTOR];
    row.get(at, values);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) squares += (values[i] - mean) * (values[i] - mean);
  });
  return make_float2(mean, 1.0f / sqrtf(warp_sum(squares) / width + eps));
}

// out = xhat * gamma + beta of the row that the warp holds, row number `number` of the outputs.
template <class E, class Row>
__device__ __forceinline__ void normalise_row(const Row& row, size_t number, int width,
                                              const NormOutputs<E>& to) {
  const float2 statistics = row_statistics(row, width, to.eps);
  const float mean = statistics.x;
  const float rstd = statistics.y;
  if (to.rstd != nullptr && lane_of_warp() == 0) to.rstd[number] = rstd;
  const size_t first = number * width;
  Row::for_each(width, [&](Place at) {
    float values[VECTOR], gamma[VECTOR], beta[VECTOR], out[VECTOR];
    row.get(at, values);
    load4(to.gamma + at.col, gamma);
    load4(to.beta + at.col, beta);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
      values[i] = (values[i] - mean) * rstd;
      out[i] = values[i] * gamma[i] + beta[i];
    }
    store4(to.out + first + at.col, out);
    if (sizeof(E) < sizeof(float) && to.stream != nullptr) store4(to.stream + first + at.col, out);
    if (to.xhat != nullptr) store4(to.xhat + first + at.col, values);
  });
}
