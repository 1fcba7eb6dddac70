// What the files of the runtime share: fibres, the block being run, its queue of ready fibres.
//
// Each CUDA thread is a fibre with a stack of its own; an OS thread runs one block at a time and switches
// between that block's fibres only where one waits: a barrier, a warp collective, the end of the kernel. The
// policy decides which ready fibre goes on, so that a missing barrier shows as a wrong result under some
// schedule, the same one for the same seed.
#pragma once
#include <deque>
#include <string>
#include <vector>

#include "abi.h"
#include "cuda_host.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emulator {

struct Block;

enum Policy {
  POLICY_FIFO = 0,
  POLICY_LIFO = 1,
  POLICY_UNIFORM = 2,         // any ready fibre
  POLICY_WARP_PRIORITIES = 3  // the warp of the highest priority, re-drawn rarely: runs far ahead of others
};

// xorshift64*.
class Random {
 public:
  void seed(uint64_t seed) { state_ = seed | 1; }
  uint32_t next() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545F4914F6CDD1Dull >> 32);
  }
  uint32_t below(size_t n) { return next() % static_cast<uint32_t>(n); }

 private:
  uint64_t state_ = 1;
};

// A cp.async that nobody has waited for yet.
struct AsyncCopy {
  void* shared;
  const void* global;
  bool valid;
  bool done;
  const void* pc;
};

struct Fibre {
  Coordinates* coordinates = nullptr;
  uint32_t number = 0;  // of the thread within the block
  unsigned char* stack = nullptr;
  void* stack_pointer = nullptr;
  bool done = false;
  const char* waits_in = nullptr;
  Place place{nullptr, 0};
  std::vector<AsyncCopy> copies;
  std::vector<size_t> groups;  // closed groups: number of copies up to each one's end
  void* fake_stack = nullptr;  // ASan's
  void* tsan_fibre = nullptr;
};

// The fibres that could go on, in the order that the policy wants.
class ReadyQueue {
 public:
  void reset(int policy, size_t n_warps, Random& random);
  void push(Fibre* fibre);
  Fibre* pop(Random& random);
  bool empty() const { return size_ == 0; }

 private:
  Fibre* pop_of_first_warp(Random& random);

  int policy_ = POLICY_FIFO;
  size_t size_ = 0;
  std::deque<Fibre*> fibres_;
  std::vector<std::vector<Fibre*>> of_warp_;
  std::vector<uint32_t> priorities_;
};

// Arrivals at the block's barrier. The two generations are addresses for the race detector's edges.
struct Barrier {
  Place place{nullptr, 0};
  std::vector<Fibre*> waiting;
  int generation = 0;
  char edges[2];
};

// Lanes of one warp that have reached one collective.
struct Collective {
  uint32_t mask = 0;
  CollectiveFunction function = nullptr;
  Place place{nullptr, 0};
  int n_arrived = 0;
  void* arguments[32];
  Fibre* fibres[32];
  int generation = 0;
  char edges[2];
};

class Observer;

// Shared memory is followed by so many bytes that nobody may touch.
constexpr size_t SHARED_GUARD_BYTES = 1024;

// The block that an OS thread runs; kept from block to block and from launch to launch.
struct Block {
  const char* kernel = nullptr;
  Thunk thunk = nullptr;
  void** parameters = nullptr;
  EmulatorOptions options{};
  uint3 index{};
  dim3 size, grid;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;

  Random random;
  std::vector<Fibre*> fibres;  // at least as many as threads
  size_t n_threads = 0;
  size_t n_live = 0;
  ReadyQueue ready;
  Barrier barrier;
  std::vector<std::deque<Collective>> collectives;  // per warp; a deque keeps references valid

  EmulatorCounts counts{};
  std::string error;
  Observer* observer = nullptr;

  void* main_stack_pointer = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_stack_bottom = nullptr;
  size_t main_stack_size = 0;
  void* main_tsan_fibre = nullptr;
  char begin_edge = 0;  // addresses for the race detector
  char end_edge = 0;
};

// Of this OS thread; null outside a launch.
extern __thread Fibre* current_fibre;
extern __thread Block* current_block;

// Runs all threads of `block`, whose fields are set, to their end or to the first error.
void run_threads(Block& block);
void delete_fibres(Block& block);

// Lets other fibres run until someone makes this one ready again.
void wait_in(const char* what, Place place);
// Under the random policies, now and then lets others run before this fibre goes on.
void maybe_yield();
// The fibre has returned from the kernel: a barrier may be complete without it.
void leave_barrier(Block& block);

// Whether an address lies on the running fibre's stack, where its coordinates lie too.
bool on_own_stack(const void* address);

// Fails where [address, address + bytes) is not inside the block's dynamic shared memory.
void require_shared(const void* address, size_t bytes, const char* what, Place place);

// "file.cu:12", without folders. The text lives until some calls later: fail() leaves its caller's stack
// behind, and nothing on it would be freed.
const char* to_text(Place place);

}  // namespace emulator
