// Does the emulator find what it is there to find? Kernels without a fault must pass everywhere, and each
// planted fault must be found by the means that the table promises. Under sanitizers each fault runs in a
// process of its own, as the first report ends it.
#include <unistd.h>

#include "testing.h"
#include "tests/mma_sums.h"
#include "tests/planted.h"

extern "C" __global__ void copy_vectors(const float* from, float* to, int stride);
extern "C" __global__ void write_strided(float* out, int stride);

namespace {

using testing::Buffer;

// A run of one variant under the current schedule: an error text, or null and whether the result is right.
struct Outcome {
  std::string error;
  bool right = false;
};

Outcome outcome(const char* error, const std::vector<float>& got, const std::vector<float>& expected) {
  if (error) return {error, false};
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += pow(double(got[i]) - double(expected[i]), 2);
    norm += pow(double(expected[i]), 2);
  }
  // Sums of a few hundred floats: rounding stays below 1e-5, a fault changes whole terms.
  return {"", sqrt(difference) <= 1e-5 * sqrt(norm)};
}

template <class Kernel>
Outcome run_standardize(Kernel kernel, const char* name) {
  constexpr int ROWS = 4, N = 300, THREADS = 128;
  static const std::vector<float> x = testing::random(ROWS * N, 1);
  std::vector<float> expected(x.size());
  for (int row = 0; row < ROWS; ++row) {
    double sum = 0.0, squares = 0.0;
    for (int i = 0; i < N; ++i) sum += double(x[row * N + i]);
    for (int i = 0; i < N; ++i) squares += pow(double(x[row * N + i]) - sum / N, 2);
    for (int i = 0; i < N; ++i) {
      expected[row * N + i] = static_cast<float>((double(x[row * N + i]) - sum / N) / sqrt(squares / N));
    }
  }
  Buffer<float> from(x), to(x.size());
  const size_t shared_bytes = (THREADS / 32 + N) * sizeof(float);
  const char* error =
      testing::try_launch(kernel, name, ROWS, THREADS, shared_bytes, nullptr, from.data(), to.data(), N);
  return outcome(error, to.floats(), expected);
}

template <class Kernel>
Outcome run_product(Kernel kernel, const char* name) {
  constexpr int M = 64, N = 128, K = 160;
  Buffer<__nv_bfloat16> a(testing::random(M * K, 2)), b(testing::random(N * K, 3));
  Buffer<float> c(M * N);
  const std::vector<float> x = a.floats(), y = b.floats();
  std::vector<float> expected(M * N);
  for (int i = 0; i < M * N; ++i) {
    double sum = 0.0;
    for (int k = 0; k < K; ++k) sum += double(x[i / N * K + k]) * double(y[i % N * K + k]);
    expected[i] = static_cast<float>(sum);
  }
  const dim3 grid(N / PRODUCT_TILE, M / PRODUCT_TILE);
  const char* error = testing::try_launch(kernel, name, grid, 128, PRODUCT_SHARED_BYTES, nullptr, a.data(),
                                          b.data(), c.data(), N, K);
  return outcome(error, c.floats(), expected);
}

template <class Kernel>
Outcome run_column_sums(Kernel kernel, const char* name) {
  constexpr int BLOCKS = 5, ROWS = 7, COLUMNS = 150;
  const std::vector<float> x = testing::random(BLOCKS * ROWS * COLUMNS, 4);
  std::vector<float> expected(COLUMNS + 1, 1.0f);
  for (int column = 0; column < COLUMNS; ++column) {
    double sum = 0.0;
    for (int row = 0; row < BLOCKS * ROWS; ++row) sum += double(x[row * COLUMNS + column]);
    expected[column] = static_cast<float>(sum);
  }
  Buffer<float> from(x), to(COLUMNS + 1), scratch(BLOCKS * COLUMNS);
  Buffer<unsigned> counter(1);
  counter.fill(0);
  const char* error = testing::try_launch(kernel, name, BLOCKS, 64, 4, nullptr, from.data(), to.data(),
                                          scratch.data(), counter.data(), ROWS, COLUMNS);
  return outcome(error, to.floats(), expected);
}

template <class Kernel>
Outcome run_rotate(Kernel kernel, const char* name) {
  constexpr int THREADS = 64;
  const std::vector<float> x = testing::random(THREADS, 5);
  std::vector<float> expected(THREADS);
  for (int i = 0; i < THREADS; ++i) expected[i] = x[i / 32 * 32 + (i + 1) % 32];
  Buffer<float> from(x), to(THREADS);
  const char* error =
      testing::try_launch(kernel, name, 1, THREADS, THREADS * 4, nullptr, from.data(), to.data());
  return outcome(error, to.floats(), expected);
}

struct Variant {
  std::string name;
  const char* text;
  std::function<Outcome()> run;
};

std::vector<Variant> variants() {
  std::vector<Variant> all;
#define ADD_STANDARDIZE(fault, text)          \
  all.push_back({"standardize_" #fault, text, \
                 [] { return run_standardize(&standardize_##fault, "standardize_" #fault); }});
#define ADD_PRODUCT(fault, text) \
  all.push_back({"product_" #fault, text, [] { return run_product(&product_##fault, "product_" #fault); }});
#define ADD_COLUMN_SUMS(fault, text)          \
  all.push_back({"column_sums_" #fault, text, \
                 [] { return run_column_sums(&column_sums_##fault, "column_sums_" #fault); }});
#define ADD_ROTATE(fault, text) \
  all.push_back({"rotate_" #fault, text, [] { return run_rotate(&rotate_##fault, "rotate_" #fault); }});
  STANDARDIZE_FAULTS(ADD_STANDARDIZE)
  PRODUCT_FAULTS(ADD_PRODUCT)
  COLUMN_SUMS_FAULTS(ADD_COLUMN_SUMS)
  ROTATE_FAULTS(ADD_ROTATE)
  return all;
}

// How a fault must show. `schedules`: a wrong result or an error under some schedule without checks.
// The others: a part of the message, or null where that means cannot see the fault.
struct Expectation {
  const char* variant;
  bool schedules;
  const char* checks;
  const char* asan;
  const char* tsan;
};

const char* const RACE = "data race";

const Expectation EXPECTATIONS[] = {
    {"standardize_no_barrier_before_read", true, "race in shared memory", nullptr, RACE},
    {"standardize_no_barrier_before_reuse", true, "race in shared memory", nullptr, RACE},
    {"standardize_shared_overrun", false, "which has 1216 bytes, at selftest.cu", "use-after-poison",
     nullptr},
    {"standardize_global_overrun", true, nullptr, "heap-buffer-overflow", nullptr},
    {"product_no_barrier_after_wait", true, "race in shared memory", nullptr, RACE},
    {"product_no_barrier_before_refill", true, "race in shared memory", nullptr, RACE},
    {"product_weak_wait", true, "may not have landed", nullptr, nullptr},
    {"product_swapped_fragment", true, nullptr, nullptr, nullptr},
    {"column_sums_no_fence_before_arrival", false, "race between blocks", nullptr, nullptr},
    {"column_sums_no_fence_after_arrival", false, "race between blocks", nullptr, nullptr},
    {"column_sums_no_barrier_before_arrival", false, "race between blocks", nullptr, nullptr},
    {"column_sums_two_writers", false, "race between blocks", nullptr, nullptr},
    {"column_sums_first_arriver", true, "race between blocks", nullptr, nullptr},
    {"rotate_no_warp_barrier", true, "race in shared memory", nullptr, RACE},
    {"rotate_barrier_in_branch", true, "different __syncthreads(), selftest.cu:", nullptr, nullptr},
    {"rotate_misaligned", false, "no multiple of it, at cuda_host.h", "misaligned address", nullptr},
    {"rotate_shuffle_in_branch", true, "deadlock: 32 threads wait in a collective", nullptr, nullptr},
};

const Expectation* expectation(const std::string& variant) {
  for (const auto& expected : EXPECTATIONS) {
    if (variant == expected.variant) return &expected;
  }
  return nullptr;
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// A variant without a fault is right under every schedule, checked ones included.
void check_sound(const Variant& variant) {
  testing::for_each_schedule([&] {
    const Outcome outcome = variant.run();
    testing::check(outcome.error.empty() && outcome.right, variant.name.c_str(), outcome.error);
  });
}

[[maybe_unused]] void check_schedules(const Variant& variant, const Expectation& expected) {
  int n_found = 0, n_runs = 0;
  testing::for_each_schedule([&] {
    if (testing::state().options.check_blocks) return;
    const Outcome outcome = variant.run();
    n_runs++;
    n_found += !outcome.error.empty() || !outcome.right;
  });
  printf("%-40s found by %2d of %2d schedules", variant.name.c_str(), n_found, n_runs);
  testing::check(!expected.schedules || n_found > 0, variant.name.c_str(), "not found by any schedule");
}

// The checks do not depend on the schedule: each finds the fault or none does.
[[maybe_unused]] void check_checks(const Variant& variant, const Expectation& expected) {
  std::string first;
  for (int deferred = 0; deferred < 2; ++deferred) {
    for (int policy = 0; policy < 4; ++policy) {
      testing::under_schedule("checked", {policy, deferred, 3, 1, 1, 0}, [&] {
        const Outcome outcome = variant.run();
        if (first.empty()) first = outcome.error;
        const bool found = expected.checks && contains(outcome.error, expected.checks);
        testing::check(found == (expected.checks != nullptr), variant.name.c_str(), outcome.error);
      });
    }
  }
  printf("; checks: %s\n", first.empty() ? "nothing" : first.c_str());
}

// Runs this program again for one variant and reads what the sanitizer says.
[[maybe_unused]] void check_sanitizer(const Variant& variant, const char* expected) {
  char program[1024] = "";
  if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) abort();
  const std::string command = "'" + std::string(program) + "' " + variant.name + " 2>&1";
  std::string report;
  FILE* output = popen(command.c_str(), "r");
  char line[512];
  while (fgets(line, sizeof line, output)) report += line;
  const int status = pclose(output);
  const bool reported = status != 0 && (contains(report, "Sanitizer") || contains(report, "runtime error"));
  if (expected) {
    testing::check(reported && contains(report, expected) && contains(report, "selftest.cu:"),
                   variant.name.c_str(), "not reported: " + report);
    printf("%-40s reported\n", variant.name.c_str());
  } else {
    testing::check(status == 0 && report.empty(), variant.name.c_str(), report);
  }
}

[[maybe_unused]] void check_counts() {
  constexpr int N = 4096;
  Buffer<float> from(testing::random(8 * N, 6)), to(8 * N), one(1);
  // 4 blocks of 256 threads move 16 KB one way and back; at twice the stride each 32-byte sector is half
  // used.
  EmulatorCounts counts =
      testing::counted_launch(&copy_vectors, "copy_vectors", 4, 256, 0, from.data(), to.data(), 1);
  testing::check(counts.global_bytes == 2 * 4 * N && counts.global_sectors == 2 * 4 * N / 32, "dense copy");
  counts = testing::counted_launch(&copy_vectors, "copy_vectors", 4, 256, 0, from.data(), to.data(), 2);
  testing::check(counts.global_bytes == 2 * 4 * N && counts.global_sectors == 2 * 2 * 4 * N / 32,
                 "strided copy");
  // 32 words at stride s fall into 32 / gcd(s, 32) banks.
  const uint64_t expected[][2] = {{1, 0}, {2, 1}, {4, 3}, {32, 31}, {33, 0}};
  for (const auto& [stride, conflicts] : expected) {
    counts = testing::counted_launch(&write_strided, "write_strided", 1, 32, 33 * 32 * 4, one.data(),
                                     static_cast<int>(stride));
    testing::check(counts.shared_conflicts == conflicts && counts.barriers == 1, "bank conflicts");
  }
}

[[maybe_unused]] void check_product_counts() {
  constexpr int M = 64, N = 64, K = 64;
  Buffer<__nv_bfloat16> a(testing::random(M * K, 2)), b(testing::random(N * K, 3));
  Buffer<float> c(M * N);
  const EmulatorCounts counts = testing::counted_launch(
      &product_none, "product_none", 1, 128, PRODUCT_SHARED_BYTES, a.data(), b.data(), c.data(), N, K);
  testing::check(counts.mma == uint64_t(M / 16) * (N / 8) * (K / 16), "mma of the product");
  testing::check(counts.async_copies == uint64_t(M + N) * K / 8, "copies of the product");
  testing::check(counts.barriers == 4, "barriers of the product");
  // Rows of 80 bytes: ldmatrix reads 8 of them without conflicts. Copies write two rows at a time, of which
  // the second ends in the banks where the first begins: one conflict for 8 lanes of 16 bytes.
  testing::check(counts.shared_conflicts == uint64_t(M + N) * K / 8 / 8, "conflicts of the product");
  const uint64_t bytes = (M + N) * K * 2 + M * N * 4;
  testing::check(counts.global_bytes == bytes && counts.global_sectors == bytes / 32,
                 "traffic of the product");
}

void check_interface() {
  testing::check(frostline_emulator_has("product_none") == 1, "has");
  testing::check(frostline_emulator_has("product") == 0, "has not");
  const char* error =
      testing::try_launch(&product_none, "product", 1, 1, 0, nullptr, nullptr, nullptr, nullptr, 0, 0);
  testing::check(error && contains(error, "no kernel of this name"), "unknown kernel");
  error = testing::try_launch(&product_none, "product_none", 1, 2048, 0, nullptr, nullptr, nullptr, nullptr,
                              0, 0);
  testing::check(error && contains(error, "a block of 2048 threads"), "too many threads");
}

// The same seed gives the same run; blocks on several OS threads give the same result.
void check_repeatable() {
  EmulatorCounts counts[2];
  for (auto& run : counts) {
    testing::under_schedule("random priorities", {3, 1, 11, 1, 0, 0}, [&] {
      Buffer<float> from(testing::random(600, 1)), to(600);
      run = testing::counted_launch(&standardize_none, "standardize_none", 2, 128, 304 * 4, from.data(),
                                    to.data(), 300);
    });
  }
  testing::check(counts[0].switches == counts[1].switches && counts[0].switches > 0, "repeatable");
  for (const Variant& variant : variants()) {
    if (expectation(variant.name)) continue;
    testing::under_schedule("two OS threads", {3, 1, 1, 2, 0, 0},
                            [&] { testing::check(variant.run().right, variant.name.c_str()); });
  }
}

}  // namespace

int main(int n_arguments, char** arguments) {
  for (const Variant& variant : variants()) {
    const Expectation* expected = expectation(variant.name);
    if (n_arguments > 1) {
      if (variant.name == arguments[1]) testing::for_each_schedule([&] { variant.run(); });
      continue;
    }
    if (!expected) {
      testing::check(variant.name.find("_none") != std::string::npos, variant.name.c_str(), "no expectation");
      check_sound(variant);
      continue;
    }
#if defined(__SANITIZE_ADDRESS__)
    check_sanitizer(variant, expected->asan);
#elif defined(EMULATOR_TSAN)
    check_sanitizer(variant, expected->tsan);
#else
    check_schedules(variant, *expected);
    check_checks(variant, *expected);
#endif
  }
  if (n_arguments > 1) return 0;
  check_interface();
  testing::check_chosen_sums();
  testing::check_random_sums();
#if !defined(__SANITIZE_ADDRESS__) && !defined(EMULATOR_TSAN)
  check_counts();
  check_product_counts();
#endif
  check_repeatable();
  return testing::summary();
}
