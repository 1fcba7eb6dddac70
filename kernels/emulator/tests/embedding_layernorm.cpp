// Checks of embed_*, layernorm_* and dropout_* against plain loops in double.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "rows.cuh"
#include "philox.h"
#include "testing.h"

template <class E>
using EmbedFwd = void(const StepState*, int, const int*, const E*, const int*, const E*, const int*, const E*,
                      E*);
template <class E>
using EmbedLayernormFwd = void(const StepState*, int, const int*, const E*, const int*, const E*, const int*,
                               const E*, const float*, const float*, float, E*, float*, E*, float*);
template <class E>
using EmbedWgradSegments = void(const StepState*, int, const E*, const int*, const int*, float*);
template <class E>
using EmbedWgradRows = void(const StepState*, int, int, const E*, const int*, const int*, int, const float*,
                            float*);
template <class E>
using LayernormFwd = void(const StepState*, int, int, const E*, const E*, const float*, const int*, const int*,
                          unsigned, unsigned, const float*, const float*, float, E*, float*, E*, float*);
template <class E>
using LayernormBwdDx = void(const StepState*, int, int, const E*, const E*, const E*, const E*, int,
                            const float*, const E*, const float*, const float*, const int*, const int*, unsigned, unsigned, E*, E*);
template <class E>
using LayernormBwdParams = void(const StepState*, int, int, const E*, const E*, const E*, const E*, int,
                                const float*, const E*, float*, float*);
template <class E>
using LayernormBwd = void(const StepState*, int, int, const E*, const E*, const E*, const E*, int,
                          const float*, const E*, const float*, const float*, const int*, const int*, unsigned, unsigned, E*, E*,
                          float*, float*);
template <class E>
using DropoutFwd = void(const StepState*, int, int, const E*, const int*, const int*, unsigned, unsigned, E*);
template <class E>
using DropoutBwd = void(const StepState*, int, int, const E*, const E*, const E*, const E*, int, const int*,
                        const int*, unsigned, unsigned, E*);

#define DECLARE(E, dtype)                                                                                   \
  EmbedFwd<E> embed_fwd_##dtype;                                                                            \
  EmbedLayernormFwd<E> embed_layernorm_fwd_##dtype##_1, embed_layernorm_fwd_##dtype##_2,                    \
      embed_layernorm_fwd_##dtype##_3, embed_layernorm_fwd_##dtype##_4, embed_layernorm_fwd_##dtype##_wide; \
  EmbedWgradSegments<E> embed_wgrad_segments_##dtype;                                                       \
  EmbedWgradRows<E> embed_wgrad_rows_##dtype;                                                               \
  LayernormFwd<E> layernorm_fwd_##dtype##_1, layernorm_fwd_##dtype##_2, layernorm_fwd_##dtype##_3,          \
      layernorm_fwd_##dtype##_4, layernorm_fwd_##dtype##_wide;                                              \
  LayernormBwdDx<E> layernorm_bwd_dx_##dtype##_1, layernorm_bwd_dx_##dtype##_2,                             \
      layernorm_bwd_dx_##dtype##_3, layernorm_bwd_dx_##dtype##_4, layernorm_bwd_dx_##dtype##_wide;          \
  LayernormBwdParams<E> layernorm_bwd_params_##dtype;                                                       \
  LayernormBwd<E> layernorm_bwd_##dtype##_1, layernorm_bwd_##dtype##_2, layernorm_bwd_##dtype##_3,          \
      layernorm_bwd_##dtype##_4;                                                                            \
  DropoutFwd<E> dropout_fwd_##dtype;                                                                        \
  DropoutBwd<E> dropout_bwd_##dtype;

extern "C" {
DECLARE(float, f32)
DECLARE(bf16, bf16)
void layernorm_bwd_params_total(const StepState*, int, int, const float*, const float*, float*, float*);
}

namespace {

using testing::Buffer;
typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;

constexpr unsigned SITE = 9;
constexpr unsigned STEP = 3;
constexpr unsigned SEED[2] = {42, 7};
constexpr float EPS = 1e-12f;
constexpr int SPARE_ROWS = 11;  // rows of the buffers that the batch leaves free: NaN

// An output of bf16 is off by its own rounding: each element by up to 2^-8 of itself. The inputs are rounded
// before the reference sees them, and everything in between is f32, whose sums of up to 1032 values are off
// by some 1e-7 of their terms' size.
template <class E>
constexpr double TOLERANCE = sizeof(E) == 2 ? 1.0 / 256.0 + 2e-6 : 2e-6;

template <class Function>
struct Kernel {
  Function* function;
  const char* name;

  template <class... A>
  void launch(dim3 grid, int warps, size_t shared_bytes, A... arguments) const {
    testing::launch(function, name, grid, dim3(32 * warps), shared_bytes, arguments...);
  }
};

#define KERNEL(symbol) {&symbol, #symbol}
#define VARIANTS(op) {KERNEL(op##_1), KERNEL(op##_2), KERNEL(op##_3), KERNEL(op##_4), KERNEL(op##_wide)}

template <class E>
struct Kernels;

#define KERNELS(E, dtype)                                                                        \
  template <>                                                                                    \
  struct Kernels<E> {                                                                            \
    Kernel<EmbedFwd<E>> embed_fwd = KERNEL(embed_fwd_##dtype);                                   \
    Kernel<EmbedLayernormFwd<E>> embed_layernorm_fwd[5] = VARIANTS(embed_layernorm_fwd_##dtype); \
    Kernel<EmbedWgradSegments<E>> embed_wgrad_segments = KERNEL(embed_wgrad_segments_##dtype);   \
    Kernel<EmbedWgradRows<E>> embed_wgrad_rows = KERNEL(embed_wgrad_rows_##dtype);               \
    Kernel<LayernormFwd<E>> layernorm_fwd[5] = VARIANTS(layernorm_fwd_##dtype);                  \
    Kernel<LayernormBwdDx<E>> layernorm_bwd_dx[5] = VARIANTS(layernorm_bwd_dx_##dtype);          \
    Kernel<LayernormBwdParams<E>> layernorm_bwd_params = KERNEL(layernorm_bwd_params_##dtype);   \
    Kernel<LayernormBwd<E>> layernorm_bwd[4] = {                                                 \
        KERNEL(layernorm_bwd_##dtype##_1), KERNEL(layernorm_bwd_##dtype##_2),                    \
        KERNEL(layernorm_bwd_##dtype##_3), KERNEL(layernorm_bwd_##dtype##_4)};                   \
    Kernel<DropoutFwd<E>> dropout_fwd = KERNEL(dropout_fwd_##dtype);                             \
    Kernel<DropoutBwd<E>> dropout_bwd = KERNEL(dropout_bwd_##dtype);                             \
  };
KERNELS(float, f32)
KERNELS(bf16, bf16)

constexpr int WIDE = 4;
int variant(int width) { return width <= 1024 ? (width - 1) / 256 : WIDE; }

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Geometry of the kernels with one row a warp.
struct RowLaunch {
  int warps;
  size_t shared_bytes;

  explicit RowLaunch(int width) : warps(8), shared_bytes(0) {
    if (variant(width) != WIDE) return;
    const int bytes_per_warp = 8 * width;
    warps = std::min(8, 48 * 1024 / bytes_per_warp);
    shared_bytes = static_cast<size_t>(warps) * bytes_per_warp;
  }

  dim3 grid(int n_rows) const { return dim3(ceil_div(n_rows, warps)); }
};

// `n_rows` rows in sequences of uneven lengths, in buffers with some rows to spare.
struct Batch {
  int n_rows;
  Buffer<StepState> state;
  Buffer<int> sequence_ids;
  Buffer<int> cu_seqlens;

  explicit Batch(int n_rows)
      : n_rows(n_rows), state(1), sequence_ids(n_rows + SPARE_ROWS), cu_seqlens(n_rows + 1) {
    state[0].n_tokens = n_rows;
    state[0].step = STEP;
    state[0].seed[0] = SEED[0];
    state[0].seed[1] = SEED[1];
    int n_sequences = 0;
    for (int row = 0; row < n_rows;) {
      cu_seqlens[n_sequences] = row;
      const int end = std::min(n_rows, row + 1 + n_sequences * 7 % 19);
      while (row < end) sequence_ids[row++] = n_sequences;
      cu_seqlens[++n_sequences] = row;
    }
    state[0].n_sequences = n_sequences;
  }

  int capacity() const { return n_rows + SPARE_ROWS; }
};

// The factors of all elements; rows are sequences where `by_token` is false.
Doubles dropout_factors(const Batch& batch, int width, unsigned threshold, bool by_token) {
  Doubles factors(size_t(batch.n_rows) * width, 1.0);
  if (threshold == 0) return factors;
  const int n_groups = ceil_div(width, 16);
  for (int row = 0; row < batch.n_rows; ++row) {
    const int sequence = by_token ? batch.sequence_ids[row] : row;
    const int local = by_token ? row - batch.cu_seqlens[sequence] : 0;
    for (int col = 0; col < width; ++col) {
      const Words counter{{uint32_t(local * n_groups + col / 16), uint32_t(sequence), SITE, STEP}};
      const uint32_t word = generate(SEED[0], SEED[1], counter).word[col % 16 / 4];
      const uint32_t byte = word >> (col % 4 * 8) & 0xff;
      factors[size_t(row) * width + col] = byte < threshold ? 0.0 : 256.0 / (256.0 - threshold);
    }
  }
  return factors;
}

// Random live rows, and NaN above them: another one than that of outputs, whose bits would show in a result
// that is made of it.
template <class E>
Buffer<E> random_rows(const Batch& batch, int width, uint64_t seed, float scale = 1.0f, float mean = 0.0f) {
  Buffer<E> buffer(size_t(batch.capacity()) * width);
  buffer.fill(NAN);
  const Floats values = testing::random(size_t(batch.n_rows) * width, seed, scale);
  for (size_t i = 0; i < values.size(); ++i) buffer[i] = testing::from_float<E>(mean + values[i]);
  return buffer;
}

// The first n values; all beyond them must be as untouched as when the buffer was made.
template <class E>
Floats live(const char* what, const Buffer<E>& buffer, size_t n) {
  const unsigned char* above = reinterpret_cast<const unsigned char*>(buffer.data() + n);
  const unsigned char* end = reinterpret_cast<const unsigned char*>(buffer.data() + buffer.size());
  const bool holds = std::all_of(above, end, [](unsigned char byte) { return byte == 0xff; });
  testing::check(holds, what, "wrote above the live rows");
  const Floats all = buffer.floats();
  return Floats(all.begin(), all.begin() + n);
}

Floats to_floats(const Doubles& values) { return Floats(values.begin(), values.end()); }

// Compares with the reference, and bit by bit with what the first schedule gave.
class Result {
 public:
  Result(std::string name, const Doubles& expected, double tolerance)
      : name_(std::move(name)), expected_(to_floats(expected)), tolerance_(tolerance) {}

  template <class E>
  void check(const Buffer<E>& got) {
    check(live(name_.c_str(), got, expected_.size()));
  }

 private:
  void check(const Floats& values) {
    if (first_.empty()) {
      testing::close(name_.c_str(), values, expected_, tolerance_);
      first_ = values;
    } else {
      testing::same_bits(name_.c_str(), values, first_);
    }
  }

  std::string name_;
  Floats expected_;
  double tolerance_;
  Floats first_;
};

struct Normed {
  Doubles out, xhat, rstd;
};

Normed layernorm(const Doubles& sums, int width, const Floats& gamma, const Floats& beta) {
  Normed to{Doubles(sums.size()), Doubles(sums.size()), Doubles(sums.size() / width)};
  for (size_t row = 0; row < to.rstd.size(); ++row) {
    const double* sum = &sums[row * width];
    double mean = 0.0, variance = 0.0;
    for (int i = 0; i < width; ++i) mean += sum[i] / width;
    for (int i = 0; i < width; ++i) variance += (sum[i] - mean) * (sum[i] - mean) / width;
    to.rstd[row] = 1.0 / std::sqrt(variance + EPS);
    for (int i = 0; i < width; ++i) {
      to.xhat[row * width + i] = (sum[i] - mean) * to.rstd[row];
      to.out[row * width + i] = to.xhat[row * width + i] * gamma[i] + beta[i];
    }
  }
  return to;
}

struct Shape {
  int n_rows;
  int width;
  bool drops;
  // Whether the outputs and inputs that may be missing are there.
  bool whole;

  unsigned threshold() const { return drops ? 26 : 0; }

  template <class E>
  std::string name(const char* what) const {
    return std::string(what) + (sizeof(E) == 2 ? " bf16 " : " f32 ") + std::to_string(n_rows) + "x" +
           std::to_string(width) + (drops ? " dropout" : "") + (whole ? "" : " partial");
  }
};

// The residual comes as a stream in f32, and the result goes on as one, where `streams`.
template <class E>
void check_layernorm_fwd(const Shape& shape, bool streams = false, float mean = 0.0f,
                         double tolerance = TOLERANCE<E>) {
  const auto [n_rows, width, drops, whole] = shape;
  Batch batch(n_rows);
  const Buffer<E> x = random_rows<E>(batch, width, 1, 1.0f, mean);
  const Buffer<E> residual = random_rows<E>(batch, width, 2, 2.0f);
  const Buffer<float> residual_stream = random_rows<float>(batch, width, 2, 2.0f);
  const auto added = [&](size_t i) { return streams ? residual_stream[i] : testing::as_float(residual[i]); };
  const Floats gamma = testing::random(width, 3), beta = testing::random(width, 4);
  const Buffer<float> gamma_buffer(gamma), beta_buffer(beta);
  Doubles sums = dropout_factors(batch, width, shape.threshold(), true);
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i] = sums[i] * testing::as_float(x[i]) + (whole ? added(i) : 0.0);
  }
  const Normed expected = layernorm(sums, width, gamma, beta);
  Result out_result(shape.name<E>("layernorm_fwd out"), expected.out, tolerance);
  Result stream_result(shape.name<E>("layernorm_fwd stream"), expected.out, TOLERANCE<float>);
  Result xhat_result(shape.name<E>("layernorm_fwd xhat"), expected.xhat, tolerance);
  Result rstd_result(shape.name<E>("layernorm_fwd rstd"), expected.rstd, TOLERANCE<float>);
  testing::for_each_schedule([&] {
    Buffer<E> out(x.size()), xhat(x.size());
    Buffer<float> stream(x.size()), rstd(batch.capacity());
    const RowLaunch geometry(width);
    Kernels<E>().layernorm_fwd[variant(width)].launch(
        geometry.grid(batch.capacity()), geometry.warps, geometry.shared_bytes, batch.state.data(),
        ROWS_TOKENS, width, x.data(), whole && !streams ? residual.data() : nullptr,
        whole && streams ? residual_stream.data() : nullptr, batch.sequence_ids.data(),
        batch.cu_seqlens.data(), SITE, shape.threshold(), gamma_buffer.data(), beta_buffer.data(), EPS,
        out.data(), streams ? stream.data() : nullptr, whole ? xhat.data() : nullptr,
        whole ? rstd.data() : nullptr);
    out_result.check(out);
    if (streams) stream_result.check(stream);
    if (!whole) return;
    xhat_result.check(xhat);
    rstd_result.check(rstd);
  });
}

// What a backward pass of LayerNorm reads, and what it should give.
template <class E>
struct Backward {
  Batch batch;
  std::vector<Buffer<E>> dout;
  // One gradient more in f32 beside bf16 ones, where the shape drops and is whole; alone where n_dout is 0.
  Buffer<float> wide_dout;
  bool has_wide;
  Buffer<E> xhat;
  Buffer<float> rstd, gamma;
  Doubles dx, dresidual, dgamma, dbeta;

  Backward(const Shape& shape, int n_dout)
      : batch(shape.n_rows),
        wide_dout(random_rows<float>(batch, shape.width, 12)),
        has_wide(sizeof(E) < sizeof(float) && (n_dout == 0 || (shape.drops && shape.whole))),
        xhat(random_rows<E>(batch, shape.width, 5, 1.7f)),
        rstd(random_rows<float>(batch, 1, 6, 0.5f, 1.0f)),
        gamma(testing::random(shape.width, 7)) {
    for (int i = 0; i < n_dout; ++i) dout.push_back(random_rows<E>(batch, shape.width, 8 + i));
    expect(shape);
  }

  const float* wide_or_null() const { return has_wide ? wide_dout.data() : nullptr; }
  const E* dout_or_null(size_t i) const { return i < dout.size() ? dout[i].data() : nullptr; }

 private:
  void expect(const Shape& shape) {
    const int width = shape.width;
    const Doubles factors = dropout_factors(batch, width, shape.threshold(), true);
    dx = dresidual = Doubles(factors.size());
    dgamma = dbeta = Doubles(width, 0.0);
    for (int row = 0; row < batch.n_rows; ++row) {
      double mean = 0.0, mean_xhat = 0.0;
      for (int col = 0; col < width; ++col) {
        const size_t at = size_t(row) * width + col;
        double sum = has_wide ? wide_dout[at] : 0.0;
        for (const Buffer<E>& tensor : dout) sum += testing::as_float(tensor[at]);
        const double x = testing::as_float(xhat[at]);
        dgamma[col] += sum * x;
        dbeta[col] += sum;
        dresidual[at] = sum * gamma[col];
        mean += dresidual[at] / width;
        mean_xhat += dresidual[at] * x / width;
      }
      for (int col = 0; col < width; ++col) {
        const size_t at = size_t(row) * width + col;
        dresidual[at] = rstd[row] * (dresidual[at] - mean - testing::as_float(xhat[at]) * mean_xhat);
        dx[at] = dresidual[at] * factors[at];
      }
    }
  }
};

template <class E>
void check_layernorm_bwd_dx(const Shape& shape, int n_dout) {
  Backward<E> from(shape, n_dout);
  Result dx_result(shape.name<E>("layernorm_bwd_dx dx"), from.dx, TOLERANCE<E>);
  Result dresidual_result(shape.name<E>("layernorm_bwd_dx dresidual"), from.dresidual, TOLERANCE<E>);
  testing::for_each_schedule([&] {
    // All of them, and one at a time.
    for (int wanted = 1; wanted <= 3; ++wanted) {
      if (shape.whole != (wanted == 3)) continue;
      const bool wants_dx = wanted & 1, wants_dresidual = wanted & 2;
      Buffer<E> dx(from.xhat.size()), dresidual(from.xhat.size());
      const RowLaunch geometry(shape.width);
      Kernels<E>().layernorm_bwd_dx[variant(shape.width)].launch(
          geometry.grid(from.batch.capacity()), geometry.warps, geometry.shared_bytes,
          from.batch.state.data(), ROWS_TOKENS, shape.width, from.dout_or_null(0), from.dout_or_null(1),
          from.dout_or_null(2), from.dout_or_null(3), n_dout, from.wide_or_null(), from.xhat.data(),
          from.rstd.data(), from.gamma.data(), from.batch.sequence_ids.data(), from.batch.cu_seqlens.data(), SITE,
          shape.threshold(), wants_dx ? dx.data() : nullptr, wants_dresidual ? dresidual.data() : nullptr);
      if (wants_dx) dx_result.check(dx);
      if (wants_dresidual) dresidual_result.check(dresidual);
    }
  });
}

// Slices of a block each and their total.
struct ParameterGradients {
  int n_slices;
  Buffer<float> gamma_slices, beta_slices, dgamma, dbeta;

  ParameterGradients(int n_slices, int width)
      : n_slices(n_slices),
        gamma_slices(size_t(n_slices) * width),
        beta_slices(size_t(n_slices) * width),
        dgamma(width),
        dbeta(width) {}

  void add_up(const StepState* state, bool wants_dgamma, bool wants_dbeta) {
    const int width = static_cast<int>(dgamma.size());
    const Kernel<decltype(layernorm_bwd_params_total)> kernel = KERNEL(layernorm_bwd_params_total);
    kernel.launch(dim3(ceil_div(width, 32), 2), 8, 1024, state, n_slices, width,
                  wants_dgamma ? gamma_slices.data() : nullptr, wants_dbeta ? beta_slices.data() : nullptr,
                  wants_dgamma ? dgamma.data() : nullptr, wants_dbeta ? dbeta.data() : nullptr);
  }
};

template <class E>
void check_layernorm_bwd_params(const Shape& shape, int n_dout, int n_slices, bool wants_dgamma,
                                bool wants_dbeta) {
  Backward<E> from(shape, n_dout);
  // f32 throughout, whatever the inputs are.
  Result dgamma_result(shape.name<E>("layernorm_bwd_params dgamma"), from.dgamma, TOLERANCE<float>);
  Result dbeta_result(shape.name<E>("layernorm_bwd_params dbeta"), from.dbeta, TOLERANCE<float>);
  testing::for_each_schedule([&] {
    ParameterGradients to(n_slices, shape.width);
    Kernels<E>().layernorm_bwd_params.launch(
        dim3(n_slices, ceil_div(shape.width, 256)), 8, 8192, from.batch.state.data(), ROWS_TOKENS,
        shape.width, from.dout_or_null(0), from.dout_or_null(1), from.dout_or_null(2), from.dout_or_null(3),
        n_dout, from.wide_or_null(), wants_dgamma ? from.xhat.data() : nullptr, wants_dgamma ? to.gamma_slices.data() : nullptr,
        wants_dbeta ? to.beta_slices.data() : nullptr);
    to.add_up(from.batch.state.data(), wants_dgamma, wants_dbeta);
    if (wants_dgamma) dgamma_result.check(to.dgamma);
    if (wants_dbeta) dbeta_result.check(to.dbeta);
  });
}

template <class E>
void check_layernorm_bwd(const Shape& shape, int n_dout, int n_slices) {
  Backward<E> from(shape, n_dout);
  Result dx_result(shape.name<E>("layernorm_bwd dx"), from.dx, TOLERANCE<E>);
  Result dresidual_result(shape.name<E>("layernorm_bwd dresidual"), from.dresidual, TOLERANCE<E>);
  Result dgamma_result(shape.name<E>("layernorm_bwd dgamma"), from.dgamma, TOLERANCE<float>);
  Result dbeta_result(shape.name<E>("layernorm_bwd dbeta"), from.dbeta, TOLERANCE<float>);
  testing::for_each_schedule([&] {
    ParameterGradients to(n_slices, shape.width);
    Buffer<E> dx(from.xhat.size()), dresidual(from.xhat.size());
    const bool whole = shape.whole;
    Kernels<E>().layernorm_bwd[variant(shape.width)].launch(
        dim3(n_slices), 8, size_t(32) * shape.width, from.batch.state.data(), ROWS_TOKENS, shape.width,
        from.dout_or_null(0), from.dout_or_null(1), from.dout_or_null(2), from.dout_or_null(3), n_dout,
        from.wide_or_null(), from.xhat.data(), from.rstd.data(), from.gamma.data(), from.batch.sequence_ids.data(),
        from.batch.cu_seqlens.data(), SITE, shape.threshold(), dx.data(), whole ? dresidual.data() : nullptr,
        to.gamma_slices.data(), whole ? to.beta_slices.data() : nullptr);
    to.add_up(from.batch.state.data(), true, whole);
    dx_result.check(dx);
    dgamma_result.check(to.dgamma);
    if (!whole) return;
    dresidual_result.check(dresidual);
    dbeta_result.check(to.dbeta);
  });
}

template <class E>
void check_dropout(const Shape& shape, bool by_token) {
  Batch batch(shape.n_rows);
  if (!by_token) batch.state[0].n_sequences = shape.n_rows;
  const int rows = by_token ? ROWS_TOKENS : ROWS_SEQUENCES;
  const int* sequence_ids = by_token ? batch.sequence_ids.data() : nullptr;
  const int* cu_seqlens = by_token ? batch.cu_seqlens.data() : nullptr;
  const Buffer<E> x = random_rows<E>(batch, shape.width, 1), y = random_rows<E>(batch, shape.width, 2);
  Doubles expected_out = dropout_factors(batch, shape.width, shape.threshold(), by_token);
  Doubles expected_dx = expected_out;
  for (size_t i = 0; i < expected_out.size(); ++i) {
    expected_out[i] *= testing::as_float(x[i]);
    expected_dx[i] *= double(testing::as_float(x[i])) + testing::as_float(y[i]);
  }
  Result out_result(shape.name<E>("dropout_fwd"), expected_out, TOLERANCE<E>);
  Result dx_result(shape.name<E>("dropout_bwd"), expected_dx, TOLERANCE<E>);
  testing::for_each_schedule([&] {
    Buffer<E> out(x.size()), dx(x.size());
    const dim3 grid(ceil_div(batch.capacity(), 8));
    Kernels<E>().dropout_fwd.launch(grid, 8, 0, batch.state.data(), rows, shape.width, x.data(), sequence_ids,
                                    cu_seqlens, SITE, shape.threshold(), out.data());
    const E* none = nullptr;
    Kernels<E>().dropout_bwd.launch(grid, 8, 0, batch.state.data(), rows, shape.width, x.data(), y.data(),
                                    none, none, 2, sequence_ids, cu_seqlens, SITE, shape.threshold(),
                                    dx.data());
    out_result.check(out);
    dx_result.check(dx);
  });
}

// Ids of one table for the live tokens, and what the host derives from them for embed_wgrad.
struct Ids {
  int n_rows;
  Buffer<int> ids, order, row_start;

  // Every `common`-th token has id 1, all others are spread over the rows but the last, which has none.
  Ids(const Batch& batch, int n_rows, int common)
      : n_rows(n_rows), ids(batch.capacity()), order(batch.capacity()), row_start(n_rows + 1) {
    for (int token = 0; token < batch.n_rows; ++token) {
      ids[token] = token % common == 0 ? 1 : token * 7 % (n_rows - 1);
    }
    int n = 0;
    for (int row = 0; row < n_rows; ++row) {
      row_start[row] = n;
      for (int token = 0; token < batch.n_rows; ++token) {
        if (ids[token] == row) order[n++] = token;
      }
    }
    row_start[n_rows] = n;
  }
};

template <class E>
Buffer<E> random_table(int n_rows, int width, uint64_t seed) {
  return Buffer<E>(testing::random(size_t(n_rows) * width, seed));
}

template <class E>
void check_embed(const Shape& shape) {
  const auto [n_rows, width, drops, whole] = shape;
  Batch batch(n_rows);
  const Ids words(batch, 50, 3), positions(batch, 140, 200), types(batch, 3, 2);
  const Buffer<E> word = random_table<E>(50, width, 1), position = random_table<E>(140, width, 2);
  const Buffer<E> type = random_table<E>(3, width, 3);
  const Floats gamma = testing::random(width, 4), beta = testing::random(width, 5);
  const Buffer<float> gamma_buffer(gamma), beta_buffer(beta);
  Doubles sums(size_t(n_rows) * width);
  for (size_t i = 0; i < sums.size(); ++i) {
    const auto of = [&](const Buffer<E>& table, const Ids& ids) {
      return double(testing::as_float(table[size_t(ids.ids[i / width]) * width + i % width]));
    };
    sums[i] = of(word, words) + of(position, positions) + (whole ? of(type, types) : 0.0);
  }
  const Normed expected = layernorm(sums, width, gamma, beta);
  Result sum_result(shape.name<E>("embed_fwd"), sums, TOLERANCE<E>);
  Result out_result(shape.name<E>("embed_layernorm_fwd out"), expected.out, TOLERANCE<E>);
  Result stream_result(shape.name<E>("embed_layernorm_fwd stream"), expected.out, TOLERANCE<float>);
  Result xhat_result(shape.name<E>("embed_layernorm_fwd xhat"), expected.xhat, TOLERANCE<E>);
  Result rstd_result(shape.name<E>("embed_layernorm_fwd rstd"), expected.rstd, TOLERANCE<float>);
  const int* type_ids = whole ? types.ids.data() : nullptr;
  const E* type_table = whole ? type.data() : nullptr;
  testing::for_each_schedule([&] {
    const size_t n = size_t(batch.capacity()) * width;
    Buffer<E> sum(n), out(n), xhat(n);
    Buffer<float> stream(n), rstd(batch.capacity());
    Kernels<E>().embed_fwd.launch(dim3(ceil_div(batch.capacity(), 8)), 8, 0, batch.state.data(), width,
                                  words.ids.data(), word.data(), positions.ids.data(), position.data(),
                                  type_ids, type_table, sum.data());
    const RowLaunch geometry(width);
    Kernels<E>().embed_layernorm_fwd[variant(width)].launch(
        geometry.grid(batch.capacity()), geometry.warps, geometry.shared_bytes, batch.state.data(), width,
        words.ids.data(), word.data(), positions.ids.data(), position.data(), type_ids, type_table,
        gamma_buffer.data(), beta_buffer.data(), EPS, out.data(), whole ? stream.data() : nullptr,
        whole ? xhat.data() : nullptr, whole ? rstd.data() : nullptr);
    sum_result.check(sum);
    out_result.check(out);
    if (!whole) return;
    if (sizeof(E) < sizeof(float)) stream_result.check(stream);
    xhat_result.check(xhat);
    rstd_result.check(rstd);
  });
}

template <class E>
void check_embed_wgrad(const Shape& shape, int n_table_rows, int common, int padding_row) {
  const int width = shape.width;
  Batch batch(shape.n_rows);
  const Ids ids(batch, n_table_rows, common);
  const Buffer<E> dx = random_rows<E>(batch, width, 1);
  Doubles expected(size_t(n_table_rows) * width, 0.0);
  for (int token = 0; token < batch.n_rows; ++token) {
    if (ids.ids[token] == padding_row) continue;
    for (int col = 0; col < width; ++col) {
      expected[size_t(ids.ids[token]) * width + col] += testing::as_float(dx[size_t(token) * width + col]);
    }
  }
  Result result(shape.name<E>("embed_wgrad"), expected, TOLERANCE<float>);
  testing::for_each_schedule([&] {
    const int n_strips = ceil_div(width, 128);
    const int n_segments = batch.capacity() / 128;
    Buffer<float> partials(size_t(n_segments) * width), dtable(expected.size());
    if (n_segments > 0) {
      Kernels<E>().embed_wgrad_segments.launch(dim3(ceil_div(n_segments * n_strips, 8)), 8, 0,
                                               batch.state.data(), width, dx.data(), ids.ids.data(),
                                               ids.order.data(), partials.data());
    }
    Kernels<E>().embed_wgrad_rows.launch(dim3(ceil_div(n_table_rows * n_strips, 8)), 8, 0, batch.state.data(),
                                         n_table_rows, width, dx.data(), ids.order.data(),
                                         ids.row_start.data(), padding_row, partials.data(), dtable.data());
    result.check(dtable);
  });
}

// The plain forms of the ops, and those that leave something out.
template <class E>
void check_rows(int n_rows, int width, bool every_form) {
  const bool is_wide = variant(width) == WIDE;
  check_layernorm_fwd<E>({n_rows, width, true, true});
  if (sizeof(E) < sizeof(float)) check_layernorm_fwd<E>({n_rows, width, true, true}, true);
  check_embed<E>({n_rows, width, false, true});
  check_layernorm_bwd_dx<E>({n_rows, width, true, true}, 2);
  check_layernorm_bwd_params<E>({n_rows, width, false, true}, 1, 3, true, true);
  if (!is_wide) check_layernorm_bwd<E>({n_rows, width, true, true}, 3, 4);
  if (!every_form) return;
  check_layernorm_fwd<E>({n_rows, width, false, true});
  check_layernorm_fwd<E>({n_rows, width, true, false});
  check_embed<E>({n_rows, width, false, false});
  check_layernorm_bwd_dx<E>({n_rows, width, false, true}, 1);
  if (sizeof(E) < sizeof(float)) check_layernorm_bwd_dx<E>({n_rows, width, false, true}, 0);
  check_layernorm_bwd_dx<E>({n_rows, width, true, false}, 4);
  check_layernorm_bwd_params<E>({n_rows, width, false, false}, 2, 5, false, true);
  check_layernorm_bwd_params<E>({n_rows, width, false, false}, 3, 1, true, false);
  if (sizeof(E) < sizeof(float)) check_layernorm_bwd_params<E>({n_rows, width, false, false}, 0, 3, true, true);
  if (is_wide) return;
  check_layernorm_bwd<E>({n_rows, width, false, true}, 1, 3);
  check_layernorm_bwd<E>({n_rows, width, true, false}, 2, 1);
  if (sizeof(E) < sizeof(float)) check_layernorm_bwd<E>({n_rows, width, false, true}, 0, 3);
}

template <class E>
void check_all() {
  check_rows<E>(1, 72, true);
  check_rows<E>(129, 72, true);
  check_rows<E>(129, 384, false);
  check_rows<E>(129, 1032, false);
  // At 520 and 1000 the last vectors of a row end in the middle of a warp, beyond 1024 rows are wide.
  for (const int width : {64, 384, 520, 768, 1000, 1032}) {
    check_rows<E>(7, width, width == 384 || width == 1032);
  }
  for (const int width : {8, 72, 384}) {
    check_dropout<E>({7, width, true, true}, true);
    check_dropout<E>({29, width, true, true}, false);
    check_dropout<E>({7, width, false, true}, true);
  }
  for (const int n_tokens : {1, 127, 129, 700}) {
    check_embed_wgrad<E>({n_tokens, 72, false, true}, 30, 4, -1);
    check_embed_wgrad<E>({n_tokens, 384, false, true}, 30, 3, 1);
    check_embed_wgrad<E>({n_tokens, 72, false, true}, 3, 1, -1);
  }
}

// Random123's known answers for Philox4x32-10, of which the masks above are made.
void check_generator() {
  const Words zero = generate(0, 0, {{0, 0, 0, 0}});
  const Words ones = generate(~0u, ~0u, {{~0u, ~0u, ~0u, ~0u}});
  testing::check(zero.word[0] == 0x6627e8d5u && zero.word[3] == 0x9b00dbd8u, "philox of zeros");
  testing::check(ones.word[0] == 0x408f276du && ones.word[3] == 0x6d5451fdu, "philox of ones");
}

}  // namespace

int main() {
  check_generator();
  // A mean of 1000 times the deviation: the mean itself is known to some 1e-4 of the deviation. Sums of
  // squares instead of squared deviations would be wrong by 0.1.
  check_layernorm_fwd<float>({7, 768, false, false}, false, 1000.0f, 5e-4);
  check_all<float>();
  check_all<bf16>();
  return testing::summary();
}
