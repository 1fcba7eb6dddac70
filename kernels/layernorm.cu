// layernorm_fwd: LayerNorm of a branch and the residual stream.
// MATHS    s = dropout(x) + residual;  xhat = (s - mean_D(s)) * rstd;  rstd = 1 / sqrt(var_D(s) + eps);
//          out = xhat * gamma + beta;  stream = out before it is rounded
// SHAPES   x, out, xhat: [M, D] E row-major; residual: [M, D] E, or f32 as a stream; stream: [M, D] f32;
//          gamma, beta: [D] f32; rstd: [M] f32. residual, stream, xhat and rstd may be null. The sum s lives
//          in f32 only.
// TRAFFIC  bytes = 4*M*D*e + 4*M + 8*D for e bytes an element (3*M*D*e without xhat), and with streams, in
//          bf16, 4*M*D for the one written and 2*M*D more for the one read; flops = 10*M*D. Memory-bound.
// LAUNCH   one warp per row, 8 per block: grid = ceil(M/8), block = 256, smem 0; variants by width: _1 .. _4
//          hold 256 columns each in registers, _wide holds two rows in shared memory: 8*D bytes a warp, as
//          many warps (up to 8) as fit. At most 128 registers.
// PICTURE  row r:  |lane0 x4|lane1 x4| ... |lane31 x4|lane0 x4| ...   16 bytes of f32, 8 of bf16 an access
// NEEDS    D % 8 == 0; variant _n: 256*(n-1) < D <= 256*n; _wide: any D. Fixed order of sums.
// H100     layernorm_fwd_bf16_3: 80 registers, 256 threads, 0 bytes, 37.5 %; floor 29 us +- 10 %.
// HISTORY  not yet measured on a device.
//
// layernorm_bwd_dx: gradient of LayerNorm with respect to its sum.
// MATHS    g = gamma * sum of dout;  dresidual = rstd * (g - mean_D(g) - xhat * mean_D(g * xhat));
//          dx = dresidual * dropout factor
// SHAPES   dout (up to 4 tensors, and one in f32 as the pooling gives it; 1 in all at least), xhat, dx,
//          dresidual: [M, D] E; dx or dresidual may be null.
// TRAFFIC  bytes = (n_dout + 3)*M*D*e + 4*M + 4*D, without dropout (n_dout + 2)*M*D*e;
//          flops = (n_dout + 8)*M*D.
// LAUNCH   as layernorm_fwd, the same variants. At most 128 registers.
// NEEDS    as layernorm_fwd.
// H100     layernorm_bwd_dx_bf16_3: 80 registers, 256 threads, 0 bytes, 37.5 %; floor 21 us +- 10 %.
// HISTORY  not yet measured on a device.
//
// layernorm_bwd_params, layernorm_bwd_params_total: gradients of gamma and beta.
// MATHS    dgamma = sum_M dout * xhat;  dbeta = sum_M dout
// SHAPES   dgamma, dbeta: [D] f32; gamma_slices, beta_slices: [n_slices, D] f32, n_slices = gridDim.x; each
//          pair null where it is not wanted.
// TRAFFIC  bytes = (n_dout + 1)*M*D*e + 8*D (n_dout*M*D*e for dbeta alone); flops = (n_dout + 2)*M*D.
// LAUNCH   grid = (n_slices, ceil(D/256)), block = 256, smem = 8 KB; then layernorm_bwd_params_total:
//          grid = (ceil(D/32), 2), block = 256, smem = 1 KB. n_slices follows the device alone.
//          At most 64 registers.
// PICTURE  slice b sums rows 8*b + warp, then those 8 * n_slices further down, ...; the warps' sums are added
//          in their order, then the slices' sums: by 8 warps, each every eighth slice, then by their order.
// NEEDS    D % 8 == 0. Fixed order of sums, no atomics: bitwise repeatable for one n_slices.
// H100     layernorm_bwd_params_bf16: 56 registers, 256 threads, 8192 bytes, 50.0 %; floor 13 us +- 10 %.
// HISTORY  not yet measured on a device.
//
// layernorm_bwd: layernorm_bwd_dx and layernorm_bwd_params in one pass.
// TRAFFIC  bytes = (n_dout + 3)*M*D*e + 4*M + 12*D, without dropout (n_dout + 2)*M*D*e;
//          flops = (n_dout + 11)*M*D.
// LAUNCH   grid = n_slices, block = 256, smem = 32*D bytes, variants _1 .. _4; then the total as above. Wider
//          rows take the two ops instead. At most 232 registers: the sums of both parameters' columns
//          stay in them.
// H100     layernorm_bwd_bf16_3: 128 registers, 256 threads, 24576 bytes, 25.0 %; floor 21 us +- 10 %.
// HISTORY  not yet measured on a device.
//
// dropout_fwd, dropout_bwd: dropout on its own.
// MATHS    out = x * factor;  dx = (sum of dout) * factor; factor is 0 or 1 / (1 - p)
// SHAPES   x, out, dout (1 to 4 tensors), dx: [M, D] E; rows are tokens, or sequences where sequence_ids is
//          null.
// TRAFFIC  bytes = 2*M*D*e and (n_dout + 1)*M*D*e; flops = M*D and n_dout*M*D. Memory-bound.
// LAUNCH   one warp per row, 8 per block: grid = ceil(M/8), block = 256, smem 0. At most 64 registers.
// NEEDS    D % 8 == 0.
// H100     dropout_fwd_bf16: 42 registers, 256 threads, 0 bytes, 62.5 %; floor 8.4 us +- 10 %,
//          dropout_bwd_bf16: 52 registers, 256 threads, 0 bytes, 50.0 %; floor 13 us +- 10 %.
// HISTORY  not yet measured on a device.
#include "philox.cuh"
#include "rows.cuh"

// The tensors whose sum is the gradient at an output: `count` of them, and one in f32 if `wide` is not null; at
// least one in all.
template <class E>
struct Gradients {
  static constexpr int MOST = 4;
  const E* tensor[MOST];
  int count;
  const float* wide;

  // No other tensor is wider than floats: their kernels need not ask.
  __device__ __forceinline__ bool has_wide() const { return sizeof(E) < sizeof(float) && wide != nullptr; }

  // The sum of the tensors' 4 elements at `place`.
  __device__ __forceinline__ void load(size_t place, float (&sum)[VECTOR]) const {
    if (has_wide()) {
      load4(wide + place, sum);
    } else {
      load4(tensor[0] + place, sum);
    }
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      if (i >= count) break;
      if (i == 0 && !has_wide()) continue;
      float more[VECTOR];
      load4(tensor[i] + place, more);
      add4(sum, more);
    }
  }

  // row = the sum of the tensors from element `first` on. The loads of a tensor are all under way before
  // the next one is asked for.
  template <class Row>
  __device__ __forceinline__ void load(Row& row, size_t first, int width) const {
    if (has_wide()) {
      load_row(row, wide + first, width);
    } else {
      load_row(row, tensor[0] + first, width);
    }
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      if (i < count && (i > 0 || has_wide())) add_to_row(row, tensor[i] + first, width);
    }
  }
};

// Where the dropout of a row's elements comes from.
struct RowDropout {
  const int* sequence_ids;
  const int* cu_seqlens;
  unsigned site;
  unsigned threshold;

  // values *= the factors of 4 elements from column `col` on.
  __device__ __forceinline__ static void scale(const Dropout& dropout, int2 place, int width, int col,
                                               float (&values)[VECTOR]) {
    float factors[VECTOR];
    dropout.row_factors4(place.x, place.y, width, col, factors);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) values[i] *= factors[i];
  }
};

template <class E>
struct NormInputs {
  const E* x;
  const E* residual;
  const float* stream;  // the residual in f32, instead
  RowDropout dropout;

  __device__ __forceinline__ bool has_stream() const { return sizeof(E) < sizeof(float) && stream != nullptr; }
};

template <class E, class Row>
__device__ __forceinline__ void layernorm_fwd(const StepState* state, int rows, int width,
                                              const NormInputs<E>& from, const NormOutputs<E>& to) {
  DYNAMIC_SHARED(shared);
  const int number = warp_of_grid();
  if (number >= live_rows(state, rows)) return;
  const size_t first = static_cast<size_t>(number) * width;
  Row sum(shared, width, 0);
  Row residual(shared, width, 1);
  load_row(sum, from.x + first, width);
  // Asked for before the mask is drawn, which hides the wait.
  if (from.residual != nullptr) load_row(residual, from.residual + first, width);
  if (from.has_stream()) load_row(residual, from.stream + first, width);
  if (from.dropout.threshold != 0) {
    const Dropout dropout(state, from.dropout.site, from.dropout.threshold);
    const int2 place = place_of_row(from.dropout.sequence_ids, from.dropout.cu_seqlens, number);
    Row::for_each(width, [&](Place at) {
      float values[VECTOR];
      sum.get(at, values);
      RowDropout::scale(dropout, place, width, at.col, values);
      sum.set(at, values);
    });
  }
  if (from.residual != nullptr || from.has_stream()) {
    Row::for_each(width, [&](Place at) {
      float values[VECTOR], more[VECTOR];
      sum.get(at, values);
      residual.get(at, more);
      add4(values, more);
      sum.set(at, values);
    });
  }
  normalise_row(sum, number, width, to);
}

template <class E>
struct NormGradients {
  RowDropout dropout;
  E* dx;
  E* dresidual;
};

// Writes the gradients at the sum and at the branch. `dout` holds the gradient at the row's output and holds
// gamma times it afterwards.
template <class E, class Row>
__device__ __forceinline__ void input_gradient(const StepState* state, int number, int width, Row& dout,
                                               const Row& xhat, float rstd, const float* gamma,
                                               const NormGradients<E>& to) {
  float sum = 0.0f;
  float sum_xhat = 0.0f;
  Row::for_each(width, [&](Place at) {
    float g[VECTOR], x[VECTOR], scale[VECTOR];
    dout.get(at, g);
    xhat.get(at, x);
    load4(gamma + at.col, scale);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
      g[i] *= scale[i];
      sum += g[i];
      sum_xhat += g[i] * x[i];
    }
    dout.set(at, g);
  });
  const float mean = warp_sum(sum) / width;
  const float mean_xhat = warp_sum(sum_xhat) / width;

  const size_t first = static_cast<size_t>(number) * width;
  const bool drops = to.dx != nullptr && to.dropout.threshold != 0;
  const Dropout dropout(state, to.dropout.site, to.dropout.threshold);
  const int2 place =
      drops ? place_of_row(to.dropout.sequence_ids, to.dropout.cu_seqlens, number) : int2{0, 0};
  Row::for_each(width, [&](Place at) {
    float g[VECTOR], x[VECTOR];
    dout.get(at, g);
    xhat.get(at, x);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) g[i] = rstd * (g[i] - mean - x[i] * mean_xhat);
    if (to.dresidual != nullptr) store4(to.dresidual + first + at.col, g);
    if (drops) RowDropout::scale(dropout, place, width, at.col, g);
    if (to.dx != nullptr) store4(to.dx + first + at.col, g);
  });
}

template <class E, class Row>
__device__ __forceinline__ void layernorm_bwd_dx(const StepState* state, int rows, int width,
                                                 const Gradients<E>& dout, const E* xhat, const float* rstd,
                                                 const float* gamma, const NormGradients<E>& to) {
  DYNAMIC_SHARED(shared);
  const int number = warp_of_grid();
  if (number >= live_rows(state, rows)) return;
  const size_t first = static_cast<size_t>(number) * width;
  Row row_dout(shared, width, 0);
  Row row_xhat(shared, width, 1);
  load_row(row_xhat, xhat + first, width);
  dout.load(row_dout, first, width);
  input_gradient(state, number, width, row_dout, row_xhat, rstd[number], gamma, to);
}

// slice[col] = the sum over the block's warps, in their order, of what each holds of n_cols columns. Takes
// n_cols floats of shared memory a warp.
template <int N>
__device__ __forceinline__ void store_slice(const RegisterRow<N>& sums, int n_cols, float* slice) {
  DYNAMIC_SHARED(shared);
  float* all = reinterpret_cast<float*>(shared);
  float* own = all + warp_of_block() * n_cols;
  RegisterRow<N>::for_each(n_cols, [&](Place at) {
    float values[VECTOR];
    sums.get(at, values);
    store4(own + at.col, values);
  });
  __syncthreads();
  for (int col = threadIdx.x; col < n_cols; col += blockDim.x) {
    float sum = 0.0f;
    for (int warp = 0; warp < warps_of_block(); ++warp) sum += all[warp * n_cols + col];
    slice[col] = sum;
  }
  __syncthreads();
}

template <int N>
__device__ __forceinline__ void clear(RegisterRow<N>& row) {
#pragma unroll
  for (int index = 0; index < RegisterRow<N>::N_VECTORS; ++index) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) row.values[index][i] = 0.0f;
  }
}

// Sums of dout and of dout * xhat over the rows that a warp has seen.
template <int N>
struct ParameterSums {
  RegisterRow<N> gamma;
  RegisterRow<N> beta;

  __device__ __forceinline__ ParameterSums() : gamma(nullptr, 0, 0), beta(nullptr, 0, 0) {
    clear(gamma);
    clear(beta);
  }

  __device__ __forceinline__ void add_gamma(Place at, const float (&dout)[VECTOR],
                                            const float (&xhat)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) gamma.values[at.index][i] += dout[i] * xhat[i];
  }

  __device__ __forceinline__ void add_beta(Place at, const float (&dout)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) beta.values[at.index][i] += dout[i];
  }
};

// The block's row of the slices; null where not wanted.
struct Slices {
  float* gamma;
  float* beta;

  __device__ __forceinline__ Slices(float* gamma_slices, float* beta_slices, int width)
      : gamma(gamma_slices), beta(beta_slices) {
    const size_t first = static_cast<size_t>(blockIdx.x) * width;
    if (gamma != nullptr) gamma += first;
    if (beta != nullptr) beta += first;
  }
};

template <class E>
__device__ __forceinline__ void layernorm_bwd_params(const StepState* state, int rows, int width,
                                                     const Gradients<E>& dout, const E* xhat,
                                                     const Slices& slices) {
  const int n_rows = live_rows(state, rows);
  const int first_col = blockIdx.y * PANEL;
  const int n_cols = min(PANEL, width - first_col);
  ParameterSums<1> sums;
  for (int number = warp_of_grid(); number < n_rows; number += gridDim.x * warps_of_block()) {
    const size_t first = static_cast<size_t>(number) * width + first_col;
    RegisterRow<1>::for_each(n_cols, [&](Place at) {
      float values[VECTOR], x[VECTOR];
      if (slices.gamma != nullptr) load4(xhat + first + at.col, x);
      dout.load(first + at.col, values);
      if (slices.gamma != nullptr) sums.add_gamma(at, values, x);
      if (slices.beta != nullptr) sums.add_beta(at, values);
    });
  }
  if (slices.gamma != nullptr) store_slice(sums.gamma, n_cols, slices.gamma + first_col);
  if (slices.beta != nullptr) store_slice(sums.beta, n_cols, slices.beta + first_col);
}

template <class E, int N>
__device__ __forceinline__ void layernorm_bwd(const StepState* state, int rows, int width,
                                              const Gradients<E>& dout, const E* xhat, const float* rstd,
                                              const float* gamma, const NormGradients<E>& to,
                                              const Slices& slices) {
  const int n_rows = live_rows(state, rows);
  ParameterSums<N> sums;
  for (int number = warp_of_grid(); number < n_rows; number += gridDim.x * warps_of_block()) {
    const size_t first = static_cast<size_t>(number) * width;
    RegisterRow<N> row_dout(nullptr, 0, 0);
    RegisterRow<N> row_xhat(nullptr, 0, 0);
    load_row(row_xhat, xhat + first, width);
    dout.load(row_dout, first, width);
    RegisterRow<N>::for_each(width, [&](Place at) {
      float values[VECTOR], x[VECTOR];
      row_dout.get(at, values);
      row_xhat.get(at, x);
      if (slices.gamma != nullptr) sums.add_gamma(at, values, x);
      if (slices.beta != nullptr) sums.add_beta(at, values);
    });
    input_gradient(state, number, width, row_dout, row_xhat, rstd[number], gamma, to);
  }
  if (slices.gamma != nullptr) store_slice(sums.gamma, width, slices.gamma);
  if (slices.beta != nullptr) store_slice(sums.beta, width, slices.beta);
}

// out[col] = the sum of the slices' element col: by each warp every eighth slice, then by the warps' order.
__device__ __forceinline__ void add_slices(const float* slices, int n_slices, int width, float* out) {
  DYNAMIC_SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);
  const int col = blockIdx.x * 32 + lane_of_warp();
  float sum = 0.0f;
  if (col < width) {
#pragma unroll 4
    for (int slice = warp_of_block(); slice < n_slices; slice += warps_of_block()) {
      sum += slices[static_cast<size_t>(slice) * width + col];
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp_of_block() != 0 || col >= width) return;
  float total = 0.0f;
  for (int warp = 0; warp < warps_of_block(); ++warp) total += sums[warp * 32 + lane_of_warp()];
  out[col] = total;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1)
    layernorm_bwd_params_total(const StepState* __restrict__, int n_slices, int width,
                               const float* __restrict__ gamma_slices, const float* __restrict__ beta_slices,
                               float* __restrict__ dgamma, float* __restrict__ dbeta) {
  const float* slices = blockIdx.y == 0 ? gamma_slices : beta_slices;
  if (slices == nullptr) return;
  float* out = blockIdx.y == 0 ? dgamma : dbeta;
  add_slices(slices, n_slices, width, out);
}
EXPORT_KERNEL(layernorm_bwd_params_total)

template <class E>
__device__ __forceinline__ void dropout_rows(const StepState* state, int rows, int width,
                                             const Gradients<E>& from, const RowDropout& mask, E* to) {
  const int number = warp_of_grid();
  if (number >= live_rows(state, rows)) return;
  const Dropout dropout(state, mask.site, mask.threshold);
  const int2 place = place_of_row(mask.sequence_ids, mask.cu_seqlens, number);
  const size_t first = static_cast<size_t>(number) * width;
  for (int col = lane_of_warp() * VECTOR; col < width; col += WARP_COLUMNS) {
    float values[VECTOR];
    from.load(first + col, values);
    if (dropout.acts()) RowDropout::scale(dropout, place, width, col, values);
    store4(to + first + col, values);
  }
}

#define LAYERNORM_FWD(symbol, E, Row, BLOCKS)                                                         \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, BLOCKS)                                   \
      symbol(const StepState* __restrict__ state, int rows, int width, const E* __restrict__ x,       \
             const E* __restrict__ residual, const float* __restrict__ residual_stream,               \
             const int* __restrict__ sequence_ids, const int* __restrict__ cu_seqlens, unsigned site, \
             unsigned threshold, const float* __restrict__ gamma, const float* __restrict__ beta,     \
             float eps, E* __restrict__ out, float* __restrict__ stream, E* __restrict__ xhat,        \
             float* __restrict__ rstd) {                                                              \
    const RowDropout dropout{sequence_ids, cu_seqlens, site, threshold};                              \
    const NormInputs<E> from{x, residual, residual_stream, dropout};                                  \
    const NormOutputs<E> to{gamma, beta, eps, out, stream, xhat, rstd};                               \
    layernorm_fwd<E, Row>(state, rows, width, from, to);                                              \
  }                                                                                                   \
  EXPORT_KERNEL(symbol)
LAYERNORM_FWD(layernorm_fwd_f32_1, float, RegisterRow<1>, 4)
LAYERNORM_FWD(layernorm_fwd_f32_2, float, RegisterRow<2>, 3)
LAYERNORM_FWD(layernorm_fwd_f32_3, float, RegisterRow<3>, 3)
LAYERNORM_FWD(layernorm_fwd_f32_4, float, RegisterRow<4>, 2)
LAYERNORM_FWD(layernorm_fwd_f32_wide, float, SharedRow, 2)
LAYERNORM_FWD(layernorm_fwd_bf16_1, bf16, RegisterRow<1>, 4)
LAYERNORM_FWD(layernorm_fwd_bf16_2, bf16, RegisterRow<2>, 4)
LAYERNORM_FWD(layernorm_fwd_bf16_3, bf16, RegisterRow<3>, 3)
LAYERNORM_FWD(layernorm_fwd_bf16_4, bf16, RegisterRow<4>, 2)
LAYERNORM_FWD(layernorm_fwd_bf16_wide, bf16, SharedRow, 2)

#define LAYERNORM_BWD_DX(symbol, E, Row, BLOCKS)                                                         \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, BLOCKS) symbol(                              \
      const StepState* __restrict__ state, int rows, int width, const E* __restrict__ dout0,             \
      const E* __restrict__ dout1, const E* __restrict__ dout2, const E* __restrict__ dout3, int n_dout, \
      const float* __restrict__ wide_dout, const E* __restrict__ xhat,                                   \
      const float* __restrict__ rstd, const float* __restrict__ gamma,                                   \
      const int* __restrict__ sequence_ids, const int* __restrict__ cu_seqlens, unsigned site,           \
      unsigned threshold, E* __restrict__ dx, E* __restrict__ dresidual) {                               \
    const Gradients<E> dout{{dout0, dout1, dout2, dout3}, n_dout, wide_dout};                            \
    const NormGradients<E> to{{sequence_ids, cu_seqlens, site, threshold}, dx, dresidual};               \
    layernorm_bwd_dx<E, Row>(state, rows, width, dout, xhat, rstd, gamma, to);                           \
  }                                                                                                      \
  EXPORT_KERNEL(symbol)
LAYERNORM_BWD_DX(layernorm_bwd_dx_f32_1, float, RegisterRow<1>, 4)
LAYERNORM_BWD_DX(layernorm_bwd_dx_f32_2, float, RegisterRow<2>, 3)
LAYERNORM_BWD_DX(layernorm_bwd_dx_f32_3, float, RegisterRow<3>, 3)
LAYERNORM_BWD_DX(layernorm_bwd_dx_f32_4, float, RegisterRow<4>, 2)
LAYERNORM_BWD_DX(layernorm_bwd_dx_f32_wide, float, SharedRow, 2)
LAYERNORM_BWD_DX(layernorm_bwd_dx_bf16_1, bf16, RegisterRow<1>, 4)
LAYERNORM_BWD_DX(layernorm_bwd_dx_bf16_2, bf16, RegisterRow<2>, 4)
LAYERNORM_BWD_DX(layernorm_bwd_dx_bf16_3, bf16, RegisterRow<3>, 3)
LAYERNORM_BWD_DX(layernorm_bwd_dx_bf16_4, bf16, RegisterRow<4>, 2)
LAYERNORM_BWD_DX(layernorm_bwd_dx_bf16_wide, bf16, SharedRow, 2)

#define LAYERNORM_BWD_PARAMS(symbol, E)                                                                  \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) symbol(                                   \
      const StepState* __restrict__ state, int rows, int width, const E* __restrict__ dout0,             \
      const E* __restrict__ dout1, const E* __restrict__ dout2, const E* __restrict__ dout3, int n_dout, \
      const float* __restrict__ wide_dout, const E* __restrict__ xhat,                                   \
      float* __restrict__ gamma_slices, float* __restrict__ beta_slices) {                               \
    const Gradients<E> dout{{dout0, dout1, dout2, dout3}, n_dout, wide_dout};                            \
    const Slices slices(gamma_slices, beta_slices, width);                                               \
    layernorm_bwd_params(state, rows, width, dout, xhat, slices);                                        \
  }                                                                                                      \
  EXPORT_KERNEL(symbol)
LAYERNORM_BWD_PARAMS(layernorm_bwd_params_f32, float)
LAYERNORM_BWD_PARAMS(layernorm_bwd_params_bf16, bf16)

#define LAYERNORM_BWD(symbol, E, N, BLOCKS)                                                                  \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, BLOCKS)                                          \
      symbol(const StepState* __restrict__ state, int rows, int width, const E* __restrict__ dout0,          \
             const E* __restrict__ dout1, const E* __restrict__ dout2, const E* __restrict__ dout3,          \
             int n_dout, const float* __restrict__ wide_dout, const E* __restrict__ xhat,                    \
             const float* __restrict__ rstd, const float* __restrict__ gamma,                                \
             const int* __restrict__ sequence_ids,                                                           \
             const int* __restrict__ cu_seqlens, unsigned site, unsigned threshold, E* __restrict__ dx,      \
             E* __restrict__ dresidual, float* __restrict__ gamma_slices, float* __restrict__ beta_slices) { \
    const Gradients<E> dout{{dout0, dout1, dout2, dout3}, n_dout, wide_dout};                                \
    const NormGradients<E> to{{sequence_ids, cu_seqlens, site, threshold}, dx, dresidual};                   \
    const Slices slices(gamma_slices, beta_slices, width);                                                   \
    layernorm_bwd<E, N>(state, rows, width, dout, xhat, rstd, gamma, to, slices);                            \
  }                                                                                                          \
  EXPORT_KERNEL(symbol)
LAYERNORM_BWD(layernorm_bwd_f32_1, float, 1, 3)
LAYERNORM_BWD(layernorm_bwd_f32_2, float, 2, 2)
LAYERNORM_BWD(layernorm_bwd_f32_3, float, 3, 1)
LAYERNORM_BWD(layernorm_bwd_f32_4, float, 4, 1)
LAYERNORM_BWD(layernorm_bwd_bf16_1, bf16, 1, 3)
LAYERNORM_BWD(layernorm_bwd_bf16_2, bf16, 2, 2)
LAYERNORM_BWD(layernorm_bwd_bf16_3, bf16, 3, 2)
LAYERNORM_BWD(layernorm_bwd_bf16_4, bf16, 4, 1)

#define DROPOUT_FWD(symbol, E)                                                                        \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1)                                        \
      symbol(const StepState* __restrict__ state, int rows, int width, const E* __restrict__ x,       \
             const int* __restrict__ sequence_ids, const int* __restrict__ cu_seqlens, unsigned site, \
             unsigned threshold, E* __restrict__ out) {                                               \
    const Gradients<E> from{{x, nullptr, nullptr, nullptr}, 1, nullptr};                              \
    dropout_rows(state, rows, width, from, {sequence_ids, cu_seqlens, site, threshold}, out);         \
  }                                                                                                   \
  EXPORT_KERNEL(symbol)
DROPOUT_FWD(dropout_fwd_f32, float)
DROPOUT_FWD(dropout_fwd_bf16, bf16)

#define DROPOUT_BWD(symbol, E)                                                                      \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1)                                      \
      symbol(const StepState* __restrict__ state, int rows, int width, const E* __restrict__ dout0, \
             const E* __restrict__ dout1, const E* __restrict__ dout2, const E* __restrict__ dout3, \
             int n_dout, const int* __restrict__ sequence_ids, const int* __restrict__ cu_seqlens,  \
             unsigned site, unsigned threshold, E* __restrict__ dx) {                               \
    const Gradients<E> dout{{dout0, dout1, dout2, dout3}, n_dout, nullptr};                         \
    dropout_rows(state, rows, width, dout, {sequence_ids, cu_seqlens, site, threshold}, dx);        \
  }                                                                                                 \
  EXPORT_KERNEL(symbol)
DROPOUT_BWD(dropout_bwd_f32, float)
DROPOUT_BWD(dropout_bwd_bf16, bf16)
