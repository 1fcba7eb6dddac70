// Checks of activations, bias gradient, pooling, heads, loss and optimizer against plain loops in double.
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "common.cuh"
#include "testing.h"

extern "C" {
#define ELEMENTWISE(suffix, E)                                                                  \
  void gelu_fwd_##suffix(const StepState*, int, int, const E*, E*);                             \
  void gelu_bwd_##suffix(const StepState*, int, int, const E*, const E*, E*);                   \
  void tanh_fwd_##suffix(const StepState*, int, int, const E*, float*);                         \
  void tanh_bwd_##suffix(const StepState*, int, int, const float*, const float*, E*);           \
  void bias_grad_##suffix(const StepState*, int, int, const E*, float*, float*, unsigned*);     \
  void pool_fwd_##suffix(const StepState*, int, int, const E*, const int*, float*);             \
  void pool_bwd_##suffix(const StepState*, int, int, const E*, const int*, const int*, float*); \
  void head_fwd_##suffix(const StepState*, int, int, const float*, const E*, const float*,      \
                         const int*, float*);
#define HEAD(E) const float*, const E*, const int*, int
#define HEAD_DGRAD(suffix, E)                                                                          \
  void head_dgrad_##suffix(const StepState*, int, float*, HEAD(E), HEAD(E), HEAD(E), HEAD(E), HEAD(E), \
                           HEAD(E), HEAD(E), HEAD(E));
ELEMENTWISE(f32, float)
ELEMENTWISE(bf16, bf16)
HEAD_DGRAD(f32, float)
HEAD_DGRAD(bf16, bf16)
void pool_fwd_bf16_narrow(const StepState*, int, int, const bf16*, const int*, bf16*);
void head_wgrad(const StepState*, int, int, const float*, const float*, const int*, float*, float*);
void xent_fwd(const StepState*, int, const float*, const int*, float*, float*);
void grad_norm(const StepState*, const uint64_t*, const uint2*, float, float*, unsigned*, float*);
void adamw_step(const StepState*, const uint64_t*, const uint2*, const float*);
}

// Launches the instance of `op` for the element type E.
#define LAUNCH(E, op, grid, block, shared, ...)                                 \
  if constexpr (std::is_same_v<E, float>) {                                     \
    testing::launch(&op##_f32, #op "_f32", grid, block, shared, __VA_ARGS__);   \
  } else {                                                                      \
    testing::launch(&op##_bf16, #op "_bf16", grid, block, shared, __VA_ARGS__); \
  }

namespace {

using testing::Buffer;
typedef std::vector<float> Floats;

constexpr int IGNORED = -100;
constexpr int ABSENT = -1;
// Rows of every buffer that the batch leaves free: NaN, and not to be touched.
constexpr int SPARE_ROWS = 9;
constexpr size_t COLUMN_SHARED_BYTES = 8192;
constexpr int SLICE_ROWS = 128;
constexpr int CHUNK = 4096;

// Float arithmetic on the same inputs: single operations round by 6e-8, sums of n random terms by about
// sqrt(n) times that of their root mean square. The longest sum here has 1000 terms, added 8 or more apart.
constexpr double FLOAT_TOLERANCE = 2e-6;

// A result that is stored in E: bf16, of 8 significant bits, rounds each element by up to 2^-8 of it.
template <class E>
constexpr double stored_tolerance() {
  return std::is_same_v<E, float> ? FLOAT_TOLERANCE : FLOAT_TOLERANCE + 1.0 / 256.0;
}

template <class E>
const char* type_name() {
  return std::is_same_v<E, float> ? "f32" : "bf16";
}

unsigned ceil_div(size_t a, size_t b) { return static_cast<unsigned>((a + b - 1) / b); }

StepState step_state(int n_tokens, int n_sequences) {
  StepState state;
  memset(&state, 0, sizeof state);
  state.n_tokens = n_tokens;
  state.n_sequences = n_sequences;
  return state;
}

// `live` rows of random numbers, as E, and NaN rows above them.
template <class E>
Buffer<E> random_rows(int live, int cols, uint64_t seed, float scale = 1.0f) {
  const size_t n = static_cast<size_t>(live) * cols;
  Buffer<E> buffer(n + static_cast<size_t>(SPARE_ROWS) * cols);
  const Floats values = testing::random(n, seed, scale);
  for (size_t i = 0; i < n; ++i) buffer[i] = testing::from_float<E>(values[i]);
  return buffer;
}

template <class E>
Buffer<E> empty_rows(int live, int cols) {
  return Buffer<E>(static_cast<size_t>(live + SPARE_ROWS) * cols);
}

Buffer<int> ints(const std::vector<int>& values, size_t capacity) {
  Buffer<int> buffer(capacity);
  for (size_t i = 0; i < values.size(); ++i) buffer[i] = values[i];
  return buffer;
}

template <class T>
bool is_untouched(const T& value) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
  for (size_t i = 0; i < sizeof(T); ++i) {
    if (bytes[i] != 0xff) return false;
  }
  return true;
}

// What a kernel left behind, across schedules: the first run is compared with the expectation, the others
// bit by bit with the first.
class Results {
 public:
  // `expected` holds the live elements; those for which it is NaN must not have been written.
  template <class T>
  void check(const std::string& what, const Buffer<T>& got, const Floats& expected, double tolerance) {
    for (size_t i = 0; i < got.size(); ++i) {
      if (i < expected.size() && !std::isnan(expected[i])) continue;
      if (is_untouched(got[i])) continue;
      testing::check(false, what.c_str(), "wrote element " + std::to_string(i));
      break;
    }
    Floats of_interest, wanted;
    for (size_t i = 0; i < expected.size(); ++i) {
      if (std::isnan(expected[i])) continue;
      of_interest.push_back(testing::as_float(got[i]));
      wanted.push_back(expected[i]);
    }
    testing::close(what.c_str(), of_interest, wanted, tolerance);
    if (next_ == firsts_.size()) firsts_.push_back(of_interest);
    testing::same_bits((what + ", repeated").c_str(), of_interest, firsts_[next_]);
    ++next_;
  }

  void begin_run() { next_ = 0; }

 private:
  std::vector<Floats> firsts_;
  size_t next_ = 0;
};

// Runs `body` under every schedule with results that must not differ.
void repeat(const std::function<void(Results&)>& body) {
  Results results;
  testing::for_each_schedule([&] {
    results.begin_run();
    body(results);
  });
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x * M_SQRT1_2); }
double normal_pdf(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI); }

template <class F>
Floats mapped(const Floats& x, const Floats& y, size_t n, F f) {
  Floats out(n);
  for (size_t i = 0; i < n; ++i) out[i] = static_cast<float>(f(double(x[i]), double(y[i])));
  return out;
}

template <class E>
void check_activations(int rows, int cols) {
  const size_t n = static_cast<size_t>(rows) * cols;
  const std::string shape = std::to_string(rows) + " x " + std::to_string(cols) + " " + type_name<E>();
  const StepState state = step_state(rows, rows);
  const Buffer<E> x = random_rows<E>(rows, cols, 1, 5.0f);
  const Buffer<E> dout = random_rows<E>(rows, cols, 2);
  const Buffer<float> bounded = random_rows<float>(rows, cols, 3), dtanh_out = random_rows<float>(rows, cols, 4);
  const Floats xs = x.floats(), douts = dout.floats();
  const Floats gelu = mapped(xs, xs, n, [](double x, double) { return x * normal_cdf(x); });
  const Floats dgelu =
      mapped(xs, douts, n, [](double x, double d) { return d * (normal_cdf(x) + x * normal_pdf(x)); });
  const Floats tanhs = mapped(xs, xs, n, [](double x, double) { return std::tanh(x); });
  const Floats dtanh = mapped(bounded.floats(), dtanh_out.floats(), n, [](double o, double d) { return d * (1.0 - o * o); });
  const unsigned grid = ceil_div(x.size(), 2048);
  const double tolerance = stored_tolerance<E>();

  repeat([&](Results& results) {
    // Rows are tokens for GELU and sequences for tanh, as in the plans.
    Buffer<E> out = empty_rows<E>(rows, cols);
    LAUNCH(E, gelu_fwd, grid, 256, 0, &state, ROWS_TOKENS, cols, x.data(), out.data());
    results.check("gelu_fwd " + shape, out, gelu, tolerance);
    out.poison();
    LAUNCH(E, gelu_bwd, grid, 256, 0, &state, ROWS_TOKENS, cols, x.data(), dout.data(), out.data());
    results.check("gelu_bwd " + shape, out, dgelu, tolerance);
    out.poison();
    Buffer<float> wide_out = empty_rows<float>(rows, cols);
    LAUNCH(E, tanh_fwd, grid, 256, 0, &state, ROWS_SEQUENCES, cols, x.data(), wide_out.data());
    results.check("tanh_fwd " + shape, wide_out, tanhs, stored_tolerance<float>());
    LAUNCH(E, tanh_bwd, grid, 256, 0, &state, rows, cols, bounded.data(), dtanh_out.data(), out.data());
    results.check("tanh_bwd " + shape, out, dtanh, tolerance);
  });
}

// Column sums of the rows begin .. end - 1.
Floats column_sums(const Floats& x, int cols, int begin, int end) {
  Floats sums(cols);
  for (int col = 0; col < cols; ++col) {
    double sum = 0.0;
    for (int row = begin; row < end; ++row) sum += x[static_cast<size_t>(row) * cols + col];
    sums[col] = static_cast<float>(sum);
  }
  return sums;
}

template <class E>
void check_bias_grad(int rows, int cols) {
  const std::string what =
      "bias_grad " + std::to_string(rows) + " x " + std::to_string(cols) + " " + type_name<E>();
  const StepState state = step_state(rows, 1);
  const Buffer<E> dout = random_rows<E>(rows, cols, 4);
  const Floats expected = column_sums(dout.floats(), cols, 0, rows);
  // Two slices more than there are live rows for.
  const unsigned n_slices = ceil_div(rows + SPARE_ROWS, SLICE_ROWS) + 2;
  const unsigned n_ranges = ceil_div(cols, 256);
  Buffer<unsigned> counters(n_ranges);
  counters.fill(0.0f);
  repeat([&](Results& results) {
    Buffer<float> dbias(cols), partial(static_cast<size_t>(n_slices) * cols);
    const dim3 grid(n_ranges, n_slices);
    LAUNCH(E, bias_grad, grid, 256, COLUMN_SHARED_BYTES, &state, ROWS_TOKENS, cols, dout.data(), dbias.data(),
           partial.data(), counters.data());
    results.check(what, dbias, expected, FLOAT_TOLERANCE);
    for (unsigned i = 0; i < n_ranges; ++i) testing::check(counters[i] == 0, "a counter is not back at 0");
  });
}

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

ExpectedLoss expected_loss(const Task<float>& task) {
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
    if (label >= 0) loss += (top + std::log(sum) - logits[label]) / n_labelled;
    for (int i = 0; i < task.n_labels; ++i) {
      const double gradient = (std::exp(logits[i] - top) / sum - (i == label)) / n_labelled;
      dlogits.push_back(label == ABSENT ? NAN : label < 0 ? 0.0f : static_cast<float>(gradient));
    }
  }
  return {static_cast<float>(loss), dlogits};
}

void check_xent(int n_rows, int n_labels, int share) {
  const Task<float> task(n_rows, 1, n_labels, share, 2);
  const StepState state = step_state(n_rows, n_rows);
  const ExpectedLoss expected = expected_loss(task);
  const std::string what = "xent_fwd " + head_shape(task, 1) + ", share " + std::to_string(share);
  repeat([&](Results& results) {
    Buffer<float> loss(1), dlogits = empty_rows<float>(n_rows, n_labels);
    testing::launch(&xent_fwd, "xent_fwd", 1, 512, 256, &state, n_labels, task.logits.data(),
                    task.labels.data(), loss.data(), dlogits.data());
    results.check(what + " loss", loss, {expected.loss}, FLOAT_TOLERANCE);
    results.check(what + " dlogits", dlogits, expected.dlogits, FLOAT_TOLERANCE);
    loss.poison();
    testing::launch(&xent_fwd, "xent_fwd", 1, 512, 256, &state, n_labels, task.logits.data(),
                    task.labels.data(), loss.data(), nullptr);
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

// One trained tensor with its state before the step.
struct Trained {
  Floats value;
  Floats grad;
  Floats moment1;
  Floats moment2;
  bool is_narrow;  // the value is bf16 and has a master
  bool decays;
  bool is_head;

  Trained(size_t n, int seed, bool is_narrow, bool decays, bool is_head)
      : value(testing::random(n, seed)),
        grad(testing::random(n, seed + 100, 0.1f)),
        moment1(testing::random(n, seed + 200, 0.01f)),
        moment2(testing::random(n, seed + 300, 1e-4f)),
        is_narrow(is_narrow),
        decays(decays),
        is_head(is_head) {
    for (float& v : moment2) v = std::fabs(v);
  }
};

// Lengths about the vector, the chunk and the block; matrices of the ragged shapes.
std::vector<Trained> some_tensors() {
  std::vector<Trained> tensors;
  const size_t lengths[] = {1, 7, 8, 80, 771, 4095, 4096, 4097, 129 * 80, 2 * 4096 + 2048 + 3};
  int seed = 0;
  for (size_t n : lengths) {
    tensors.emplace_back(n, seed, seed % 2 == 0, seed % 3 != 0, seed % 4 == 1);
    ++seed;
  }
  return tensors;
}

// The device's copy of tensors, and the tables that name them.
struct Device {
  struct Arrays {
    Buffer<float> value, grad, moment1, moment2;
    Buffer<bf16> narrow;
  };
  std::vector<Arrays> arrays;
  std::vector<uint64_t> table;
  std::vector<uint2> chunks;

  explicit Device(const std::vector<Trained>& tensors) {
    for (const Trained& t : tensors) {
      Buffer<bf16> narrow(t.is_narrow ? t.value.size() : 0);
      arrays.push_back({Buffer<float>(t.value), Buffer<float>(t.grad), Buffer<float>(t.moment1),
                        Buffer<float>(t.moment2), std::move(narrow)});
      add(t, arrays.back());
    }
  }

 private:
  void add(const Trained& t, const Arrays& a) {
    const auto address = [](const void* pointer) { return reinterpret_cast<uint64_t>(pointer); };
    const uint64_t value = address(a.value.data());
    const uint64_t flags = (t.decays ? 1 : 0) | (t.is_head ? 2 : 0);
    const uint64_t row[8] = {t.is_narrow ? address(a.narrow.data()) : value,
                             t.is_narrow ? value : 0,
                             address(a.grad.data()),
                             address(a.moment1.data()),
                             address(a.moment2.data()),
                             t.value.size(),
                             flags,
                             0};
    const unsigned item = static_cast<unsigned>(table.size() / 8);
    table.insert(table.end(), row, row + 8);
    for (unsigned i = 0; i < ceil_div(t.value.size(), CHUNK); ++i) chunks.push_back(make_uint2(item, i));
  }
};

void check_grad_norm(float max_norm) {
  const std::vector<Trained> tensors = some_tensors();
  const StepState state = step_state(0, 0);
  const Device device(tensors);
  double sum = 0.0;
  for (const Trained& t : tensors) {
    for (float g : t.grad) sum += double(g) * g;
  }
  const double norm = std::sqrt(sum), factor = std::fmin(1.0, max_norm / (norm + 1e-6));
  const std::string what = "grad_norm, max_norm " + std::to_string(max_norm);
  const unsigned n_chunks = static_cast<unsigned>(device.chunks.size());
  Buffer<unsigned> counter(1);
  counter.fill(0.0f);
  repeat([&](Results& results) {
    Buffer<float> partial(n_chunks), out(2);
    testing::launch(&grad_norm, "grad_norm", n_chunks, 256, 2048, &state, device.table.data(),
                    device.chunks.data(), max_norm, partial.data(), counter.data(), out.data());
    results.check(what, out, {static_cast<float>(norm), static_cast<float>(factor)}, FLOAT_TOLERANCE);
    testing::check(counter[0] == 0, "the counter is not back at 0");
  });
}

// The step in double, in place.
void expect_adamw(const StepState& state, double clip, Trained& t) {
  const double rate = t.is_head ? state.head_learning_rate : state.learning_rate;
  const double decay = t.decays ? state.weight_decay : 0.0;
  for (size_t i = 0; i < t.value.size(); ++i) {
    const double grad = t.grad[i] * clip;
    const double m = 0.9 * t.moment1[i] + 0.1 * grad;
    const double v = 0.999 * t.moment2[i] + 0.001 * grad * grad;
    const double decayed = t.value[i] - rate * decay * t.value[i];
    const double denominator = std::sqrt(v) / std::sqrt(double(state.bias_correction2)) + 1e-8;
    t.value[i] = static_cast<float>(decayed - rate / state.bias_correction1 * m / denominator);
    t.moment1[i] = static_cast<float>(m);
    t.moment2[i] = static_cast<float>(v);
  }
}

// With rates so high that the change is as large as the value: a wrong change is then a wrong value.
void check_adamw(const float* norm_and_clip) {
  const std::vector<Trained> before = some_tensors();
  StepState state = step_state(0, 0);
  state.step = 3;
  state.learning_rate = 0.3f;
  state.head_learning_rate = 0.7f;
  state.weight_decay = 0.4f;
  state.bias_correction1 = static_cast<float>(1.0 - std::pow(0.9, 3.0));
  state.bias_correction2 = static_cast<float>(1.0 - std::pow(0.999, 3.0));
  std::vector<Trained> after = before;
  for (Trained& t : after) expect_adamw(state, norm_and_clip ? norm_and_clip[1] : 1.0, t);
  repeat([&](Results& results) {
    Device device(before);
    const unsigned n_chunks = static_cast<unsigned>(device.chunks.size());
    testing::launch(&adamw_step, "adamw_step", n_chunks, 256, 0, &state, device.table.data(),
                    device.chunks.data(), norm_and_clip);
    for (size_t i = 0; i < after.size(); ++i) {
      const Device::Arrays& got = device.arrays[i];
      const std::string what = "adamw_step of " + std::to_string(after[i].value.size());
      results.check(what + " value", got.value, after[i].value, FLOAT_TOLERANCE);
      results.check(what + " moment1", got.moment1, after[i].moment1, FLOAT_TOLERANCE);
      results.check(what + " moment2", got.moment2, after[i].moment2, FLOAT_TOLERANCE);
      results.check(what + " grad", got.grad, before[i].grad, 0.0);
      if (!after[i].is_narrow) continue;
      const Floats copy = Buffer<bf16>(got.value.floats()).floats();
      results.check(what + " narrow", got.narrow, copy, 0.0);
    }
  });
}

template <class E>
void check_family() {
  for (int rows : {1, 7, 129}) {
    for (int cols : {1, 3, 64, 80, 771}) {
      check_activations<E>(rows, cols);
      check_bias_grad<E>(rows, cols);
    }
  }
  check_bias_grad<E>(300, 80);
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
  check_grad_norm(0.5f);
  check_grad_norm(1e6f);
  const float norm_and_clip[2] = {2.0f, 0.5f};
  check_adamw(nullptr);
  check_adamw(norm_and_clip);
  return testing::summary();
}
