// attention_long: attention over packed sequences of more than 128 tokens on tensor cores.
// MATHS    as in attention_plain.cu. The forward kernel keeps maximum and sum as the keys go by (online
//          softmax: Milakov and Gimelshein, 2018; Dao et al., 2022). P and dS are rounded to bf16 where they
//          enter a product; nothing of size s x s is written to memory.
// SHAPES   q, k, v, out, dout, dq, dk, dv: [T, D] bf16; lse, delta: [T, H] f32; blocks: [n_long_blocks] int2;
//          cu_seqlens: [B + 1]. Dh = 32 or 64 by the kernel's suffix, H = gridDim.x, D = H Dh.
// TRAFFIC  each matrix, lse and delta once from memory; what a kernel goes over comes s / 64 times from the
//          L2 cache. flops: forward 4, delta 4, dq 6, dkv 8 times sum(s^2) D over these sequences, in whole
//          pieces of 16 x 16: nine products backward instead of five, for no sums across blocks.
// LAUNCH   grid (H, blocks at capacity), block 128; blocks from state->n_long_blocks on leave. Shared bytes:
//          forward 640 Dh (40960, 20480), delta and dq 768 Dh (49152, 24576), dkv 768 Dh + 2048 (51200, 26624).
//          Registers for Dh = 64 and 32 (sm_80, sm_90a at most): forward 128 and 118, delta 139 and 105, dq
//          160 and 114, dkv 168 and 134; no spills; 4 blocks a multiprocessor forward, 3 backward.
// PICTURE  a block of threads is 4 warps with 16 rows each of one block of 64 rows of one sequence; the host
//          lists int2 {sequence, block in it}. The rows of the other side come 64 at a time into one of two
//          stages of shared memory, while the other is worked on:
//            forward, delta, dq:  rows are queries, warp w: |16 w .. 16 w + 15|,  keys and values go by
//            dkv:          rows are keys, queries and dout go by; a Piece is S^T: 16 keys, 16 queries
//          Dropout's bytes belong to lanes of a Piece of S. For S^T a warp draws those of its 16 queries and
//          64 keys, and leaves in shared memory a word for each of 16 bytes, bit l from lane l.
// NEEDS    D a multiple of 8, rows 16-byte aligned. Rows behind a sequence's end are zeros in shared
//          memory and masked. lse may be null in the forward kernel. Sums have one order: runs are bitwise
//          equal. delta runs before dq and before dkv with dk; v and delta may be null without dk, and dk or
//          dv may be null.
// H100     attention_fwd_bf16_long_64: 128 registers, 128 threads, 40960 bytes, 25.0 %; floor 19 us +- 30 %,
//          attention_bwd_dq_bf16_long_64: 160 registers, 128 threads, 49152 bytes, 18.8 %,
//          attention_bwd_dkv_bf16_long_64: 168 registers, 128 threads, 51200 bytes, 18.8 %; backward floor 47 us +- 30 %.
// HISTORY  not yet measured on a device.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;
constexpr int BLOCK = WARPS * STRIP;

// What a warp does: a strip of a block of 64 rows of a sequence.
struct LongBlock {
  int sequence;
  int first_token;  // of the sequence
  int length;
  int first_row;  // of the strip, in the sequence
  int warp;
  int lane;

  __device__ __forceinline__ LongBlock(const int2* blocks, const int* cu_seqlens)
      : warp(threadIdx.x / 32), lane(threadIdx.x % 32) {
    const int2 entry = blocks[blockIdx.y];
    sequence = entry.x;
    first_token = cu_seqlens[sequence];
    length = cu_seqlens[sequence + 1] - first_token;
    first_row = entry.y * BLOCK + warp * STRIP;
  }

  // Rows of the strip that the sequence has; 0 or less if it has none.
  __device__ __forceinline__ int n_valid() const { return min(length - first_row, STRIP); }
  __device__ __forceinline__ int n_blocks() const { return (length + BLOCK - 1) / BLOCK; }

  // The head's columns of a row of the sequence.
  template <int SIZE, class E>
  __device__ __forceinline__ E* of(E* matrix, int row) const {
    return matrix + (static_cast<size_t>(first_token + row) * gridDim.x + blockIdx.x) * SIZE;
  }

  // Where [T, H] matrices keep a row of the sequence.
  __device__ __forceinline__ size_t statistic(int row) const {
    return static_cast<size_t>(first_token + row) * gridDim.x + blockIdx.x;
  }

  // Starts to copy 64 rows of the sequence, a strip by each warp; rows behind its end become zeros.
  template <int SIZE>
  __device__ __forceinline__ void load(bf16* rows, const bf16* matrix, int first) const {
    const int row = first + warp * STRIP;
    const int n_rows = length - row;
    load_strip<SIZE>(rows, warp * STRIP, of<SIZE>(matrix, n_rows > 0 ? row : 0), gridDim.x * SIZE, n_rows,
                     lane);
  }
};

// Pieces of 16 in block `number` of the other side.
__device__ __forceinline__ int n_pieces(int length, int number) {
  return min((length - number * BLOCK + STRIP - 1) / STRIP, BLOCK / STRIP);
}

// Two stages of two matrices of 64 rows each, that go by.
template <int SIZE>
struct Stages {
  bf16* first;

  __device__ __forceinline__ bf16* matrix(int number, int which) const {
    return first + (number % 2 * 2 + which) * (BLOCK * SIZE);
  }

  // Starts to copy block `number` of both matrices, as one group of copies; b may be null.
  __device__ __forceinline__ void load(const LongBlock& block, const bf16* a, const bf16* b,
                                       int number) const {
    if (number < block.n_blocks()) {
      block.load<SIZE>(matrix(number, 0), a, number * BLOCK);
      if (b != nullptr) block.load<SIZE>(matrix(number, 1), b, number * BLOCK);
    }
    ptx::cp_async_commit();
  }
};

template <int SIZE>
__device__ __forceinline__ void attention_fwd_long(const StepState* state, const Dropout& dropout,
                                                   const bf16* q, const bf16* k, const bf16* v,
                                                   const int2* blocks, const int* cu_seqlens, bf16* out,
                                                   float* lse) {
  DYNAMIC_SHARED(shared);
  if (static_cast<int>(blockIdx.y) >= state->n_long_blocks) return;
  bf16* const queries = reinterpret_cast<bf16*>(shared);
  const Stages<SIZE> stages{queries + BLOCK * SIZE};
  const LongBlock block(blocks, cu_seqlens);
  const int lane = block.lane;
  const float scale_log2 = SOFTMAX_SCALE<SIZE> * LOG2_E;
  block.load<SIZE>(queries, q, block.first_row - block.warp * STRIP);
  stages.load(block, k, v, 0);

  Operand<SIZE> query;
  Strip<SIZE> o = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  PieceDropout piece_dropout(dropout, block.sequence, blockIdx.x, block.first_row / STRIP);
  for (int number = 0; number < block.n_blocks(); ++number) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    stages.load(block, k, v, number + 1);
    if (block.n_valid() <= 0) continue;
    if (number == 0) load_operand<SIZE>(query, queries, block.warp * STRIP, lane);
    const int end = n_pieces(block.length, number);
    Piece p[BLOCK / STRIP];
    strip_scores<SIZE>(p, query, stages.matrix(number, 0), 0, end, block.length - number * BLOCK, lane);
    const float old_top[2] = {top[0], top[1]};
    raise_top(top, p, 0, end);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shrink = ptx::exp2_approx((old_top[half] - top[half]) * scale_log2);
      sum[half] *= shrink;
#pragma unroll
      for (int j = 0; j < SIZE / 8; ++j) {
        o.of[j][2 * half] *= shrink;
        o.of[j][2 * half + 1] *= shrink;
      }
    }
    exponentiate(p, sum, top, scale_log2, 0, end);
    add_values<SIZE>(o, p, stages.matrix(number, 1), piece_dropout, number * (BLOCK / STRIP), 0, end, lane);
  }
  if (block.n_valid() <= 0) return;
  float factors[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] = row_sum(sum[half]);
    factors[half] = dropout.scale() / sum[half];
    const int row = lane / 4 + 8 * half;
    if (lse != nullptr && lane % 4 == 0 && row < block.n_valid()) {
      lse[block.statistic(block.first_row + row)] = top[half] * SOFTMAX_SCALE<SIZE> + logf(sum[half]);
    }
  }
  store_strip<SIZE>(block.of<SIZE>(out, block.first_row), gridDim.x * SIZE, o, factors, block.n_valid(),
                    lane);
}

// What the backward kernels read.
struct Saved {
  const bf16* dout;
  const float* delta;
  const float* lse;
  const bf16* q;
  const bf16* k;
  const bf16* v;
};

// Queries stay, keys and values go by: calls body(S, dO V^T, dropout's bytes, columns, keys, row of the piece's
// first key) for a warp's 16 queries and 16 keys at a time. `lse_log2` is that of a lane's two rows; rows behind
// the sequence's end get probabilities of 0 from it.
template <int SIZE, class Body>
__device__ __forceinline__ void for_each_piece(const LongBlock& block, const Saved& saved,
                                               PieceDropout& piece_dropout, float (&lse_log2)[2], Body body) {
  DYNAMIC_SHARED(shared);
  bf16* const queries = reinterpret_cast<bf16*>(shared);
  bf16* const gradients = queries + BLOCK * SIZE;
  const Stages<SIZE> stages{gradients + BLOCK * SIZE};
  const int lane = block.lane;
  const int block_row = block.first_row - block.warp * STRIP;
  block.load<SIZE>(queries, saved.q, block_row);
  block.load<SIZE>(gradients, saved.dout, block_row);
  stages.load(block, saved.k, saved.v, 0);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = block.first_row + lane / 4 + 8 * half;
    lse_log2[half] = row < block.length ? saved.lse[block.statistic(row)] * LOG2_E : INFINITY;
  }

  Operand<SIZE> query, gradient;
  for (int number = 0; number < block.n_blocks(); ++number) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    stages.load(block, saved.k, saved.v, number + 1);
    if (block.n_valid() <= 0) continue;
    if (number == 0) {
      load_operand<SIZE>(query, queries, block.warp * STRIP, lane);
      load_operand<SIZE>(gradient, gradients, block.warp * STRIP, lane);
    }
    const bf16* const keys = stages.matrix(number, 0);
    const bf16* const values = stages.matrix(number, 1);
    const int n_keys = block.length - number * BLOCK;
    const int end = n_pieces(block.length, number);
#pragma unroll 1
    for (int piece = 0; piece < end; ++piece) {
      Piece p, ds;
      multiply_rows<SIZE>(p, query, keys, piece * STRIP, lane);
      multiply_rows<SIZE>(ds, gradient, values, piece * STRIP, lane);
      const uint2 bytes = piece_dropout.bytes(number * (BLOCK / STRIP) + piece, piece == 0, lane);
      body(p, ds, bytes, n_keys - piece * STRIP - lane_column(lane), keys, piece * STRIP);
    }
  }
}

template <int SIZE>
__device__ __forceinline__ void attention_bwd_delta_long(const StepState* state, const Dropout& dropout,
                                                         const Saved& saved, const int2* blocks,
                                                         const int* cu_seqlens, float* to) {
  if (static_cast<int>(blockIdx.y) >= state->n_long_blocks) return;
  const LongBlock block(blocks, cu_seqlens);
  PieceDropout piece_dropout(dropout, block.sequence, blockIdx.x, block.first_row / STRIP);
  float lse_log2[2], delta[2] = {0.0f, 0.0f};
  for_each_piece<SIZE>(block, saved, piece_dropout, lse_log2,
                       [&](Piece& scores, Piece& dp, uint2 bytes, int n_cols, const bf16*, int) {
                         add_delta(delta, scores, dp, lse_log2, SOFTMAX_SCALE<SIZE> * LOG2_E, bytes,
                                   piece_dropout, n_cols);
                       });
  if (block.n_valid() <= 0) return;
  finish_delta(delta, piece_dropout);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = block.lane / 4 + 8 * half;
    if (block.lane % 4 == 0 && row < block.n_valid()) to[block.statistic(block.first_row + row)] = delta[half];
  }
}

template <int SIZE>
__device__ __forceinline__ void attention_bwd_dq_long(const StepState* state, const Dropout& dropout,
                                                      const Saved& saved, const int2* blocks,
                                                      const int* cu_seqlens, bf16* dq) {
  if (static_cast<int>(blockIdx.y) >= state->n_long_blocks) return;
  const LongBlock block(blocks, cu_seqlens);
  const int lane = block.lane;
  float lse_log2[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = block.first_row + lane / 4 + 8 * half;
    delta[half] = row < block.length ? saved.delta[block.statistic(row)] : 0.0f;
  }
  Strip<SIZE> sum = {};
  PieceDropout piece_dropout(dropout, block.sequence, blockIdx.x, block.first_row / STRIP);
  for_each_piece<SIZE>(block, saved, piece_dropout, lse_log2,
                       [&](Piece& p, Piece& ds, uint2 bytes, int n_cols, const bf16* keys, int row) {
                         piece_gradients(p, ds, lse_log2, delta, SOFTMAX_SCALE<SIZE> * LOG2_E, bytes,
                                         piece_dropout, n_cols);
                         uint32_t a[4];
                         as_operand(ds, a);
                         add_product<SIZE>(sum, a, keys, row, lane);
                       });
  if (block.n_valid() <= 0) return;
  const float factors[2] = {SOFTMAX_SCALE<SIZE>, SOFTMAX_SCALE<SIZE>};
  store_strip<SIZE>(block.of<SIZE>(dq, block.first_row), gridDim.x * SIZE, sum, factors, block.n_valid(),
                    lane);
}

// What attention_bwd_dkv needs of 64 queries beside their rows, one of two stages.
struct QueryStage {
  float lse_log2[BLOCK];
  float delta[BLOCK];
  // For each strip of queries and 32 keys of the block, word i: byte i of each lane's draw, is it dropped.
  uint32_t dropped[BLOCK / STRIP][2][16];
};

// Fills the stage of block `number` of the queries. Rows behind the sequence's end get probabilities of 0.
__device__ __forceinline__ void fill(QueryStage& stage, const LongBlock& block, const Saved& saved,
                                     const Dropout& dropout, int number) {
  if (number >= block.n_blocks()) return;
  const int thread = threadIdx.x, at = thread % BLOCK;
  const int row = number * BLOCK + at;
  const bool valid = row < block.length;
  if (thread < BLOCK) {
    stage.lse_log2[at] = valid ? saved.lse[block.statistic(row)] * LOG2_E : INFINITY;
  } else if (saved.delta != nullptr) {
    stage.delta[at] = valid ? saved.delta[block.statistic(row)] : 0.0f;
  }
  if (!dropout.acts()) return;
  const int query_block = number * (BLOCK / STRIP) + block.warp;
  const int first_key_block = (block.first_row - block.warp * STRIP) / 32;
  uint32_t word = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 bytes = dropout.probability_bytes(block.sequence, blockIdx.x, query_block,
                                                  first_key_block + half, block.lane);
    const uint32_t drawn[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const bool drops = (drawn[i / 4] >> (i % 4 * 8) & 0xffu) < dropout.threshold;
      const uint32_t votes = __ballot_sync(ALL_LANES, drops);
      if (block.lane == half * 16 + i) word = votes;
    }
  }
  stage.dropped[block.warp][block.lane / 16][block.lane % 16] = word;
}

// The words of a stage that decide for a lane's elements of a piece of S^T: of its keys, row of the piece
// lane / 4 and 8 below, and of the left and right 8 queries.
struct TransposedDropout {
  uint32_t words[2][2];
  int shift;

  __device__ __forceinline__ TransposedDropout(const QueryStage& stage, const LongBlock& block, int piece,
                                               bool acts)
      : words{}, shift(8 * (block.lane % 4) + block.lane / 8) {
    if (!acts) return;
    const uint32_t (&of_keys)[16] = stage.dropped[piece][block.warp / 2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int lower_keys = i / 2, right_queries = i % 2;
      const int tile = block.warp % 2 * 2 + lower_keys;
      words[lower_keys][right_queries] = of_keys[4 * tile + 2 * right_queries + block.lane / 4 % 2];
    }
  }

  // Element i of half j of a piece.
  __device__ __forceinline__ bool drops(int j, int i) const {
    return (words[i / 2][j] >> (shift + i % 2 * 4) & 1) != 0;
  }
};

// Turns a piece of S^T into P^T, what dropout drops 0, without its scale; and one of V dO^T into dS^T.
__device__ __forceinline__ void transposed_gradients(Piece& p, Piece& ds, const QueryStage& stage, int piece,
                                                     float scale_log2, float dropout_scale,
                                                     const TransposedDropout& dropout, int lane,
                                                     bool with_scores) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int col = piece * STRIP + 8 * j + lane_column(lane);
    const float lse_log2[2] = {stage.lse_log2[col], stage.lse_log2[col + 1]};
    float delta[2] = {};
    if (with_scores) delta[0] = stage.delta[col], delta[1] = stage.delta[col + 1];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool drops = dropout.drops(j, i);
      const float kept = ptx::exp2_approx(p[j][i] * scale_log2 - lse_log2[i % 2]);
      ds[j][i] = kept * ((drops ? 0.0f : ds[j][i] * dropout_scale) - delta[i % 2]);
      p[j][i] = drops ? 0.0f : kept;
    }
  }
}

// Keys and values stay, queries and dout go by.
template <int SIZE>
__device__ __forceinline__ void attention_bwd_dkv_long(const StepState* state, const Dropout& dropout,
                                                       const Saved& saved, const int2* blocks,
                                                       const int* cu_seqlens, bf16* dk, bf16* dv) {
  DYNAMIC_SHARED(shared);
  if (static_cast<int>(blockIdx.y) >= state->n_long_blocks) return;
  bf16* const keys = reinterpret_cast<bf16*>(shared);
  bf16* const values = keys + BLOCK * SIZE;
  const Stages<SIZE> stages{values + BLOCK * SIZE};
  QueryStage* const query_stages = reinterpret_cast<QueryStage*>(stages.first + 4 * BLOCK * SIZE);
  const LongBlock block(blocks, cu_seqlens);
  const int lane = block.lane;
  const int block_row = block.first_row - block.warp * STRIP;
  const bool with_scores = dk != nullptr;
  block.load<SIZE>(keys, saved.k, block_row);
  if (with_scores) block.load<SIZE>(values, saved.v, block_row);
  stages.load(block, saved.q, saved.dout, 0);
  fill(query_stages[0], block, saved, dropout, 0);

  Operand<SIZE> key, value;
  Strip<SIZE> k_sum = {}, v_sum = {};
  for (int number = 0; number < block.n_blocks(); ++number) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    stages.load(block, saved.q, saved.dout, number + 1);
    if (number == 0) {
      load_operand<SIZE>(key, keys, block.warp * STRIP, lane);
      if (with_scores) load_operand<SIZE>(value, values, block.warp * STRIP, lane);
    }
    const bf16* const queries = stages.matrix(number, 0);
    const bf16* const gradients = stages.matrix(number, 1);
    const QueryStage& stage = query_stages[number % 2];
    const int end = block.n_valid() > 0 ? n_pieces(block.length, number) : 0;
#pragma unroll 1
    for (int piece = 0; piece < end; ++piece) {
      Piece p, ds = {};
      multiply_rows<SIZE>(p, key, queries, piece * STRIP, lane);
      if (with_scores) multiply_rows<SIZE>(ds, value, gradients, piece * STRIP, lane);
      const TransposedDropout transposed(stage, block, piece, dropout.acts());
      transposed_gradients(p, ds, stage, piece, SOFTMAX_SCALE<SIZE> * LOG2_E, dropout.scale(), transposed,
                           lane, with_scores);
      uint32_t a[4];
      if (dv != nullptr) {
        as_operand(p, a);
        add_product<SIZE>(v_sum, a, gradients, piece * STRIP, lane);
      }
      if (with_scores) {
        as_operand(ds, a);
        add_product<SIZE>(k_sum, a, queries, piece * STRIP, lane);
      }
    }
    fill(query_stages[(number + 1) % 2], block, saved, dropout, number + 1);
  }
  if (block.n_valid() <= 0) return;
  if (dv != nullptr) {
    const float factors[2] = {dropout.scale(), dropout.scale()};
    store_strip<SIZE>(block.of<SIZE>(dv, block.first_row), gridDim.x * SIZE, v_sum, factors, block.n_valid(),
                      lane);
  }
  if (with_scores) {
    const float factors[2] = {SOFTMAX_SCALE<SIZE>, SOFTMAX_SCALE<SIZE>};
    store_strip<SIZE>(block.of<SIZE>(dk, block.first_row), gridDim.x * SIZE, k_sum, factors, block.n_valid(),
                      lane);
  }
}

#define ATTENTION_FWD_LONG(symbol, SIZE)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 4) symbol(                                     \
      const StepState* __restrict__ state, const bf16* __restrict__ q, const bf16* __restrict__ k,     \
      const bf16* __restrict__ v, const int2* __restrict__ blocks, const int* __restrict__ cu_seqlens, \
      unsigned site, unsigned threshold, bf16* __restrict__ out, float* __restrict__ lse) {            \
    const Dropout dropout(state, site, threshold);                                                     \
    attention_fwd_long<SIZE>(state, dropout, q, k, v, blocks, cu_seqlens, out, lse);                   \
  }                                                                                                    \
  EXPORT_KERNEL(symbol)
ATTENTION_FWD_LONG(attention_fwd_bf16_long_32, 32)
ATTENTION_FWD_LONG(attention_fwd_bf16_long_64, 64)

#define ATTENTION_BWD_DELTA_LONG(symbol, SIZE)                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, 3)                                          \
      symbol(const StepState* __restrict__ state, const bf16* __restrict__ dout,                    \
             const float* __restrict__ lse, const bf16* __restrict__ q, const bf16* __restrict__ k, \
             const bf16* __restrict__ v, const int2* __restrict__ blocks,                           \
             const int* __restrict__ cu_seqlens, unsigned site, unsigned threshold,                 \
             float* __restrict__ delta) {                                                           \
    const Dropout dropout(state, site, threshold);                                                  \
    const Saved saved{dout, nullptr, lse, q, k, v};                                                 \
    attention_bwd_delta_long<SIZE>(state, dropout, saved, blocks, cu_seqlens, delta);               \
  }                                                                                                 \
  EXPORT_KERNEL(symbol)
ATTENTION_BWD_DELTA_LONG(attention_bwd_delta_bf16_long_32, 32)
ATTENTION_BWD_DELTA_LONG(attention_bwd_delta_bf16_long_64, 64)

#define ATTENTION_BWD_DQ_LONG(symbol, SIZE)                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 3)                                                   \
      symbol(const StepState* __restrict__ state, const bf16* __restrict__ dout,                             \
             const float* __restrict__ delta, const float* __restrict__ lse, const bf16* __restrict__ q,     \
             const bf16* __restrict__ k, const bf16* __restrict__ v, const int2* __restrict__ blocks,        \
             const int* __restrict__ cu_seqlens, unsigned site, unsigned threshold, bf16* __restrict__ dq) { \
    const Dropout dropout(state, site, threshold);                                                           \
    attention_bwd_dq_long<SIZE>(state, dropout, Saved{dout, delta, lse, q, k, v}, blocks, cu_seqlens, dq);   \
  }                                                                                                          \
  EXPORT_KERNEL(symbol)
ATTENTION_BWD_DQ_LONG(attention_bwd_dq_bf16_long_32, 32)
ATTENTION_BWD_DQ_LONG(attention_bwd_dq_bf16_long_64, 64)

#define ATTENTION_BWD_DKV_LONG(symbol, SIZE)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 3) symbol(                                         \
      const StepState* __restrict__ state, const bf16* __restrict__ dout, const float* __restrict__ delta, \
      const float* __restrict__ lse, const bf16* __restrict__ q, const bf16* __restrict__ k,               \
      const bf16* __restrict__ v, const int2* __restrict__ blocks, const int* __restrict__ cu_seqlens,     \
      unsigned site, unsigned threshold, bf16* __restrict__ dk, bf16* __restrict__ dv) {                   \
    const Dropout dropout(state, site, threshold);                                                         \
    const Saved saved{dout, delta, lse, q, k, v};                                                          \
    attention_bwd_dkv_long<SIZE>(state, dropout, saved, blocks, cu_seqlens, dk, dv);                       \
  }                                                                                                        \
  EXPORT_KERNEL(symbol)
ATTENTION_BWD_DKV_LONG(attention_bwd_dkv_bf16_long_32, 32)
ATTENTION_BWD_DKV_LONG(attention_bwd_dkv_bf16_long_64, 64)
