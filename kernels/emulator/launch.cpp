// Launches: kernels by name, blocks handed out to OS threads, the C interface of abi.h.
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "observer.h"
#include "runtime.h"
#include "sanitizers.h"

namespace emulator {

namespace {

constexpr size_t SHARED_ALIGNMENT = 1024;
static_assert(SHARED_GUARD_BYTES % SHARED_ALIGNMENT == 0, "aligned_alloc wants whole multiples");
constexpr size_t MAX_THREADS = 1024;

Kernel* first_kernel;  // zero before any constructor runs

const Kernel* find_kernel(const char* name) {
  for (const Kernel* kernel = first_kernel; kernel; kernel = kernel->next) {
    if (strcmp(kernel->name, name) == 0) return kernel;
  }
  return nullptr;
}

// What an OS thread keeps between launches: the block with its fibres, and shared memory.
struct Worker {
  Block block;
  size_t capacity = 0;  // of the shared memory

  ~Worker() {
    delete_fibres(block);
    give_back_shared();
  }

  void give_back_shared() {
    sanitizers::unpoison(block.shared, capacity);
    free(block.shared);
    block.shared = nullptr;
    capacity = 0;
  }

  // Sizes shared memory exactly: what lies behind it is out of bounds for AddressSanitizer.
  void size_shared(size_t bytes) {
    const size_t rounded = (bytes + SHARED_ALIGNMENT - 1) / SHARED_ALIGNMENT * SHARED_ALIGNMENT;
    const size_t wanted = rounded + SHARED_GUARD_BYTES;
    if (wanted != capacity) {
      give_back_shared();
      block.shared = static_cast<unsigned char*>(aligned_alloc(SHARED_ALIGNMENT, wanted));
      if (!block.shared) abort();
      capacity = wanted;
    }
    sanitizers::unpoison(block.shared, capacity);
    const size_t end = (bytes + 7) / 8 * 8;
    sanitizers::poison(block.shared + end, capacity - end);
    block.shared_bytes = bytes;
  }
};

Worker& own_worker() {
  static thread_local Worker worker;
  return worker;
}

struct Launch {
  const Kernel* kernel;
  dim3 grid, size;
  size_t shared_bytes;
  void** parameters;
  EmulatorOptions options;
  Observer* observer;  // null: nobody looks

  std::atomic<uint64_t> next_block{0};
  std::mutex mutex;
  std::string error;
  EmulatorCounts counts{};

  uint64_t n_blocks() const { return uint64_t(grid.x) * grid.y * grid.z; }
};

void add(EmulatorCounts& to, const EmulatorCounts& counts) {
  to.switches += counts.switches;
  to.barriers += counts.barriers;
  to.collectives += counts.collectives;
  to.async_copies += counts.async_copies;
  to.mma += counts.mma;
  to.global_sectors += counts.global_sectors;
  to.global_bytes += counts.global_bytes;
  to.shared_conflicts += counts.shared_conflicts;
}

// Which block comes `turn`-th: the first, the last, or where the seed says, and so on from there.
uint64_t block_of_turn(const Launch& launch, uint64_t turn) {
  const uint64_t n = launch.n_blocks();
  if (launch.options.policy == POLICY_FIFO) return turn;
  if (launch.options.policy == POLICY_LIFO) return n - 1 - turn;
  return (turn + launch.options.seed * 0x9E3779B97F4A7C15ull % n) % n;
}

void set_index(const Launch& launch, Block& block, uint64_t number) {
  const uint64_t row = number / launch.grid.x;
  block.index = {static_cast<unsigned>(number % launch.grid.x), static_cast<unsigned>(row % launch.grid.y),
                 static_cast<unsigned>(row / launch.grid.y)};
  block.random.seed(launch.options.seed + 0x9E3779B97F4A7C15ull * (number + 1));
}

// Runs blocks until none is left or one has failed.
void run_blocks(Launch& launch) {
  Worker& worker = own_worker();
  Block& block = worker.block;
  worker.size_shared(launch.shared_bytes);
  block.kernel = launch.kernel->name;
  block.thunk = launch.kernel->thunk;
  block.parameters = launch.parameters;
  block.options = launch.options;
  block.grid = launch.grid;
  block.size = launch.size;
  block.n_threads = size_t(launch.size.x) * launch.size.y * launch.size.z;
  block.counts = {};
  block.error.clear();
  block.observer = launch.observer;
  for (uint64_t turn; (turn = launch.next_block++) < launch.n_blocks();) {
    const uint64_t number = block_of_turn(launch, turn);
    set_index(launch, block, number);
    {
      sanitizers::Ignored ignored;
      memset(block.shared, 0xff, block.shared_bytes);  // NaN: nobody has written yet
    }
    if (launch.observer) launch.observer->begin_block(block, number);
    run_threads(block);
    if (!block.error.empty()) break;
    if (launch.observer) launch.observer->end_block(block);
  }
  block.observer = nullptr;
  const std::lock_guard<std::mutex> lock(launch.mutex);
  add(launch.counts, block.counts);
  if (block.error.empty()) return;
  launch.next_block = launch.n_blocks();
  if (launch.error.empty()) launch.error = block.error;
}

void run_on_os_threads(Launch& launch) {
  const uint64_t wanted = std::max(1, launch.observer ? 1 : launch.options.os_threads);
  const uint64_t n_threads = std::min(wanted, launch.n_blocks());
  std::vector<std::thread> others;
  for (uint64_t i = 1; i < n_threads; ++i) others.emplace_back([&] { run_blocks(launch); });
  run_blocks(launch);
  for (auto& thread : others) thread.join();
}

// What the device's driver would refuse.
std::string refusal(const char* name, const Kernel* kernel, const unsigned grid[3], const unsigned block[3]) {
  if (!kernel) return std::string(name) + ": no kernel of this name is linked in";
  const uint64_t n_threads = uint64_t(block[0]) * block[1] * block[2];
  if (n_threads == 0 || n_threads > MAX_THREADS) {
    return std::string(name) + ": a block of " + std::to_string(n_threads) + " threads";
  }
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535) {
    return std::string(name) + ": a grid of " + std::to_string(grid[0]) + " x " + std::to_string(grid[1]) +
           " x " + std::to_string(grid[2]) + " blocks";
  }
  return "";
}

}  // namespace

Kernel::Kernel(const char* name, Thunk thunk, bool observed)
    : name(name), thunk(thunk), observed(observed), next(first_kernel) {
  first_kernel = this;
}

}  // namespace emulator

extern "C" int frostline_emulator_has(const char* kernel) { return emulator::find_kernel(kernel) != nullptr; }

extern "C" const char* frostline_emulator_launch(const char* name, const unsigned grid[3],
                                                 const unsigned block[3], size_t shared_bytes, void** params,
                                                 const EmulatorOptions* options, EmulatorCounts* counts) {
  static thread_local std::string error;
  const emulator::Kernel* kernel = emulator::find_kernel(name);
  error = emulator::refusal(name, kernel, grid, block);
  if (!error.empty()) return error.c_str();
  if (options->check_blocks && !kernel->observed) {
    error = std::string(name) + ": checks for races need kernels compiled with -fsanitize=thread";
    return error.c_str();
  }
  emulator::Launch launch;
  launch.kernel = kernel;
  launch.grid = dim3(grid[0], grid[1], grid[2]);
  launch.size = dim3(block[0], block[1], block[2]);
  launch.shared_bytes = shared_bytes;
  launch.parameters = params;
  launch.options = *options;
  std::unique_ptr<emulator::Observer> observer;
  if (kernel->observed && (counts || options->check_blocks)) {
    observer = std::make_unique<emulator::Observer>(counts != nullptr, options->check_blocks != 0);
  }
  launch.observer = observer.get();
  emulator::run_on_os_threads(launch);
  if (counts) emulator::add(*counts, launch.counts);
  error = launch.error;
  return error.empty() ? nullptr : error.c_str();
}
