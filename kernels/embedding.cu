// embed_fwd: a token's embedding.
// MATHS    out[t] = word[input_ids[t]] + position[position_ids[t]] + type[type_ids[t]]
// SHAPES   tables: [V, D], [P, D], [Y, D] E; ids: [T] int; out: [T, D] E. Sums in f32. Without token types
//          `type_ids` and `type` are null.
// TRAFFIC  bytes = 4*M*D*e + 12*M for M = T and e bytes an element (one row of each table a token);
//          flops = 2*M*D. Memory-bound.
// LAUNCH   one warp per token, 8 per block: grid = ceil(T/8), block = 256, smem 0. At most 64 registers.
// PICTURE  row t:  |lane0 x4|lane1 x4| ... |lane31 x4|lane0 x4| ...   16 bytes of f32, 8 of bf16 an access
// NEEDS    D % 8 == 0; ids inside their tables (the host checks batches).
// H100     embed_fwd_bf16: 40 registers, 256 threads, 0 bytes, 75.0 %; floor 17 us +- 10 %.
// HISTORY  not yet measured on a device.
//
// embed_layernorm_fwd: embed_fwd and layernorm_fwd in one pass.
// MATHS    s = embedding;  xhat = (s - mean_D(s)) * rstd;  out = xhat * gamma + beta
// SHAPES   as embed_fwd; gamma, beta: [D] f32; xhat: [T, D] E; stream: [T, D] f32, out before it is rounded;
//          rstd: [T] f32. stream, xhat and rstd may be null.
// TRAFFIC  bytes = 5*M*D*e + 16*M + 8*D (4*M*D*e without xhat, 4*M*D more with the stream); flops = 10*M*D.
//          Memory-bound.
// LAUNCH   as embed_fwd, in variants by width: _1 .. _4 hold 256 columns each in registers, _wide holds the
//          row in shared memory: 8*D bytes a warp, as many warps (up to 8) as fit. At most 128 registers.
// NEEDS    variant _n: 256*(n-1) < D <= 256*n; _wide: any D.
// H100     embed_layernorm_fwd_bf16_3: 80 registers, 256 threads, 0 bytes, 37.5 %; floor 21 us +- 10 %.
// HISTORY  not yet measured on a device.
//
// embed_wgrad_segments, embed_wgrad_rows: gradient of one table, in two kernels.
// MATHS    dtable[id] = sum of dx[t] over the tokens with that id; 0 where there is none and in padding_row
// SHAPES   dx: [T, D] E; ids: [T] int; order: [T] int, the tokens sorted by id, stable; row_start: [V+1]
//          int, where each id's tokens begin in `order`; dtable: [V, D] f32; partials: [T/128, D] f32.
// TRAFFIC  bytes = M*D*e + 4*V*D (the table) + 12*M + 4*V; flops = M*D. Memory-bound by the table.
// LAUNCH   embed_wgrad_segments: one warp per 128 columns of 128 consecutive places of `order`, a segment:
//          grid = ceil(floor(T/128) * ceil(D/128) / 8), block = 256, smem 0. It sums the segments that are
//          of one id throughout. embed_wgrad_rows: one warp per 128 columns of a table row:
//          grid = ceil(V * ceil(D/128) / 8); it adds the segments inside the row's places and, one by one,
//          the places before and after them. At most 96 registers.
// PICTURE  order:  |aaaaabbb|bbbbbbbb|bbbbbbbb|bbcddddd|   bars: segments; the middle two are summed as one,
//          row b = 3 places + 2 segments + 2 places
// NEEDS    D % 8 == 0. Fixed order of sums: bitwise repeatable, no atomics. No row of a table takes more than
//          254 single places and T/128 segments, however often its id occurs (token type 0: all T).
// H100     embed_wgrad_rows_bf16: 54 registers, 256 threads, 0 bytes, 50.0 %; floor 35 us +- 10 %.
// HISTORY  not yet measured on a device.
//
// prefix_load: rows of the cached output of a frozen prefix.
// MATHS    out[r] = cache[rows[r]];  stream[r] = the same, not rounded
// SHAPES   cache: [.., D] f32; rows: [M] int; out: [M, D] E; stream: [M, D] f32, or null. M = T or B.
// TRAFFIC  bytes = M*D*(4 + e) + 4*M, 4*M*D more with the stream; flops = 0. Memory-bound.
// LAUNCH   one warp per row, 8 per block: grid = ceil(M/8), block = 256, smem 0. At most 64 registers.
// PICTURE  as embed_fwd
// NEEDS    D % 8 == 0; rows inside the cache (the host writes both).
// H100     prefix_load_bf16: 24 registers, 256 threads, 0 bytes, 100.0 %; floor 13 us +- 10 %.
// HISTORY  not yet measured on a device.
#include "rows.cuh"

template <class E>
struct EmbeddingTables {
  const int* input_ids;
  const E* word;
  const int* position_ids;
  const E* position;
  const int* type_ids;
  const E* type;

  __device__ __forceinline__ const E* word_row(int token, int width) const {
    return word + static_cast<size_t>(input_ids[token]) * width;
  }
  __device__ __forceinline__ const E* position_row(int token, int width) const {
    return position + static_cast<size_t>(position_ids[token]) * width;
  }
  __device__ __forceinline__ const E* type_row(int token, int width) const {
    return type + static_cast<size_t>(type_ids[token]) * width;
  }
};

template <class E>
__device__ __forceinline__ void embed_fwd(const StepState* state, int width, const EmbeddingTables<E>& tables,
                                          E* out) {
  const int token = warp_of_grid();
  if (token >= state->n_tokens) return;
  const E* word = tables.word_row(token, width);
  const E* position = tables.position_row(token, width);
  const E* type = tables.type == nullptr ? nullptr : tables.type_row(token, width);
  E* to = out + static_cast<size_t>(token) * width;
  for (int col = lane_of_warp() * VECTOR; col < width; col += WARP_COLUMNS) {
    float sum[VECTOR], more[VECTOR];
    load4(word + col, sum);
    load4(position + col, more);
    add4(sum, more);
    if (type != nullptr) {
      load4(type + col, more);
      add4(sum, more);
    }
    store4(to + col, sum);
  }
}

template <class E, class Row>
__device__ __forceinline__ void embed_layernorm_fwd(const StepState* state, int width,
                                                    const EmbeddingTables<E>& tables,
                                                    const NormOutputs<E>& to) {
  DYNAMIC_SHARED(shared);
  const int token = warp_of_grid();
  if (token >= state->n_tokens) return;
  Row sum(shared, width, 0);
  load_row(sum, tables.word_row(token, width), width);
  add_to_row(sum, tables.position_row(token, width), width);
  if (tables.type != nullptr) add_to_row(sum, tables.type_row(token, width), width);
  normalise_row(sum, token, width, to);
}

constexpr int SEGMENT = 128;  // places of `order`: long enough to spare work, short enough to share it

// sum += the rows of dx that the places [begin, end) of `order` name, one after the other.
template <class E>
__device__ __forceinline__ void add_tokens(const E* dx, const int* order, int begin, int end, int width,
                                           int col, float (&sum)[VECTOR]) {
#pragma unroll 8
  for (int place = begin; place < end; ++place) {
    float values[VECTOR];
    load4(dx + static_cast<size_t>(order[place]) * width + col, values);
    add4(sum, values);
  }
}

// The warp's share of a matrix: 128 columns of one row. `col` is the lane's.
struct Strip {
  int row;
  int col;

  __device__ __forceinline__ explicit Strip(int width) {
    const int n_strips = (width + WARP_COLUMNS - 1) / WARP_COLUMNS;
    row = warp_of_grid() / n_strips;
    col = warp_of_grid() % n_strips * WARP_COLUMNS + lane_of_warp() * VECTOR;
  }
};

template <class E>
__device__ __forceinline__ void embed_wgrad_segments(const StepState* state, int width, const E* dx,
                                                     const int* ids, const int* order, float* partials) {
  const Strip strip(width);
  const int begin = strip.row * SEGMENT;
  if (begin + SEGMENT > state->n_tokens || strip.col >= width) return;
  // Sorted: with both ends alike, all are.
  if (ids[order[begin]] != ids[order[begin + SEGMENT - 1]]) return;
  float sum[VECTOR] = {};
  add_tokens(dx, order, begin, begin + SEGMENT, width, strip.col, sum);
  store4(partials + static_cast<size_t>(strip.row) * width + strip.col, sum);
}

template <class E>
__device__ __forceinline__ void embed_wgrad_rows(int n_rows, int width, const E* dx, const int* order,
                                                 const int* row_start, int padding_row, const float* partials,
                                                 float* dtable) {
  const Strip strip(width);
  if (strip.row >= n_rows || strip.col >= width) return;
  const int begin = row_start[strip.row];
  const int end = strip.row == padding_row ? begin : row_start[strip.row + 1];
  const int first_segment = (begin + SEGMENT - 1) / SEGMENT;
  const int end_segment = end / SEGMENT;
  const bool has_segments = first_segment < end_segment;
  float sum[VECTOR] = {};
  add_tokens(dx, order, begin, has_segments ? first_segment * SEGMENT : end, width, strip.col, sum);
#pragma unroll 8
  for (int segment = first_segment; segment < end_segment; ++segment) {
    float values[VECTOR];
    load4(partials + static_cast<size_t>(segment) * width + strip.col, values);
    add4(sum, values);
  }
  if (has_segments) add_tokens(dx, order, end_segment * SEGMENT, end, width, strip.col, sum);
  store4(dtable + static_cast<size_t>(strip.row) * width + strip.col, sum);
}

template <class E>
__device__ __forceinline__ void prefix_load(const StepState* state, int rows, int width, const float* cache,
                                            const int* cache_rows, E* out, float* stream) {
  const int row = warp_of_grid();
  if (row >= live_rows(state, rows)) return;
  const float* from = cache + static_cast<size_t>(cache_rows[row]) * width;
  const size_t begin = static_cast<size_t>(row) * width;
#pragma unroll 2
  for (int col = lane_of_warp() * VECTOR; col < width; col += WARP_COLUMNS) {
    float values[VECTOR];
    load4(from + col, values);
    store4(out + begin + col, values);
    if (stream != nullptr) store4(stream + begin + col, values);
  }
}

#define PREFIX_LOAD(symbol, E)                                                                        \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1)                                        \
      symbol(const StepState* __restrict__ state, int rows, int width, const float* __restrict__ cache, \
             const int* __restrict__ cache_rows, E* __restrict__ out, float* __restrict__ stream) {   \
    prefix_load(state, rows, width, cache, cache_rows, out, stream);                                  \
  }                                                                                                   \
  EXPORT_KERNEL(symbol)
PREFIX_LOAD(prefix_load_f32, float)
PREFIX_LOAD(prefix_load_bf16, bf16)

#define EMBED_FWD(symbol, E)                                                                            \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) symbol(                                  \
      const StepState* __restrict__ state, int width, const int* __restrict__ input_ids,                \
      const E* __restrict__ word, const int* __restrict__ position_ids, const E* __restrict__ position, \
      const int* __restrict__ type_ids, const E* __restrict__ type, E* __restrict__ out) {              \
    const EmbeddingTables<E> tables{input_ids, word, position_ids, position, type_ids, type};           \
    embed_fwd(state, width, tables, out);                                                               \
  }                                                                                                     \
  EXPORT_KERNEL(symbol)
EMBED_FWD(embed_fwd_f32, float)
EMBED_FWD(embed_fwd_bf16, bf16)

#define EMBED_LAYERNORM_FWD(symbol, E, Row, BLOCKS)                                                        \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, BLOCKS)                                        \
      symbol(const StepState* __restrict__ state, int width, const int* __restrict__ input_ids,            \
             const E* __restrict__ word, const int* __restrict__ position_ids,                             \
             const E* __restrict__ position, const int* __restrict__ type_ids, const E* __restrict__ type, \
             const float* __restrict__ gamma, const float* __restrict__ beta, float eps,                   \
             E* __restrict__ out, float* __restrict__ stream, E* __restrict__ xhat,                        \
             float* __restrict__ rstd) {                                                                   \
    const EmbeddingTables<E> tables{input_ids, word, position_ids, position, type_ids, type};              \
    const NormOutputs<E> to{gamma, beta, eps, out, stream, xhat, rstd};                                    \
    embed_layernorm_fwd<E, Row>(state, width, tables, to);                                                 \
  }                                                                                                        \
  EXPORT_KERNEL(symbol)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_f32_1, float, RegisterRow<1>, 4)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_f32_2, float, RegisterRow<2>, 3)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_f32_3, float, RegisterRow<3>, 3)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_f32_4, float, RegisterRow<4>, 2)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_f32_wide, float, SharedRow, 2)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_bf16_1, bf16, RegisterRow<1>, 4)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_bf16_2, bf16, RegisterRow<2>, 4)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_bf16_3, bf16, RegisterRow<3>, 3)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_bf16_4, bf16, RegisterRow<4>, 2)
EMBED_LAYERNORM_FWD(embed_layernorm_fwd_bf16_wide, bf16, SharedRow, 2)

#define EMBED_WGRAD_SEGMENTS(symbol, E)                                                                  \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1)                                           \
      symbol(const StepState* __restrict__ state, int width, const E* __restrict__ dx,                   \
             const int* __restrict__ ids, const int* __restrict__ order, float* __restrict__ partials) { \
    embed_wgrad_segments(state, width, dx, ids, order, partials);                                        \
  }                                                                                                      \
  EXPORT_KERNEL(symbol)
EMBED_WGRAD_SEGMENTS(embed_wgrad_segments_f32, float)
EMBED_WGRAD_SEGMENTS(embed_wgrad_segments_bf16, bf16)

#define EMBED_WGRAD_ROWS(symbol, E)                                                             \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3)                                  \
      symbol(const StepState* __restrict__, int n_rows, int width, const E* __restrict__ dx,    \
             const int* __restrict__ order, const int* __restrict__ row_start, int padding_row, \
             const float* __restrict__ partials, float* __restrict__ dtable) {                  \
    embed_wgrad_rows(n_rows, width, dx, order, row_start, padding_row, partials, dtable);       \
  }                                                                                             \
  EXPORT_KERNEL(symbol)
EMBED_WGRAD_ROWS(embed_wgrad_rows_f32, float)
EMBED_WGRAD_ROWS(embed_wgrad_rows_bf16, bf16)
