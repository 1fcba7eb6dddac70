// Checks of activations and bias gradient against plain loops in double.
#include <cmath>
#include <string>

#include "common.cuh"
#include "plain_checks.h"
#include "testing.h"

#define DECLARE(suffix, E)                                                            \
  void gelu_fwd_##suffix(const StepState*, int, int, const E*, E*);                   \
  void gelu_bwd_##suffix(const StepState*, int, int, const E*, const E*, E*);         \
  void tanh_fwd_##suffix(const StepState*, int, int, const E*, float*);               \
  void tanh_bwd_##suffix(const StepState*, int, int, const float*, const float*, E*); \
  void bias_grad_##suffix(const StepState*, int, int, const E*, float*, float*, unsigned*);

extern "C" {
DECLARE(f32, float)
DECLARE(bf16, bf16)
}

namespace {

using namespace testing;

constexpr int SLICE_ROWS = 128;

double normal_cdf(double x) { return 0.5 * std::erfc(-x * M_SQRT1_2); }
double normal_pdf(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI); }

template <class F>
Floats mapped(const Floats& x, const Floats& y, size_t n, F f) {
  Floats out(n);
  for (size_t i = 0; i < n; ++i) out[i] = static_cast<float>(f(double(x[i]), double(y[i])));
  return out;
}

template <class E>
void check_activations(int rows, int cols) {
  const size_t n = static_cast<size_t>(rows) * cols;
  const std::string shape = std::to_string(rows) + " x " + std::to_string(cols) + " " + type_name<E>();
  const StepState state = step_state(rows, rows);
  const Buffer<E> x = random_rows<E>(rows, cols, 1, 5.0f);
  const Buffer<E> dout = random_rows<E>(rows, cols, 2);
  const Buffer<float> bounded = random_rows<float>(rows, cols, 3), dtanh_out = random_rows<float>(rows, cols, 4);
  const Floats xs = x.floats(), douts = dout.floats();
  const Floats gelu = mapped(xs, xs, n, [](double x, double) { return x * normal_cdf(x); });
  const Floats dgelu =
      mapped(xs, douts, n, [](double x, double d) { return d * (normal_cdf(x) + x * normal_pdf(x)); });
  const Floats tanhs = mapped(xs, xs, n, [](double x, double) { return std::tanh(x); });
  const Floats dtanh = mapped(bounded.floats(), dtanh_out.floats(), n, [](double o, double d) { return d * (1.0 - o * o); });
  const unsigned grid = ceil_div(x.size(), 2048);
  const double tolerance = stored_tolerance<E>();

  repeat([&](Results& results) {
    // Rows are tokens for GELU and sequences for tanh, as in the plans.
    Buffer<E> out = empty_rows<E>(rows, cols);
    LAUNCH(E, gelu_fwd, grid, 256, 0, &state, ROWS_TOKENS, cols, x.data(), out.data());
    results.check("gelu_fwd " + shape, out, gelu, tolerance);
    out.poison();
    LAUNCH(E, gelu_bwd, grid, 256, 0, &state, ROWS_TOKENS, cols, x.data(), dout.data(), out.data());
    results.check("gelu_bwd " + shape, out, dgelu, tolerance);
    out.poison();
    Buffer<float> wide_out = empty_rows<float>(rows, cols);
    LAUNCH(E, tanh_fwd, grid, 256, 0, &state, ROWS_SEQUENCES, cols, x.data(), wide_out.data());
    results.check("tanh_fwd " + shape, wide_out, tanhs, stored_tolerance<float>());
    LAUNCH(E, tanh_bwd, grid, 256, 0, &state, rows, cols, bounded.data(), dtanh_out.data(), out.data());
    results.check("tanh_bwd " + shape, out, dtanh, tolerance);
  });
}

template <class E>
void check_bias_grad(int rows, int cols) {
  const std::string what =
      "bias_grad " + std::to_string(rows) + " x " + std::to_string(cols) + " " + type_name<E>();
  const StepState state = step_state(rows, 1);
  const Buffer<E> dout = random_rows<E>(rows, cols, 4);
  const Floats expected = column_sums(dout.floats(), cols, 0, rows);
  // Two slices more than there are live rows for.
  const unsigned n_slices = ceil_div(rows + SPARE_ROWS, SLICE_ROWS) + 2;
  const unsigned n_ranges = ceil_div(cols, 256);
  Buffer<unsigned> counters(n_ranges);
  counters.fill(0.0f);
  repeat([&](Results& results) {
    Buffer<float> dbias(cols), partial(static_cast<size_t>(n_slices) * cols);
    const dim3 grid(n_ranges, n_slices);
    LAUNCH(E, bias_grad, grid, 256, COLUMN_SHARED_BYTES, &state, ROWS_TOKENS, cols, dout.data(), dbias.data(),
           partial.data(), counters.data());
    results.check(what, dbias, expected, FLOAT_TOLERANCE);
    for (unsigned i = 0; i < n_ranges; ++i) testing::check(counters[i] == 0, "a counter is not back at 0");
  });
}

template <class E>
void check_family() {
  for (int rows : {1, 7, 129}) {
    for (int cols : {1, 3, 64, 80, 771}) {
      check_activations<E>(rows, cols);
      check_bias_grad<E>(rows, cols);
    }
  }
  check_bias_grad<E>(300, 80);
}

}  // namespace

int main() {
  check_family<float>();
  check_family<bf16>();
  return testing::summary();
}
