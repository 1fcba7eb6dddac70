// GELU and its slope: gelu(x) = x Phi(x), gelu'(x) = Phi(x) + x phi(x), with Phi the normal distribution and
// phi its density. Exact in float; where bf16 rounds the result, a form of a third of the instructions whose
// error no bf16 shows.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float normal_cdf(float x) {
  return 0.5f * (1.0f + erff(x * 0.70710678118654752f));
}

__device__ __forceinline__ float normal_density(float x) {
  return 0.39894228040143268f * expf(-0.5f * x * x);
}

// Phi(-|x|) and phi(x) from one exponential: Abramowitz and Stegun, 26.2.17. As used below the error of GELU
// and of its slope is at most 4e-7, and 2^-9 of the value where that is above 1e-6: under half a unit in the
// last place of bf16.
struct NormalTail {
  float tail;
  float density;

  __device__ __forceinline__ explicit NormalTail(float x) {
    density = 0.39894228040143268f * ptx::exp2_approx(-0.72134752044448170f * x * x);
    const float t = __fdividef(1.0f, 1.0f + 0.2316419f * fabsf(x));
    float sum = 1.330274429f;
    sum = sum * t - 1.821255978f;
    sum = sum * t + 1.781477937f;
    sum = sum * t - 0.356563782f;
    sum = sum * t + 0.319381530f;
    tail = sum * t * density;
  }
};

// For results of type E.
template <class E>
__device__ __forceinline__ float gelu(float x);
template <>
__device__ __forceinline__ float gelu<float>(float x) {
  return x * normal_cdf(x);
}
template <>
__device__ __forceinline__ float gelu<bf16>(float x) {
  return fmaxf(x, 0.0f) - fabsf(x) * NormalTail(x).tail;
}

template <class E>
__device__ __forceinline__ float gelu_slope(float x);
template <>
__device__ __forceinline__ float gelu_slope<float>(float x) {
  return normal_cdf(x) + x * normal_density(x);
}
template <>
__device__ __forceinline__ float gelu_slope<bf16>(float x) {
  const NormalTail normal(x);
  return (x < 0.0f ? normal.tail : 1.0f - normal.tail) + x * normal.density;
}
