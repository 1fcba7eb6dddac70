// Dropout masks from a counter-based generator (Philox4x32-10: Salmon et al., SC 2011), the same bits as
// src/backend/dropout.rs draws: computed again in the backward pass, never stored.
#pragma once
#include "common.cuh"

__device__ __forceinline__ uint4 philox(uint2 key, uint4 counter) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * counter.x;
    const uint64_t b = 0xCD9E8D57ull * counter.z;
    counter = make_uint4(static_cast<unsigned>(b >> 32) ^ counter.y ^ key.x, static_cast<unsigned>(b),
                         static_cast<unsigned>(a >> 32) ^ counter.w ^ key.y, static_cast<unsigned>(a));
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

// One dropout site of one step. A byte below the threshold drops its element; what stays is scaled by
// 256 / (256 - threshold), so that the expectation is exact. Threshold 0 drops nothing.
struct Dropout {
  uint2 key;
  unsigned step;
  unsigned site;
  unsigned threshold;

  __device__ __forceinline__ Dropout(const StepState* state, unsigned site, unsigned threshold)
      : key{state->seed[0], state->seed[1]}, step(state->step), site(site), threshold(threshold) {}

  __device__ __forceinline__ bool acts() const { return threshold != 0; }
  __device__ __forceinline__ float scale() const { return 256.0f / (256.0f - static_cast<float>(threshold)); }

  __device__ __forceinline__ float factor(unsigned byte) const {
    return (byte & 0xffu) < threshold ? 0.0f : scale();
  }

  // The 16 bytes of elements 16 * group .. 16 * group + 15 of a row of `width` elements.
  __device__ __forceinline__ uint4 row_bytes(int sequence, int row, int width, int group) const {
    const unsigned n_groups = (width + 15) / 16;
    return philox(key, make_uint4(row * n_groups + group, sequence, site, step));
  }

  // Factors of 4 neighbouring elements, `first` a multiple of 4.
  __device__ __forceinline__ void row_factors4(int sequence, int row, int width, int first,
                                               float (&factors)[4]) const {
    const uint4 bytes = row_bytes(sequence, row, width, first / 16);
    const uint32_t left = first % 8 == 0 ? bytes.x : bytes.y;
    const uint32_t right = first % 8 == 0 ? bytes.z : bytes.w;
    const uint32_t word = first % 16 < 8 ? left : right;
#pragma unroll
    for (int i = 0; i < 4; ++i) factors[i] = factor(word >> (i * 8));
  }

  // The 16 bytes of one lane for a block of 16 queries and 32 keys of one head: byte at = 4 * tile +
  // 2 * lower + right belongs to query lane / 4 + 8 * lower and key 8 * tile + 2 * (lane % 4) + right, as
  // the accumulators of four mma.m16n8k16 lie in a warp.
  __device__ __forceinline__ uint4 probability_bytes(int sequence, int head, int query_block, int key_block,
                                                     int lane) const {
    const unsigned place = static_cast<unsigned>(query_block) << 16 | static_cast<unsigned>(key_block);
    const unsigned stream = static_cast<unsigned>(head + 1) << 16;
    return philox(key, make_uint4(place, sequence * 32 + lane, site | stream, step));
  }
};

// Sequence of a row and its number in there; without `sequence_ids` every row is a sequence of its own.
__device__ __forceinline__ int2 place_of_row(const int* sequence_ids, const int* cu_seqlens, int row) {
  if (sequence_ids == nullptr) return make_int2(row, 0);
  const int sequence = sequence_ids[row];
  return make_int2(sequence, row - cu_seqlens[sequence]);
}
