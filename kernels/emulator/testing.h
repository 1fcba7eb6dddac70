// For stand-alone checks of kernels on the emulator (tests/): exact-size buffers full of NaN, launches under
// many schedules, comparisons that NaN fails. One program per family of kernels, so everything is inline.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "abi.h"
#include "cuda_bf16.h"
#include "cuda_host.h"

namespace testing {

inline float as_float(float value) { return value; }
inline float as_float(int value) { return static_cast<float>(value); }
inline float as_float(unsigned value) { return static_cast<float>(value); }
inline float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
inline T from_float(float value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return static_cast<T>(value);
  }
}

// A heap block of exactly n elements, 256-byte aligned as the device's allocations are, every byte 0xff:
// NaN where nobody has written. AddressSanitizer sees an access behind its end.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n) : n_(n) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, n * sizeof(T)) != 0) abort();
    data_ = static_cast<T*>(memory);
    poison();
  }
  explicit Buffer(const std::vector<float>& values) : Buffer(values.size()) {
    for (size_t i = 0; i < n_; ++i) data_[i] = from_float<T>(values[i]);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept : data_(other.data_), n_(other.n_) {
    other.data_ = nullptr;
    other.n_ = 0;
  }
  ~Buffer() { free(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return n_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  std::vector<float> floats() const {
    std::vector<float> values(n_);
    for (size_t i = 0; i < n_; ++i) values[i] = as_float(data_[i]);
    return values;
  }

  // As new: all bytes 0xff. fill: one value everywhere (counters start at 0).
  void poison() { memset(static_cast<void*>(data_), 0xff, n_ * sizeof(T)); }
  void fill(float value) {
    for (size_t i = 0; i < n_; ++i) data_[i] = from_float<T>(value);
  }

 private:
  T* data_;
  size_t n_;
};

// Uniform in (-scale, scale), the same for the same seed.
inline std::vector<float> random(size_t n, uint64_t seed, float scale = 1.0f) {
  std::vector<float> values(n);
  uint64_t state = seed * 0x9E3779B97F4A7C15ull + 1;
  for (auto& value : values) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    value = scale * (static_cast<float>(state >> 40) + 0.5f) / 8388608.0f - scale;
  }
  return values;
}

struct State {
  EmulatorOptions options{3, 1, 1, 1, 0, 0};
  std::string schedule = "random priorities, deferred, seed 1";
  int n_checks = 0;
  int n_failures = 0;
};

inline State& state() {
  static State state;
  return state;
}

// Runs a kernel under the current schedule. Null, or the emulator's message. Arguments are converted to the
// kernel's parameter types.
template <class... P, class... A>
inline const char* try_launch(void (*)(P...), const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                              EmulatorCounts* counts, A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument for each parameter of the kernel");
  std::tuple<std::remove_const_t<P>...> values(std::forward<A>(arguments)...);
  const unsigned grid_size[3] = {grid.x, grid.y, grid.z};
  const unsigned block_size[3] = {block.x, block.y, block.z};
  return std::apply(
      [&](auto&... value) {
        void* parameters[] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
        return frostline_emulator_launch(name, grid_size, block_size, shared_bytes, parameters,
                                         &state().options, counts);
      },
      values);
}

// The same; ends the program where the emulator finds an error.
template <class... P, class... A>
inline void launch(void (*kernel)(P...), const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                   A&&... arguments) {
  const char* error =
      try_launch(kernel, name, grid, block, shared_bytes, nullptr, std::forward<A>(arguments)...);
  if (!error) return;
  printf("FAILED [%s] %s\n", state().schedule.c_str(), error);
  exit(1);
}

// Runs a kernel and returns its counts.
template <class... P, class... A>
inline EmulatorCounts counted_launch(void (*kernel)(P...), const char* name, dim3 grid, dim3 block,
                                     size_t shared_bytes, A&&... arguments) {
  EmulatorCounts counts{};
  const char* error =
      try_launch(kernel, name, grid, block, shared_bytes, &counts, std::forward<A>(arguments)...);
  if (!error) return counts;
  printf("FAILED [%s] %s\n", state().schedule.c_str(), error);
  exit(1);
}

inline void under_schedule(const char* name, EmulatorOptions options, const std::function<void()>& body) {
  const State before = state();
  char text[96];
  snprintf(text, sizeof text, "%s, %s, seed %llu%s%s", name, options.deferred_async ? "deferred" : "eager",
           static_cast<unsigned long long>(options.seed), options.check_blocks ? ", checked" : "",
           options.truncate_mma ? ", truncated sums" : "");
  state().options = options;
  state().schedule = text;
  body();
  state().options = before.options;
  state().schedule = before.schedule;
}

#if defined(__SANITIZE_ADDRESS__)
constexpr int N_SEEDS = 1;
constexpr bool CAN_CHECK_BLOCKS = false;
#elif defined(EMULATOR_TSAN)
constexpr int N_SEEDS = 0;  // the race detector needs no luck with the order
constexpr bool CAN_CHECK_BLOCKS = false;
#else
constexpr int N_SEEDS = 8;
constexpr bool CAN_CHECK_BLOCKS = true;
#endif

// Runs `body` under every schedule: fifo, lifo and random priorities of warps, asynchronous copies early and
// late, and once with the checks for races. Under sanitizers, which need fewer, only some of them.
inline void for_each_schedule(const std::function<void()>& body) {
  for (int deferred = 0; deferred < 2; ++deferred) {
    under_schedule("fifo", {0, deferred, 1, 1, CAN_CHECK_BLOCKS, 0}, body);
    under_schedule("lifo", {1, deferred, 1, 1, 0, 0}, body);
    for (int seed = 1; seed <= N_SEEDS; ++seed) {
      under_schedule("random priorities", {3, deferred, static_cast<uint64_t>(seed), 1, 0, 0}, body);
    }
  }
}

// Runs `body` where mma truncates its sums, see truncated_sum.h: they have other bits than rounded ones, the
// same under every schedule, and all checks hold under both.
inline void with_truncated_sums(const std::function<void()>& body) {
  under_schedule("random priorities", {3, 1, 1, 1, 0, 1}, body);
}

// For kernels that use mma: the same as for_each_schedule, and truncated sums under two schedules that have
// nothing in common.
inline void for_each_schedule_and_sum(const std::function<void()>& body) {
  for_each_schedule(body);
  under_schedule("fifo", {0, 0, 1, 1, 0, 1}, body);
  with_truncated_sums(body);
}

inline void check(bool holds, const char* what, const std::string& detail = "") {
  state().n_checks++;
  if (holds) return;
  state().n_failures++;
  printf("FAILED [%s] %s %s\n", state().schedule.c_str(), what, detail.c_str());
}

// |got - expected| <= tolerance |expected| in the Euclidean norm; NaN fails. Where all expected values are 0
// the tolerance is absolute.
inline bool close(const char* what, const std::vector<float>& got, const std::vector<float>& expected,
                  double tolerance) {
  if (got.size() != expected.size()) {
    check(false, what, "sizes " + std::to_string(got.size()) + ", " + std::to_string(expected.size()));
    return false;
  }
  double difference = 0.0, norm = 0.0;
  size_t worst = 0;
  double worst_difference = -1.0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d = fabs(double(got[i]) - double(expected[i]));
    difference += d * d;
    norm += double(expected[i]) * double(expected[i]);
    if (!(d <= worst_difference) && !isnan(worst_difference)) worst_difference = d, worst = i;
  }
  const double error = norm > 0.0 ? sqrt(difference / norm) : sqrt(difference);
  const bool holds = error <= tolerance;
  char text[160] = "";
  if (!holds) {
    snprintf(text, sizeof text, "error %.3g > %.3g; at %zu of %zu: %g, expected %g", error, tolerance, worst,
             got.size(), double(got[worst]), double(expected[worst]));
  }
  check(holds, what, text);
  return holds;
}

template <class T>
inline bool same_bits(const char* what, const T* a, const T* b, size_t n) {
  const auto differs = [&](size_t i) {
    return memcmp(static_cast<const void*>(a + i), static_cast<const void*>(b + i), sizeof(T)) != 0;
  };
  size_t i = 0;
  while (i < n && !differs(i)) ++i;
  check(i == n, what, i == n ? "" : "differ from element " + std::to_string(i));
  return i == n;
}

inline bool same_bits(const char* what, const std::vector<float>& a, const std::vector<float>& b) {
  check(a.size() == b.size(), what, "sizes");
  return a.size() == b.size() && same_bits(what, a.data(), b.data(), a.size());
}

template <class T>
inline bool same_bits(const char* what, const Buffer<T>& a, const Buffer<T>& b) {
  check(a.size() == b.size(), what, "sizes");
  return a.size() == b.size() && same_bits(what, a.data(), b.data(), a.size());
}

// For the end of main: what was checked, and the exit code. Nothing checked is a failure.
inline int summary() {
  const bool holds = state().n_checks > 0 && state().n_failures == 0;
  printf("%s: %d checks, %d failures\n", holds ? "ok" : "FAILED", state().n_checks, state().n_failures);
  return holds ? 0 : 1;
}

}  // namespace testing
