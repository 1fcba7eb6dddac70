// What the checks of kernels over rows of a batch share: batches, dropout's factors, LayerNorm in double, results.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "rows.cuh"
#include "philox.h"
#include "testing.h"

namespace testing {

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

constexpr int WIDE = 4;
inline int variant(int width) { return width <= 1024 ? (width - 1) / 256 : WIDE; }

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

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
inline Doubles dropout_factors(const Batch& batch, int width, unsigned threshold, bool by_token) {
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
  const Floats values = random(size_t(batch.n_rows) * width, seed, scale);
  for (size_t i = 0; i < values.size(); ++i) buffer[i] = from_float<E>(mean + values[i]);
  return buffer;
}

// The first n values; all beyond them must be as untouched as when the buffer was made.
template <class E>
Floats live(const char* what, const Buffer<E>& buffer, size_t n) {
  const unsigned char* above = reinterpret_cast<const unsigned char*>(buffer.data() + n);
  const unsigned char* end = reinterpret_cast<const unsigned char*>(buffer.data() + buffer.size());
  const bool holds = std::all_of(above, end, [](unsigned char byte) { return byte == 0xff; });
  check(holds, what, "wrote above the live rows");
  const Floats all = buffer.floats();
  return Floats(all.begin(), all.begin() + n);
}

inline Floats to_floats(const Doubles& values) { return Floats(values.begin(), values.end()); }

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
      close(name_.c_str(), values, expected_, tolerance_);
      first_ = values;
    } else {
      same_bits(name_.c_str(), values, first_);
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

inline Normed layernorm(const Doubles& sums, int width, const Floats& gamma, const Floats& beta) {
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

}  // namespace testing
