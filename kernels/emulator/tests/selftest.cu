// Kernels of the self-test: each once as it should be and once for each planted fault.
#include "common.cuh"
#include "tests/planted.h"

namespace {

#define FAULT(fault, text) STANDARDIZE_##fault,
enum StandardizeFault { STANDARDIZE_FAULTS(FAULT) };
#undef FAULT
#define FAULT(fault, text) PRODUCT_##fault,
enum ProductFault { PRODUCT_FAULTS(FAULT) };
#undef FAULT
#define FAULT(fault, text) COLUMN_SUMS_##fault,
enum ColumnSumsFault { COLUMN_SUMS_FAULTS(FAULT) };
#undef FAULT
#define FAULT(fault, text) ROTATE_##fault,
enum RotateFault { ROTATE_FAULTS(FAULT) };
#undef FAULT

// block_sum with a barrier of its own between two uses of the scratch.
template <int FAULT>
__device__ __forceinline__ float sum_over_block(float value, float* scratch) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  if (FAULT != STANDARDIZE_no_barrier_before_read) __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < static_cast<int>(blockDim.x / 32); ++warp) sum += scratch[warp];
  if (FAULT != STANDARDIZE_no_barrier_before_reuse) __syncthreads();
  return sum;
}

// One row of n elements per block: y = (x - mean) / sqrt(variance). Shared: blockDim / 32 + n floats.
template <int FAULT>
__device__ __forceinline__ void standardize(const float* x, float* y, int n) {
  DYNAMIC_SHARED(raw);
  float* scratch = reinterpret_cast<float*>(raw);
  float* row = scratch + blockDim.x / 32;
  x += static_cast<size_t>(blockIdx.x) * n;
  y += static_cast<size_t>(blockIdx.x) * n;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < n + (FAULT == STANDARDIZE_global_overrun); i += blockDim.x) sum += x[i];
  for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = x[i];
  if (FAULT == STANDARDIZE_shared_overrun && threadIdx.x == 0) row[n] = 1.0f;
  const float mean = sum_over_block<FAULT>(sum, scratch) / n;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
  const float rstd = rsqrtf(sum_over_block<FAULT>(squares, scratch) / n);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = (row[i] - mean) * rstd;
}

constexpr int TILE_K = 32;
constexpr int PITCH = TILE_K + 8;  // rows of 80 bytes: no bank conflicts
static_assert(PRODUCT_SHARED_BYTES == 4 * PRODUCT_TILE * PITCH * sizeof(bf16), "two stages of A and B");

// One k-step of A and B to a stage: 128 threads copy 16 bytes at a time.
__device__ __forceinline__ void load_tiles(bf16* tile_a, bf16* tile_b, const bf16* a, const bf16* b, int k) {
  constexpr int CHUNKS = TILE_K / 8;
  for (int i = threadIdx.x; i < PRODUCT_TILE * CHUNKS; i += 128) {
    const int row = i / CHUNKS;
    const int column = i % CHUNKS * 8;
    ptx::cp_async16(tile_a + row * PITCH + column, a + static_cast<size_t>(row) * k + column);
    ptx::cp_async16(tile_b + row * PITCH + column, b + static_cast<size_t>(row) * k + column);
  }
}

// acc += A B^T for a warp's 32 x 32 part of the tile and one k-step.
template <int FAULT>
__device__ __forceinline__ void multiply_tiles(float (&acc)[2][4][4], const bf16* tile_a,
                                               const bf16* tile_b) {
  const int lane = threadIdx.x % 32;
  for (int k = 0; k < TILE_K; k += 16) {
    uint32_t a[2][4], b[2][4];
    for (int i = 0; i < 2; ++i) {
      const bf16* row = tile_a + (16 * i + lane % 16) * PITCH;
      ptx::ldmatrix_x4(a[i], row + k + lane / 16 * 8);
    }
    for (int j = 0; j < 2; ++j) {
      const bf16* row = tile_b + (16 * j + lane / 16 * 8 + lane % 8) * PITCH;
      ptx::ldmatrix_x4(b[j], row + k + lane / 8 % 2 * 8);
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) {
        const uint32_t low = b[j / 2][j % 2 * 2], high = b[j / 2][j % 2 * 2 + 1];
        if (FAULT == PRODUCT_swapped_fragment) {
          ptx::mma_m16n8k16_bf16(acc[i][j], a[i], high, low);
        } else {
          ptx::mma_m16n8k16_bf16(acc[i][j], a[i], low, high);
        }
      }
    }
  }
}

// C [M, n] = A [M, k] B [n, k]^T in tiles of 64 x 64, four warps, two stages. k a multiple of 32.
template <int FAULT>
__device__ __forceinline__ void product(const bf16* a, const bf16* b, float* c, int n, int k) {
  DYNAMIC_SHARED(raw);
  bf16* tiles_a = reinterpret_cast<bf16*>(raw);
  bf16* tiles_b = tiles_a + 2 * PRODUCT_TILE * PITCH;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
  a += static_cast<size_t>(blockIdx.y) * PRODUCT_TILE * k;
  b += static_cast<size_t>(blockIdx.x) * PRODUCT_TILE * k;
  float acc[2][4][4] = {};
  load_tiles(tiles_a, tiles_b, a, b, k);
  ptx::cp_async_commit();
  for (int step = 0; step < k / TILE_K; ++step) {
    const int stage = step % 2 * PRODUCT_TILE * PITCH;
    const int other = PRODUCT_TILE * PITCH - stage;
    if (step + 1 < k / TILE_K) {
      load_tiles(tiles_a + other, tiles_b + other, a + (step + 1) * TILE_K, b + (step + 1) * TILE_K, k);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<FAULT == PRODUCT_weak_wait ? 2 : 1>();
    if (FAULT != PRODUCT_no_barrier_after_wait) __syncthreads();
    multiply_tiles<FAULT>(acc, tiles_a + stage + warp_row * PITCH, tiles_b + stage + warp_column * PITCH);
    if (FAULT != PRODUCT_no_barrier_before_refill) __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int row = blockIdx.y * PRODUCT_TILE + warp_row + 16 * i + lane / 4;
      const int column = blockIdx.x * PRODUCT_TILE + warp_column + 8 * j + lane % 4 * 2;
      float* to = c + static_cast<size_t>(row) * n + column;
      *reinterpret_cast<float2*>(to) = make_float2(acc[i][j][0], acc[i][j][1]);
      *reinterpret_cast<float2*>(to + 8 * n) = make_float2(acc[i][j][2], acc[i][j][3]);
    }
  }
}

// y [n_columns] = sums over all rows of x: each block adds its rows to scratch, the last one to arrive adds
// up. y has one element more. Shared: 4 bytes.
template <int FAULT>
__device__ __forceinline__ void column_sums(const float* x, float* y, float* scratch, unsigned* counter,
                                            int rows_per_block, int n_columns) {
  DYNAMIC_SHARED(raw);
  unsigned* arrived_before = reinterpret_cast<unsigned*>(raw);
  x += static_cast<size_t>(blockIdx.x) * rows_per_block * n_columns;
  for (int column = threadIdx.x; column < n_columns; column += blockDim.x) {
    float sum = 0.0f;
    for (int row = 0; row < rows_per_block; ++row) sum += x[row * n_columns + column];
    scratch[blockIdx.x * n_columns + column] = sum;
  }
  const bool own_flag = FAULT == COLUMN_SUMS_two_writers || blockIdx.x == 0;
  if (own_flag && threadIdx.x == 0) y[n_columns] = 1.0f;

  if (FAULT != COLUMN_SUMS_no_fence_before_arrival) __threadfence();
  if (FAULT != COLUMN_SUMS_no_barrier_before_arrival) __syncthreads();
  if (threadIdx.x == 0) *arrived_before = atomicAdd(counter, 1u);
  __syncthreads();
  if (*arrived_before != (FAULT == COLUMN_SUMS_first_arriver ? 0 : gridDim.x - 1)) return;
  if (FAULT != COLUMN_SUMS_no_fence_after_arrival) __threadfence();
  for (int column = threadIdx.x; column < n_columns; column += blockDim.x) {
    float sum = 0.0f;
    for (int block = 0; block < static_cast<int>(gridDim.x); ++block)
      sum += scratch[block * n_columns + column];
    y[column] = sum;
  }
  if (FAULT != COLUMN_SUMS_first_arriver && threadIdx.x == 0) *counter = 0;
}

// Each lane takes the value of the next lane of its warp, through shared memory: 4 bytes a thread.
template <int FAULT>
__device__ __forceinline__ void rotate(const float* x, float* y) {
  DYNAMIC_SHARED(raw);
  float* values = reinterpret_cast<float*>(raw);
  const int lane = threadIdx.x % 32;
  values[threadIdx.x] = x[threadIdx.x];
  if (FAULT != ROTATE_no_warp_barrier) __syncwarp();
  float value = values[threadIdx.x - lane + (lane + 1) % 32];
  if (FAULT == ROTATE_misaligned && threadIdx.x == 0) {
    const float2 pair = *reinterpret_cast<const float2*>(x + 1);
    value = pair.x;
  }
  if (FAULT == ROTATE_barrier_in_branch) {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (FAULT == ROTATE_shuffle_in_branch && lane < 16) value += __shfl_xor_sync(ALL_LANES, value, 1);
  y[threadIdx.x] = value;
}

}  // namespace

#define DEFINE_STANDARDIZE(fault, text)                                             \
  extern "C" __global__ void standardize_##fault(const float* x, float* y, int n) { \
    standardize<STANDARDIZE_##fault>(x, y, n);                                      \
  }                                                                                 \
  EXPORT_KERNEL(standardize_##fault)
#define DEFINE_PRODUCT(fault, text)                                                                  \
  extern "C" __global__ void product_##fault(const bf16* a, const bf16* b, float* c, int n, int k) { \
    product<PRODUCT_##fault>(a, b, c, n, k);                                                         \
  }                                                                                                  \
  EXPORT_KERNEL(product_##fault)
#define DEFINE_COLUMN_SUMS(fault, text)                                                                  \
  extern "C" __global__ void column_sums_##fault(const float* x, float* y, float* scratch,               \
                                                 unsigned* counter, int rows_per_block, int n_columns) { \
    column_sums<COLUMN_SUMS_##fault>(x, y, scratch, counter, rows_per_block, n_columns);                 \
  }                                                                                                      \
  EXPORT_KERNEL(column_sums_##fault)
#define DEFINE_ROTATE(fault, text)                                                                      \
  extern "C" __global__ void rotate_##fault(const float* x, float* y) { rotate<ROTATE_##fault>(x, y); } \
  EXPORT_KERNEL(rotate_##fault)

STANDARDIZE_FAULTS(DEFINE_STANDARDIZE)
PRODUCT_FAULTS(DEFINE_PRODUCT)
COLUMN_SUMS_FAULTS(DEFINE_COLUMN_SUMS)
ROTATE_FAULTS(DEFINE_ROTATE)

// For the counts. Each thread moves 16 bytes (stride in units of 16 bytes).
extern "C" __global__ void copy_vectors(const float* from, float* to, int stride) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * stride;
  reinterpret_cast<float4*>(to)[i] = reinterpret_cast<const float4*>(from)[i];
}
EXPORT_KERNEL(copy_vectors)

// One warp: lane l writes word `stride * l` of shared memory.
extern "C" __global__ void write_strided(float* out, int stride) {
  DYNAMIC_SHARED(raw);
  float* words = reinterpret_cast<float*>(raw);
  words[threadIdx.x * stride] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = words[0];
}
EXPORT_KERNEL(write_strided)

// One warp: d += a b by a single mma, all in rows, [16, 16] by [16, 8].
extern "C" __global__ void multiply_once(const bf16* a, const bf16* b, float* d) {
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 2;
  const auto pair = [](const bf16* first, const bf16* second) {
    uint16_t low, high;
    memcpy(&low, first, sizeof low);
    memcpy(&high, second, sizeof high);
    return low | static_cast<uint32_t>(high) << 16;
  };
  uint32_t of_a[4], of_b[2];
  float sums[4];
  for (int i = 0; i < 4; ++i) {
    const bf16* from = a + (row + i % 2 * 8) * 16 + column + i / 2 * 8;
    of_a[i] = pair(from, from + 1);
    sums[i] = d[(row + i / 2 * 8) * 8 + column + i % 2];
  }
  for (int i = 0; i < 2; ++i) {
    const bf16* from = b + (column + i * 8) * 8 + row;
    of_b[i] = pair(from, from + 8);
  }
  ptx::mma_m16n8k16_bf16(sums, of_a, of_b[0], of_b[1]);
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + column + i % 2] = sums[i];
}
EXPORT_KERNEL(multiply_once)
