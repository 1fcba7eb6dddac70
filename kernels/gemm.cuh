// The products of a linear layer over an engine that multiplies one tile: PlainTile (gemm_plain.cuh)
// or TensorTile (gemm_tile.cuh).
//
// An engine P holds in the registers of one block P::ROWS x P::COLS entries
//     tile[i][j] = sum over k of A(i, k) B(j, k)
// and offers
//     P::A, P::B               load(shared, matrix, stride, first, end, k, k_end): one operand's panel of
//                              P::DEPTH steps of the reduction; what is outside [first, end) or [k, k_end)
//                              is not read and counts as zero
//     clear()                  tile = 0
//     run(shared, n, sums, f)  adds n panels, of which f(a, b, step) starts the loads; with `sums` also the
//                              sums over k of A(i, k)
//     add_bias, map, multiply  of the tile in registers
//     store, store_sums        writes what is inside the matrix
//     save, add_saved          a copy of the tile in scratch, P::SAVED floats
#pragma once
#include "gelu.cuh"

namespace gemm {

// How an operand lies in memory: each row runs along the reduction, or each row is one step of it.
enum Layout { ALONG_K, ACROSS_K };

// Up to three tensors of one kind: of query, key and value. Kernel arguments stay in constant memory, hence
// no array with a computed index.
template <class T>
struct Parts {
  T* first;
  T* second;
  T* third;

  __device__ __forceinline__ T* operator[](int part) const {
    return part == 0 ? first : part == 1 ? second : third;
  }
};

template <class P>
using Element = typename P::Element;

__device__ __forceinline__ int ceil_div(int value, int by) { return (value + by - 1) / by; }

// out = x weight^T + bias, then GELU if asked; `pre`, GELU's input, is kept unless null. Tiles run along the
// columns of all parts first, so that one row panel of x is read by neighbours.
template <class P, bool WITH_GELU>
__device__ __forceinline__ void forward(unsigned char* shared, const StepState* state, const Element<P>* x,
                                        Parts<const Element<P>> weights, Parts<const float> biases,
                                        Element<P>* pre, Parts<Element<P>> outs, int rows, int n, int k) {
  const int n_live = live_rows(state, rows);
  const int n_tiles = ceil_div(n, P::COLS);
  const int part = blockIdx.x / n_tiles;
  const int row = blockIdx.y * P::ROWS;
  const int col = blockIdx.x % n_tiles * P::COLS;
  if (row >= n_live) return;
  const Element<P>* weight = weights[part];
  P product;
  product.clear();
  product.run(shared, ceil_div(k, P::DEPTH), false, [&](auto* a, auto* b, int step) {
    P::A::load(a, x, k, row, n_live, step * P::DEPTH, k);
    P::B::load(b, weight, k, col, n, step * P::DEPTH, k);
  });
  product.add_bias(biases[part], col, n);
  if (WITH_GELU) {
    if (pre != nullptr) product.store(pre, n, row, n_live, col, n);
    product.map([](float value) { return gelu<Element<P>>(value); });
  }
  product.store(outs[part], n, row, n_live, col, n);
}

// dx = sum over the parts of dout weight, times gelu'(pre) if asked. The parts follow each other in one
// reduction, so that their sum never leaves the registers.
template <class P, bool WITH_GELU>
__device__ __forceinline__ void data_gradient(unsigned char* shared, const StepState* state,
                                              Parts<const Element<P>> douts, Parts<const Element<P>> weights,
                                              const Element<P>* pre, Element<P>* dx, int n_parts, int rows,
                                              int n, int k) {
  const int n_live = live_rows(state, rows);
  const int row = blockIdx.y * P::ROWS;
  const int col = blockIdx.x * P::COLS;
  if (row >= n_live) return;
  const int part_steps = ceil_div(n, P::DEPTH);
  P product;
  product.clear();
  product.run(shared, n_parts * part_steps, false, [&](auto* a, auto* b, int step) {
    const int part = (step >= part_steps) + (step >= 2 * part_steps);
    const int from = (step - part * part_steps) * P::DEPTH;
    P::A::load(a, douts[part], n, row, n_live, from, n);
    P::B::load(b, weights[part], k, col, k, from, n);
  });
  if (WITH_GELU) {
    product.multiply(shared, pre, k, row, n_live, col, k,
                     [](float value) { return gelu_slope<Element<P>>(value); });
  }
  product.store(dx, k, row, n_live, col, k);
}

// The slice of the live rows that this block reduces. As many slices as the grid has in y, of whole panels,
// as even as that allows; the last ones are empty where there is little to do.
struct Slice {
  int first;  // panel
  int n_panels;
  int n_active;  // slices that are not empty; the first one always counts

  __device__ __forceinline__ Slice(int n_rows, int depth) {
    const int all = ceil_div(n_rows, depth);
    const int each = max(1, ceil_div(all, static_cast<int>(gridDim.y)));
    n_active = max(1, ceil_div(all, each));
    first = blockIdx.y * each;
    n_panels = min(each, all - first);
  }
};

// Whether this block is the last of `n` that come here with this counter, which is zero before and after.
// What the others wrote before is then visible to all threads. Nobody waits for anybody.
__device__ __forceinline__ bool arrives_last(unsigned* counter, unsigned n, unsigned* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *flag = atomicAdd(counter, 1u) == n - 1;
    if (*flag) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return *flag != 0;
}

// dweight = dout^T x and, unless null, dbias, the column sums of dout. Each slice of the rows leaves its part
// of the tile in scratch; the last one adds them up in the order of the rows, whoever it is.
template <class P>
__device__ __forceinline__ void weight_gradient(unsigned char* shared, const StepState* state,
                                                const Element<P>* x, Parts<const Element<P>> douts,
                                                Parts<float> dweights, Parts<float> dbiases, float* partials,
                                                unsigned* counters, int rows, int n, int k) {
  const int n_live = live_rows(state, rows);
  const Slice slice(n_live, P::DEPTH);
  if (static_cast<int>(blockIdx.y) >= slice.n_active) return;
  const int tiles_k = ceil_div(k, P::COLS);
  const int tiles_n = ceil_div(n, P::ROWS);
  const int part = blockIdx.x / (tiles_k * tiles_n);
  const int row = blockIdx.x / tiles_k % tiles_n * P::ROWS;
  const int col = blockIdx.x % tiles_k * P::COLS;
  const Element<P>* dout = douts[part];
  float* dbias = dbiases[part];
  const bool with_sums = dbias != nullptr && col == 0;

  P product;
  product.clear();
  product.run(shared, slice.n_panels, with_sums, [&](auto* a, auto* b, int step) {
    const int from = (slice.first + step) * P::DEPTH;
    P::A::load(a, dout, n, row, n, from, n_live);
    P::B::load(b, x, k, col, k, from, n_live);
  });
  if (slice.n_active > 1) {
    float* saved = partials + static_cast<size_t>(blockIdx.x) * gridDim.y * P::SAVED;
    product.save(saved + static_cast<size_t>(blockIdx.y) * P::SAVED, with_sums);
    unsigned* flag = reinterpret_cast<unsigned*>(shared + P::SHARED_BYTES);
    if (!arrives_last(counters + blockIdx.x, slice.n_active, flag)) return;
    product.clear();
    for (int i = 0; i < slice.n_active; ++i) {
      product.add_saved(saved + static_cast<size_t>(i) * P::SAVED, with_sums);
    }
  }
  product.store(dweights[part], k, row, n, col, k);
  if (with_sums) product.store_sums(dbias, row, n);
}

// Bytes behind the panels in shared memory for the flag of arrives_last.
constexpr int FLAG_BYTES = 16;

}  // namespace gemm

// The kernels of one engine, ENGINE<layout of A, layout of B>, under the names gemm_<product>_<SUFFIX>.
#define GEMM_KERNELS(SUFFIX, ENGINE, ELEMENT, THREADS, BLOCKS)                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gemm_fwd_##SUFFIX(                           \
      const StepState* state, const ELEMENT* x, const ELEMENT* weight0, const ELEMENT* weight1,              \
      const ELEMENT* weight2, const float* bias0, const float* bias1, const float* bias2, ELEMENT* out0,     \
      ELEMENT* out1, ELEMENT* out2, int rows, int n, int k) {                                                \
    DYNAMIC_SHARED(shared);                                                                                  \
    gemm::forward<ENGINE<gemm::ALONG_K, gemm::ALONG_K>, false>(                                              \
        shared, state, x, {weight0, weight1, weight2}, {bias0, bias1, bias2}, nullptr, {out0, out1, out2},   \
        rows, n, k);                                                                                         \
  }                                                                                                          \
  EXPORT_KERNEL(gemm_fwd_##SUFFIX)                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                              \
      gemm_gelu_fwd_##SUFFIX(const StepState* state, const ELEMENT* x, const ELEMENT* weight,                \
                             const float* bias, ELEMENT* pre, ELEMENT* out, int rows, int n, int k) {        \
    DYNAMIC_SHARED(shared);                                                                                  \
    gemm::forward<ENGINE<gemm::ALONG_K, gemm::ALONG_K>, true>(shared, state, x, {weight, nullptr, nullptr},  \
                                                              {bias, nullptr, nullptr}, pre,                 \
                                                              {out, nullptr, nullptr}, rows, n, k);          \
  }                                                                                                          \
  EXPORT_KERNEL(gemm_gelu_fwd_##SUFFIX)                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                              \
      gemm_dgrad_##SUFFIX(const StepState* state, const ELEMENT* dout0, const ELEMENT* dout1,                \
                          const ELEMENT* dout2, const ELEMENT* weight0, const ELEMENT* weight1,              \
                          const ELEMENT* weight2, ELEMENT* dx, int n_parts, int rows, int n, int k) {        \
    DYNAMIC_SHARED(shared);                                                                                  \
    gemm::data_gradient<ENGINE<gemm::ALONG_K, gemm::ACROSS_K>, false>(shared, state, {dout0, dout1, dout2},  \
                                                                      {weight0, weight1, weight2}, nullptr,  \
                                                                      dx, n_parts, rows, n, k);              \
  }                                                                                                          \
  EXPORT_KERNEL(gemm_dgrad_##SUFFIX)                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                              \
      gemm_gelu_dgrad_##SUFFIX(const StepState* state, const ELEMENT* dout, const ELEMENT* weight,           \
                               const ELEMENT* pre, ELEMENT* dx, int rows, int n, int k) {                    \
    DYNAMIC_SHARED(shared);                                                                                  \
    gemm::data_gradient<ENGINE<gemm::ALONG_K, gemm::ACROSS_K>, true>(                                        \
        shared, state, {dout, nullptr, nullptr}, {weight, nullptr, nullptr}, pre, dx, 1, rows, n, k);        \
  }                                                                                                          \
  EXPORT_KERNEL(gemm_gelu_dgrad_##SUFFIX)                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gemm_wgrad_##SUFFIX(                         \
      const StepState* state, const ELEMENT* x, const ELEMENT* dout0, const ELEMENT* dout1,                  \
      const ELEMENT* dout2, float* dweight0, float* dweight1, float* dweight2, float* dbias0, float* dbias1, \
      float* dbias2, float* partials, unsigned* counters, int rows, int n, int k) {                          \
    DYNAMIC_SHARED(shared);                                                                                  \
    gemm::weight_gradient<ENGINE<gemm::ACROSS_K, gemm::ACROSS_K>>(                                           \
        shared, state, x, {dout0, dout1, dout2}, {dweight0, dweight1, dweight2}, {dbias0, dbias1, dbias2},   \
        partials, counters, rows, n, k);                                                                     \
  }                                                                                                          \
  EXPORT_KERNEL(gemm_wgrad_##SUFFIX)
