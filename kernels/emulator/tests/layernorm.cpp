// Checks of layernorm_* and dropout_* against plain loops in double.
#include <cmath>
#include <string>

#include "row_checks.h"
#include "testing.h"

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

#define DECLARE(E, dtype)                                                                               \
  LayernormFwd<E> layernorm_fwd_##dtype##_1, layernorm_fwd_##dtype##_2, layernorm_fwd_##dtype##_3,      \
      layernorm_fwd_##dtype##_4, layernorm_fwd_##dtype##_wide;                                          \
  LayernormBwdDx<E> layernorm_bwd_dx_##dtype##_1, layernorm_bwd_dx_##dtype##_2,                         \
      layernorm_bwd_dx_##dtype##_3, layernorm_bwd_dx_##dtype##_4, layernorm_bwd_dx_##dtype##_wide;      \
  LayernormBwdParams<E> layernorm_bwd_params_##dtype;                                                   \
  LayernormBwd<E> layernorm_bwd_##dtype##_1, layernorm_bwd_##dtype##_2, layernorm_bwd_##dtype##_3,      \
      layernorm_bwd_##dtype##_4;                                                                        \
  DropoutFwd<E> dropout_fwd_##dtype;                                                                    \
  DropoutBwd<E> dropout_bwd_##dtype;

extern "C" {
DECLARE(float, f32)
DECLARE(bf16, bf16)
void layernorm_bwd_params_total(const StepState*, int, int, const float*, const float*, float*, float*);
}

namespace {

using namespace testing;

template <class E>
struct Kernels;
#define KERNELS(E, dtype)                                                                         \
  template <>                                                                                     \
  struct Kernels<E> {                                                                             \
    Kernel<LayernormFwd<E>> layernorm_fwd[5] = VARIANTS(layernorm_fwd_##dtype);                   \
    Kernel<LayernormBwdDx<E>> layernorm_bwd_dx[5] = VARIANTS(layernorm_bwd_dx_##dtype);           \
    Kernel<LayernormBwdParams<E>> layernorm_bwd_params = KERNEL(layernorm_bwd_params_##dtype);    \
    Kernel<LayernormBwd<E>> layernorm_bwd[4] = {                                                  \
        KERNEL(layernorm_bwd_##dtype##_1), KERNEL(layernorm_bwd_##dtype##_2),                     \
        KERNEL(layernorm_bwd_##dtype##_3), KERNEL(layernorm_bwd_##dtype##_4)};                    \
    Kernel<DropoutFwd<E>> dropout_fwd = KERNEL(dropout_fwd_##dtype);                              \
    Kernel<DropoutBwd<E>> dropout_bwd = KERNEL(dropout_bwd_##dtype);                              \
  };
KERNELS(float, f32)
KERNELS(bf16, bf16)

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

// The plain forms of the ops, and those that leave something out.
template <class E>
void check_rows(int n_rows, int width, bool every_form) {
  const bool is_wide = variant(width) == WIDE;
  check_layernorm_fwd<E>({n_rows, width, true, true});
  if (sizeof(E) < sizeof(float)) check_layernorm_fwd<E>({n_rows, width, true, true}, true);
  check_layernorm_bwd_dx<E>({n_rows, width, true, true}, 2);
  check_layernorm_bwd_params<E>({n_rows, width, false, true}, 1, 3, true, true);
  if (!is_wide) check_layernorm_bwd<E>({n_rows, width, true, true}, 3, 4);
  if (!every_form) return;
  check_layernorm_fwd<E>({n_rows, width, false, true});
  check_layernorm_fwd<E>({n_rows, width, true, false});
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
