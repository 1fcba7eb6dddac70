// attention_tile: attention over packed sequences of up to 128 tokens on tensor cores, several in a tile.
// MATHS    as in attention_plain.cu. P and dS are rounded to bf16 where they enter a product; nothing of
//          size s x s is written to memory.
// SHAPES   q, k, v, out, dout, dq, dk, dv: [T, D] bf16 (out forward only); lse: [T, H] f32; strips: [n_tiles, 8] int4.
//          Dh = 32 or 64 by the kernel's suffix, H = gridDim.x, D = H Dh.
// TRAFFIC  each matrix and lse once: forward 8 T D + 4 T H bytes, backward 14 T D + 4 T H. flops: 4 and 14
//          sum(s^2) D, in whole pieces of 16 x 16: five products backward, and two of them a second time for
//          delta. Memory-bound for s <= 128: floor = bytes / measured bandwidth.
// LAUNCH   grid (H, tiles at capacity), block 256; blocks from state->n_tiles on leave. Shared bytes: forward
//          768 Dh (49152, 24576), backward 1024 Dh + 32768 (98304, 65536). Registers for Dh = 64 and 32
//          (sm_80, sm_90a at most): forward 128 and 113, backward 126 and 108; no spills; 2 blocks a
//          multiprocessor.
// PICTURE  a tile is 8 strips of 16 rows, a strip is one warp's. A sequence takes whole strips: a warp has
//          one sequence, and dropout's blocks (16 queries, 32 keys, counted within the sequence) begin where
//          strips do. The host's list says of each strip
//            int4 {sequence, its first token, number of the strip in it, its length}; length 0: no strip
//          and the strips of a sequence follow each other in one tile:
//            | A A A B C C C - |   A: 40 tokens, B: 16, C: 33, one strip empty
//          Pieces of 16 queries and 16 keys on the diagonal blocks A A, B B, C C are computed, no others:
//          what a sequence gives does not depend on its tile, bit for bit.
// NEEDS    sequences of at most 128 tokens in the list; D a multiple of 8, rows 16-byte aligned. Rows behind
//          a sequence's end are zeros in shared memory and masked. lse may be null; of dq, dk, dv those that
//          are null are not computed; v may be null where dq and dk are.
// H100     attention_fwd_bf16_tile_64: 128 registers, 256 threads, 49152 bytes, 25.0 %; floor 17 us +- 30 %,
//          attention_bwd_bf16_tile_64: 124 registers, 256 threads, 98304 bytes, 25.0 %; floor 29 us +- 30 %.
// HISTORY  not yet measured on a device.
#include "attention.cuh"

constexpr int STRIPS = 8;
constexpr int ROWS = STRIPS * STRIP;
constexpr int THREADS = STRIPS * 32;
constexpr int HALF = ROWS / 2;

// What a warp does in a tile.
struct TileStrip {
  int strip;  // in the tile
  int sequence;
  int first_token;  // of the strip
  int number;       // in the sequence
  int length;       // of the sequence
  int lane;

  __device__ __forceinline__ TileStrip(const int4* strips, int strip) : strip(strip), lane(threadIdx.x % 32) {
    const int4 entry = strips[blockIdx.y * STRIPS + strip];
    sequence = entry.x;
    first_token = entry.y + entry.z * STRIP;
    number = entry.z;
    length = entry.w;
  }

  __device__ __forceinline__ bool is_empty() const { return length <= 0; }
  // Strips of the sequence in the tile: from first() to end().
  __device__ __forceinline__ int first() const { return strip - number; }
  __device__ __forceinline__ int end() const { return first() + (length + STRIP - 1) / STRIP; }
  // Rows of the strip that the sequence has.
  __device__ __forceinline__ int n_valid() const { return min(length - number * STRIP, STRIP); }

  // The head's columns of the strip's first row.
  template <int SIZE, class E>
  __device__ __forceinline__ E* of(E* matrix) const {
    return matrix + (static_cast<size_t>(first_token) * gridDim.x + blockIdx.x) * SIZE;
  }

  // Where lse is of the strip's row `row`.
  __device__ __forceinline__ size_t statistic(int row) const {
    return static_cast<size_t>(first_token + row) * gridDim.x + blockIdx.x;
  }
};

template <int SIZE>
__device__ __forceinline__ void attention_fwd_tile(const StepState* state, const Dropout& dropout,
                                                   const bf16* q, const bf16* k, const bf16* v,
                                                   const int4* strips, bf16* out, float* lse) {
  DYNAMIC_SHARED(shared);
  if (static_cast<int>(blockIdx.y) >= state->n_tiles) return;
  bf16* const queries = reinterpret_cast<bf16*>(shared);
  bf16* const keys = queries + ROWS * SIZE;
  bf16* const values = keys + ROWS * SIZE;
  const TileStrip strip(strips, threadIdx.x / 32);
  const size_t width = gridDim.x * SIZE;
  const int lane = strip.lane, first_row = strip.strip * STRIP;

  // A warp loads what is its strip's; nobody reads the rows of empty strips.
  if (!strip.is_empty()) {
    load_strip<SIZE>(queries, first_row, strip.of<SIZE>(q), width, strip.n_valid(), lane);
    load_strip<SIZE>(keys, first_row, strip.of<SIZE>(k), width, strip.n_valid(), lane);
  }
  ptx::cp_async_commit();
  if (!strip.is_empty()) {
    load_strip<SIZE>(values, first_row, strip.of<SIZE>(v), width, strip.n_valid(), lane);
  }
  ptx::cp_async_commit();

  Piece p[STRIPS];
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  ptx::cp_async_wait<1>();
  __syncthreads();
  if (!strip.is_empty()) {
    Operand<SIZE> query;
    load_operand<SIZE>(query, queries, first_row, lane);
    strip_scores<SIZE>(p, query, keys, strip.first(), strip.end(), strip.length, lane);
    raise_top(top, p, strip.first(), strip.end());
    exponentiate(p, sum, top, SOFTMAX_SCALE<SIZE> * LOG2_E, strip.first(), strip.end());
    sum[0] = row_sum(sum[0]);
    sum[1] = row_sum(sum[1]);
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  if (strip.is_empty()) return;

  Strip<SIZE> o = {};
  PieceDropout piece_dropout(dropout, strip.sequence, blockIdx.x, strip.number);
  add_values<SIZE>(o, p, values, piece_dropout, 0, strip.first(), strip.end(), lane);
  const float factors[2] = {dropout.scale() / sum[0], dropout.scale() / sum[1]};
  store_strip<SIZE>(strip.of<SIZE>(out), width, o, factors, strip.n_valid(), lane);
  if (lse == nullptr || lane % 4 != 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    if (row < strip.n_valid()) {
      lse[strip.statistic(row)] = top[half] * SOFTMAX_SCALE<SIZE> + logf(sum[half]);
    }
  }
}

// What the backward kernel reads and writes in global memory.
struct Backward {
  const bf16* dout;
  const float* lse;
  const bf16* q;
  const bf16* k;
  const bf16* v;
  bf16* dq;
  bf16* dk;
  bf16* dv;

  // Whether gradients of the scores are asked for, and not of the values alone.
  __device__ __forceinline__ bool wants_scores() const { return dq != nullptr || dk != nullptr; }
};

// A tile in shared memory: four matrices of 128 rows, and P and dS of all queries and half of the keys.
template <int SIZE>
struct BackwardTile {
  bf16* queries;
  bf16* keys;
  bf16* values;
  bf16* gradients;  // dout
  bf16* p;
  bf16* dscores;

  __device__ __forceinline__ explicit BackwardTile(unsigned char* shared)
      : queries(reinterpret_cast<bf16*>(shared)),
        keys(queries + ROWS * SIZE),
        values(keys + ROWS * SIZE),
        gradients(values + ROWS * SIZE),
        p(gradients + ROWS * SIZE),
        dscores(p + ROWS * HALF) {}

  __device__ __forceinline__ void load(const Backward& arrays, const TileStrip& strip, size_t width) const {
    const int first_row = strip.strip * STRIP;
    const int n_valid = strip.n_valid();
    load_strip<SIZE>(queries, first_row, strip.of<SIZE>(arrays.q), width, n_valid, strip.lane);
    load_strip<SIZE>(keys, first_row, strip.of<SIZE>(arrays.k), width, n_valid, strip.lane);
    load_strip<SIZE>(gradients, first_row, strip.of<SIZE>(arrays.dout), width, n_valid, strip.lane);
    if (!arrays.wants_scores()) return;
    load_strip<SIZE>(values, first_row, strip.of<SIZE>(arrays.v), width, n_valid, strip.lane);
  }
};

// Keeps a piece of P or dS for the products that go over queries.
__device__ __forceinline__ void keep_piece(bf16* matrix, const uint32_t (&a)[4], int first_row,
                                           int first_group, int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = first_row + lane / 4 + i % 2 * 8;
    bf16* const at = matrix + swizzled<HALF>(row, first_group + i / 2) + lane_column(lane);
    *reinterpret_cast<uint32_t*>(at) = a[i];
  }
}

constexpr int DELTA_PASS = -1;

// A strip of queries against the tile's keys: all of them for delta, before anything else; then a half of them a
// pass, P and dS to shared memory, dQ summed. One loop for both: another would take registers that are not there.
template <int SIZE>
__device__ __forceinline__ void score_gradients(Strip<SIZE>& dq, const BackwardTile<SIZE>& tile,
                                                const Backward& arrays, const TileStrip& strip,
                                                const Dropout& dropout, int pass,
                                                const float (&lse_log2)[2], float (&delta)[2]) {
  const int begin = pass == DELTA_PASS ? strip.first() : max(strip.first(), pass * STRIPS / 2);
  const int end = pass == DELTA_PASS ? strip.end() : min(strip.end(), (pass + 1) * STRIPS / 2);
  if (begin >= end) return;
  const int lane = strip.lane, first_row = strip.strip * STRIP;
  Operand<SIZE> query, gradient;
  load_operand<SIZE>(query, tile.queries, first_row, lane);
  load_operand<SIZE>(gradient, tile.gradients, first_row, lane);
  PieceDropout piece_dropout(dropout, strip.sequence, blockIdx.x, strip.number);
#pragma unroll 1
  for (int piece = begin; piece < end; ++piece) {
    Piece p, ds = {};
    multiply_rows<SIZE>(p, query, tile.keys, piece * STRIP, lane);
    if (arrays.wants_scores()) multiply_rows<SIZE>(ds, gradient, tile.values, piece * STRIP, lane);
    const int number = piece - strip.first();
    const uint2 bytes = piece_dropout.bytes(number, piece == begin, lane);
    const int n_cols = strip.length - number * STRIP - lane_column(lane);
    if (pass == DELTA_PASS) {
      add_delta(delta, p, ds, lse_log2, SOFTMAX_SCALE<SIZE> * LOG2_E, bytes, piece_dropout, n_cols);
      continue;
    }
    piece_gradients(p, ds, lse_log2, delta, SOFTMAX_SCALE<SIZE> * LOG2_E, bytes, piece_dropout, n_cols);
    uint32_t a[4];
    const int first_group = piece % (STRIPS / 2) * 2;
    if (arrays.dv != nullptr) {
      as_operand(p, a);
      keep_piece(tile.p, a, first_row, first_group, lane);
    }
    if (!arrays.wants_scores()) continue;
    as_operand(ds, a);
    if (arrays.dk != nullptr) keep_piece(tile.dscores, a, first_row, first_group, lane);
    if (arrays.dq != nullptr) add_product<SIZE>(dq, a, tile.keys, piece * STRIP, lane);
  }
  if (pass == DELTA_PASS) finish_delta(delta, piece_dropout);
}

// matrix^T rows for a strip of keys: dV = P^T dO, dK = dS^T Q.
template <int SIZE>
__device__ __forceinline__ void key_gradient(bf16* to, const bf16* matrix, const bf16* rows,
                                             const TileStrip& strip, float factor, size_t width) {
  const int lane = strip.lane;
  Strip<SIZE> sum = {};
  for (int piece = strip.first(); piece < strip.end(); ++piece) {
    uint32_t a[4];
    const int row = piece * STRIP + lane / 16 * 8 + lane % 8;
    ptx::ldmatrix_x4_trans(a, matrix + swizzled<HALF>(row, strip.strip % (STRIPS / 2) * 2 + lane / 8 % 2));
    add_product<SIZE>(sum, a, rows, piece * STRIP, lane);
  }
  const float factors[2] = {factor, factor};
  store_strip<SIZE>(strip.of<SIZE>(to), width, sum, factors, strip.n_valid(), lane);
}

template <int SIZE>
__device__ __forceinline__ void attention_bwd_tile(const StepState* state, const Dropout& dropout,
                                                   const Backward& arrays, const int4* strips) {
  DYNAMIC_SHARED(shared);
  if (static_cast<int>(blockIdx.y) >= state->n_tiles) return;
  const BackwardTile<SIZE> tile(shared);
  const int warp = threadIdx.x / 32;
  const TileStrip strip(strips, warp);
  const size_t width = gridDim.x * SIZE;
  const int n_valid = strip.is_empty() ? 0 : strip.n_valid();
  const int lane = strip.lane;

  float lse_log2[2], delta[2] = {0.0f, 0.0f};
  if (!strip.is_empty()) {
    tile.load(arrays, strip, width);
    // Rows behind the sequence's end get probabilities of 0.
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
      lse_log2[half] = row < n_valid ? arrays.lse[strip.statistic(row)] * LOG2_E : INFINITY;
    }
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();

  Strip<SIZE> dq = {};
#pragma unroll 1
  for (int key_half = arrays.wants_scores() ? DELTA_PASS : 0; key_half < 2; ++key_half) {
    if (!strip.is_empty()) {
      score_gradients<SIZE>(dq, tile, arrays, strip, dropout, key_half, lse_log2, delta);
    }
    if (key_half == DELTA_PASS) continue;
    __syncthreads();
    // Four warps make dV of the four strips of keys, four dK.
    const TileStrip key_strip(strips, key_half * STRIPS / 2 + warp % (STRIPS / 2));
    const bool is_value = warp < STRIPS / 2;
    bf16* const to = is_value ? arrays.dv : arrays.dk;
    if (to != nullptr && !key_strip.is_empty()) {
      key_gradient<SIZE>(to, is_value ? tile.p : tile.dscores, is_value ? tile.gradients : tile.queries,
                         key_strip, is_value ? dropout.scale() : SOFTMAX_SCALE<SIZE>, width);
    }
    // The second half overwrites P and dS.
    if (key_half == 0) __syncthreads();
  }
  if (arrays.dq == nullptr || strip.is_empty()) return;
  const float factors[2] = {SOFTMAX_SCALE<SIZE>, SOFTMAX_SCALE<SIZE>};
  store_strip<SIZE>(strip.of<SIZE>(arrays.dq), width, dq, factors, n_valid, lane);
}

#define ATTENTION_FWD_TILE(symbol, SIZE)                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                   \
      symbol(const StepState* __restrict__ state, const bf16* __restrict__ q, const bf16* __restrict__ k,    \
             const bf16* __restrict__ v, const int4* __restrict__ strips, unsigned site, unsigned threshold, \
             bf16* __restrict__ out, float* __restrict__ lse) {                                              \
    const Dropout dropout(state, site, threshold);                                                           \
    attention_fwd_tile<SIZE>(state, dropout, q, k, v, strips, out, lse);                                     \
  }                                                                                                          \
  EXPORT_KERNEL(symbol)
ATTENTION_FWD_TILE(attention_fwd_bf16_tile_32, 32)
ATTENTION_FWD_TILE(attention_fwd_bf16_tile_64, 64)

#define ATTENTION_BWD_TILE(symbol, SIZE)                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                          \
      symbol(const StepState* __restrict__ state, const bf16* __restrict__ dout,                    \
             const float* __restrict__ lse, const bf16* __restrict__ q, const bf16* __restrict__ k, \
             const bf16* __restrict__ v, const int4* __restrict__ strips, unsigned site,            \
             unsigned threshold, bf16* __restrict__ dq, bf16* __restrict__ dk,                      \
             bf16* __restrict__ dv) {                                                               \
    const Dropout dropout(state, site, threshold);                                                  \
    attention_bwd_tile<SIZE>(state, dropout, Backward{dout, lse, q, k, v, dq, dk, dv}, strips);     \
  }                                                                                                 \
  EXPORT_KERNEL(symbol)
ATTENTION_BWD_TILE(attention_bwd_bf16_tile_32, 32)
ATTENTION_BWD_TILE(attention_bwd_bf16_tile_64, 64)
