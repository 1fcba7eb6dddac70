// Checks of sums of gradients, of their norm and of AdamW against plain loops in double.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "common.cuh"
#include "plain_checks.h"
#include "testing.h"

extern "C" {
void grad_norm(const StepState*, const uint64_t*, const uint2*, float, float*, unsigned*, float*);
void adamw_step(const StepState*, const uint64_t*, const uint2*, const float*);
void grad_accumulate(const StepState*, const uint64_t*, const uint2*, int);
}

namespace {

using namespace testing;

constexpr int CHUNK = 4096;

// One trained tensor with its state before the step.
struct Trained {
  Floats value;
  Floats grad;
  Floats moment1;
  Floats moment2;
  bool is_narrow;  // the value is bf16 and has a master
  bool decays;
  bool is_head;
  float rate_scale;
  unsigned skipped_steps;

  Trained(size_t n, int seed, bool is_narrow, bool decays, bool is_head)
      : value(testing::random(n, seed)),
        grad(testing::random(n, seed + 100, 0.1f)),
        moment1(testing::random(n, seed + 200, 0.01f)),
        moment2(testing::random(n, seed + 300, 1e-4f)),
        is_narrow(is_narrow),
        decays(decays),
        is_head(is_head),
        rate_scale(seed % 3 == 1 ? 0.5f : 1.0f),
        skipped_steps(static_cast<unsigned>(seed % 3)) {
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
    uint32_t scale;
    std::memcpy(&scale, &t.rate_scale, sizeof scale);
    const uint64_t rate = scale | static_cast<uint64_t>(t.skipped_steps) << 32;
    const uint64_t row[8] = {t.is_narrow ? address(a.narrow.data()) : value,
                             t.is_narrow ? value : 0,
                             address(a.grad.data()),
                             address(a.moment1.data()),
                             address(a.moment2.data()),
                             t.value.size(),
                             flags,
                             rate};
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

// The sums lie where the values do; beginning must not read them.
void check_grad_accumulate(bool begins) {
  std::vector<Trained> tensors = some_tensors();
  for (Trained& t : tensors) t.is_narrow = false;
  const StepState state = step_state(0, 0);
  repeat([&](Results& results) {
    Device device(tensors);
    if (begins) {
      for (Device::Arrays& arrays : device.arrays) arrays.value.poison();
    }
    const unsigned n_chunks = static_cast<unsigned>(device.chunks.size());
    testing::launch(&grad_accumulate, "grad_accumulate", n_chunks, 256, 0, &state, device.table.data(),
                    device.chunks.data(), begins ? 1 : 0);
    for (size_t i = 0; i < tensors.size(); ++i) {
      const Trained& t = tensors[i];
      Floats expected;
      for (size_t at = 0; at < t.grad.size(); ++at) expected.push_back(begins ? t.grad[at] : t.value[at] + t.grad[at]);
      const std::string what = "grad_accumulate of " + std::to_string(t.value.size());
      results.check(what + " sum", device.arrays[i].value, expected, 0.0);
      results.check(what + " grad", device.arrays[i].grad, t.grad, 0.0);
    }
  });
}

// The step in double, in place.
void expect_adamw(const StepState& state, double clip, Trained& t) {
  const double rate = double(t.rate_scale) * (t.is_head ? state.head_learning_rate : state.learning_rate);
  const double n = state.step - t.skipped_steps;
  const double correction1 = 1.0 - std::pow(0.9, n), correction2 = 1.0 - std::pow(0.999, n);
  const double decay = t.decays ? state.weight_decay : 0.0;
  for (size_t i = 0; i < t.value.size(); ++i) {
    const double grad = t.grad[i] * clip;
    const double m = 0.9 * t.moment1[i] + 0.1 * grad;
    const double v = 0.999 * t.moment2[i] + 0.001 * grad * grad;
    const double decayed = t.value[i] - rate * decay * t.value[i];
    const double denominator = std::sqrt(v) / std::sqrt(correction2) + 1e-8;
    t.value[i] = static_cast<float>(decayed - rate / correction1 * m / denominator);
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

}  // namespace

int main() {
  check_grad_accumulate(true);
  check_grad_accumulate(false);
  check_grad_norm(0.5f);
  check_grad_norm(1e6f);
  const float norm_and_clip[2] = {2.0f, 0.5f};
  check_adamw(nullptr);
  check_adamw(norm_and_clip);
  return testing::summary();
}
