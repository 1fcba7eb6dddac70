// Attention in double, and the inputs of one shape, for the checks of its kernels.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "common.cuh"
#include "philox.h"
#include "testing.h"

namespace testing {

typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;

constexpr unsigned SITE = 9;
constexpr unsigned STEP = 3;
constexpr unsigned SEED[2] = {42, 7};
// Rows of the buffers that the batch leaves free.
constexpr int SPARE_ROWS = 37;

struct Shape {
  std::vector<int> lengths;
  int n_heads;
  int head_size;
  unsigned threshold;

  int width() const { return n_heads * head_size; }

  int n_tokens() const {
    int sum = 0;
    for (int length : lengths) sum += length;
    return sum;
  }

  std::string name(const char* way) const {
    char text[128];
    snprintf(text, sizeof text, "%s, %d heads of %d, %zu sequences, %d tokens, dropout %u", way, n_heads,
             head_size, lengths.size(), n_tokens(), threshold);
    return text;
  }
};

// The factors of a head's probabilities, [length, length].
inline Doubles factors(unsigned threshold, int sequence, int head, int length) {
  Doubles factors(size_t(length) * length, 1.0);
  if (threshold == 0) return factors;
  const double scale = 256.0 / (256.0 - threshold);
  for (int query_block = 0; query_block * 16 < length; ++query_block) {
    for (int key_block = 0; key_block * 32 < length; ++key_block) {
      for (int lane = 0; lane < 32; ++lane) {
        const uint32_t place = uint32_t(query_block) << 16 | uint32_t(key_block);
        const uint32_t site = SITE | uint32_t(head + 1) << 16;
        const Words drawn = generate(SEED[0], SEED[1], {{place, uint32_t(sequence * 32 + lane), site, STEP}});
        for (int at = 0; at < 16; ++at) {
          const int query = query_block * 16 + lane / 4 + 8 * (at / 2 % 2);
          const int key = key_block * 32 + at / 4 * 8 + lane % 4 * 2 + at % 2;
          if (query >= length || key >= length) continue;
          const unsigned byte = drawn.word[at / 4] >> (at % 4 * 8) & 0xff;
          factors[size_t(query) * length + key] = byte < threshold ? 0.0 : scale;
        }
      }
    }
  }
  return factors;
}

struct Gradients {
  Floats dq, dk, dv;
};

// What should come out, for the live rows.
struct Truth {
  Floats out, lse, dq, dk, dv;
};

// Rows of one head of one sequence.
struct Head {
  int first_token, column, size, width;

  size_t at(int row, int i) const { return size_t(first_token + row) * width + column + i; }

  double dot(const Floats& a, int a_row, const Floats& b, int b_row) const {
    double sum = 0.0;
    for (int i = 0; i < size; ++i) sum += double(a[at(a_row, i)]) * b[at(b_row, i)];
    return sum;
  }

  void add(Doubles& to, int to_row, double weight, const Floats& from, int from_row) const {
    for (int i = 0; i < size; ++i) to[at(to_row, i)] += weight * from[at(from_row, i)];
  }
};

inline Truth truth_of(const Shape& shape, const Floats& q, const Floats& k, const Floats& v, const Floats& dout) {
  const size_t n = size_t(shape.n_tokens()) * shape.width();
  Doubles out(n), lse(size_t(shape.n_tokens()) * shape.n_heads), dq(n), dk(n), dv(n);
  const double scale = 1.0 / std::sqrt(double(shape.head_size));
  int first_token = 0;
  for (int sequence = 0; sequence < int(shape.lengths.size()); ++sequence) {
    const int length = shape.lengths[sequence];
    for (int h = 0; h < shape.n_heads; ++h) {
      const Head head{first_token, h * shape.head_size, shape.head_size, shape.width()};
      const Doubles factor = factors(shape.threshold, sequence, h, length);
      Doubles p(length), dp(length);
      for (int query = 0; query < length; ++query) {
        double sum = 0.0, delta = 0.0;
        for (int key = 0; key < length; ++key) {
          p[key] = std::exp(scale * head.dot(q, query, k, key));
          sum += p[key];
        }
        lse[size_t(first_token + query) * shape.n_heads + h] = std::log(sum);
        for (int key = 0; key < length; ++key) {
          p[key] /= sum;
          const double f = factor[size_t(query) * length + key];
          dp[key] = f * head.dot(dout, query, v, key);
          delta += p[key] * dp[key];
          head.add(out, query, p[key] * f, v, key);
          head.add(dv, key, p[key] * f, dout, query);
        }
        for (int key = 0; key < length; ++key) {
          const double dscore = scale * p[key] * (dp[key] - delta);
          head.add(dq, query, dscore, k, key);
          head.add(dk, key, dscore, q, query);
        }
      }
    }
    first_token += length;
  }
  const auto floats = [](const Doubles& values) { return Floats(values.begin(), values.end()); };
  return {floats(out), floats(lse), floats(dq), floats(dk), floats(dv)};
}

// The inputs of one shape as the device has them, spare rows NaN.
template <class E>
struct Problem {
  Shape shape;
  int capacity;
  StepState state = {};
  Buffer<E> q, k, v, dout;
  Buffer<int> sequence_ids, cu_seqlens;

  Problem(const Shape& shape, const Floats& q, const Floats& k, const Floats& v, const Floats& dout)
      : shape(shape),
        capacity(shape.n_tokens() + SPARE_ROWS),
        q(with_spare_rows(q)),
        k(with_spare_rows(k)),
        v(with_spare_rows(v)),
        dout(with_spare_rows(dout)),
        sequence_ids(capacity),
        cu_seqlens(shape.lengths.size() + 2) {
    state.n_tokens = shape.n_tokens();
    state.n_sequences = int(shape.lengths.size());
    state.step = STEP;
    state.seed[0] = SEED[0];
    state.seed[1] = SEED[1];
    int token = 0;
    for (int sequence = 0; sequence < state.n_sequences; ++sequence) {
      cu_seqlens.data()[sequence] = token;
      for (int i = 0; i < shape.lengths[sequence]; ++i) sequence_ids.data()[token++] = sequence;
    }
    cu_seqlens.data()[state.n_sequences] = token;
  }

  size_t n_live() const { return size_t(shape.n_tokens()) * shape.width(); }
  size_t n_elements() const { return size_t(capacity) * shape.width(); }
  size_t n_statistics() const { return size_t(capacity) * shape.n_heads; }

  Floats with_spare_rows(Floats values) const {
    values.resize(n_elements(), NAN);
    return values;
  }
};

inline Floats live(const Floats& values, size_t n) { return Floats(values.begin(), values.begin() + n); }

// The live part of an output, whose rest must be as it was.
template <class T>
Floats live_part(const Buffer<T>& buffer, size_t n_live) {
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(buffer.data());
  size_t at = n_live * sizeof(T);
  while (at < buffer.size() * sizeof(T) && bytes[at] == 0xff) ++at;
  check(at == buffer.size() * sizeof(T), "rows above the live count are left alone");
  return live(buffer.floats(), n_live);
}

}  // namespace testing
