// What all kernels share: the step's state, conversions, vector accesses, sums over a warp and a block.
//
// Lines `H100` in front of kernels: what the compiler gives the kernel on sm_90a, the threads and dynamic shared
// memory of its blocks for BERT-base, and the share of a multiprocessor's warps that these leave room for; then
// the floor of the op's largest launch in a step of BERT-base, at 64 sequences of 128 tokens (16 of 512 for
// attention_long): the larger of flops / 700 TF/s (60 in f32) and bytes / 3.0 TB/s, both assumed, with the
// error that such a floor has. `a launch`: less than one costs. tests/gates.rs checks these lines, and the floors
// tests/plan/floors.rs.
#pragma once
#include "ptx.cuh"

// What changes from step to step while the captured launches stay the same. The host writes it before
// each step; sixteen 4-byte fields, in this order on both sides (src/backend/cuda/inputs.rs).
struct StepState {
  int n_tokens;     // T
  int n_sequences;  // B
  unsigned step;    // number of this optimizer step, from 1
  unsigned seed[2];
  float learning_rate;
  float head_learning_rate;
  float weight_decay;
  int n_tiles;        // attention: tiles of up to 128 packed tokens
  int n_long_blocks;  // attention: blocks of 64 rows of sequences that no tile holds
  int reserved[6];
};
static_assert(sizeof(StepState) == 64, "the host writes 64 bytes");

// Counts of rows that a batch decides.
constexpr int ROWS_TOKENS = -1;
constexpr int ROWS_SEQUENCES = -2;

__device__ __forceinline__ int live_rows(const StepState* state, int rows) {
  return rows == ROWS_TOKENS ? state->n_tokens : rows == ROWS_SEQUENCES ? state->n_sequences : rows;
}

typedef __nv_bfloat16 bf16;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }

template <class E>
__device__ __forceinline__ E from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
  return __float2bfloat16_rn(value);
}

// Two floats as a pair of bf16, the first in the low half: a register of an mma operand.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

// 8 neighbouring elements, 16-byte aligned (two accesses of 16 bytes for float).
__device__ __forceinline__ void load8(const float* from, float (&to)[8]) {
  const float4 low = *reinterpret_cast<const float4*>(from);
  const float4 high = *reinterpret_cast<const float4*>(from + 4);
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

__device__ __forceinline__ void load8(const bf16* from, float (&to)[8]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(word[i] << 16);
    to[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ void store8(float* to, const float (&from)[8]) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(from[4], from[5], from[6], from[7]);
}

__device__ __forceinline__ void store8(bf16* to, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]),
                                             pack_bf16(from[4], from[5]), pack_bf16(from[6], from[7]));
}

// 4 neighbouring elements, aligned to their 16 or 8 bytes. Lanes that hold neighbours of 4 touch whole sectors
// with every access, in both types; neighbours of 8 floats take two accesses, each to half of every sector.
__device__ __forceinline__ void load4(const float* from, float (&to)[4]) {
  const float4 values = *reinterpret_cast<const float4*>(from);
  to[0] = values.x, to[1] = values.y, to[2] = values.z, to[3] = values.w;
}

__device__ __forceinline__ void load4(const bf16* from, float (&to)[4]) {
  const uint2 words = *reinterpret_cast<const uint2*>(from);
  to[0] = __uint_as_float(words.x << 16), to[1] = __uint_as_float(words.x & 0xffff0000u);
  to[2] = __uint_as_float(words.y << 16), to[3] = __uint_as_float(words.y & 0xffff0000u);
}

__device__ __forceinline__ void store4(float* to, const float (&from)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

__device__ __forceinline__ void store4(bf16* to, const float (&from)[4]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]));
}

constexpr unsigned ALL_LANES = 0xffffffffu;

// The sum over a warp, in every lane; the order is fixed.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(ALL_LANES, value, distance);
  }
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
  }
  return value;
}

// The sum over a block of whole warps, in every thread; `scratch` holds one float a warp. The caller
// separates two uses of the same scratch by a barrier.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const int n_warps = blockDim.x / 32;
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < n_warps; ++warp) sum += scratch[warp];
  return sum;
}
