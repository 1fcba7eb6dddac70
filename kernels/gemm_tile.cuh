// An engine for gemm.cuh on tensor cores: bf16 operands through cp.async, ldmatrix and mma.m16n8k16.
// Strides, and so all sizes but the number of rows, are multiples of 8; matrices are 16-byte aligned.
#pragma once
#include "gemm.cuh"

namespace gemm {

// How a block divides its tile: ROWS x COLS entries in warps of WARP_ROWS x WARP_COLS, and how many panels
// lie in shared memory at a time.
template <int ROWS_, int COLS_, int WARP_ROWS_, int WARP_COLS_, int STAGES_>
struct TileShape {
  static constexpr int ROWS = ROWS_;
  static constexpr int COLS = COLS_;
  static constexpr int WARP_ROWS = WARP_ROWS_;
  static constexpr int WARP_COLS = WARP_COLS_;
  static constexpr int STAGES = STAGES_;
  static constexpr int THREADS = ROWS / WARP_ROWS * (COLS / WARP_COLS) * 32;
  static_assert(WARP_ROWS % 16 == 0, "an mma has 16 rows");
  static_assert(WARP_COLS % 32 == 0, "a row of a warp is stored in groups of 32 columns");
};

// One operand's panel in shared memory, in rows of chunks of 8 elements as in the matrix: SPAN rows of 4
// chunks, or DEPTH rows of SPAN / 8. Chunks are turned within their row, so that the 8 rows that ldmatrix
// reads at a time, at one chunk each, lie in different banks:
//   ALONG_K   64-byte rows: rows 2r and 2r + 1 fill one round of the banks; chunk ^ (row / 2 % 4)
//   ACROSS_K  128 or 256-byte rows, all starting at bank 0: chunk ^ (row % 8)
template <Layout LAYOUT, int SPAN, int THREADS>
struct Panel {
  static constexpr int DEPTH = 32;
  static constexpr int ELEMENTS = SPAN * DEPTH;
  static constexpr int ROW = LAYOUT == ALONG_K ? DEPTH : SPAN;
  static constexpr int ROW_CHUNKS = ROW / 8;
  static constexpr int N_ROWS = LAYOUT == ALONG_K ? SPAN : DEPTH;
  static constexpr int PASS_ROWS = THREADS / ROW_CHUNKS;
  static_assert(SPAN % 64 == 0, "turning by up to 7 chunks needs 8 of them in a row");
  static_assert(N_ROWS % PASS_ROWS == 0 && PASS_ROWS % 8 == 0,
                "every thread has as many chunks, turned alike");

  static __device__ __forceinline__ int place(int row, int chunk) {
    const int turn = LAYOUT == ALONG_K ? row / 2 % 4 : row % 8;
    return row * ROW + (chunk ^ turn) * 8;
  }

  // Rows of a thread lie PASS_ROWS apart: turned alike, at fixed distances in shared memory and matrix.
  static __device__ __forceinline__ void load(bf16* shared, const bf16* matrix, int stride, int first,
                                              int end, int k, int k_end) {
    const int chunk = threadIdx.x % ROW_CHUNKS;
    const int col = (LAYOUT == ALONG_K ? k : first) + chunk * 8;
    const int row = (LAYOUT == ALONG_K ? first : k) + threadIdx.x / ROW_CHUNKS;
    const int col_end = LAYOUT == ALONG_K ? k_end : end;
    const int row_end = col < col_end ? (LAYOUT == ALONG_K ? end : k_end) : 0;
    const bf16* from = matrix + static_cast<size_t>(row) * stride + col;
    bf16* to = shared + place(threadIdx.x / ROW_CHUNKS, chunk);
#pragma unroll
    for (int i = 0; i < N_ROWS; i += PASS_ROWS) {
      ptx::cp_async16(to + i * ROW, from, row + i < row_end);
      from += static_cast<size_t>(PASS_ROWS) * stride;
    }
  }

  // Where this lane's row of the first fragment of a warp lies, from entry `first` on: for operand A of an
  // mma (16 entries) and for operand B of two neighbouring mmas (8 entries each; registers 0, 1 and 2, 3).
  static __device__ __forceinline__ int start_a(int first) {
    const int lane = threadIdx.x % 32;
    return LAYOUT == ALONG_K ? place(first + lane % 16, lane / 16)
                             : place(lane / 16 * 8 + lane % 8, first / 8 + lane / 8 % 2);
  }
  static __device__ __forceinline__ int start_b(int first) {
    const int lane = threadIdx.x % 32;
    return LAYOUT == ALONG_K ? place(first + lane / 16 * 8 + lane % 8, lane / 8 % 2)
                             : place(lane % 16, first / 8 + lane / 16);
  }

  // The fragment of 16 entries further on for each i and 16 steps of the reduction further on for each k16.
  // Along a row it is two chunks further, an exclusive or, since a warp starts at a multiple of its size.
  static __device__ __forceinline__ void fragment(uint32_t (&registers)[4], const bf16* panel, int start,
                                                  int i, int k16) {
    if (LAYOUT == ALONG_K) {
      ptx::ldmatrix_x4(registers, panel + (start ^ k16 * 16) + i * 16 * ROW);
    } else {
      ptx::ldmatrix_x4_trans(registers, panel + (start ^ i * 16) + k16 * 16 * ROW);
    }
  }
};

// Transposes 4 x 4 words over the four lanes of a quad: word j of lane i becomes word i of lane j.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
  const int lane = threadIdx.x;
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int low = distance == 1 ? 2 * pair : pair;
      const int high = low + distance;
      const uint32_t sent = upper ? words[low] : words[high];
      const uint32_t received = __shfl_xor_sync(ALL_LANES, sent, distance);
      words[low] = upper ? received : words[low];
      words[high] = upper ? words[high] : received;
    }
  }
}

// Entries of the warp's tile in mma's accumulators: tile[i][j][2 h + e] is row 16 i + 8 h + lane / 4 and
// column 8 j + 2 (lane % 4) + e.
template <class Shape, Layout LAYOUT_A, Layout LAYOUT_B>
struct TensorTile {
  typedef bf16 Element;
  static constexpr int ROWS = Shape::ROWS;
  static constexpr int COLS = Shape::COLS;
  static constexpr int THREADS = Shape::THREADS;
  static constexpr int STAGES = Shape::STAGES;
  typedef Panel<LAYOUT_A, ROWS, THREADS> A;
  typedef Panel<LAYOUT_B, COLS, THREADS> B;
  static constexpr int DEPTH = A::DEPTH;
  static constexpr int STAGE = A::ELEMENTS + B::ELEMENTS;
  static constexpr int SHARED_BYTES = STAGES * STAGE * static_cast<int>(sizeof(bf16));
  static constexpr int SAVED = ROWS * COLS + ROWS;
  static constexpr int MMAS_DOWN = Shape::WARP_ROWS / 16;
  static constexpr int MMAS_ACROSS = Shape::WARP_COLS / 8;
  static constexpr uint32_t TWO_ONES = 0x3f803f80u;

  float tile[MMAS_DOWN][MMAS_ACROSS][4];
  float sums[MMAS_DOWN][4];  // of rows of A: every column the same

  static __device__ __forceinline__ int warp_row() {
    return threadIdx.x / 32 / (COLS / Shape::WARP_COLS) * Shape::WARP_ROWS;
  }
  static __device__ __forceinline__ int warp_col() {
    return threadIdx.x / 32 % (COLS / Shape::WARP_COLS) * Shape::WARP_COLS;
  }
  static __device__ __forceinline__ int row_of(int i, int half) {
    return warp_row() + i * 16 + half * 8 + threadIdx.x % 32 / 4;
  }
  static __device__ __forceinline__ int col_of(int j) { return warp_col() + j * 8 + threadIdx.x % 4 * 2; }
  // After transpose_quad a lane has the 8 columns of the mma of its number among four.
  static __device__ __forceinline__ int chunk_col_of(int group) {
    return warp_col() + group * 32 + threadIdx.x % 4 * 8;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < MMAS_DOWN; ++i) {
#pragma unroll
      for (int at = 0; at < 4; ++at) {
#pragma unroll
        for (int j = 0; j < MMAS_ACROSS; ++j) tile[i][j][at] = 0.0f;
        sums[i][at] = 0.0f;
      }
    }
  }

  // A ring of panels: while one is multiplied, STAGES - 1 are on their way. One barrier a step: behind it the
  // panel is there, and all warps have left the one that the next load overwrites.
  template <class Load>
  __device__ __forceinline__ void run(unsigned char* shared, int n_steps, bool with_sums, const Load& load) {
    bf16* ring = reinterpret_cast<bf16*>(shared);
    const auto fetch = [&](int step) {
      bf16* stage = ring + step % STAGES * STAGE;
      if (step < n_steps) load(stage, stage + A::ELEMENTS, step);
      ptx::cp_async_commit();
    };
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) fetch(step);
    const int start_a = A::start_a(warp_row());
    const int start_b = B::start_b(warp_col());
    for (int step = 0; step < n_steps; ++step) {
      ptx::cp_async_wait<STAGES - 2>();
      __syncthreads();
      fetch(step + STAGES - 1);
      const bf16* stage = ring + step % STAGES * STAGE;
#pragma unroll
      for (int k16 = 0; k16 < DEPTH / 16; ++k16) {
        uint32_t a[MMAS_DOWN][4];
        uint32_t b[MMAS_ACROSS / 2][4];
#pragma unroll
        for (int i = 0; i < MMAS_DOWN; ++i) A::fragment(a[i], stage, start_a, i, k16);
#pragma unroll
        for (int j = 0; j < MMAS_ACROSS / 2; ++j) B::fragment(b[j], stage + A::ELEMENTS, start_b, j, k16);
        add_fragments(a, b, with_sums);
      }
    }
  }

  // The sums are one more mma, against ones: dout is read once for both.
  __device__ __forceinline__ void add_fragments(const uint32_t (&a)[MMAS_DOWN][4],
                                                const uint32_t (&b)[MMAS_ACROSS / 2][4], bool with_sums) {
#pragma unroll
    for (int i = 0; i < MMAS_DOWN; ++i) {
#pragma unroll
      for (int j = 0; j < MMAS_ACROSS; ++j) {
        ptx::mma_m16n8k16_bf16(tile[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
    if (with_sums) {
#pragma unroll
      for (int i = 0; i < MMAS_DOWN; ++i) ptx::mma_m16n8k16_bf16(sums[i], a[i], TWO_ONES, TWO_ONES);
    }
  }

  template <class Function>
  __device__ __forceinline__ void map(const Function& function) {
#pragma unroll
    for (int i = 0; i < MMAS_DOWN; ++i) {
#pragma unroll
      for (int j = 0; j < MMAS_ACROSS; ++j) {
#pragma unroll
        for (int at = 0; at < 4; ++at) tile[i][j][at] = function(tile[i][j][at]);
      }
    }
  }

  __device__ __forceinline__ void add_bias(const float* bias, int col, int n_cols) {
#pragma unroll
    for (int j = 0; j < MMAS_ACROSS; ++j) {
      const bool inside = col + col_of(j) < n_cols;
      const float first = inside ? bias[col + col_of(j)] : 0.0f;
      const float second = inside ? bias[col + col_of(j) + 1] : 0.0f;
#pragma unroll
      for (int i = 0; i < MMAS_DOWN; ++i) {
        tile[i][j][0] += first, tile[i][j][1] += second;
        tile[i][j][2] += first, tile[i][j][3] += second;
      }
    }
  }

  // tile *= function(other), `other` a matrix of the tile's shape. It comes through the ring, now free, as
  // rows of COLS elements; ldmatrix then hands them out exactly as the accumulators lie.
  template <class Function>
  __device__ __forceinline__ void multiply(unsigned char* shared, const bf16* other, int stride, int row,
                                           int n_rows, int col, int n_cols, const Function& function) {
    typedef Panel<ACROSS_K, COLS, THREADS> Rows;
    static_assert(ROWS * COLS * sizeof(bf16) <= SHARED_BYTES, "the ring holds a whole tile");
    bf16* copy = reinterpret_cast<bf16*>(shared);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ROWS; i += Rows::DEPTH) {
      Rows::load(copy + i * COLS, other, stride, col, n_cols, row + i, n_rows);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < MMAS_DOWN; ++i) {
#pragma unroll
      for (int j = 0; j < MMAS_ACROSS; j += 2) {
        // Keeps the compiler from working on so many entries at a time that registers run out.
        __syncwarp();
        uint32_t words[4];
        const int chunk = warp_col() / 8 + j + lane / 16;
        ptx::ldmatrix_x4(words, copy + Rows::place(warp_row() + i * 16 + lane % 16, chunk));
#pragma unroll
        for (int at = 0; at < 4; ++at) {
          float* pair = tile[i][j + at / 2] + at % 2 * 2;
          pair[0] *= function(__uint_as_float(words[at] << 16));
          pair[1] *= function(__uint_as_float(words[at] & 0xffff0000u));
        }
      }
    }
  }

  __device__ __forceinline__ void store(bf16* to, int stride, int row, int n_rows, int col,
                                        int n_cols) const {
    each_chunk([&](int i, int half, int group) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float (&entries)[4] = tile[i][group * 4 + j];
        words[j] = pack_bf16(entries[half * 2], entries[half * 2 + 1]);
      }
      transpose_quad(words);
      const int at_row = row + row_of(i, half);
      const int at_col = col + chunk_col_of(group);
      if (at_row < n_rows && at_col < n_cols) {
        *reinterpret_cast<uint4*>(to + static_cast<size_t>(at_row) * stride + at_col) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    });
  }

  // Two floats of each of four lanes are 32 bytes, a whole sector.
  __device__ __forceinline__ void store(float* to, int stride, int row, int n_rows, int col,
                                        int n_cols) const {
#pragma unroll
    for (int i = 0; i < MMAS_DOWN; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at_row = row + row_of(i, half);
        float* to_row = to + static_cast<size_t>(at_row) * stride + col;
#pragma unroll
        for (int j = 0; j < MMAS_ACROSS; ++j) {
          if (at_row < n_rows && col + col_of(j) < n_cols) {
            *reinterpret_cast<float2*>(to_row + col_of(j)) =
                make_float2(tile[i][j][half * 2], tile[i][j][half * 2 + 1]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void store_sums(float* to, int row, int n_rows) const {
    each_sum([&](int i, int half, int at) {
      if (row + at < n_rows) to[row + at] = sums[i][half * 2];
    });
  }

  // In scratch: a float4 for each mma and thread, then the sums.
  __device__ __forceinline__ void save(float* to, bool with_sums) const {
    float4* entries = reinterpret_cast<float4*>(to) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < MMAS_DOWN; ++i) {
#pragma unroll
      for (int j = 0; j < MMAS_ACROSS; ++j) {
        const float (&from)[4] = tile[i][j];
        entries[(i * MMAS_ACROSS + j) * THREADS] = make_float4(from[0], from[1], from[2], from[3]);
      }
    }
    if (with_sums) {
      each_sum([&](int i, int half, int at) { to[ROWS * COLS + at] = sums[i][half * 2]; });
    }
  }

  __device__ __forceinline__ void add_saved(const float* from, bool with_sums) {
    const float4* entries = reinterpret_cast<const float4*>(from) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < MMAS_DOWN; ++i) {
#pragma unroll
      for (int j = 0; j < MMAS_ACROSS; ++j) {
        const float4 more = entries[(i * MMAS_ACROSS + j) * THREADS];
        float (&to)[4] = tile[i][j];
        to[0] += more.x, to[1] += more.y, to[2] += more.z, to[3] += more.w;
      }
    }
    if (with_sums) {
      each_sum([&](int i, int half, int at) { sums[i][half * 2] += from[ROWS * COLS + at]; });
    }
  }

 private:
  // Every 16-byte chunk of a row that this lane holds after transpose_quad.
  template <class Function>
  static __device__ __forceinline__ void each_chunk(const Function& function) {
#pragma unroll
    for (int i = 0; i < MMAS_DOWN; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int group = 0; group < MMAS_ACROSS / 4; ++group) function(i, half, group);
      }
    }
  }

  // Every row whose sum this lane writes: the first lane of each quad, in the warps of the first columns.
  template <class Function>
  static __device__ __forceinline__ void each_sum(const Function& function) {
    if (warp_col() != 0 || threadIdx.x % 4 != 0) return;
#pragma unroll
    for (int i = 0; i < MMAS_DOWN; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) function(i, half, row_of(i, half));
    }
  }
};

}  // namespace gemm
