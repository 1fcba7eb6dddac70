// Checks of the attention kernels against plain loops in double.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "attention_truth.h"
#include "common.cuh"
#include "testing.h"

#define FWD_PARAMETERS(E)                                                                                 \
  const StepState*, const E*, const E*, const E*, const int*, const int*, unsigned, unsigned, E*, float*, \
      int, int
#define BWD_PARAMETERS(E)                                                                           \
  const StepState*, const E*, const float*, const float*, const E*, const E*, const E*, const int*, \
      const int*, unsigned, unsigned

#define FWD_TILE_PARAMETERS \
  const StepState*, const bf16*, const bf16*, const bf16*, const int4*, unsigned, unsigned, bf16*, float*
#define BWD_TILE_PARAMETERS                                                           \
  const StepState*, const bf16*, const float*, const bf16*, const bf16*, const bf16*, \
      const int4*, unsigned, unsigned, bf16*, bf16*, bf16*

#define FWD_LONG_PARAMETERS                                                                             \
  const StepState*, const bf16*, const bf16*, const bf16*, const int2*, const int*, unsigned, unsigned, \
      bf16*, float*
#define DELTA_LONG_PARAMETERS                                                                                  \
  const StepState*, const bf16*, const float*, const bf16*, const bf16*, const bf16*, const int2*, const int*, \
      unsigned, unsigned, float*
#define DELTA_PARAMETERS(E)                                                                                 \
  const StepState*, const E*, const float*, const E*, const E*, const E*, const int*, const int*, unsigned, \
      unsigned, float*, int, int
#define BWD_LONG_PARAMETERS                                                                         \
  const StepState*, const bf16*, const float*, const float*, const bf16*, const bf16*, const bf16*, \
      const int2*, const int*, unsigned, unsigned

extern "C" {
void attention_fwd_f32(FWD_PARAMETERS(float));
void attention_fwd_bf16(FWD_PARAMETERS(bf16));
void attention_bwd_delta_f32(DELTA_PARAMETERS(float));
void attention_bwd_delta_bf16(DELTA_PARAMETERS(bf16));
void attention_bwd_delta_bf16_long_32(DELTA_LONG_PARAMETERS);
void attention_bwd_delta_bf16_long_64(DELTA_LONG_PARAMETERS);
void attention_bwd_dq_f32(BWD_PARAMETERS(float), float*, int, int);
void attention_bwd_dq_bf16(BWD_PARAMETERS(bf16), bf16*, int, int);
void attention_bwd_dkv_f32(BWD_PARAMETERS(float), float*, float*, int, int);
void attention_bwd_dkv_bf16(BWD_PARAMETERS(bf16), bf16*, bf16*, int, int);
void attention_fwd_bf16_tile_32(FWD_TILE_PARAMETERS);
void attention_fwd_bf16_tile_64(FWD_TILE_PARAMETERS);
void attention_bwd_bf16_tile_32(BWD_TILE_PARAMETERS);
void attention_bwd_bf16_tile_64(BWD_TILE_PARAMETERS);
void attention_fwd_bf16_long_32(FWD_LONG_PARAMETERS);
void attention_fwd_bf16_long_64(FWD_LONG_PARAMETERS);
void attention_bwd_dq_bf16_long_32(BWD_LONG_PARAMETERS, bf16*);
void attention_bwd_dq_bf16_long_64(BWD_LONG_PARAMETERS, bf16*);
void attention_bwd_dkv_bf16_long_32(BWD_LONG_PARAMETERS, bf16*, bf16*);
void attention_bwd_dkv_bf16_long_64(BWD_LONG_PARAMETERS, bf16*, bf16*);
}

namespace {

using namespace testing;

// The kernels of attention_plain.cu.
template <class E>
struct Plain;

#define PLAIN(E, SUFFIX)                                                                                     \
  template <>                                                                                                \
  struct Plain<E> {                                                                                          \
    static constexpr const char* NAME = "plain " #SUFFIX;                                                    \
    static constexpr bool TENSOR_CORES = false;                                                              \
    static void forward(Problem<E>& p, E* out, float* lse) {                                                 \
      testing::launch(&attention_fwd_##SUFFIX, "attention_fwd_" #SUFFIX, grid(p), 128, 2560, &p.state,       \
                      p.q.data(), p.k.data(), p.v.data(), p.sequence_ids.data(), p.cu_seqlens.data(), SITE,  \
                      p.shape.threshold, out, lse, p.shape.n_heads, p.shape.head_size);                      \
    }                                                                                                        \
    static void make_delta(Problem<E>& p, const E* v, const float* lse, float* delta) {                      \
      testing::launch(&attention_bwd_delta_##SUFFIX, "attention_bwd_delta_" #SUFFIX, grid(p), 128, 4096,     \
                      &p.state, p.dout.data(), lse, p.q.data(), p.k.data(), v, p.sequence_ids.data(),        \
                      p.cu_seqlens.data(), SITE, p.shape.threshold, delta, p.shape.n_heads,                  \
                      p.shape.head_size);                                                                    \
    }                                                                                                        \
    static void backward(Problem<E>& p, const E* v, const float* lse, E* dq, E* dk, E* dv) {                 \
      const Shape& s = p.shape;                                                                              \
      Buffer<float> delta(p.n_statistics());                                                                 \
      if (dq || dk) make_delta(p, v, lse, delta.data());                                                     \
      if (dq) {                                                                                              \
        testing::launch(&attention_bwd_dq_##SUFFIX, "attention_bwd_dq_" #SUFFIX, grid(p), 128, 4608,         \
                        &p.state, p.dout.data(), delta.data(), lse, p.q.data(), p.k.data(), v,               \
                        p.sequence_ids.data(), p.cu_seqlens.data(), SITE, s.threshold, dq, s.n_heads,        \
                        s.head_size);                                                                        \
      }                                                                                                      \
      if (dk || dv) {                                                                                        \
        testing::launch(&attention_bwd_dkv_##SUFFIX, "attention_bwd_dkv_" #SUFFIX, grid(p), 128, 5120,       \
                        &p.state, p.dout.data(), dk ? delta.data() : nullptr, lse, p.q.data(), p.k.data(),   \
                        v, p.sequence_ids.data(), p.cu_seqlens.data(), SITE, s.threshold, dk, dv, s.n_heads, \
                        s.head_size);                                                                        \
      }                                                                                                      \
    }                                                                                                        \
    static dim3 grid(const Problem<E>& p) { return dim3((p.capacity + 3) / 4, p.shape.n_heads); }            \
  }
PLAIN(float, f32);
PLAIN(bf16, bf16);

// Tiles of 8 strips of 16 rows, as src/backend/cuda/inputs.rs makes them: each sequence of up to 128 tokens
// goes to the first tile that has room.
std::vector<int4> pack_tiles(const Shape& shape) {
  std::vector<int4> strips;
  std::vector<int> n_used;
  int first_token = 0;
  for (int sequence = 0; sequence < int(shape.lengths.size()); ++sequence) {
    const int length = shape.lengths[sequence];
    const int n_strips = (length + 15) / 16;
    if (n_strips <= 8) {
      size_t tile = 0;
      while (tile < n_used.size() && n_used[tile] + n_strips > 8) ++tile;
      if (tile == n_used.size()) {
        n_used.push_back(0);
        strips.resize(strips.size() + 8, make_int4(0, 0, 0, 0));
      }
      for (int i = 0; i < n_strips; ++i) {
        strips[tile * 8 + n_used[tile]++] = make_int4(sequence, first_token, i, length);
      }
    }
    first_token += length;
  }
  return strips;
}

// Blocks of 64 rows of the sequences that no tile holds.
std::vector<int2> list_long_blocks(const Shape& shape) {
  std::vector<int2> blocks;
  for (int sequence = 0; sequence < int(shape.lengths.size()); ++sequence) {
    const int length = shape.lengths[sequence];
    for (int block = 0; length > 128 && block * 64 < length; ++block) {
      blocks.push_back(make_int2(sequence, block));
    }
  }
  return blocks;
}

// The lists on the device, as at capacity: behind what this batch needs is an entry of an earlier one.
struct Lists {
  Buffer<int4> strips;
  Buffer<int2> blocks;

  Lists(Problem<bf16>& p) : Lists(p, pack_tiles(p.shape), list_long_blocks(p.shape)) {}

  Lists(Problem<bf16>& p, const std::vector<int4>& strips, const std::vector<int2>& blocks)
      : strips(strips.size() + 8), blocks(blocks.size() + 1) {
    p.state.n_tiles = int(strips.size()) / 8;
    p.state.n_long_blocks = int(blocks.size());
    std::copy(strips.begin(), strips.end(), this->strips.data());
    std::copy(blocks.begin(), blocks.end(), this->blocks.data());
    if (!strips.empty()) std::copy_n(strips.begin(), 8, this->strips.data() + strips.size());
    if (!blocks.empty()) this->blocks[blocks.size()] = blocks[0];
  }

  dim3 tile_grid(const Problem<bf16>& p) const { return dim3(p.shape.n_heads, strips.size() / 8); }
  dim3 long_grid(const Problem<bf16>& p) const { return dim3(p.shape.n_heads, blocks.size()); }
};

// The kernels of attention_tile.cu and attention_long.cu, as a launch function uses them.
template <int SIZE>
struct Fast;

#define FAST(SIZE)                                                                                           \
  template <>                                                                                                \
  struct Fast<SIZE> {                                                                                        \
    static constexpr const char* NAME = "tile and long";                                                     \
    static constexpr bool TENSOR_CORES = true;                                                               \
    static void forward(Problem<bf16>& p, bf16* out, float* lse) {                                           \
      Lists lists(p);                                                                                        \
      testing::launch(&attention_fwd_bf16_tile_##SIZE, "attention_fwd_bf16_tile_" #SIZE, lists.tile_grid(p), \
                      256, 768 * SIZE, &p.state, p.q.data(), p.k.data(), p.v.data(), lists.strips.data(),    \
                      SITE, p.shape.threshold, out, lse);                                                    \
      testing::launch(&attention_fwd_bf16_long_##SIZE, "attention_fwd_bf16_long_" #SIZE, lists.long_grid(p), \
                      128, 640 * SIZE, &p.state, p.q.data(), p.k.data(), p.v.data(), lists.blocks.data(),    \
                      p.cu_seqlens.data(), SITE, p.shape.threshold, out, lse);                               \
    }                                                                                                        \
    static void backward(Problem<bf16>& p, const bf16* v, const float* lse, bf16* dq, bf16* dk, bf16* dv) {  \
      Lists lists(p);                                                                                        \
      testing::launch(&attention_bwd_bf16_tile_##SIZE, "attention_bwd_bf16_tile_" #SIZE, lists.tile_grid(p), \
                      256, 1024 * SIZE + 32768, &p.state, p.dout.data(), lse, p.q.data(), p.k.data(),        \
                      v, lists.strips.data(), SITE, p.shape.threshold, dq, dk, dv);                          \
      Buffer<float> delta(p.n_statistics());                                                                 \
      if (dq || dk) {                                                                                        \
        testing::launch(&attention_bwd_delta_bf16_long_##SIZE, "attention_bwd_delta_bf16_long_" #SIZE,       \
                        lists.long_grid(p), 128, 768 * SIZE, &p.state, p.dout.data(), lse, p.q.data(),       \
                        p.k.data(), v, lists.blocks.data(), p.cu_seqlens.data(), SITE, p.shape.threshold,    \
                        delta.data());                                                                       \
      }                                                                                                      \
      if (dq) {                                                                                              \
        testing::launch(&attention_bwd_dq_bf16_long_##SIZE, "attention_bwd_dq_bf16_long_" #SIZE,             \
                        lists.long_grid(p), 128, 768 * SIZE, &p.state, p.dout.data(), delta.data(), lse,     \
                        p.q.data(), p.k.data(), v, lists.blocks.data(), p.cu_seqlens.data(), SITE,           \
                        p.shape.threshold, dq);                                                              \
      }                                                                                                      \
      if (dk || dv) {                                                                                        \
        testing::launch(&attention_bwd_dkv_bf16_long_##SIZE, "attention_bwd_dkv_bf16_long_" #SIZE,           \
                        lists.long_grid(p), 128, 768 * SIZE + 2048, &p.state, p.dout.data(),                 \
                        dk ? delta.data() : nullptr, lse, p.q.data(), p.k.data(), v, lists.blocks.data(),    \
                        p.cu_seqlens.data(), SITE, p.shape.threshold, dk, dv);                               \
      }                                                                                                      \
    }                                                                                                        \
  }
FAST(32);
FAST(64);

template <class E, class Way>
struct Run {
  Problem<E>& problem;

  Run(Problem<E>& problem) : problem(problem) {}

  Floats forward(bool with_lse, Floats& lse_values) {
    Buffer<E> out(problem.n_elements());
    Buffer<float> lse(problem.n_statistics());
    Way::forward(problem, out.data(), with_lse ? lse.data() : nullptr);
    const size_t n = size_t(problem.shape.n_tokens()) * problem.shape.n_heads;
    lse_values = live_part(lse, with_lse ? n : 0);
    return live_part(out, problem.n_live());
  }

  // Only dv: neither v nor the output is there.
  Gradients backward(const Floats& lse_values, bool dq, bool dk, bool dv) {
    const size_t n = problem.n_elements();
    Floats padded = lse_values;
    padded.resize(problem.n_statistics(), NAN);
    Buffer<float> lse(padded);
    Buffer<E> dq_buffer(n), dk_buffer(n), dv_buffer(n);
    const bool with_scores = dq || dk;
    Way::backward(problem, with_scores ? problem.v.data() : nullptr, lse.data(),
                  dq ? dq_buffer.data() : nullptr, dk ? dk_buffer.data() : nullptr,
                  dv ? dv_buffer.data() : nullptr);
    const size_t n_live = problem.n_live();
    return {live_part(dq_buffer, dq ? n_live : 0), live_part(dk_buffer, dk ? n_live : 0),
            live_part(dv_buffer, dv ? n_live : 0)};
  }
};

// Relative L2 errors.
struct Tolerances {
  double out, lse, gradients;
};

// Scores of up to 8 are off by a few units of 2^-24 * 8 = 5e-7, which exp makes a relative error, and which
// averages out over the keys; ten times that leaves room for another order of sums.
constexpr Tolerances F32 = {3e-6, 1e-6, 5e-6};
// An output rounded to bf16 is off by 2^-8 / sqrt(3) times its power of two, 1.65e-3 in the mean.
constexpr Tolerances PLAIN_BF16 = {2.0e-3, 1e-6, 2.0e-3};
// P and dS are rounded too before they are multiplied: up to sqrt(2) or sqrt(3) times 1.65e-3. A score is the sum
// of at most 4 mmas: truncated ones take up to 4 * 2^-24 = 2.4e-7 of it, which lse has room for.
constexpr Tolerances TENSOR_CORES = {3.0e-3, 1e-6, 4.0e-3};
// Keys of mean -5 and deviation 0.98: what rounding leaves of a row of dS, whose sum is 0, meets 5.2 times
// what the sum itself meets.
constexpr Tolerances SHIFTED = {3.0e-3, 1e-6, 5.2 * 4.0e-3};

// `shift` is added to the queries and taken from the keys: all scores are so much lower.
template <class E, class Way>
void check(const Shape& shape, const Tolerances& tolerances, bool every_schedule, float shift = 0.0f) {
  const size_t n = size_t(shape.n_tokens()) * shape.width();
  const auto values = [&](uint64_t seed, float scale, float mean) {
    Floats values = testing::random(n, seed, scale);
    for (float& value : values) value += mean;
    return Buffer<E>(values).floats();
  };
  const Floats q = values(1, 1.7f, shift), k = values(2, 1.7f, -shift);
  const Floats v = values(3, 1.0f, 0.0f), dout = values(4, 1.0f, 0.0f);
  const Truth truth = truth_of(shape, q, k, v, dout);
  Problem<E> problem(shape, q, k, v, dout);
  Run<E, Way> run(problem);

  const std::string name = shape.name(Way::NAME);
  const auto what = [&](const char* tensor) { return name + ": " + tensor; };
  struct First {
    Floats out, lse;
    Gradients gradients;
  };
  First firsts[2];  // of rounded and of truncated sums, which have other bits
  const auto once = [&] {
    Floats lse;
    const Floats out = run.forward(true, lse);
    const Gradients gradients = run.backward(truth.lse, true, true, true);
    First& first = firsts[testing::state().options.truncate_mma];
    if (first.out.empty()) {
      first = {out, lse, gradients};
      testing::close(what("out").c_str(), out, truth.out, tolerances.out);
      testing::close(what("lse").c_str(), lse, truth.lse, tolerances.lse);
      testing::close(what("dq").c_str(), gradients.dq, truth.dq, tolerances.gradients);
      testing::close(what("dk").c_str(), gradients.dk, truth.dk, tolerances.gradients);
      testing::close(what("dv").c_str(), gradients.dv, truth.dv, tolerances.gradients);
    }
    testing::same_bits(what("out again").c_str(), out, first.out);
    testing::same_bits(what("lse again").c_str(), lse, first.lse);
    testing::same_bits(what("dq again").c_str(), gradients.dq, first.gradients.dq);
    testing::same_bits(what("dk again").c_str(), gradients.dk, first.gradients.dk);
    testing::same_bits(what("dv again").c_str(), gradients.dv, first.gradients.dv);
  };
  once();
  if (every_schedule) {
    testing::for_each_schedule_and_sum(once);
  } else {
    if (Way::TENSOR_CORES) testing::with_truncated_sums(once);
    return;
  }

  // What is not asked for changes nothing in the rest.
  const First& first = firsts[0];
  Floats no_lse;
  testing::same_bits(what("out without lse").c_str(), run.forward(false, no_lse), first.out);
  for (int wanted = 1; wanted < 8; ++wanted) {
    const bool dq = wanted & 1, dk = wanted & 2, dv = wanted & 4;
    const Gradients some = run.backward(truth.lse, dq, dk, dv);
    if (dq) testing::same_bits(what("dq alone").c_str(), some.dq, first.gradients.dq);
    if (dk) testing::same_bits(what("dk alone").c_str(), some.dk, first.gradients.dk);
    if (dv) testing::same_bits(what("dv alone").c_str(), some.dv, first.gradients.dv);
  }
}

// Every mask bit by itself. With scores of 0 all probabilities are 1 / s; with unit rows on one side of a
// product, row r of a sequence to column r - base, each output element is one probability times its factor.
template <class E, class Way>
void check_masks(const Shape& shape) {
  const size_t n = size_t(shape.n_tokens()) * shape.width();
  const Floats zeros(n, 0.0f), ones(n, 1.0f);
  Floats lse;
  for (int length : shape.lengths) {
    for (int i = 0; i < length * shape.n_heads; ++i) lse.push_back(std::log(float(length)));
  }
  int longest = 0;
  for (int length : shape.lengths) longest = length > longest ? length : longest;

  size_t n_wrong = 0;
  for (int base = 0; base < longest; base += shape.head_size) {
    Floats units(n, 0.0f), by_query(n, 0.0f), by_key(n, 0.0f);
    // Of dS, NaN where a query keeps all keys: its row is 0 then.
    Floats scores_by_query(n, 0.0f), scores_by_key(n, 0.0f);
    int first_token = 0;
    for (int sequence = 0; sequence < int(shape.lengths.size()); ++sequence) {
      const int length = shape.lengths[sequence];
      for (int h = 0; h < shape.n_heads; ++h) {
        const Doubles factor = factors(shape.threshold, sequence, h, length);
        const Head head{first_token, h * shape.head_size, shape.head_size, shape.width()};
        const auto score = [&](int query, int key) {
          const double* const row = &factor[size_t(query) * length];
          const bool keeps_all = std::find(row, row + length, 0.0) == row + length;
          return keeps_all ? NAN : float(row[key]);
        };
        for (int i = 0; i < shape.head_size && base + i < length; ++i) {
          units[head.at(base + i, i)] = 1.0f;
          for (int row = 0; row < length; ++row) {
            by_query[head.at(row, i)] = float(factor[size_t(row) * length + base + i]);
            by_key[head.at(row, i)] = float(factor[size_t(base + i) * length + row]);
            scores_by_query[head.at(row, i)] = score(row, base + i);
            scores_by_key[head.at(row, i)] = score(base + i, row);
          }
        }
      }
      first_token += length;
    }
    const auto compare = [&](const Floats& got, const Floats& expected) {
      for (size_t i = 0; i < n; ++i) {
        if (!std::isnan(expected[i])) n_wrong += (got[i] > 0.0f) != (expected[i] > 0.0f);
      }
    };
    // Out of unit values, dv of unit gradients, dq of unit keys, dk of unit queries.
    Problem<E> values(shape, zeros, zeros, units, units);
    Run<E, Way> run(values);
    Floats none;
    compare(run.forward(false, none), by_query);
    compare(run.backward(lse, false, false, true).dv, by_key);
    Problem<E> unit_keys(shape, zeros, units, ones, ones), unit_queries(shape, units, zeros, ones, ones);
    compare(Run<E, Way>(unit_keys).backward(lse, true, false, false).dq, scores_by_query);
    compare(Run<E, Way>(unit_queries).backward(lse, false, true, false).dk, scores_by_key);
  }
  testing::check(n_wrong == 0, shape.name(Way::NAME).c_str(), std::to_string(n_wrong) + " wrong mask bits");
}

// A sequence's results are the same bits, whichever tile it is in and whatever stands beside it.
template <int SIZE>
void check_packing() {
  const Shape together{{33, 90, 16, 130, 47}, 1, SIZE, 0};
  const size_t n = size_t(together.n_tokens()) * SIZE;
  const auto values = [&](uint64_t seed) { return testing::random(n, seed, 1.7f); };
  const Floats q = values(1), k = values(2), v = values(3), dout = values(4);
  struct All {
    Floats out, lse;
    Gradients gradients;
  };
  const auto run = [](const Shape& shape, const Floats& q, const Floats& k, const Floats& v,
                      const Floats& dout) {
    Problem<bf16> problem(shape, q, k, v, dout);
    Run<bf16, Fast<SIZE>> run(problem);
    All all;
    all.out = run.forward(true, all.lse);
    all.gradients = run.backward(all.lse, true, true, true);
    return all;
  };
  const All packed = run(together, q, k, v, dout);
  size_t begin = 0;
  for (const int length : together.lengths) {
    const size_t end = begin + length;
    const auto part = [&](const Floats& all, size_t cols) {
      return Floats(all.begin() + begin * cols, all.begin() + end * cols);
    };
    const Shape alone{{length}, 1, SIZE, 0};
    const All single = run(alone, part(q, SIZE), part(k, SIZE), part(v, SIZE), part(dout, SIZE));
    testing::same_bits("alone: out", single.out, part(packed.out, SIZE));
    testing::same_bits("alone: lse", single.lse, part(packed.lse, 1));
    testing::same_bits("alone: dq", single.gradients.dq, part(packed.gradients.dq, SIZE));
    testing::same_bits("alone: dk", single.gradients.dk, part(packed.gradients.dk, SIZE));
    testing::same_bits("alone: dv", single.gradients.dv, part(packed.gradients.dv, SIZE));
    begin = end;
  }
}

// Sanitizers make everything ten times slower: they see each kind of block once.
const bool SANITIZED = !testing::CAN_CHECK_BLOCKS;
const std::vector<int> SHORT = {17, 1, 77, 2, 3, 128, 40};
const std::vector<int> MIXED =
    SANITIZED ? std::vector<int>{130, 1, 35, 193} : std::vector<int>{130, 1, 77, 512, 2, 128, 3, 200, 17};
const std::vector<int> FEW = {33, 1, 18};

template <class E>
void check_plain(const Tolerances& tolerances) {
  check<E, Plain<E>>({FEW, 2, 8, 26}, tolerances, true);
  check<E, Plain<E>>({FEW, 1, 40, 0}, tolerances, true);
  check<E, Plain<E>>({SHORT, 2, 32, 0}, tolerances, false);
  check<E, Plain<E>>({SHORT, 1, 64, 26}, tolerances, false);
  check<E, Plain<E>>({SHORT, 1, 128, 128}, tolerances, false);
  check<E, Plain<E>>({MIXED, 1, 8, 26}, tolerances, false);
  check_masks<E, Plain<E>>({{77, 3, 40, 130}, 2, 40, 128});
}

template <int SIZE>
void check_fast() {
  check<bf16, Fast<SIZE>>({SHORT, 1, SIZE, 0}, TENSOR_CORES, true);
  check<bf16, Fast<SIZE>>({{18, 150}, 2, SIZE, 26}, TENSOR_CORES, true);
  check<bf16, Fast<SIZE>>({SHORT, 2, SIZE, 26}, TENSOR_CORES, false);
  check<bf16, Fast<SIZE>>({MIXED, 2, SIZE, 0}, TENSOR_CORES, false);
  check<bf16, Fast<SIZE>>({MIXED, 1, SIZE, 26}, TENSOR_CORES, false);
  // Scores of -140 and less: exp(0 - lse) of the zeros behind a sequence's end would be infinite.
  check<bf16, Fast<SIZE>>({{18, 150}, 1, SIZE, 0}, SHIFTED, false, 5.0f);
  check_masks<bf16, Fast<SIZE>>({{40, 130, 77, 3, 97, 200}, 2, SIZE, 128});
  check_packing<SIZE>();
  testing::with_truncated_sums(check_packing<SIZE>);
}

}  // namespace

int main() {
  check_plain<float>(F32);
  check_plain<bf16>(PLAIN_BF16);
  check_fast<32>();
  check_fast<64>();
  return testing::summary();
}
