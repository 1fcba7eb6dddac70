// Products of a linear layer against plain loops in double, for every engine: ragged sizes, one to three
// parts, fewer live rows than there is room for, slices of the reduction, repeated runs, truncated sums.
#include <map>

#include "../../gelu.cuh"
#include "../testing.h"

using std::string;
using std::vector;
using testing::Buffer;

#define DECLARE_KERNELS(SUFFIX, E)                                                                          \
  extern "C" void gemm_fwd_##SUFFIX(const StepState*, const E*, const E*, const E*, const E*, const float*, \
                                    const float*, const float*, E*, E*, E*, int, int, int);                 \
  extern "C" void gemm_gelu_fwd_##SUFFIX(const StepState*, const E*, const E*, const float*, E*, E*, int,   \
                                         int, int);                                                         \
  extern "C" void gemm_dgrad_##SUFFIX(const StepState*, const E*, const E*, const E*, const E*, const E*,   \
                                      const E*, E*, int, int, int, int);                                    \
  extern "C" void gemm_gelu_dgrad_##SUFFIX(const StepState*, const E*, const E*, const E*, E*, int, int,    \
                                           int);                                                            \
  extern "C" void gemm_wgrad_##SUFFIX(const StepState*, const E*, const E*, const E*, const E*, float*,     \
                                      float*, float*, float*, float*, float*, float*, unsigned*, int, int,  \
                                      int);                                                                 \
  struct Kernels_##SUFFIX {                                                                                 \
    typedef E Element;                                                                                      \
    static string name(const char* product) { return string(product) + "_" #SUFFIX; }                       \
    static constexpr auto fwd = gemm_fwd_##SUFFIX;                                                          \
    static constexpr auto gelu_fwd = gemm_gelu_fwd_##SUFFIX;                                                \
    static constexpr auto dgrad = gemm_dgrad_##SUFFIX;                                                      \
    static constexpr auto gelu_dgrad = gemm_gelu_dgrad_##SUFFIX;                                            \
    static constexpr auto wgrad = gemm_wgrad_##SUFFIX;                                                      \
  };

DECLARE_KERNELS(f32, float)
DECLARE_KERNELS(bf16_plain, bf16)
DECLARE_KERNELS(bf16_64x64, bf16)
DECLARE_KERNELS(bf16_128x128, bf16)

namespace {

// Engines with what their launches need: entries of a tile's side, threads, bytes of shared memory, and
// whether they use tensor cores, where all sizes but the rows have to be multiples of 8.
struct F32 : Kernels_f32 {
  static constexpr int TILE = 64, THREADS = 256, SHARED_BYTES = 2 * 16 * 68 * 4;
  static constexpr bool TENSOR_CORES = false;
};
struct Bf16Plain : Kernels_bf16_plain {
  static constexpr int TILE = 64, THREADS = 256, SHARED_BYTES = 2 * 16 * 68 * 4;
  static constexpr bool TENSOR_CORES = false;
};
struct Bf16Small : Kernels_bf16_64x64 {
  static constexpr int TILE = 64, THREADS = 128, SHARED_BYTES = 4 * 2 * 64 * 32 * 2;
  static constexpr bool TENSOR_CORES = true;
};
struct Bf16Large : Kernels_bf16_128x128 {
  static constexpr int TILE = 128, THREADS = 128, SHARED_BYTES = 4 * 2 * 128 * 32 * 2;
  static constexpr bool TENSOR_CORES = true;
};
constexpr int FLAG_BYTES = 16;

// Inputs are rounded before the reference sees them. What is left: sums in float of up to 600 products, in
// another order than the reference's, 2^-24 each and mostly cancelling.
constexpr double SUM_TOLERANCE = 1e-6;
// And for bf16 the rounding of each result, 2^-8 of it at most (8 bits of significand).
constexpr double BF16_TOLERANCE = 1.0 / 256;

template <class E>
double tolerance() {
  return sizeof(E) == 2 ? BF16_TOLERANCE : SUM_TOLERANCE;
}

bool truncates() { return testing::state().options.truncate_mma != 0; }

// Of a float that adds up `n` products. An mma that truncates cuts off its sum by up to one unit of the last of
// 24 bits, half of it in the mean, which is at most 2^-24 of the sum. n / 16 of them follow each other, all cut
// towards zero, so that these errors add up. What is cut off the products, of both signs, cancels.
template <class Engine>
double sum_tolerance(int n) {
  const bool cuts = Engine::TENSOR_CORES && truncates();
  return SUM_TOLERANCE + (cuts ? n / 16.0 * 0x1p-24 : 0.0);
}

// x is [m, k] of `capacity` rows, a weight [n, k], dout [m, n].
struct Shape {
  int m, n, k, n_parts, capacity, n_slices;

  string name() const {
    char text[96];
    snprintf(text, sizeof text, "m %d of %d n %d k %d parts %d slices %d", m, capacity, n, k, n_parts,
             n_slices);
    return text;
  }
};

int ceil_div(int value, int by) { return (value + by - 1) / by; }

// A [capacity, cols] matrix whose first rows are drawn; the others are NaN.
template <class E>
Buffer<E> live_matrix(int live, int capacity, int cols, uint64_t seed, float scale = 1.0f) {
  Buffer<E> buffer(static_cast<size_t>(capacity) * cols);
  const vector<float> values = testing::random(static_cast<size_t>(live) * cols, seed, scale);
  for (size_t i = 0; i < values.size(); ++i) buffer[i] = testing::from_float<E>(values[i]);
  return buffer;
}

// The first elements of a buffer; what is behind them must be as it was allocated.
template <class T>
vector<float> live_part(const string& what, const Buffer<T>& buffer, size_t n) {
  const Buffer<T> untouched(buffer.size() - n);
  testing::same_bits((what + ": rows above the live ones").c_str(), buffer.data() + n, untouched.data(),
                     untouched.size());
  vector<float> values = buffer.floats();
  values.resize(n);
  return values;
}

// The same bits as the first time that this was computed with the same kind of sums, under whatever schedule.
void repeats(const string& what, const vector<float>& values) {
  static std::map<string, vector<float>> first;
  const auto entry = first.emplace(what + (truncates() ? ", truncated" : ""), values).first;
  testing::same_bits((what + " again").c_str(), values, entry->second);
}

// Each element by itself, so that a single wrong one shows: sums may be off by 1e-5 of a usual value.
void check_elements(const string& what, const vector<float>& got, const vector<float>& expected,
                    double tolerance) {
  double squares = 0.0;
  for (const float value : expected) squares += double(value) * value;
  const double usual = sqrt(squares / fmax(1.0, expected.size()));
  size_t n_wrong = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double allowed = tolerance * fabs(expected[i]) + 1e-5 * usual;
    if (!(fabs(double(got[i]) - expected[i]) <= allowed)) ++n_wrong;
  }
  testing::check(n_wrong == 0, what.c_str(), std::to_string(n_wrong) + " wrong elements");
}

template <class T>
void compare(const string& what, const Buffer<T>& got, const vector<float>& expected, double tolerance) {
  const vector<float> live = live_part(what, got, expected.size());
  testing::close(what.c_str(), live, expected, tolerance);
  check_elements(what, live, expected, tolerance);
  repeats(what, live);
}

double exact_cdf(double x) { return 0.5 * erfc(-x * sqrt(0.5)); }
double exact_gelu(double x) { return x * exact_cdf(x); }
double exact_slope(double x) { return exact_cdf(x) + x * exp(-0.5 * x * x) / sqrt(2.0 * M_PI); }

// a [m, inner] of row-major values, b either [n, inner] or, transposed, [inner, n]: adds a b to `sums`.
void add_product(vector<double>& sums, const vector<float>& a, const vector<float>& b, int m, int n,
                 int inner, bool b_transposed) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      double sum = 0.0;
      for (int l = 0; l < inner; ++l) {
        const size_t at = b_transposed ? static_cast<size_t>(l) * n + j : static_cast<size_t>(j) * inner + l;
        sum += double(a[static_cast<size_t>(i) * inner + l]) * double(b[at]);
      }
      sums[static_cast<size_t>(i) * n + j] += sum;
    }
  }
}

template <class F>
vector<float> mapped(const vector<double>& values, F f) {
  vector<float> result;
  for (const double value : values) result.push_back(static_cast<float>(f(value)));
  return result;
}

// Operands of one layer with up to three parts, and one problem for each product.
template <class Engine>
class Problem {
  typedef typename Engine::Element E;

 public:
  explicit Problem(const Shape& shape)
      : shape_(shape), x_(live_matrix<E>(shape.m, shape.capacity, shape.k, 1)) {
    memset(&state_, 0, sizeof state_);
    state_.n_tokens = shape.m;
    state_.n_sequences = -1;
    for (int part = 0; part < 3; ++part) {
      const size_t n = shape.n;
      weights_.push_back(live_matrix<E>(shape.n, shape.n, shape.k, 10 + part));
      biases_.push_back(Buffer<float>(testing::random(n, 20 + part)));
      douts_.push_back(live_matrix<E>(shape.m, shape.capacity, shape.n, 30 + part));
    }
  }

  void check_all() {
    forward();
    gelu_forward(true);
    gelu_forward(false);
    data_gradient();
    gelu_data_gradient();
    weight_gradient(true);
    weight_gradient(false);
  }

  void forward() {
    vector<Buffer<E>> outs;
    for (int part = 0; part < 3; ++part) outs.emplace_back(size_t(shape_.capacity) * shape_.n);
    const unsigned n_tiles = ceil_div(shape_.n, Engine::TILE);
    testing::launch(Engine::fwd, Engine::name("gemm_fwd").c_str(),
                    dim3(shape_.n_parts * n_tiles, row_tiles()), dim3(Engine::THREADS), Engine::SHARED_BYTES,
                    &state_, x_.data(), of(weights_, 0), of(weights_, 1), of(weights_, 2), of(biases_, 0),
                    of(biases_, 1), of(biases_, 2), of(outs, 0), of(outs, 1), of(outs, 2), ROWS_TOKENS,
                    shape_.n, shape_.k);
    for (int part = 0; part < shape_.n_parts; ++part) {
      const auto expected = mapped(sums_forward(part), [](double value) { return value; });
      compare(what("gemm_fwd", "out " + std::to_string(part)), outs[part], expected, tolerance<E>());
    }
  }

  void gelu_forward(bool with_pre) {
    Buffer<E> pre(size_t(shape_.capacity) * shape_.n);
    Buffer<E> out(size_t(shape_.capacity) * shape_.n);
    testing::launch(Engine::gelu_fwd, Engine::name("gemm_gelu_fwd").c_str(),
                    dim3(ceil_div(shape_.n, Engine::TILE), row_tiles()), dim3(Engine::THREADS),
                    Engine::SHARED_BYTES, &state_, x_.data(), of(weights_, 0), of(biases_, 0),
                    with_pre ? pre.data() : nullptr, out.data(), ROWS_TOKENS, shape_.n, shape_.k);
    const vector<double> sums = sums_forward(0);
    compare(what("gemm_gelu_fwd", "out"), out, mapped(sums, exact_gelu), tolerance<E>());
    if (!with_pre) return;
    const auto expected = mapped(sums, [](double value) { return value; });
    compare(what("gemm_gelu_fwd", "pre"), pre, expected, tolerance<E>());
  }

  void data_gradient() {
    Buffer<E> dx(size_t(shape_.capacity) * shape_.k);
    testing::launch(Engine::dgrad, Engine::name("gemm_dgrad").c_str(),
                    dim3(ceil_div(shape_.k, Engine::TILE), row_tiles()), dim3(Engine::THREADS),
                    Engine::SHARED_BYTES, &state_, of(douts_, 0), of(douts_, 1), of(douts_, 2),
                    of(weights_, 0), of(weights_, 1), of(weights_, 2), dx.data(), shape_.n_parts, ROWS_TOKENS,
                    shape_.n, shape_.k);
    const auto expected = mapped(sums_dgrad(shape_.n_parts), [](double value) { return value; });
    compare(what("gemm_dgrad", "dx"), dx, expected, tolerance<E>());
  }

  void gelu_data_gradient() {
    const Buffer<E> pre = live_matrix<E>(shape_.m, shape_.capacity, shape_.k, 40, 4.0f);
    Buffer<E> dx(size_t(shape_.capacity) * shape_.k);
    testing::launch(Engine::gelu_dgrad, Engine::name("gemm_gelu_dgrad").c_str(),
                    dim3(ceil_div(shape_.k, Engine::TILE), row_tiles()), dim3(Engine::THREADS),
                    Engine::SHARED_BYTES, &state_, of(douts_, 0), of(weights_, 0), pre.data(), dx.data(),
                    ROWS_TOKENS, shape_.n, shape_.k);
    vector<double> expected = sums_dgrad(1);
    const vector<float> values = pre.floats();
    for (size_t i = 0; i < expected.size(); ++i) expected[i] *= exact_slope(values[i]);
    compare(what("gemm_gelu_dgrad", "dx"), dx, mapped(expected, [](double value) { return value; }),
            tolerance<E>());
  }

  void weight_gradient(bool with_bias) {
    const int n_tiles = shape_.n_parts * ceil_div(shape_.n, Engine::TILE) * ceil_div(shape_.k, Engine::TILE);
    const size_t slot = Engine::TILE * Engine::TILE + Engine::TILE;
    vector<Buffer<float>> dweights, dbiases;
    for (int part = 0; part < 3; ++part) {
      dweights.emplace_back(size_t(shape_.n) * shape_.k);
      dbiases.emplace_back(shape_.n);
    }
    Buffer<float> partials(n_tiles * shape_.n_slices * slot);
    Buffer<unsigned> counters(n_tiles);
    counters.fill(0);
    // Of the parts that have a bias gradient at all, the second one goes without it.
    const auto dbias = [&](int part) { return with_bias && part != 1 ? of(dbiases, part) : nullptr; };
    testing::launch(Engine::wgrad, Engine::name("gemm_wgrad").c_str(), dim3(n_tiles, shape_.n_slices),
                    dim3(Engine::THREADS), Engine::SHARED_BYTES + FLAG_BYTES, &state_, x_.data(),
                    of(douts_, 0), of(douts_, 1), of(douts_, 2), of(dweights, 0), of(dweights, 1),
                    of(dweights, 2), dbias(0), dbias(1), dbias(2), partials.data(), counters.data(),
                    ROWS_TOKENS, shape_.n, shape_.k);
    for (int part = 0; part < shape_.n_parts; ++part) {
      const string number = std::to_string(part);
      const double tolerance = sum_tolerance<Engine>(shape_.m);
      compare(what("gemm_wgrad", "dweight " + number), dweights[part], sums_wgrad(part), tolerance);
      if (dbias(part)) {
        compare(what("gemm_wgrad", "dbias " + number), dbiases[part], sums_bias(part), tolerance);
      }
    }
    for (int i = 0; i < n_tiles; ++i) testing::check(counters[i] == 0, "a counter is zero again");
  }

 private:
  string what(const char* product, const string& output) const {
    return Engine::name(product) + " " + output + ", " + shape_.name();
  }

  unsigned row_tiles() const { return ceil_div(shape_.capacity, Engine::TILE); }

  // A part's operand, null for a part that is not there.
  template <class T>
  T* of(vector<Buffer<T>>& buffers, int part) const {
    return part < shape_.n_parts ? buffers[part].data() : nullptr;
  }

  vector<double> sums_forward(int part) const {
    vector<double> sums(size_t(shape_.m) * shape_.n);
    for (size_t i = 0; i < sums.size(); ++i) sums[i] = biases_[part][i % shape_.n];
    add_product(sums, x_.floats(), weights_[part].floats(), shape_.m, shape_.n, shape_.k, false);
    return sums;
  }

  vector<double> sums_dgrad(int n_parts) const {
    vector<double> sums(size_t(shape_.m) * shape_.k);
    for (int part = 0; part < n_parts; ++part) {
      add_product(sums, douts_[part].floats(), weights_[part].floats(), shape_.m, shape_.k, shape_.n, true);
    }
    return sums;
  }

  vector<float> sums_wgrad(int part) const {
    const vector<float> dout = douts_[part].floats();
    vector<float> transposed(size_t(shape_.n) * shape_.m);
    for (int row = 0; row < shape_.m; ++row) {
      for (int col = 0; col < shape_.n; ++col) {
        transposed[size_t(col) * shape_.m + row] = dout[size_t(row) * shape_.n + col];
      }
    }
    vector<double> sums(size_t(shape_.n) * shape_.k);
    add_product(sums, transposed, x_.floats(), shape_.n, shape_.k, shape_.m, true);
    return mapped(sums, [](double value) { return value; });
  }

  vector<float> sums_bias(int part) const {
    vector<double> sums(shape_.n);
    for (size_t i = 0; i < size_t(shape_.m) * shape_.n; ++i) {
      sums[i % shape_.n] += testing::as_float(douts_[part][i]);
    }
    return mapped(sums, [](double value) { return value; });
  }

  Shape shape_;
  StepState state_;
  Buffer<E> x_;
  vector<Buffer<E>> weights_, douts_;
  vector<Buffer<float>> biases_;
};

template <class Engine>
void check_shapes(const vector<Shape>& shapes) {
  if (truncates() && !Engine::TENSOR_CORES) return;  // nothing in them would be different
  for (const Shape& shape : shapes) {
    if (Engine::TENSOR_CORES && (shape.n % 8 != 0 || shape.k % 8 != 0)) continue;
    Problem<Engine>(shape).check_all();
  }
}

void check_engines(const vector<Shape>& shapes) {
  check_shapes<F32>(shapes);
  check_shapes<Bf16Plain>(shapes);
  check_shapes<Bf16Small>(shapes);
  check_shapes<Bf16Large>(shapes);
}

// A batch without a single row: gradients of parameters are zero, nothing else is written.
template <class Engine>
void check_empty() {
  Problem<Engine> problem({0, 64, 64, 1, 64, 2});
  problem.forward();
  problem.weight_gradient(true);
}

// A fixed number of rows, and one row a sequence, in place of tokens.
void check_row_counts() {
  StepState state{};
  state.n_tokens = 5;
  state.n_sequences = 3;
  testing::check(live_rows(&state, ROWS_TOKENS) == 5, "rows of tokens");
  testing::check(live_rows(&state, ROWS_SEQUENCES) == 3, "rows of sequences");
  testing::check(live_rows(&state, 7) == 7, "a fixed number of rows");
}

// What a product costs is what its tiles say: one mma for 16 x 8 entries and 16 steps, every panel loaded
// once in chunks of 16 bytes, and no bank conflict.
template <class Engine>
void check_counts() {
  constexpr int M = 256, N = 128, K = 256, T = Engine::TILE;
  constexpr uint64_t N_MMAS = M / 16 * (N / 8) * (K / 16);
  StepState state{};
  state.n_tokens = M;
  Buffer<bf16> x(testing::random(M * K, 1)), weight(testing::random(N * K, 2)),
      dout(testing::random(M * N, 3));
  Buffer<bf16> out(M * N), dx(M * K);
  Buffer<float> bias(testing::random(N, 4)), dweight(N * K), dbias(N), partials(2 * (N * K + N * K / T));
  Buffer<unsigned> counters(N * K / T / T);
  counters.fill(0);
  bf16* none = nullptr;
  float* no_floats = nullptr;
  const auto check = [](const char* what, EmulatorCounts counts, uint64_t n_mmas, uint64_t n_copies) {
    testing::check(counts.shared_conflicts == 0, what,
                   std::to_string(counts.shared_conflicts) + " conflicts");
    testing::check(counts.mma == n_mmas, what, std::to_string(counts.mma) + " mmas");
    testing::check(counts.async_copies == n_copies, what, std::to_string(counts.async_copies) + " copies");
  };
  const dim3 block(Engine::THREADS);
  check("counts of gemm_fwd",
        testing::counted_launch(Engine::fwd, Engine::name("gemm_fwd").c_str(), dim3(N / T, M / T), block,
                                Engine::SHARED_BYTES, &state, x.data(), weight.data(), none, none,
                                bias.data(), no_floats, no_floats, out.data(), none, none, ROWS_TOKENS, N, K),
        N_MMAS, 2 * (M * N * K / T / 8));
  check("counts of gemm_gelu_dgrad",
        testing::counted_launch(Engine::gelu_dgrad, Engine::name("gemm_gelu_dgrad").c_str(),
                                dim3(K / T, M / T), block, Engine::SHARED_BYTES, &state, dout.data(),
                                weight.data(), x.data(), dx.data(), ROWS_TOKENS, N, K),
        N_MMAS, 2 * (M * N * K / T / 8) + M * K / 8);
  // One more mma for each 16 rows and 16 steps of the warps of blocks in column 0.
  check("counts of gemm_wgrad",
        testing::counted_launch(Engine::wgrad, Engine::name("gemm_wgrad").c_str(), dim3(N * K / T / T, 2),
                                block, Engine::SHARED_BYTES + FLAG_BYTES, &state, x.data(), dout.data(), none,
                                none, dweight.data(), no_floats, no_floats, dbias.data(), no_floats,
                                no_floats, partials.data(), counters.data(), ROWS_TOKENS, N, K),
        N_MMAS + 2 * (N / 16) * (M / 16), 2 * (M * N * K / T / 8));
}

// GELU as bf16 kernels compute it: no further from the truth than half a unit of bf16's last place, which is
// at least 2^-9 of the value; near zero, where the truth is smaller than 1e-6, within 4e-7.
void check_fast_gelu() {
  double worst = 0.0;
  for (int i = -24000; i <= 24000; ++i) {
    const float x = i / 2000.0f;
    for (const bool slope : {false, true}) {
      const double exact = slope ? exact_slope(x) : exact_gelu(x);
      const double error = fabs((slope ? gelu_slope<bf16>(x) : gelu<bf16>(x)) - exact);
      const double allowed = fabs(exact) > 1e-6 ? fmin(4e-7, fabs(exact) / 512) : 4e-7;
      if (!(error / allowed <= worst)) worst = error / allowed;
    }
  }
  testing::check(worst <= 1.0, "gelu<bf16>", "error over what is allowed: " + std::to_string(worst));
}

}  // namespace

int main() {
  check_row_counts();
  check_fast_gelu();
  if (testing::CAN_CHECK_BLOCKS) {
    check_counts<Bf16Small>();
    check_counts<Bf16Large>();
  }
  check_empty<F32>();
  check_empty<Bf16Small>();
  check_empty<Bf16Large>();
  // m, n, k, parts, capacity, slices
  const vector<Shape> shapes = {
      {1, 3, 8, 1, 1, 1},
      {7, 64, 80, 3, 70, 2},
      {129, 80, 96, 2, 200, 3},
      {200, 136, 200, 1, 200, 1},
      {200, 130, 64, 2, 257, 9},
      {129, 130, 8, 3, 129, 1},
      {65, 8, 136, 3, 300, 2},
      {7, 3, 5, 2, 9, 4},
      {200, 64, 72, 1, 520, 16},
  };
  check_engines(shapes);
  testing::with_truncated_sums([&] { check_engines(shapes); });
  testing::for_each_schedule_and_sum([] {
    check_engines({
        {7, 3, 21, 2, 70, 2},
        {100, 72, 136, 3, 140, 3},
    });
  });
  return testing::summary();
}
