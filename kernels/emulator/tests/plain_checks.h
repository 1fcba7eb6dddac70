// What the checks of activations, pooling, heads, loss and optimizer share: rows with spare ones above them,
// and results.
#pragma once
#include <cmath>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "common.cuh"
#include "testing.h"

// Launches the instance of `op` for the element type E.
#define LAUNCH(E, op, grid, block, shared, ...)                                 \
  if constexpr (std::is_same_v<E, float>) {                                     \
    testing::launch(&op##_f32, #op "_f32", grid, block, shared, __VA_ARGS__);   \
  } else {                                                                      \
    testing::launch(&op##_bf16, #op "_bf16", grid, block, shared, __VA_ARGS__); \
  }

namespace testing {

typedef std::vector<float> Floats;

// Rows of every buffer that the batch leaves free: NaN, and not to be touched.
constexpr int SPARE_ROWS = 9;
constexpr size_t COLUMN_SHARED_BYTES = 8192;

// Float arithmetic on the same inputs: single operations round by 6e-8, sums of n random terms by about
// sqrt(n) times that of their root mean square. The longest sum here has 1000 terms, added 8 or more apart.
constexpr double FLOAT_TOLERANCE = 2e-6;

// A result that is stored in E: bf16, of 8 significant bits, rounds each element by up to 2^-8 of it.
template <class E>
constexpr double stored_tolerance() {
  return std::is_same_v<E, float> ? FLOAT_TOLERANCE : FLOAT_TOLERANCE + 1.0 / 256.0;
}

template <class E>
const char* type_name() {
  return std::is_same_v<E, float> ? "f32" : "bf16";
}

inline unsigned ceil_div(size_t a, size_t b) { return static_cast<unsigned>((a + b - 1) / b); }

inline StepState step_state(int n_tokens, int n_sequences) {
  StepState state;
  memset(&state, 0, sizeof state);
  state.n_tokens = n_tokens;
  state.n_sequences = n_sequences;
  return state;
}

// `live` rows of random numbers, as E, and NaN rows above them.
template <class E>
Buffer<E> random_rows(int live, int cols, uint64_t seed, float scale = 1.0f) {
  const size_t n = static_cast<size_t>(live) * cols;
  Buffer<E> buffer(n + static_cast<size_t>(SPARE_ROWS) * cols);
  const Floats values = random(n, seed, scale);
  for (size_t i = 0; i < n; ++i) buffer[i] = from_float<E>(values[i]);
  return buffer;
}

template <class E>
Buffer<E> empty_rows(int live, int cols) {
  return Buffer<E>(static_cast<size_t>(live + SPARE_ROWS) * cols);
}

inline Buffer<int> ints(const std::vector<int>& values, size_t capacity) {
  Buffer<int> buffer(capacity);
  for (size_t i = 0; i < values.size(); ++i) buffer[i] = values[i];
  return buffer;
}

template <class T>
bool is_untouched(const T& value) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
  for (size_t i = 0; i < sizeof(T); ++i) {
    if (bytes[i] != 0xff) return false;
  }
  return true;
}

// What a kernel left behind, across schedules: the first run is compared with the expectation, the others
// bit by bit with the first.
class Results {
 public:
  // `expected` holds the live elements; those for which it is NaN must not have been written.
  template <class T>
  void check(const std::string& what, const Buffer<T>& got, const Floats& expected, double tolerance) {
    for (size_t i = 0; i < got.size(); ++i) {
      if (i < expected.size() && !std::isnan(expected[i])) continue;
      if (is_untouched(got[i])) continue;
      testing::check(false, what.c_str(), "wrote element " + std::to_string(i));
      break;
    }
    Floats of_interest, wanted;
    for (size_t i = 0; i < expected.size(); ++i) {
      if (std::isnan(expected[i])) continue;
      of_interest.push_back(as_float(got[i]));
      wanted.push_back(expected[i]);
    }
    close(what.c_str(), of_interest, wanted, tolerance);
    if (next_ == firsts_.size()) firsts_.push_back(of_interest);
    same_bits((what + ", repeated").c_str(), of_interest, firsts_[next_]);
    ++next_;
  }

  void begin_run() { next_ = 0; }

 private:
  std::vector<Floats> firsts_;
  size_t next_ = 0;
};

// Runs `body` under every schedule with results that must not differ.
inline void repeat(const std::function<void(Results&)>& body) {
  Results results;
  for_each_schedule([&] {
    results.begin_run();
    body(results);
  });
}

// Column sums of the rows begin .. end - 1.
inline Floats column_sums(const Floats& x, int cols, int begin, int end) {
  Floats sums(cols);
  for (int col = 0; col < cols; ++col) {
    double sum = 0.0;
    for (int row = begin; row < end; ++row) sum += x[static_cast<size_t>(row) * cols + col];
    sums[col] = static_cast<float>(sum);
  }
  return sums;
}

}  // namespace testing
