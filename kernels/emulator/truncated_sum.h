// How tensor cores add inside one mma: less exactly than float sums that are rounded.
//
// After M. Fasi, N. J. Higham, M. Mikaitis and S. Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ
// Computer Science 7:e330, 2021. Products are exact. They and the accumulator are aligned to the largest
// exponent among them and cut off behind 24 bits, the sum is one of integers, and where it has more bits than
// a float it is cut off again. Generations differ in how many bits beyond 24 the aligned terms keep: here none,
// which is the worst of them.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cuda_host.h"

namespace emulator {

// As a float, towards zero. From 2^128 on it is infinite: an overflow has to show.
inline float truncated(double value) {
  const float nearest = static_cast<float>(value);
  const bool is_beyond = fabs(double(nearest)) > fabs(value) && fabs(value) < 0x1p128;
  return __uint_as_float(__float_as_uint(nearest) - is_beyond);
}

// The exponent of a positive normal number, and 2^exponent.
inline int exponent_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<int>(bits >> 52) - 1023;
}
inline double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(1023 + exponent) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// One row of an mma, sums += a b. All 8 columns go through each loop, so that the compiler can take several
// at a time. In double no term is subnormal or loses a bit: the smallest product of two bf16 is 2^-266.
inline void add_truncated_row(float (&sums)[8], const float (&a)[16], const float (&b)[16][8]) {
  constexpr int N = 8, N_TERMS = 17;
  constexpr double BELOW_ALL_TERMS = 0x1p-300;
  double terms[N_TERMS][N], largest[N], plain[N] = {};
  for (int k = 0; k < 16; ++k) {
    for (int j = 0; j < N; ++j) terms[k][j] = double(a[k]) * double(b[k][j]);
  }
  for (int j = 0; j < N; ++j) terms[16][j] = sums[j], largest[j] = BELOW_ALL_TERMS;
  for (int k = 0; k < N_TERMS; ++k) {
    for (int j = 0; j < N; ++j) {
      const double size = fabs(terms[k][j]);
      largest[j] = size > largest[j] ? size : largest[j];
      plain[j] += terms[k][j];
    }
  }
  // Infinities and NaN stay what an addition makes of them, and are no integers.
  for (int j = 0; j < N; ++j) {
    if (isfinite(plain[j])) continue;
    for (int k = 0; k < N_TERMS; ++k) terms[k][j] = 0.0;
    largest[j] = BELOW_ALL_TERMS;
  }
  // In units of the last of 24 bits: a term is below 2^24, the sum of 17 below 2^29. The cast truncates.
  double scales[N];
  for (int j = 0; j < N; ++j) scales[j] = power_of_two(23 - exponent_of(largest[j]));
  int totals[N] = {};
  for (int k = 0; k < N_TERMS; ++k) {
    for (int j = 0; j < N; ++j) totals[j] += static_cast<int>(terms[k][j] * scales[j]);
  }
  for (int j = 0; j < N; ++j) {
    sums[j] = isfinite(plain[j]) ? truncated(totals[j] / scales[j]) : static_cast<float>(plain[j]);
  }
}

}  // namespace emulator
