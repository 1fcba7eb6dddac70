// Checks of pooling, heads and loss against plain loops in double.
#include <cmath>
#include <string>
#include <vector>

#include "common.cuh"
#include "plain_checks.h"
#include "testing.h"

#define HEAD(E) const float*, const E*, const int*, int
#define DECLARE(suffix, E)                                                                               \
  void pool_fwd_##suffix(const StepState*, int, int, const E*, const int*, float*);                      \
  void pool_bwd_##suffix(const StepState*, int, int, const E*, const int*, const int*, float*);          \
  void head_fwd_##suffix(const StepState*, int, int, const float*, const E*, const float*, const int*,   \
                         float*);                                                                        \
  void head_dgrad_##suffix(const StepState*, int, float*, HEAD(E), HEAD(E), HEAD(E), HEAD(E), HEAD(E),   \
                           HEAD(E), HEAD(E), HEAD(E));

extern "C" {
DECLARE(f32, float)
DECLARE(bf16, bf16)
void pool_fwd_bf16_narrow(const StepState*, int, int, const bf16*, const int*, bf16*);
void head_wgrad(const StepState*, int, int, const float*, const float*, const int*, float*, float*);
void xent_fwd(const StepState*, int, const float*, const int*, const float*, float, float*, float*);
}

namespace {

using namespace testing;

constexpr int IGNORED = -100;
constexpr int ABSENT = -1;

struct Packing {
  std::vector<int> ends{0};
  std::vector<int> sequence_ids;

  explicit Packing(const std::vector<int>& lengths) {
    for (size_t b = 0; b < lengths.size(); ++b) {
      ends.push_back(ends.back() + lengths[b]);
      sequence_ids.insert(sequence_ids.end(), lengths[b], static_cast<int>(b));
    }
  }
  int n_tokens() const { return ends.back(); }
  int n_sequences() const { return static_cast<int>(ends.size()) - 1; }
};

Floats expected_pool(const Packing& packing, int cols, bool takes_mean, const Floats& x) {
  Floats out;
  for (int b = 0; b < packing.n_sequences(); ++b) {
    const int begin = packing.ends[b];
    const int end = takes_mean ? packing.ends[b + 1] : begin + 1;
    for (float sum : column_sums(x, cols, begin, end)) out.push_back(sum / static_cast<float>(end - begin));
  }
  return out;
}

Floats expected_dpool(const Packing& packing, int cols, bool takes_mean, const Floats& dout) {
  Floats dx;
  for (int token = 0; token < packing.n_tokens(); ++token) {
    const int b = packing.sequence_ids[token];
    const int length = packing.ends[b + 1] - packing.ends[b];
    const double factor = takes_mean ? 1.0 / length : token == packing.ends[b] ? 1.0 : 0.0;
    for (int col = 0; col < cols; ++col) {
      dx.push_back(static_cast<float>(factor * dout[static_cast<size_t>(b) * cols + col]));
    }
  }
  return dx;
}

template <class E>
void check_pool(const std::vector<int>& lengths, int cols, int takes_mean) {
  const Packing packing(lengths);
  const int n_tokens = packing.n_tokens(), n_sequences = packing.n_sequences();
  const std::string shape = std::to_string(n_sequences) + " of " + std::to_string(n_tokens) + " x " +
                            std::to_string(cols) + (takes_mean ? " mean " : " first ") + type_name<E>();
  const StepState state = step_state(n_tokens, n_sequences);
  const Buffer<int> ends = ints(packing.ends, n_sequences + 1 + SPARE_ROWS);
  const Buffer<int> sequence_ids = ints(packing.sequence_ids, n_tokens + SPARE_ROWS);
  const Buffer<E> x = random_rows<E>(n_tokens, cols, 5);
  const Buffer<E> dout = random_rows<E>(n_sequences, cols, 6);
  const Floats pooled = expected_pool(packing, cols, takes_mean, x.floats());
  const Floats dpooled = expected_dpool(packing, cols, takes_mean, dout.floats());
  // FLOAT_TOLERANCE holds here too: sums of up to 300 terms.
  repeat([&](Results& results) {
    Buffer<float> out = empty_rows<float>(n_sequences, cols);
    const dim3 grid(n_sequences + SPARE_ROWS, ceil_div(cols, 256));
    LAUNCH(E, pool_fwd, grid, 256, COLUMN_SHARED_BYTES, &state, cols, takes_mean, x.data(), ends.data(),
           out.data());
    results.check("pool_fwd " + shape, out, pooled, stored_tolerance<float>());
    if constexpr (std::is_same_v<E, bf16>) {
      Buffer<E> narrow = empty_rows<E>(n_sequences, cols);
      testing::launch(&pool_fwd_bf16_narrow, "pool_fwd_bf16_narrow", grid, 256, COLUMN_SHARED_BYTES, &state, cols,
                      takes_mean, x.data(), ends.data(), narrow.data());
      results.check("pool_fwd narrow " + shape, narrow, pooled, stored_tolerance<E>());
    }
    Buffer<float> dx = empty_rows<float>(n_tokens, cols);
    LAUNCH(E, pool_bwd, ceil_div(n_tokens + SPARE_ROWS, 8), 256, 0, &state, cols, takes_mean, dout.data(),
           sequence_ids.data(), ends.data(), dx.data());
    results.check("pool_bwd " + shape, dx, dpooled, stored_tolerance<float>());
  });
}

// Labels of all three kinds; `share` of 7 rows have a class.
std::vector<int> some_labels(int n_rows, int n_labels, int share, int seed) {
  std::vector<int> labels;
  for (int row = 0; row < n_rows; ++row) {
    const int kind = (row * 5 + seed) % 7;
    labels.push_back(kind < share ? (row + seed) % n_labels : kind % 2 == 0 ? IGNORED : ABSENT);
  }
  return labels;
}

// The task of one head, with logits and gradients as the rows' labels leave them: NaN where a kernel has
// nothing to read.
template <class E>
struct Task {
  int n_rows;
  int n_labels;
  std::vector<int> classes;
  Buffer<int> labels;
  Buffer<E> weight;
  Buffer<float> bias;
  Buffer<float> logits;
  Buffer<float> dlogits;

  Task(int n_rows, int cols, int n_labels, int share, int seed)
      : n_rows(n_rows),
        n_labels(n_labels),
        classes(some_labels(n_rows, n_labels, share, seed)),
        labels(ints(classes, n_rows + SPARE_ROWS)),
        weight(testing::random(static_cast<size_t>(n_labels) * cols, seed + 10)),
        bias(testing::random(n_labels, seed + 20)),
        logits(random_rows<float>(n_rows, n_labels, seed + 30, 6.0f)),
        dlogits(random_rows<float>(n_rows, n_labels, seed + 40)) {
    for (int row = 0; row < n_rows; ++row) {
      for (int i = 0; i < n_labels; ++i) {
        if (classes[row] == ABSENT) logits[row * n_labels + i] = NAN;
        if (classes[row] < 0) dlogits[row * n_labels + i] = NAN;
      }
    }
  }
};

template <class E>
std::string head_shape(const Task<E>& task, int cols) {
  return std::to_string(task.n_rows) + " x " + std::to_string(cols) + ", " + std::to_string(task.n_labels) +
         " labels " + type_name<E>();
}

template <class E>
void check_head_fwd(int n_rows, int cols, int n_labels) {
  const Task<E> task(n_rows, cols, n_labels, 3, 1);
  const StepState state = step_state(n_rows, n_rows);
  const Buffer<float> x = random_rows<float>(n_rows, cols, 7);
  const Floats xs = x.floats(), weights = task.weight.floats();
  Floats expected;
  for (int row = 0; row < n_rows; ++row) {
    for (int label = 0; label < n_labels; ++label) {
      double sum = task.bias[label];
      for (int i = 0; i < cols; ++i) {
        const double weight = weights[static_cast<size_t>(label) * cols + i];
        sum += weight * xs[static_cast<size_t>(row) * cols + i];
      }
      expected.push_back(task.classes[row] == ABSENT ? NAN : static_cast<float>(sum));
    }
  }
  repeat([&](Results& results) {
    Buffer<float> logits = empty_rows<float>(n_rows, n_labels);
    LAUNCH(E, head_fwd, ceil_div(logits.size(), 8), 256, 0, &state, cols, n_labels, x.data(),
           task.weight.data(), task.bias.data(), task.labels.data(), logits.data());
    results.check("head_fwd " + head_shape(task, cols), logits, expected, FLOAT_TOLERANCE);
  });
}

struct ExpectedLoss {
  float loss;
  Floats dlogits;
};

// `weights` is empty for the mean over the labelled rows.
ExpectedLoss expected_loss(const Task<float>& task, const Floats& weights, double smoothing) {
  int n_labelled = 0;
  for (int label : task.classes) n_labelled += label >= 0;
  double loss = 0.0;
  Floats dlogits;
  for (int row = 0; row < task.n_rows; ++row) {
    const int label = task.classes[row];
    const float* logits = task.logits.data() + static_cast<size_t>(row) * task.n_labels;
    double top = -INFINITY, sum = 0.0;
    for (int i = 0; i < task.n_labels; ++i) top = std::fmax(top, logits[i]);
    for (int i = 0; i < task.n_labels; ++i) sum += std::exp(logits[i] - top);
    const double weight = weights.empty() ? 1.0 / n_labelled : weights[row];
    for (int i = 0; i < task.n_labels; ++i) {
      const double share = (1.0 - smoothing) * (i == label) + smoothing / task.n_labels;
      if (label >= 0) loss += weight * share * (top + std::log(sum) - logits[i]);
      const double gradient = weight * (std::exp(logits[i] - top) / sum - share);
      dlogits.push_back(label == ABSENT ? NAN : label < 0 ? 0.0f : static_cast<float>(gradient));
    }
  }
  return {static_cast<float>(loss), dlogits};
}

void check_xent(int n_rows, int n_labels, int share, bool is_weighted = false, float smoothing = 0.0f) {
  const Task<float> task(n_rows, 1, n_labels, share, 2);
  const StepState state = step_state(n_rows, n_rows);
  Floats row_weights = is_weighted ? testing::random(n_rows, 50) : Floats();
  for (float& weight : row_weights) weight = 0.2f + std::fabs(weight);
  const ExpectedLoss expected = expected_loss(task, row_weights, smoothing);
  // What a row without a label weighs is not looked at.
  for (int row = 0; row < n_rows && is_weighted; ++row) {
    if (task.classes[row] < 0) row_weights[row] = NAN;
  }
  const Buffer<float> given(row_weights);
  const float* weights = is_weighted ? given.data() : nullptr;
  const std::string what = "xent_fwd " + head_shape(task, 1) + ", share " + std::to_string(share) +
                           (is_weighted ? ", weighted" : "") + ", smoothing " + std::to_string(smoothing);
  repeat([&](Results& results) {
    Buffer<float> loss(1), dlogits = empty_rows<float>(n_rows, n_labels);
    testing::launch(&xent_fwd, "xent_fwd", 1, 512, 256, &state, n_labels, task.logits.data(),
                    task.labels.data(), weights, smoothing, loss.data(), dlogits.data());
    results.check(what + " loss", loss, {expected.loss}, FLOAT_TOLERANCE);
    results.check(what + " dlogits", dlogits, expected.dlogits, FLOAT_TOLERANCE);
    loss.poison();
    testing::launch(&xent_fwd, "xent_fwd", 1, 512, 256, &state, n_labels, task.logits.data(),
                    task.labels.data(), weights, smoothing, loss.data(), nullptr);
    results.check(what + " loss alone", loss, {expected.loss}, FLOAT_TOLERANCE);
  });
}

template <class E>
Floats expected_head_dgrad(const std::vector<Task<E>>& tasks, int n_rows, int cols) {
  std::vector<double> dx(static_cast<size_t>(n_rows) * cols, 0.0);
  for (const Task<E>& task : tasks) {
    const Floats weights = task.weight.floats();
    for (int row = 0; row < n_rows; ++row) {
      if (task.classes[row] < 0) continue;
      for (int label = 0; label < task.n_labels; ++label) {
        const double d = task.dlogits[static_cast<size_t>(row) * task.n_labels + label];
        for (int i = 0; i < cols; ++i) {
          dx[static_cast<size_t>(row) * cols + i] += d * weights[static_cast<size_t>(label) * cols + i];
        }
      }
    }
  }
  return Floats(dx.begin(), dx.end());
}

template <class E>
void check_head_dgrad(int n_rows, int cols, int n_heads) {
  const int label_counts[] = {2, 3, 5};
  std::vector<Task<E>> tasks;
  for (int h = 0; h < n_heads; ++h) tasks.emplace_back(n_rows, cols, label_counts[h % 3], 3, h);
  const StepState state = step_state(n_rows, n_rows);
  const Floats expected = expected_head_dgrad(tasks, n_rows, cols);
  const std::string what =
      "head_dgrad " + head_shape(tasks[0], cols) + ", " + std::to_string(n_heads) + " heads";
  const auto d = [&](int h) -> const float* { return h < n_heads ? tasks[h].dlogits.data() : nullptr; };
  const auto w = [&](int h) -> const E* { return h < n_heads ? tasks[h].weight.data() : nullptr; };
  const auto l = [&](int h) -> const int* { return h < n_heads ? tasks[h].labels.data() : nullptr; };
  const auto n = [&](int h) { return h < n_heads ? tasks[h].n_labels : 0; };
  repeat([&](Results& results) {
    Buffer<float> dx = empty_rows<float>(n_rows, cols);
    const dim3 grid(n_rows + SPARE_ROWS, ceil_div(cols, 256));
    LAUNCH(E, head_dgrad, grid, 256, 0, &state, cols, dx.data(), d(0), w(0), l(0), n(0), d(1), w(1), l(1),
           n(1), d(2), w(2), l(2), n(2), d(3), w(3), l(3), n(3), d(4), w(4), l(4), n(4), d(5), w(5), l(5),
           n(5), d(6), w(6), l(6), n(6), d(7), w(7), l(7), n(7));
    results.check(what, dx, expected, FLOAT_TOLERANCE);
  });
}

void check_head_wgrad(int n_rows, int cols, int n_labels) {
  const Task<float> task(n_rows, cols, n_labels, 3, 4);
  const StepState state = step_state(n_rows, n_rows);
  const Buffer<float> x = random_rows<float>(n_rows, cols, 8);
  const Floats xs = x.floats();
  std::vector<double> dweight(static_cast<size_t>(n_labels) * cols, 0.0), dbias(n_labels, 0.0);
  for (int row = 0; row < n_rows; ++row) {
    if (task.classes[row] < 0) continue;
    for (int label = 0; label < n_labels; ++label) {
      const double d = task.dlogits[static_cast<size_t>(row) * n_labels + label];
      dbias[label] += d;
      for (int i = 0; i < cols; ++i) {
        dweight[static_cast<size_t>(label) * cols + i] += d * xs[static_cast<size_t>(row) * cols + i];
      }
    }
  }
  const Floats weight_gradient(dweight.begin(), dweight.end()), bias_gradient(dbias.begin(), dbias.end());
  const std::string what = "head_wgrad " + head_shape(task, cols);
  const dim3 grid(ceil_div(cols, 32), n_labels);
  const size_t shared = 1056;
  repeat([&](Results& results) {
    Buffer<float> to_weight(weight_gradient.size()), to_bias(n_labels);
    testing::launch(&head_wgrad, "head_wgrad", grid, 256, shared, &state, cols, n_labels, x.data(), task.dlogits.data(),
           task.labels.data(), to_weight.data(), to_bias.data());
    results.check(what + " dweight", to_weight, weight_gradient, FLOAT_TOLERANCE);
    results.check(what + " dbias", to_bias, bias_gradient, FLOAT_TOLERANCE);
    to_weight.poison(), to_bias.poison();
    testing::launch(&head_wgrad, "head_wgrad", grid, 256, shared, &state, cols, n_labels, x.data(), task.dlogits.data(),
           task.labels.data(), to_weight.data(), nullptr);
    results.check(what + " dweight alone", to_weight, weight_gradient, FLOAT_TOLERANCE);
    testing::launch(&head_wgrad, "head_wgrad", dim3(1, n_labels), 256, shared, &state, cols, n_labels, nullptr,
           task.dlogits.data(), task.labels.data(), nullptr, to_bias.data());
    results.check(what + " dbias alone", to_bias, bias_gradient, FLOAT_TOLERANCE);
  });
}

template <class E>
void check_family() {
  for (int cols : {1, 3, 64, 80, 264, 771}) {
    for (int takes_mean : {0, 1}) {
      check_pool<E>({1}, cols, takes_mean);
      check_pool<E>({129, 1, 7, 20}, cols, takes_mean);
    }
  }
  for (int rows : {1, 7, 129}) {
    for (int n_labels : {2, 3, 5}) {
      const int cols = n_labels == 2 ? 771 : n_labels == 3 ? 80 : 264;
      check_head_fwd<E>(rows, cols, n_labels);
    }
    check_head_dgrad<E>(rows, 80, 1);
    check_head_dgrad<E>(rows, 3, 8);
  }
  check_head_fwd<E>(7, 1, 5);
  check_head_dgrad<E>(7, 771, 3);
}

}  // namespace

int main() {
  check_family<float>();
  check_family<bf16>();
  for (int rows : {1, 7, 129}) {
    for (int cols : {771, 80, 264}) check_head_wgrad(rows, cols, 3);
  }
  check_head_wgrad(7, 3, 5);
  for (int rows : {1, 7, 129}) {
    for (int n_labels : {2, 3, 5}) {
      for (int share : {0, 3, 7}) check_xent(rows, n_labels, share);
    }
  }
  check_xent(7, 1000, 3);
  for (int rows : {1, 7, 129}) {
    for (int share : {0, 3, 7}) {
      check_xent(rows, 3, share, true);
      check_xent(rows, 5, share, false, 0.1f);
      check_xent(rows, 77, share, true, 0.3f);
    }
  }
  return testing::summary();
}
