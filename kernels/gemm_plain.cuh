// An engine for gemm.cuh in plain C++: any element type, any size, any alignment.
#pragma once
#include "gemm.cuh"

namespace gemm {

// One operand's panel in shared memory: floats, [DEPTH][STRIDE]. Four floats of padding keep rows 16-byte
// aligned and spread the columns that a load along the reduction writes over the banks.
template <class E, Layout LAYOUT>
struct PlainPanel {
  static constexpr int SPAN = 64;
  static constexpr int DEPTH = 16;
  static constexpr int STRIDE = SPAN + 4;
  static constexpr int FLOATS = DEPTH * STRIDE;
  static constexpr int THREADS = 256;

  // Neighbouring threads read neighbouring elements of a row of the matrix.
  static __device__ __forceinline__ void load(float* shared, const E* matrix, int stride, int first, int end,
                                              int k, int k_end) {
#pragma unroll
    for (int i = threadIdx.x; i < SPAN * DEPTH; i += THREADS) {
      const int at = LAYOUT == ALONG_K ? i / DEPTH : i % SPAN;
      const int at_k = LAYOUT == ALONG_K ? i % DEPTH : i / SPAN;
      const size_t matrix_row = LAYOUT == ALONG_K ? first + at : k + at_k;
      const int matrix_col = LAYOUT == ALONG_K ? k + at_k : first + at;
      const bool inside = first + at < end && k + at_k < k_end;
      shared[at_k * STRIDE + at] = inside ? to_float(matrix[matrix_row * stride + matrix_col]) : 0.0f;
    }
  }
};

// 256 threads with 4 x 4 entries each: rows 4 ty .. 4 ty + 3 and columns tx, tx + 16, tx + 32, tx + 48.
template <class E, Layout LAYOUT_A, Layout LAYOUT_B>
struct PlainTile {
  typedef E Element;
  typedef PlainPanel<E, LAYOUT_A> A;
  typedef PlainPanel<E, LAYOUT_B> B;
  static constexpr int ROWS = A::SPAN;
  static constexpr int COLS = B::SPAN;
  static constexpr int DEPTH = A::DEPTH;
  static constexpr int THREADS = A::THREADS;
  static constexpr int SHARED_BYTES = (A::FLOATS + B::FLOATS) * static_cast<int>(sizeof(float));
  static constexpr int SAVED = ROWS * COLS + ROWS;

  float tile[4][4];
  float sum;  // of row threadIdx.x of A, in the first ROWS threads

  static __device__ __forceinline__ int row_of(int i) { return threadIdx.x / 16 * 4 + i; }
  static __device__ __forceinline__ int col_of(int j) { return threadIdx.x % 16 + 16 * j; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) tile[i][j] = 0.0f;
    }
    sum = 0.0f;
  }

  template <class Load>
  __device__ __forceinline__ void run(unsigned char* shared, int n_steps, bool with_sums, const Load& load) {
    float* a = reinterpret_cast<float*>(shared);
    float* b = a + A::FLOATS;
    for (int step = 0; step < n_steps; ++step) {
      load(a, b, step);
      __syncthreads();
      add_panels(a, b);
      if (with_sums && threadIdx.x < ROWS) {
        for (int i = 0; i < DEPTH; ++i) sum += a[i * A::STRIDE + threadIdx.x];
      }
      __syncthreads();
    }
  }

  __device__ __forceinline__ void add_panels(const float* a, const float* b) {
#pragma unroll
    for (int at_k = 0; at_k < DEPTH; ++at_k) {
      const float4 left = *reinterpret_cast<const float4*>(a + at_k * A::STRIDE + row_of(0));
      const float row[4] = {left.x, left.y, left.z, left.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float right = b[at_k * B::STRIDE + col_of(j)];
#pragma unroll
        for (int i = 0; i < 4; ++i) tile[i][j] += row[i] * right;
      }
    }
  }

  template <class Function>
  __device__ __forceinline__ void map(const Function& function) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) tile[i][j] = function(tile[i][j]);
    }
  }

  __device__ __forceinline__ void add_bias(const float* bias, int col, int n_cols) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float value = col + col_of(j) < n_cols ? bias[col + col_of(j)] : 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) tile[i][j] += value;
    }
  }

  // tile *= function(other), `other` a matrix of the tile's shape.
  template <class Function>
  __device__ __forceinline__ void multiply(unsigned char*, const E* other, int stride, int row, int n_rows,
                                           int col, int n_cols, const Function& function) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const size_t at = static_cast<size_t>(row + row_of(i)) * stride;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool inside = row + row_of(i) < n_rows && col + col_of(j) < n_cols;
        if (inside) tile[i][j] *= function(to_float(other[at + col + col_of(j)]));
      }
    }
  }

  template <class Out>
  __device__ __forceinline__ void store(Out* to, int stride, int row, int n_rows, int col, int n_cols) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const size_t at = static_cast<size_t>(row + row_of(i)) * stride;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool inside = row + row_of(i) < n_rows && col + col_of(j) < n_cols;
        if (inside) to[at + col + col_of(j)] = from_float<Out>(tile[i][j]);
      }
    }
  }

  __device__ __forceinline__ void store_sums(float* to, int row, int n_rows) const {
    const int at = row + threadIdx.x;
    if (threadIdx.x < ROWS && at < n_rows) to[at] = sum;
  }

  // In scratch: a float4 for each thread and i, then the sums.
  __device__ __forceinline__ void save(float* to, bool with_sums) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 row = make_float4(tile[i][0], tile[i][1], tile[i][2], tile[i][3]);
      reinterpret_cast<float4*>(to)[i * THREADS + threadIdx.x] = row;
    }
    if (with_sums && threadIdx.x < ROWS) to[ROWS * COLS + threadIdx.x] = sum;
  }

  __device__ __forceinline__ void add_saved(const float* from, bool with_sums) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 row = reinterpret_cast<const float4*>(from)[i * THREADS + threadIdx.x];
      tile[i][0] += row.x, tile[i][1] += row.y, tile[i][2] += row.z, tile[i][3] += row.w;
    }
    if (with_sums && threadIdx.x < ROWS) sum += from[ROWS * COLS + threadIdx.x];
  }
};

}  // namespace gemm
