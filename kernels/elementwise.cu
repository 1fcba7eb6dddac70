// Activations and their gradients, one pass over the data each, and the gradient of a bias.
#include "columns.cuh"
#include "gelu.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int VECTOR = 8;

// Where this thread's eight elements begin.
__device__ __forceinline__ size_t first_element() {
  return (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
}

// out[i] = f(x[i]) for the n first elements.
template <class X, class Out, class F>
__device__ __forceinline__ void map(size_t n, const X* x, Out* out, F f) {
  const size_t first = first_element();
  if (first + VECTOR <= n) {
    float values[8];
    load8(x + first, values);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) values[i] = f(values[i]);
    store8(out + first, values);
    return;
  }
  for (size_t i = first; i < n; ++i) out[i] = from_float<Out>(f(to_float(x[i])));
}

// out[i] = f(x[i], y[i]) for the n first elements.
template <class E, class Out, class F>
__device__ __forceinline__ void map(size_t n, const E* x, const E* y, Out* out, F f) {
  const size_t first = first_element();
  if (first + VECTOR <= n) {
    float left[8], right[8];
    load8(x + first, left);
    load8(y + first, right);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) left[i] = f(left[i], right[i]);
    store8(out + first, left);
    return;
  }
  for (size_t i = first; i < n; ++i) out[i] = from_float<Out>(f(to_float(x[i]), to_float(y[i])));
}

__device__ __forceinline__ size_t n_elements(const StepState* state, int rows, int cols) {
  return static_cast<size_t>(live_rows(state, rows)) * cols;
}

}  // namespace

// gelu_fwd: GELU, exact, where no matrix product could take it along.
// MATHS    out = x Phi(x),  Phi(x) = (1 + erf(x / sqrt 2)) / 2
// SHAPES   x, out: [M, N] of E, as one array of M * N elements, 16-byte aligned.
// TRAFFIC  bytes = 2*M*N*E (each tensor once); flops = 5*M*N. Memory-bound: floor = bytes / bandwidth.
// LAUNCH   8 elements a thread: grid = ceil(capacity of M * N / 2048), block = 256, smem 0.
//          At most 32 registers (sm_80, sm_90a), no spill.
// PICTURE  element 8 * (256 * block + thread) + i, i = 0..7; 8 bf16 are one 16-byte access, 8 floats two.
// NEEDS    nothing of M and N: the thread that holds the end goes element by element, those behind it leave.
// H100     gelu_fwd_bf16: 32 registers, 256 threads, 0 bytes, 100.0 %; floor 34 us +- 10 %.
// HISTORY  not yet measured on a device.
template <class E>
__device__ __forceinline__ void gelu_fwd(const StepState* state, int rows, int cols, const E* x, E* out) {
  map(n_elements(state, rows, cols), x, out, [](float x) { return gelu<float>(x); });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_fwd_f32(const StepState* state, int rows, int cols, const float* x, float* out) {
  gelu_fwd(state, rows, cols, x, out);
}
EXPORT_KERNEL(gelu_fwd_f32)

extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_fwd_bf16(const StepState* state, int rows, int cols, const bf16* x, bf16* out) {
  gelu_fwd(state, rows, cols, x, out);
}
EXPORT_KERNEL(gelu_fwd_bf16)

// gelu_bwd: gradient of GELU.
// MATHS    dx = dout (Phi(x) + x phi(x)),  phi(x) = exp(-x^2 / 2) / sqrt(2 pi)
// SHAPES   x, dout, dx: [M, N] of E, as one array of M * N elements, 16-byte aligned.
// TRAFFIC  bytes = 3*M*N*E; flops = 11*M*N. Memory-bound: floor = bytes / bandwidth.
// LAUNCH   as gelu_fwd.
//          At most 40 registers (sm_80, sm_90a), no spill.
// PICTURE  as gelu_fwd.
// NEEDS    as gelu_fwd.
// H100     gelu_bwd_bf16: 40 registers, 256 threads, 0 bytes, 75.0 %; floor 50 us +- 10 %.
// HISTORY  not yet measured on a device.
template <class E>
__device__ __forceinline__ void gelu_bwd(const StepState* state, int rows, int cols, const E* x,
                                         const E* dout, E* dx) {
  map(n_elements(state, rows, cols), x, dout, dx,
      [](float x, float dout) { return dout * gelu_slope<float>(x); });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_bwd_f32(const StepState* state, int rows, int cols, const float* x, const float* dout, float* dx) {
  gelu_bwd(state, rows, cols, x, dout, dx);
}
EXPORT_KERNEL(gelu_bwd_f32)

extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_bwd_bf16(const StepState* state, int rows, int cols, const bf16* x, const bf16* dout, bf16* dx) {
  gelu_bwd(state, rows, cols, x, dout, dx);
}
EXPORT_KERNEL(gelu_bwd_bf16)

// tanh_fwd: hyperbolic tangent, the pooler's activation.
// MATHS    out = tanh(x)
// SHAPES   x: [M, N] of E, out: [M, N] f32, as arrays of M * N elements, 16-byte aligned: what the heads read
//          is f32, what the pooler's product wrote is not.
// TRAFFIC  bytes = M*N*(E + 4); flops = M*N. A few microseconds at most: M is the number of sequences.
// LAUNCH   as gelu_fwd.
//          At most 32 registers (sm_80, sm_90a), no spill.
// PICTURE  as gelu_fwd.
// NEEDS    as gelu_fwd.
// H100     tanh_fwd_bf16: 31 registers, 256 threads, 0 bytes, 100.0 %; a launch.
// HISTORY  not yet measured on a device.
template <class E>
__device__ __forceinline__ void tanh_fwd(const StepState* state, int rows, int cols, const E* x, float* out) {
  map(n_elements(state, rows, cols), x, out, [](float x) { return tanhf(x); });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    tanh_fwd_f32(const StepState* state, int rows, int cols, const float* x, float* out) {
  tanh_fwd(state, rows, cols, x, out);
}
EXPORT_KERNEL(tanh_fwd_f32)

extern "C" __global__ void __launch_bounds__(THREADS)
    tanh_fwd_bf16(const StepState* state, int rows, int cols, const bf16* x, float* out) {
  tanh_fwd(state, rows, cols, x, out);
}
EXPORT_KERNEL(tanh_fwd_bf16)

// tanh_bwd: gradient of the hyperbolic tangent, from its output.
// MATHS    dx = dout (1 - out^2)
// SHAPES   out, dout: [M, N] f32, dx: [M, N] of E, as arrays of M * N elements, 16-byte aligned.
// TRAFFIC  bytes = M*N*(E + 8); flops = 3*M*N.
// LAUNCH   as gelu_fwd.
//          At most 28 registers (sm_80, sm_90a), no spill.
// PICTURE  as gelu_fwd.
// NEEDS    as gelu_fwd.
// H100     tanh_bwd_bf16: 28 registers, 256 threads, 0 bytes, 100.0 %; a launch.
// HISTORY  not yet measured on a device.
template <class E>
__device__ __forceinline__ void tanh_bwd(const StepState* state, int rows, int cols, const float* out,
                                         const float* dout, E* dx) {
  map(n_elements(state, rows, cols), out, dout, dx,
      [](float out, float dout) { return dout * (1.0f - out * out); });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    tanh_bwd_f32(const StepState* state, int rows, int cols, const float* out, const float* dout, float* dx) {
  tanh_bwd(state, rows, cols, out, dout, dx);
}
EXPORT_KERNEL(tanh_bwd_f32)

extern "C" __global__ void __launch_bounds__(THREADS)
    tanh_bwd_bf16(const StepState* state, int rows, int cols, const float* out, const float* dout, bf16* dx) {
  tanh_bwd(state, rows, cols, out, dout, dx);
}
EXPORT_KERNEL(tanh_bwd_bf16)

namespace {

// Rows whose sum one block makes. Slices are cut by row number alone, so that a row's place in the order of
// the sum depends neither on the capacity nor on the device. src/backend/cuda/launch/elementwise.rs has the
// same number.
constexpr int SLICE_ROWS = 128;

}  // namespace

// bias_grad: gradient of a bias where the matrix beside it is frozen (gemm_wgrad takes it along otherwise).
// MATHS    dbias[n] = sum_m dout[m, n]
// SHAPES   dout: [M, N] of E; dbias: [N] f32; partial: [slices, N] f32 scratch; counters: one of ceil(N/256).
// TRAFFIC  bytes = M*N*E + 4*N (partial sums, 8*N*M/128, stay in the L2); flops = M*N. Memory-bound.
// LAUNCH   slices of 128 rows: grid = (ceil(N/256), ceil(capacity of M / 128)), block = 256, smem = 8192.
//          At most 40 registers (sm_80, sm_90a), no spill.
// PICTURE  block (c, s): columns 256c .. 256c + 255, rows 128s .. 128s + 127, row 128s + 8k + w by warp w;
//          lane l holds columns 256c + 8l .. 256c + 8l + 7 (256c + l + 32i where N % 8 != 0). The last
//          block of a column range to arrive adds the slices' sums in the order of the slices.
// NEEDS    nothing of M and N. Slices without a live row leave at once and are not waited for. The order of
//          the sum is fixed: bitwise repeatable, no atomics on data.
// H100     bias_grad_bf16: 32 registers, 256 threads, 8192 bytes, 100.0 %; floor 17 us +- 10 %.
// HISTORY  not yet measured on a device.
template <class E>
__device__ __forceinline__ void bias_grad(const StepState* state, int rows, int cols, const E* dout,
                                          float* dbias, float* partial, unsigned* counters) {
  DYNAMIC_SHARED(raw);
  float* shared = reinterpret_cast<float*>(raw);
  const int n_rows = live_rows(state, rows);
  const int n_slices = max(1, (n_rows + SLICE_ROWS - 1) / SLICE_ROWS);
  const int slice = blockIdx.y;
  if (slice >= n_slices) return;

  const int first_col = blockIdx.x * BLOCK_COLUMNS;
  const int col = first_col + threadIdx.x;
  const int begin = slice * SLICE_ROWS;
  const int end = min(begin + SLICE_ROWS, n_rows);
  const float sum = column_sum(dout, cols, first_col, begin, end, shared);
  if (col < cols) partial[static_cast<size_t>(slice) * cols + col] = sum;

  if (!is_last_block(counters + blockIdx.x, n_slices, shared) || col >= cols) return;
  float total = 0.0f;
#pragma unroll 8
  for (int i = 0; i < n_slices; ++i) total += partial[static_cast<size_t>(i) * cols + col];
  dbias[col] = total;
}

extern "C" __global__ void __launch_bounds__(BLOCK_COLUMNS)
    bias_grad_f32(const StepState* state, int rows, int cols, const float* dout, float* dbias, float* partial,
                  unsigned* counters) {
  bias_grad(state, rows, cols, dout, dbias, partial, counters);
}
EXPORT_KERNEL(bias_grad_f32)

extern "C" __global__ void __launch_bounds__(BLOCK_COLUMNS)
    bias_grad_bf16(const StepState* state, int rows, int cols, const bf16* dout, float* dbias, float* partial,
                   unsigned* counters) {
  bias_grad(state, rows, cols, dout, dbias, partial, counters);
}
EXPORT_KERNEL(bias_grad_bf16)
