// attention_plain: attention over packed sequences for any head size, one warp a row, no tensor cores.
// MATHS    per sequence and head, Q, K, V, dO: [s, Dh], c = 1 / sqrt(Dh), F the dropout factors (0 or their
//          scale, 1 without dropout):
//          S = c Q K^T;  lse = log(rowsum(exp(S)));  P = exp(S - lse);  O = (F * P) V
//          delta = rowsum(P * F * (dO V^T));  dS = P * (F * (dO V^T) - delta)
//          dQ = c dS K;  dK = c dS^T Q;  dV = (F * P)^T dO
// SHAPES   q, k, v, out, dout, dq, dk, dv: [T, D] of E, D = H Dh; lse, delta: [T, H] f32; sequence_ids: [T];
//          cu_seqlens: [B + 1]. Math and sums in f32.
// TRAFFIC  each matrix and lse once if a sequence's rows stay in the caches (each warp reads all K and V of
//          its sequence and head); flops: forward and delta 4, dq 6, dkv 8 times sum(s^2) D.
// LAUNCH   attention_fwd, attention_bwd_dq, attention_bwd_dkv: grid (ceil(T / 4), H), block 128: a warp takes
//          one token of one head; shared ROW_FLOATS * 4 floats = 2560, 4608, 5120 bytes; attention_bwd_delta
//          likewise, 4096 bytes. Registers f32 and bf16 (sm_80, sm_90a at most): fwd 62 and 64, delta 72 and
//          72, dq 69 and 64, dkv 62 and 61; no spills.
// PICTURE  32 rows of the other side at a time. First a lane takes a row, for the dot products:
//          lane 0: row 0 |Dh values|, lane 1: row 1 |Dh values|, ...
//          then a lane takes columns, for the weighted sum of the 32 rows, weights through shared memory:
//          lane 0: columns 0, 32, 64, 96, lane 1: columns 1, 33, 65, 97, ...
// NEEDS    Dh a multiple of 8, at most 128. Warps whose token is not live leave. Every sum has one order:
//          runs are bitwise equal. attention_bwd_dq and _dkv read what attention_bwd_delta wrote; dkv without
//          dk reads neither it nor v.
// H100     attention_fwd_f32: 62 registers, 128 threads, 2560 bytes, 50.0 %; floor 55 us +- 30 %,
//          attention_bwd_dq_f32: 54 registers, 128 threads, 4608 bytes, 56.2 %,
//          attention_bwd_dkv_f32: 62 registers, 128 threads, 5120 bytes, 50.0 %; backward floor 136 us +- 30 %.
// HISTORY  not yet measured on a device.
#include "attention.cuh"

constexpr int MAX_HEAD_SIZE = 128;
constexpr int WARPS = 4;
constexpr int CHUNK = 32;  // rows of the other side at a time: one a lane
constexpr int LANE_COLUMNS = MAX_HEAD_SIZE / 32;

// What the batch and the model say of all rows.
struct Packing {
  const int* sequence_ids;
  const int* cu_seqlens;
  int n_heads;
  int head_size;
};

// What the backward kernels read.
template <class E>
struct Saved {
  const E* dout;
  const float* delta;
  const float* lse;
  const E* q;
  const E* k;
  const E* v;
};

// One row of one head: where its sequence lies, and the row's number in there.
struct Row {
  int head;
  int lane;
  int token;
  int sequence;
  int first_token;
  int length;
  int number;
  int n_heads;
  int head_size;
  int width;
  float scale;

  __device__ __forceinline__ explicit Row(const Packing& packing)
      : head(blockIdx.y),
        lane(threadIdx.x % 32),
        token(blockIdx.x * WARPS + threadIdx.x / 32),
        sequence(packing.sequence_ids[token]),
        first_token(packing.cu_seqlens[sequence]),
        length(packing.cu_seqlens[sequence + 1] - first_token),
        number(token - first_token),
        n_heads(packing.n_heads),
        head_size(packing.head_size),
        width(n_heads * head_size),
        scale(1.0f / sqrtf(static_cast<float>(head_size))) {}

  // The head's columns of row `number` of the sequence.
  template <class E>
  __device__ __forceinline__ E* of(E* matrix, int number) const {
    return matrix + static_cast<size_t>(first_token + number) * width + head * head_size;
  }

  // Where [T, H] matrices keep row `number` of the sequence.
  __device__ __forceinline__ size_t statistic(int number) const {
    return static_cast<size_t>(first_token + number) * n_heads + head;
  }
};

__device__ __forceinline__ bool is_live(const StepState* state) {
  return static_cast<int>(blockIdx.x * WARPS + threadIdx.x / 32) < state->n_tokens;
}

// Copies a head's columns to shared memory, by one warp.
template <class E>
__device__ __forceinline__ void copy_row(float* to, const E* from, const Row& row) {
  for (int col = row.lane; col < row.head_size; col += 32) to[col] = to_float(from[col]);
}

template <class E>
__device__ __forceinline__ float dot(const E* row, const float* vector, int head_size) {
  float sum = 0.0f;
  for (int col = 0; col < head_size; col += 8) {
    float a[8], b[8];
    load8(row + col, a);
    load8(vector + col, b);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += a[i] * b[i];
  }
  return sum;
}

// Adds weights[i] * (row first + i of the sequence), i < n_rows, to the columns that a lane keeps.
template <class E>
__device__ __forceinline__ void add_rows(float (&sums)[LANE_COLUMNS], const E* matrix, const float* weights,
                                         const Row& row, int first, int n_rows) {
  const E* from = row.of(matrix, first);
  for (int i = 0; i < n_rows; ++i, from += row.width) {
    const float weight = weights[i];
#pragma unroll
    for (int j = 0; j < LANE_COLUMNS; ++j) {
      const int col = row.lane + 32 * j;
      if (col < row.head_size) sums[j] += weight * to_float(from[col]);
    }
  }
}

template <class E>
__device__ __forceinline__ void store_columns(E* to, const float (&sums)[LANE_COLUMNS], float factor,
                                              const Row& row) {
#pragma unroll
  for (int j = 0; j < LANE_COLUMNS; ++j) {
    const int col = row.lane + 32 * j;
    if (col < row.head_size) to[col] = from_float<E>(sums[j] * factor);
  }
}

constexpr int FWD_ROW_FLOATS = MAX_HEAD_SIZE + CHUNK;

// The maximum and the sum of exponentials are kept as the keys go by, the latter in parts by lane.
template <class E>
__device__ __forceinline__ void attention_fwd(const StepState* state, const Packing& packing,
                                              const Dropout& dropout, const E* q, const E* k, const E* v,
                                              E* out, float* lse) {
  DYNAMIC_SHARED(shared);
  if (!is_live(state)) return;
  const Row row(packing);
  float* query = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * FWD_ROW_FLOATS;
  float* weights = query + MAX_HEAD_SIZE;
  copy_row(query, row.of(q, row.number), row);
  __syncwarp();

  float top = -INFINITY, sum = 0.0f, sums[LANE_COLUMNS] = {};
  for (int first = 0; first < row.length; first += CHUNK) {
    const int key = first + row.lane;
    float score = -INFINITY;
    if (key < row.length) score = row.scale * dot(row.of(k, key), query, row.head_size);
    const float new_top = fmaxf(top, warp_max(score));
    const float shrink = expf(top - new_top);
    const float p = expf(score - new_top);
    top = new_top;
    sum = sum * shrink + p;
    const bool draws = dropout.acts() && key < row.length;
    weights[row.lane] = draws ? p * probability_factor(dropout, row.sequence, row.head, row.number, key) : p;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < LANE_COLUMNS; ++j) sums[j] *= shrink;
    add_rows(sums, v, weights, row, first, min(CHUNK, row.length - first));
    __syncwarp();
  }
  sum = warp_sum(sum);
  store_columns(row.of(out, row.number), sums, 1.0f / sum, row);
  if (lse != nullptr && row.lane == 0) lse[row.statistic(row.number)] = top + logf(sum);
}

// P and F * (dO V^T) of a row's query and key number `key`; `query` and `gradient` are the row's q and dout.
template <class E>
__device__ __forceinline__ float2 probability_and_gradient(const Row& row, const Dropout& dropout,
                                                           const Saved<E>& saved, const float* query,
                                                           const float* gradient, float lse, int key) {
  const float p = expf(row.scale * dot(row.of(saved.k, key), query, row.head_size) - lse);
  float dp = dot(row.of(saved.v, key), gradient, row.head_size);
  if (dropout.acts()) dp *= probability_factor(dropout, row.sequence, row.head, row.number, key);
  return make_float2(p, dp);
}

constexpr int DELTA_ROW_FLOATS = 2 * MAX_HEAD_SIZE;

// A warp takes a query and goes over the keys. Of rounded outputs rowsum(O * dO) is not the same: the rows of dS
// would not sum to 0.
template <class E>
__device__ __forceinline__ void attention_bwd_delta(const StepState* state, const Packing& packing,
                                                    const Dropout& dropout, const Saved<E>& saved,
                                                    float* delta) {
  DYNAMIC_SHARED(shared);
  if (!is_live(state)) return;
  const Row row(packing);
  float* query = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * DELTA_ROW_FLOATS;
  float* gradient = query + MAX_HEAD_SIZE;
  copy_row(query, row.of(saved.q, row.number), row);
  copy_row(gradient, row.of(saved.dout, row.number), row);
  __syncwarp();
  const float row_lse = saved.lse[row.statistic(row.number)];
  float sum = 0.0f;
  for (int key = row.lane; key < row.length; key += CHUNK) {
    const float2 pair = probability_and_gradient(row, dropout, saved, query, gradient, row_lse, key);
    sum += pair.x * pair.y;
  }
  sum = warp_sum(sum);
  if (row.lane == 0) delta[row.statistic(row.number)] = sum;
}

constexpr int DQ_ROW_FLOATS = 2 * MAX_HEAD_SIZE + CHUNK;

// A warp takes a query and goes over the keys.
template <class E>
__device__ __forceinline__ void attention_bwd_dq(const StepState* state, const Packing& packing,
                                                 const Dropout& dropout, const Saved<E>& saved, E* dq) {
  DYNAMIC_SHARED(shared);
  if (!is_live(state)) return;
  const Row row(packing);
  float* query = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * DQ_ROW_FLOATS;
  float* gradient = query + MAX_HEAD_SIZE;
  float* weights = gradient + MAX_HEAD_SIZE;
  copy_row(query, row.of(saved.q, row.number), row);
  copy_row(gradient, row.of(saved.dout, row.number), row);
  __syncwarp();
  const float row_lse = saved.lse[row.statistic(row.number)];
  const float row_delta = saved.delta[row.statistic(row.number)];

  float sums[LANE_COLUMNS] = {};
  for (int first = 0; first < row.length; first += CHUNK) {
    const int key = first + row.lane;
    if (key < row.length) {
      const float2 pair = probability_and_gradient(row, dropout, saved, query, gradient, row_lse, key);
      weights[row.lane] = pair.x * (pair.y - row_delta);
    }
    __syncwarp();
    add_rows(sums, saved.k, weights, row, first, min(CHUNK, row.length - first));
    __syncwarp();
  }
  store_columns(row.of(dq, row.number), sums, row.scale, row);
}

constexpr int DKV_ROW_FLOATS = 2 * MAX_HEAD_SIZE + 2 * CHUNK;

// A warp takes a key and goes over the queries.
template <class E>
__device__ __forceinline__ void attention_bwd_dkv(const StepState* state, const Packing& packing,
                                                  const Dropout& dropout, const Saved<E>& saved, E* dk,
                                                  E* dv) {
  DYNAMIC_SHARED(shared);
  if (!is_live(state)) return;
  const Row row(packing);
  float* key = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * DKV_ROW_FLOATS;
  float* value = key + MAX_HEAD_SIZE;
  float* k_weights = value + MAX_HEAD_SIZE;
  float* v_weights = k_weights + CHUNK;
  copy_row(key, row.of(saved.k, row.number), row);
  if (dk != nullptr) copy_row(value, row.of(saved.v, row.number), row);
  __syncwarp();

  float k_sums[LANE_COLUMNS] = {}, v_sums[LANE_COLUMNS] = {};
  for (int first = 0; first < row.length; first += CHUNK) {
    const int query = first + row.lane;
    const int n_rows = min(CHUNK, row.length - first);
    if (query < row.length) {
      const float score = row.scale * dot(row.of(saved.q, query), key, row.head_size);
      const float p = expf(score - saved.lse[row.statistic(query)]);
      float factor = 1.0f;
      if (dropout.acts()) factor = probability_factor(dropout, row.sequence, row.head, query, row.number);
      v_weights[row.lane] = p * factor;
      if (dk != nullptr) {
        const float dp = factor * dot(row.of(saved.dout, query), value, row.head_size);
        k_weights[row.lane] = p * (dp - saved.delta[row.statistic(query)]);
      }
    }
    __syncwarp();
    if (dv != nullptr) add_rows(v_sums, saved.dout, v_weights, row, first, n_rows);
    if (dk != nullptr) add_rows(k_sums, saved.q, k_weights, row, first, n_rows);
    __syncwarp();
  }
  if (dv != nullptr) store_columns(row.of(dv, row.number), v_sums, 1.0f, row);
  if (dk != nullptr) store_columns(row.of(dk, row.number), k_sums, row.scale, row);
}

#define ATTENTION_FWD(symbol, E)                                                                         \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                               \
      symbol(const StepState* __restrict__ state, const E* __restrict__ q, const E* __restrict__ k,      \
             const E* __restrict__ v, const int* __restrict__ sequence_ids,                              \
             const int* __restrict__ cu_seqlens, unsigned site, unsigned threshold, E* __restrict__ out, \
             float* __restrict__ lse, int n_heads, int head_size) {                                      \
    const Packing packing{sequence_ids, cu_seqlens, n_heads, head_size};                                 \
    attention_fwd(state, packing, Dropout(state, site, threshold), q, k, v, out, lse);                   \
  }                                                                                                      \
  EXPORT_KERNEL(symbol)
ATTENTION_FWD(attention_fwd_f32, float)
ATTENTION_FWD(attention_fwd_bf16, bf16)

#define ATTENTION_BWD_DELTA(symbol, E)                                                        \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                    \
      symbol(const StepState* __restrict__ state, const E* __restrict__ dout,                 \
             const float* __restrict__ lse, const E* __restrict__ q, const E* __restrict__ k, \
             const E* __restrict__ v, const int* __restrict__ sequence_ids,                   \
             const int* __restrict__ cu_seqlens, unsigned site, unsigned threshold,           \
             float* __restrict__ delta, int n_heads, int head_size) {                         \
    const Packing packing{sequence_ids, cu_seqlens, n_heads, head_size};                      \
    const Saved<E> saved{dout, nullptr, lse, q, k, v};                                        \
    attention_bwd_delta(state, packing, Dropout(state, site, threshold), saved, delta);       \
  }                                                                                           \
  EXPORT_KERNEL(symbol)
ATTENTION_BWD_DELTA(attention_bwd_delta_f32, float)
ATTENTION_BWD_DELTA(attention_bwd_delta_bf16, bf16)

#define ATTENTION_BWD_DQ(symbol, E)                                                                      \
  extern "C" __global__ void __launch_bounds__(32 * WARPS) symbol(                                       \
      const StepState* __restrict__ state, const E* __restrict__ dout, const float* __restrict__ delta,  \
      const float* __restrict__ lse, const E* __restrict__ q, const E* __restrict__ k,                   \
      const E* __restrict__ v, const int* __restrict__ sequence_ids, const int* __restrict__ cu_seqlens, \
      unsigned site, unsigned threshold, E* __restrict__ dq, int n_heads, int head_size) {               \
    const Packing packing{sequence_ids, cu_seqlens, n_heads, head_size};                                 \
    const Saved<E> saved{dout, delta, lse, q, k, v};                                                     \
    attention_bwd_dq(state, packing, Dropout(state, site, threshold), saved, dq);                        \
  }                                                                                                      \
  EXPORT_KERNEL(symbol)
ATTENTION_BWD_DQ(attention_bwd_dq_f32, float)
ATTENTION_BWD_DQ(attention_bwd_dq_bf16, bf16)

#define ATTENTION_BWD_DKV(symbol, E)                                                                    \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                              \
      symbol(const StepState* __restrict__ state, const E* __restrict__ dout,                           \
             const float* __restrict__ delta, const float* __restrict__ lse, const E* __restrict__ q,   \
             const E* __restrict__ k, const E* __restrict__ v, const int* __restrict__ sequence_ids,    \
             const int* __restrict__ cu_seqlens, unsigned site, unsigned threshold, E* __restrict__ dk, \
             E* __restrict__ dv, int n_heads, int head_size) {                                          \
    const Packing packing{sequence_ids, cu_seqlens, n_heads, head_size};                                \
    const Saved<E> saved{dout, delta, lse, q, k, v};                                                    \
    attention_bwd_dkv(state, packing, Dropout(state, site, threshold), saved, dk, dv);                  \
  }                                                                                                     \
  EXPORT_KERNEL(symbol)
ATTENTION_BWD_DKV(attention_bwd_dkv_f32, float)
ATTENTION_BWD_DKV(attention_bwd_dkv_bf16, bf16)
