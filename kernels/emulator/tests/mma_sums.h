// The two ways in which the emulator's mma adds: rounded float sums, and the truncated ones of tensor cores.
#pragma once
#include <float.h>

#include <algorithm>
#include <utility>

#include "testing.h"

extern "C" __global__ void multiply_once(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d);

namespace testing {

// d [16, 8] += a [16, 16] b [16, 8], of such values as bf16 and float have.
inline std::vector<float> one_mma(const std::vector<float>& a, const std::vector<float>& b,
                                  const std::vector<float>& d, int truncate) {
  Buffer<__nv_bfloat16> from_a(a), from_b(b);
  Buffer<float> to(d);
  under_schedule("fifo", {0, 0, 1, 1, 0, truncate}, [&] {
    launch(&multiply_once, "multiply_once", 1, 32, 4, from_a.data(), from_b.data(), to.data());
  });
  return to.floats();
}

// Bit by bit, except that a NaN is a NaN.
inline bool is_same(float a, float b) { return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b)); }

typedef std::vector<std::pair<float, float>> Products;

// accumulator + products, and what must come out.
struct SumCase {
  const char* text;
  float accumulator;
  Products products;
  float truncated, rounded;
};

inline void check_sum(const SumCase& sum) {
  std::vector<float> a(16 * 16), b(16 * 8);
  for (size_t k = 0; k < sum.products.size(); ++k) {
    for (int i = 0; i < 16; ++i) a[i * 16 + k] = sum.products[k].first;
    for (int j = 0; j < 8; ++j) b[k * 8 + j] = sum.products[k].second;
  }
  const std::vector<float> d(16 * 8, sum.accumulator);
  for (const int truncate : {0, 1}) {
    const float expected = truncate ? sum.truncated : sum.rounded;
    const std::vector<float> got = one_mma(a, b, d, truncate);
    const auto is_wrong = [&](float value) { return !is_same(value, expected); };
    const auto wrong = std::find_if(got.begin(), got.end(), is_wrong);
    char text[96] = "";
    if (wrong != got.end()) {
      snprintf(text, sizeof text, "%s: %.9g, expected %.9g", truncate ? "truncated" : "rounded", double(*wrong),
               double(expected));
    }
    check(wrong == got.end(), sum.text, text);
  }
}

// U is the unit of the last of 24 bits at exponent 0, of 1 that is.
inline void check_chosen_sums() {
  constexpr float U = 0x1p-23f;
  const std::pair<float, float> most_of_u = {0.75f * 0x1p-12f, 0x1p-11f};
  const std::pair<float, float> minus_most_of_u = {-0.75f * 0x1p-12f, 0x1p-11f};
  const SumCase CASES[] = {
      {"products below the unit", 1, Products(16, most_of_u), 1, 1 + 12 * U},
      {"cut off towards zero", -1, Products(16, minus_most_of_u), -1, -1 - 12 * U},
      {"each term by itself", 1, Products(16, minus_most_of_u), 1, 1 - 12 * U},
      {"an accumulator below the unit", -0.75f * U, {{1, 1}}, 1, 1 - U},
      {"terms that cancel", 1, {{-1, 1}, {0.375f * 0x1p-12f, 0x1p-11f}}, 0, U / 2},
      {"a sum of 25 bits", 1.5f, {{1.5f, 1}, {0x1p-12f, 0x1p-11f}}, 3, 3},
      {"a sum of 25 bits, cut off", 1.5f, {{1.5f, 1}, {3 * 0x1p-12f, 0x1p-11f}}, 3 + 2 * U, 3 + 4 * U},
      {"a negative sum of 25 bits", -1.5f, {{-1.5f, 1}, {-3 * 0x1p-12f, 0x1p-11f}}, -3 - 2 * U, -3 - 4 * U},
      {"a subnormal sum", 0, {{1.5f * 0x1p-75f, 0x1p-74f}}, 0x1p-149f, 0x1p-148f},
      {"a subnormal accumulator", 0x1p-149f, {}, 0x1p-149f, 0x1p-149f},
      {"nothing but zeros", -0.0f, {{-1, 0}}, 0, 0},
      {"the largest sum", FLT_MAX, {{0x1p100f, 0x1p3f}}, FLT_MAX, INFINITY},
      {"overflow", -FLT_MAX, {{-0x1p100f, 0x1p4f}}, -INFINITY, -INFINITY},
      {"NaN as a factor", 1, {{1, 1}, {NAN, 0}}, NAN, NAN},
      {"NaN as the accumulator", NAN, {{1, 1}}, NAN, NAN},
      {"infinity times zero", 1, {{INFINITY, 0}}, NAN, NAN},
      {"infinity", 1, {{1, -INFINITY}, {1, 1}}, -INFINITY, -INFINITY},
      {"infinities of both signs", INFINITY, {{1, -INFINITY}}, NAN, NAN},
  };
  for (const SumCase& sum : CASES) check_sum(sum);
}

// By the definition: the accumulator is the last of the terms.
inline float rounded_sum(const std::vector<double>& terms) {
  float products = 0.0f;
  for (int k = 0; k < 16; ++k) products += static_cast<float>(terms[k]);
  return static_cast<float>(terms[16]) + products;
}

inline float truncated_sum(const std::vector<double>& terms) {
  int exponent = -1000;
  for (const double term : terms) {
    if (!isfinite(term)) return rounded_sum(terms);
    if (term != 0.0) exponent = std::max(exponent, ilogb(term));
  }
  double sum = 0.0;
  for (const double term : terms) sum += trunc(ldexp(term, 23 - exponent));
  const int n_excess_bits = sum == 0.0 ? 0 : std::max(0, ilogb(sum) - 23);
  return static_cast<float>(ldexp(trunc(ldexp(sum, -n_excess_bits)), n_excess_bits + exponent - 23));
}

// Every entry a sum of its own, those of one row NaN and of one column infinite.
inline void check_random_sums() {
  for (int seed = 1; seed <= 20; ++seed) {
    const auto values = [&](size_t n, int number, float scale) {
      return Buffer<__nv_bfloat16>(random(n, 3 * seed + number, scale)).floats();
    };
    std::vector<float> a = values(16 * 16, 0, 1.0f), b = values(16 * 8, 1, 1.0f);
    const std::vector<float> d = random(16 * 8, 3 * seed + 2, float(seed * seed));
    a[3 * 16 + 5] = NAN;
    b[5 * 8 + 6] = INFINITY;
    const std::vector<float> rounded = one_mma(a, b, d, 0), truncated = one_mma(a, b, d, 1);
    for (int i = 0; i < 16 * 8; ++i) {
      std::vector<double> terms;
      for (int k = 0; k < 16; ++k) terms.push_back(double(a[i / 8 * 16 + k]) * double(b[k * 8 + i % 8]));
      terms.push_back(d[i]);
      check(is_same(rounded[i], rounded_sum(terms)), "a rounded sum of random terms");
      check(is_same(truncated[i], truncated_sum(terms)), "a truncated sum of random terms");
    }
  }
}

}  // namespace testing
