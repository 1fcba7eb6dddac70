// Checks of embed_* against plain loops in double.
#include <cmath>
#include <string>

#include "row_checks.h"
#include "testing.h"

template <class E>
using EmbedFwd = void(const StepState*, int, const int*, const E*, const int*, const E*, const int*, const E*,
                      E*);
template <class E>
using EmbedLayernormFwd = void(const StepState*, int, const int*, const E*, const int*, const E*, const int*,
                               const E*, const float*, const float*, float, E*, float*, E*, float*);
template <class E>
using EmbedWgradSegments = void(const StepState*, int, const E*, const int*, const int*, float*);
template <class E>
using EmbedWgradRows = void(const StepState*, int, int, const E*, const int*, const int*, int, const float*,
                            float*);

template <class E>
using PrefixLoad = void(const StepState*, int, int, const float*, const int*, E*, float*);

#define DECLARE(E, dtype)                                                                               \
  EmbedFwd<E> embed_fwd_##dtype;                                                                        \
  PrefixLoad<E> prefix_load_##dtype;                                                                    \
  EmbedLayernormFwd<E> embed_layernorm_fwd_##dtype##_1, embed_layernorm_fwd_##dtype##_2,                \
      embed_layernorm_fwd_##dtype##_3, embed_layernorm_fwd_##dtype##_4, embed_layernorm_fwd_##dtype##_wide;\
  EmbedWgradSegments<E> embed_wgrad_segments_##dtype;                                                   \
  EmbedWgradRows<E> embed_wgrad_rows_##dtype;

extern "C" {
DECLARE(float, f32)
DECLARE(bf16, bf16)
}

namespace {

using namespace testing;

template <class E>
struct Kernels;
#define KERNELS(E, dtype)                                                                         \
  template <>                                                                                     \
  struct Kernels<E> {                                                                             \
    Kernel<EmbedFwd<E>> embed_fwd = KERNEL(embed_fwd_##dtype);                                    \
    Kernel<PrefixLoad<E>> prefix_load = KERNEL(prefix_load_##dtype);                              \
    Kernel<EmbedLayernormFwd<E>> embed_layernorm_fwd[5] = VARIANTS(embed_layernorm_fwd_##dtype);  \
    Kernel<EmbedWgradSegments<E>> embed_wgrad_segments = KERNEL(embed_wgrad_segments_##dtype);    \
    Kernel<EmbedWgradRows<E>> embed_wgrad_rows = KERNEL(embed_wgrad_rows_##dtype);                \
  };
KERNELS(float, f32)
KERNELS(bf16, bf16)

// Ids of one table for the live tokens, and what the host derives from them for embed_wgrad.
struct Ids {
  int n_rows;
  Buffer<int> ids, order, row_start;

  // Every `common`-th token has id 1, all others are spread over the rows but the last, which has none.
  Ids(const Batch& batch, int n_rows, int common)
      : n_rows(n_rows), ids(batch.capacity()), order(batch.capacity()), row_start(n_rows + 1) {
    for (int token = 0; token < batch.n_rows; ++token) {
      ids[token] = token % common == 0 ? 1 : token * 7 % (n_rows - 1);
    }
    int n = 0;
    for (int row = 0; row < n_rows; ++row) {
      row_start[row] = n;
      for (int token = 0; token < batch.n_rows; ++token) {
        if (ids[token] == row) order[n++] = token;
      }
    }
    row_start[n_rows] = n;
  }
};

template <class E>
Buffer<E> random_table(int n_rows, int width, uint64_t seed) {
  return Buffer<E>(testing::random(size_t(n_rows) * width, seed));
}

template <class E>
void check_embed(const Shape& shape) {
  const auto [n_rows, width, drops, whole] = shape;
  Batch batch(n_rows);
  const Ids words(batch, 50, 3), positions(batch, 140, 200), types(batch, 3, 2);
  const Buffer<E> word = random_table<E>(50, width, 1), position = random_table<E>(140, width, 2);
  const Buffer<E> type = random_table<E>(3, width, 3);
  const Floats gamma = testing::random(width, 4), beta = testing::random(width, 5);
  const Buffer<float> gamma_buffer(gamma), beta_buffer(beta);
  Doubles sums(size_t(n_rows) * width);
  for (size_t i = 0; i < sums.size(); ++i) {
    const auto of = [&](const Buffer<E>& table, const Ids& ids) {
      return double(testing::as_float(table[size_t(ids.ids[i / width]) * width + i % width]));
    };
    sums[i] = of(word, words) + of(position, positions) + (whole ? of(type, types) : 0.0);
  }
  const Normed expected = layernorm(sums, width, gamma, beta);
  Result sum_result(shape.name<E>("embed_fwd"), sums, TOLERANCE<E>);
  Result out_result(shape.name<E>("embed_layernorm_fwd out"), expected.out, TOLERANCE<E>);
  Result stream_result(shape.name<E>("embed_layernorm_fwd stream"), expected.out, TOLERANCE<float>);
  Result xhat_result(shape.name<E>("embed_layernorm_fwd xhat"), expected.xhat, TOLERANCE<E>);
  Result rstd_result(shape.name<E>("embed_layernorm_fwd rstd"), expected.rstd, TOLERANCE<float>);
  const int* type_ids = whole ? types.ids.data() : nullptr;
  const E* type_table = whole ? type.data() : nullptr;
  testing::for_each_schedule([&] {
    const size_t n = size_t(batch.capacity()) * width;
    Buffer<E> sum(n), out(n), xhat(n);
    Buffer<float> stream(n), rstd(batch.capacity());
    Kernels<E>().embed_fwd.launch(dim3(ceil_div(batch.capacity(), 8)), 8, 0, batch.state.data(), width,
                                  words.ids.data(), word.data(), positions.ids.data(), position.data(),
                                  type_ids, type_table, sum.data());
    const RowLaunch geometry(width);
    Kernels<E>().embed_layernorm_fwd[variant(width)].launch(
        geometry.grid(batch.capacity()), geometry.warps, geometry.shared_bytes, batch.state.data(), width,
        words.ids.data(), word.data(), positions.ids.data(), position.data(), type_ids, type_table,
        gamma_buffer.data(), beta_buffer.data(), EPS, out.data(), whole ? stream.data() : nullptr,
        whole ? xhat.data() : nullptr, whole ? rstd.data() : nullptr);
    sum_result.check(sum);
    out_result.check(out);
    if (!whole) return;
    if (sizeof(E) < sizeof(float)) stream_result.check(stream);
    xhat_result.check(xhat);
    rstd_result.check(rstd);
  });
}

// Rows in an order of their own, some of them twice; by tokens, and by sequences where there are fewer.
template <class E>
void check_prefix_load(const Shape& shape) {
  const auto [n_rows, width, drops, whole] = shape;
  const int n_cached = n_rows + 7;
  Batch batch(n_rows);
  Buffer<int> rows(batch.capacity());
  for (int row = 0; row < n_rows; ++row) rows[row] = row * 5 % n_cached;
  const Buffer<float> cache = random_table<float>(n_cached, width, 1);
  Doubles expected(size_t(n_rows) * width);
  for (size_t i = 0; i < expected.size(); ++i) {
    expected[i] = cache[size_t(rows[i / width]) * width + i % width];
  }
  Result out_result(shape.name<E>("prefix_load out"), expected, TOLERANCE<E>);
  Result stream_result(shape.name<E>("prefix_load stream"), expected, 0.0);
  testing::for_each_schedule([&] {
    const size_t n = size_t(batch.capacity()) * width;
    Buffer<E> out(n);
    Buffer<float> stream(n);
    Kernels<E>().prefix_load.launch(dim3(ceil_div(batch.capacity(), 8)), 8, 0, batch.state.data(), ROWS_TOKENS,
                                    width, cache.data(), rows.data(), out.data(),
                                    whole ? stream.data() : nullptr);
    out_result.check(out);
    if (whole) stream_result.check(stream);
  });
}

template <class E>
void check_embed_wgrad(const Shape& shape, int n_table_rows, int common, int padding_row) {
  const int width = shape.width;
  Batch batch(shape.n_rows);
  const Ids ids(batch, n_table_rows, common);
  const Buffer<E> dx = random_rows<E>(batch, width, 1);
  Doubles expected(size_t(n_table_rows) * width, 0.0);
  for (int token = 0; token < batch.n_rows; ++token) {
    if (ids.ids[token] == padding_row) continue;
    for (int col = 0; col < width; ++col) {
      expected[size_t(ids.ids[token]) * width + col] += testing::as_float(dx[size_t(token) * width + col]);
    }
  }
  Result result(shape.name<E>("embed_wgrad"), expected, TOLERANCE<float>);
  testing::for_each_schedule([&] {
    const int n_strips = ceil_div(width, 128);
    const int n_segments = batch.capacity() / 128;
    Buffer<float> partials(size_t(n_segments) * width), dtable(expected.size());
    if (n_segments > 0) {
      Kernels<E>().embed_wgrad_segments.launch(dim3(ceil_div(n_segments * n_strips, 8)), 8, 0,
                                               batch.state.data(), width, dx.data(), ids.ids.data(),
                                               ids.order.data(), partials.data());
    }
    Kernels<E>().embed_wgrad_rows.launch(dim3(ceil_div(n_table_rows * n_strips, 8)), 8, 0, batch.state.data(),
                                         n_table_rows, width, dx.data(), ids.order.data(),
                                         ids.row_start.data(), padding_row, partials.data(), dtable.data());
    result.check(dtable);
  });
}

template <class E>
void check_all() {
  for (const bool whole : {true, false}) {
    check_embed<E>({1, 72, false, whole});
    check_embed<E>({129, 72, false, whole});
    check_prefix_load<E>({1, 72, false, whole});
    check_prefix_load<E>({129, 1032, false, whole});
  }
  check_embed<E>({129, 384, false, true});
  check_embed<E>({129, 1032, false, true});
  // At 520 and 1000 the last vectors of a row end in the middle of a warp, beyond 1024 rows are wide.
  for (const int width : {64, 384, 520, 768, 1000, 1032}) check_embed<E>({7, width, false, true});
  for (const int width : {384, 1032}) check_embed<E>({7, width, false, false});
  for (const int n_tokens : {1, 127, 129, 700}) {
    check_embed_wgrad<E>({n_tokens, 72, false, true}, 30, 4, -1);
    check_embed_wgrad<E>({n_tokens, 384, false, true}, 30, 3, 1);
    check_embed_wgrad<E>({n_tokens, 72, false, true}, 3, 1, -1);
  }
}

}  // namespace

int main() {
  check_all<float>();
  check_all<bf16>();
  return testing::summary();
}
