// What the attention kernels share: dropout of single probabilities, and products of 16 x 16 pieces on
// tensor cores over rows that lie swizzled in shared memory.
#pragma once
#include "philox.cuh"

// The factor that dropout gives the probability of one query and key, both counted within the sequence.
__device__ __forceinline__ float probability_factor(const Dropout& dropout, int sequence, int head, int query,
                                                    int key) {
  const int owner = query % 8 * 4 + key % 8 / 2;
  const uint4 bytes = dropout.probability_bytes(sequence, head, query / 16, key / 32, owner);
  const int tile = key % 32 / 8;
  const uint32_t word = tile < 2 ? (tile == 0 ? bytes.x : bytes.y) : (tile == 2 ? bytes.z : bytes.w);
  const int byte = query % 16 / 8 * 2 + key % 2;
  return dropout.factor(word >> (8 * byte));
}

// ---- tensor cores: a warp works on a strip of 16 rows, and on 16 x 16 pieces of the scores ----

constexpr int STRIP = 16;
constexpr float LOG2_E = 1.44269504088896f;

// A 16 x 16 piece as two accumulators of mma.m16n8k16, left and right 8 columns. With g = lane / 4 and
// t = 2 (lane % 4), element i of half j is row g + 8 (i / 2), column 8 j + t + i % 2.
typedef float Piece[2][4];

// The first column of a Piece that a lane holds.
__device__ __forceinline__ int lane_column(int lane) { return lane % 4 * 2; }

// A strip of SIZE columns as accumulators, 8 columns each; and as the left operand of a product.
template <int SIZE>
struct Strip {
  static_assert(SIZE == 32 || SIZE == 64, "the head sizes that have these kernels");
  float of[SIZE / 8][4];
};
template <int SIZE>
struct Operand {
  uint32_t of[SIZE / 16][4];
};

// 1 / sqrt(head size).
template <int SIZE>
constexpr float SOFTMAX_SCALE = SIZE == 64 ? 0.125f : 0.176776695296636881f;

// Place of 8 columns (16 bytes) of a row of COLS columns. The 16-byte groups of a row are permuted so that
// any 8 rows of one group lie in different banks.
template <int COLS>
__device__ __forceinline__ int swizzled(int row, int group) {
  static_assert(COLS == 32 || COLS == 64, "a row is half of the banks, or all of them");
  return COLS == 64 ? row * 64 + ((group ^ (row % 8)) * 8) : row * 32 + ((group ^ (row / 2 % 4)) * 8);
}

// Starts to copy the 16 rows of a strip, by one warp; from row n_valid on they become zeros.
template <int SIZE>
__device__ __forceinline__ void load_strip(bf16* rows, int first_row, const bf16* from, size_t width,
                                           int n_valid, int lane) {
  constexpr int GROUPS = SIZE / 8;
#pragma unroll
  for (int i = 0; i < STRIP * GROUPS / 32; ++i) {
    const int row = (lane + 32 * i) / GROUPS, group = (lane + 32 * i) % GROUPS;
    const bool valid = row < n_valid;
    ptx::cp_async16(rows + swizzled<SIZE>(first_row + row, group),
                    from + (valid ? row * width + group * 8 : 0), valid);
  }
}

// The 16 rows of a strip as a left operand.
template <int SIZE>
__device__ __forceinline__ void load_operand(Operand<SIZE>& a, const bf16* rows, int first_row, int lane) {
#pragma unroll
  for (int k = 0; k < SIZE / 16; ++k) {
    ptx::ldmatrix_x4(a.of[k], rows + swizzled<SIZE>(first_row + lane % 16, 2 * k + lane / 16));
  }
}

// A piece as a left operand, rounded.
__device__ __forceinline__ void as_operand(const Piece& piece, uint32_t (&a)[4]) {
  a[0] = pack_bf16(piece[0][0], piece[0][1]);
  a[1] = pack_bf16(piece[0][2], piece[0][3]);
  a[2] = pack_bf16(piece[1][0], piece[1][1]);
  a[3] = pack_bf16(piece[1][2], piece[1][3]);
}

// piece = a rows^T with 16 rows of the other side.
template <int SIZE>
__device__ __forceinline__ void multiply_rows(Piece& piece, const Operand<SIZE>& a, const bf16* rows,
                                              int first_row, int lane) {
#pragma unroll
  for (int i = 0; i < 8; ++i) piece[i / 4][i % 4] = 0.0f;
#pragma unroll
  for (int k = 0; k < SIZE / 16; ++k) {
    uint32_t b[4];
    const int row = first_row + lane / 16 * 8 + lane % 8;
    ptx::ldmatrix_x4(b, rows + swizzled<SIZE>(row, 2 * k + lane / 8 % 2));
    ptx::mma_m16n8k16_bf16(piece[0], a.of[k], b[0], b[1]);
    ptx::mma_m16n8k16_bf16(piece[1], a.of[k], b[2], b[3]);
  }
}

// sum += a rows with 16 rows of the other side.
template <int SIZE>
__device__ __forceinline__ void add_product(Strip<SIZE>& sum, const uint32_t (&a)[4], const bf16* rows,
                                            int first_row, int lane) {
#pragma unroll
  for (int j = 0; j < SIZE / 16; ++j) {
    uint32_t b[4];
    ptx::ldmatrix_x4_trans(b, rows + swizzled<SIZE>(first_row + lane % 16, 2 * j + lane / 16));
    ptx::mma_m16n8k16_bf16(sum.of[2 * j], a, b[0], b[1]);
    ptx::mma_m16n8k16_bf16(sum.of[2 * j + 1], a, b[2], b[3]);
  }
}

// Transposes 4 x 4 words over the four lanes of a row: lane t's words become word t of lanes 0 to 3.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4], int lane) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool is_upper = (lane & distance) != 0;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t& low = words[distance == 1 ? 2 * pair : pair];
      uint32_t& high = words[(distance == 1 ? 2 * pair : pair) + distance];
      const uint32_t received = __shfl_xor_sync(ALL_LANES, is_upper ? low : high, distance);
      if (is_upper) {
        low = received;
      } else {
        high = received;
      }
    }
  }
}

// Writes the first n_valid rows of a strip, 16 bytes a lane; factors are those of rows lane / 4 and 8 below.
template <int SIZE>
__device__ __forceinline__ void store_strip(bf16* to, size_t width, const Strip<SIZE>& strip,
                                            const float (&factors)[2], int n_valid, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
#pragma unroll
    for (int j = 0; j < SIZE / 8; j += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&c)[4] = strip.of[j + i];
        words[i] = pack_bf16(c[2 * half] * factors[half], c[2 * half + 1] * factors[half]);
      }
      transpose_quad(words, lane);
      if (row < n_valid) {
        *reinterpret_cast<uint4*>(to + row * width + (j + lane % 4) * 8) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

// Sum and maximum over the four lanes that share a row of a piece.
__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(ALL_LANES, value, 1);
  return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
  return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// The dropout bytes of a warp's strip of queries and of pieces of 16 keys, one piece after the other: one
// draw serves two pieces. Byte i of word j belongs to element i of half j of a Piece.
struct PieceDropout {
  const Dropout& dropout;
  int sequence;
  int head;
  int query_block;
  uint4 drawn;

  __device__ __forceinline__ PieceDropout(const Dropout& dropout, int sequence, int head, int query_block)
      : dropout(dropout), sequence(sequence), head(head), query_block(query_block), drawn{0, 0, 0, 0} {}

  // Bytes for piece `number` of the sequence; `is_first` if this object has not seen the one before.
  __device__ __forceinline__ uint2 bytes(int number, bool is_first, int lane) {
    if (!dropout.acts()) return make_uint2(0, 0);
    const bool is_right = number % 2 != 0;
    if (is_first || !is_right) {
      drawn = dropout.probability_bytes(sequence, head, query_block, number / 2, lane);
    }
    return is_right ? make_uint2(drawn.z, drawn.w) : make_uint2(drawn.x, drawn.y);
  }

  __device__ __forceinline__ bool drops(uint2 bytes, int half, int i) const {
    const uint32_t word = half == 0 ? bytes.x : bytes.y;
    return (word >> (8 * i) & 0xffu) < dropout.threshold;
  }
};

// ---- softmax over a strip of queries; pieces begin..end - 1 of the keys in shared memory ----

// Scores against n_keys keys, the first one the first of piece `begin`; -infinity behind them.
template <int SIZE, int N>
__device__ __forceinline__ void strip_scores(Piece (&scores)[N], const Operand<SIZE>& query, const bf16* keys,
                                             int begin, int end, int n_keys, int lane) {
#pragma unroll
  for (int piece = 0; piece < N; ++piece) {
    if (piece < begin || piece >= end) continue;
    multiply_rows<SIZE>(scores[piece], query, keys, piece * STRIP, lane);
    const int n_cols = n_keys - (piece - begin) * STRIP - lane_column(lane);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i / 4 * 8 + i % 2 >= n_cols) scores[piece][i / 4][i % 4] = -INFINITY;
    }
  }
}

// Raises `top` of a lane's two rows to the maximum of the scores.
template <int N>
__device__ __forceinline__ void raise_top(float (&top)[2], const Piece (&scores)[N], int begin, int end) {
#pragma unroll
  for (int piece = 0; piece < N; ++piece) {
    if (piece < begin || piece >= end) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) top[i % 4 / 2] = fmaxf(top[i % 4 / 2], scores[piece][i / 4][i % 4]);
  }
  top[0] = row_max(top[0]);
  top[1] = row_max(top[1]);
}

// Turns scores into 2^(scale_log2 (score - top)) and adds up what the lane holds of its two rows.
template <int N>
__device__ __forceinline__ void exponentiate(Piece (&scores)[N], float (&sum)[2], const float (&top)[2],
                                             float scale_log2, int begin, int end) {
#pragma unroll
  for (int piece = 0; piece < N; ++piece) {
    if (piece < begin || piece >= end) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int half = i % 4 / 2;
      float& score = scores[piece][i / 4][i % 4];
      score = ptx::exp2_approx(score * scale_log2 - top[half] * scale_log2);
      sum[half] += score;
    }
  }
}

// out += dropout(p) values, without dropout's scale; piece `begin` is number `first` of the sequence.
template <int SIZE, int N>
__device__ __forceinline__ void add_values(Strip<SIZE>& out, Piece (&p)[N], const bf16* values,
                                           PieceDropout& dropout, int first, int begin, int end, int lane) {
#pragma unroll
  for (int piece = 0; piece < N; ++piece) {
    if (piece < begin || piece >= end) continue;
    const uint2 bytes = dropout.bytes(first + piece - begin, piece == begin, lane);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (dropout.drops(bytes, i / 4, i % 4)) p[piece][i / 4][i % 4] = 0.0f;
    }
    uint32_t a[4];
    as_operand(p[piece], a);
    add_product<SIZE>(out, a, values, piece * STRIP, lane);
  }
}

// delta += rowsum(P * F * (dO V^T)) over a lane's columns of a piece, from scores and dO V^T. delta is summed from
// the very numbers that dS is made of: rowsum(O * dO) would bring in the rounding of O, and the rows of dS would
// not sum to 0 any more, which the gradients of queries and keys cannot afford.
__device__ __forceinline__ void add_delta(float (&delta)[2], const Piece& scores, const Piece& dp,
                                          const float (&lse_log2)[2], float scale_log2, uint2 bytes,
                                          const PieceDropout& dropout, int n_cols) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int half = i % 4 / 2;
    const float p = ptx::exp2_approx(scores[i / 4][i % 4] * scale_log2 - lse_log2[half]);
    const bool counts = i / 4 * 8 + i % 2 < n_cols && !dropout.drops(bytes, i / 4, i % 4);
    if (counts) delta[half] += p * dp[i / 4][i % 4];
  }
}

// The sums over all columns, with dropout's scale.
__device__ __forceinline__ void finish_delta(float (&delta)[2], const PieceDropout& dropout) {
#pragma unroll
  for (int half = 0; half < 2; ++half) delta[half] = row_sum(delta[half]) * dropout.dropout.scale();
}

// Turns a piece of scores into probabilities, those that dropout drops 0 and the rest without its scale,
// and a piece of dO V^T into dS. Columns from n_cols on, as the lane counts them, are 0.
__device__ __forceinline__ void piece_gradients(Piece& p, Piece& ds, const float (&lse_log2)[2],
                                                const float (&delta)[2], float scale_log2, uint2 bytes,
                                                const PieceDropout& dropout, int n_cols) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int half = i % 4 / 2;
    const bool drops = dropout.drops(bytes, i / 4, i % 4);
    float& p_i = p[i / 4][i % 4];
    float& ds_i = ds[i / 4][i % 4];
    p_i = ptx::exp2_approx(p_i * scale_log2 - lse_log2[half]);
    if (i / 4 * 8 + i % 2 >= n_cols) p_i = 0.0f;
    ds_i = p_i * ((drops ? 0.0f : ds_i * dropout.dropout.scale()) - delta[half]);
    if (drops) p_i = 0.0f;
  }
}
