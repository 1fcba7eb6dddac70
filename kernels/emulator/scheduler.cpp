// Fibres: switching between them, the order in which they run, the block's barrier, deadlocks.
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <new>

#include "observer.h"
#include "runtime.h"
#include "sanitizers.h"

#if !defined(__x86_64__) || !defined(__linux__)
#error "the emulator switches fibres on x86-64 Linux only"
#endif

// Saves the registers that a call preserves on the running stack, its pointer in *save, and goes on where
// the stack `to` was left.
extern "C" void frostline_emulator_switch(void** save, void* to);
asm(R"(
.text
.globl frostline_emulator_switch
.type frostline_emulator_switch, @function
frostline_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size frostline_emulator_switch, .-frostline_emulator_switch
)");

namespace emulator {

__thread Fibre* current_fibre;
__thread Block* current_block;

namespace {

constexpr size_t PAGE_BYTES = 4096;
#if defined(__SANITIZE_ADDRESS__) || defined(EMULATOR_TSAN)
constexpr size_t STACK_BYTES = 256 << 10;
#else
constexpr size_t STACK_BYTES = 64 << 10;
#endif

// Aborted fibres stay where they are; their stacks are used again from the top.
[[noreturn]] void leave_to_main(Block& block) {
  Fibre* from = current_fibre;
  sanitizers::start_switch(nullptr, block.main_stack_bottom, block.main_stack_size);
  sanitizers::switch_to(block.main_tsan_fibre);
  frostline_emulator_switch(&from->stack_pointer, block.main_stack_pointer);
  __builtin_unreachable();
}

void go_to(Fibre* next) {
  Fibre* from = current_fibre;
  if (next == from) return;
  current_block->counts.switches++;
  current_fibre = next;
  sanitizers::start_switch(from->done ? nullptr : &from->fake_stack, next->stack, STACK_BYTES);
  sanitizers::switch_to(next->tsan_fibre);
  frostline_emulator_switch(&from->stack_pointer, next->stack_pointer);
  const void* old_bottom;
  size_t old_size;
  sanitizers::finish_switch(from->fake_stack, &old_bottom, &old_size);
}

// How many threads wait where.
std::string describe_waiting(const Block& block) {
  std::map<std::string, int> n_waiting;
  for (size_t i = 0; i < block.n_threads; ++i) {
    const Fibre* fibre = block.fibres[i];
    if (!fibre->done) n_waiting[fibre->waits_in + std::string(" at ") + to_text(fibre->place)]++;
  }
  std::string text;
  for (const auto& [what, n] : n_waiting) {
    text += (text.empty() ? "" : ", ") + std::to_string(n) + " threads wait in " + what;
  }
  return text;
}

Fibre* next_ready(Block& block) {
  if (!block.ready.empty()) return block.ready.pop(block.random);
  if (block.n_live == 0) leave_to_main(block);
  sanitizers::Ignored ignored;
  block.error = describe_waiting(block);
  fail("deadlock: %s; %zu threads have returned", block.error.c_str(), block.n_threads - block.n_live);
}

// Where every fibre begins; it returns to nobody.
void run_fibre() {
  Block& block = *current_block;
  const void* old_bottom = nullptr;
  size_t old_size = 0;
  sanitizers::finish_switch(nullptr, &old_bottom, &old_size);
  if (!block.main_stack_bottom) {
    block.main_stack_bottom = old_bottom;
    block.main_stack_size = old_size;
  }
  Fibre* fibre = current_fibre;
  sanitizers::acquire(&block.begin_edge);
  block.thunk(block.parameters);
  sanitizers::release(&block.end_edge);
  {
    sanitizers::Ignored ignored;
    fibre->done = true;
    block.n_live--;
    leave_barrier(block);
  }
  go_to(next_ready(block));
  __builtin_unreachable();
}

// Null where the system has no memory for its stack.
Fibre* new_fibre() {
  auto* fibre = new Fibre;
  void* memory =
      mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    delete fibre;
    return nullptr;
  }
  fibre->stack = static_cast<unsigned char*>(memory);
  mprotect(memory, PAGE_BYTES, PROT_NONE);  // an overflow stops here
  fibre->tsan_fibre = sanitizers::create_fibre();
  return fibre;
}

// Prepares a fibre to run the kernel from its beginning.
void reset_fibre(Block& block, uint32_t number) {
  Fibre* fibre = block.fibres[number];
  sanitizers::unpoison(fibre->stack + PAGE_BYTES, STACK_BYTES - PAGE_BYTES);
  fibre->number = number;
  fibre->done = false;
  fibre->waits_in = nullptr;
  fibre->copies.clear();
  fibre->groups.clear();
  // Stacks start at different offsets: at the same one they would compete for a few sets of the cache.
  unsigned char* top = fibre->stack + STACK_BYTES - (number % 32) * 192 - 64;
  top -= sizeof(Coordinates) + 63;
  top -= reinterpret_cast<uintptr_t>(top) % 64;
  const uint3 thread = {number % block.size.x, number / block.size.x % block.size.y,
                        number / block.size.x / block.size.y};
  fibre->coordinates = new (top) Coordinates{thread, block.index, block.size, block.grid, block.shared};
  // The six registers that the switch pops, the address it returns to, an empty return address.
  void** stack = reinterpret_cast<void**>(top) - 8;
  std::fill_n(stack, 8, nullptr);
  stack[6] = reinterpret_cast<void*>(&run_fibre);
  fibre->stack_pointer = stack;
}

void release_barrier(Block& block) {
  Barrier& barrier = block.barrier;
  for (Fibre* fibre : barrier.waiting) block.ready.push(fibre);
  barrier.waiting.clear();
  barrier.generation ^= 1;
  block.counts.barriers++;
  if (block.observer) block.observer->block_barrier();
}

}  // namespace

void ReadyQueue::reset(int policy, size_t n_warps, Random& random) {
  policy_ = policy;
  size_ = 0;
  fibres_.clear();
  of_warp_.resize(n_warps);
  for (auto& fibres : of_warp_) fibres.clear();
  priorities_.resize(n_warps);
  for (auto& priority : priorities_) priority = random.next();
}

void ReadyQueue::push(Fibre* fibre) {
  size_++;
  if (policy_ == POLICY_WARP_PRIORITIES) {
    of_warp_[fibre->number / 32].push_back(fibre);
  } else {
    fibres_.push_back(fibre);
  }
}

Fibre* ReadyQueue::pop(Random& random) {
  size_--;
  if (policy_ == POLICY_WARP_PRIORITIES) return pop_of_first_warp(random);
  if (policy_ == POLICY_UNIFORM) std::swap(fibres_[random.below(fibres_.size())], fibres_.back());
  Fibre* fibre;
  if (policy_ == POLICY_FIFO) {
    fibre = fibres_.front();
    fibres_.pop_front();
  } else {
    fibre = fibres_.back();
    fibres_.pop_back();
  }
  return fibre;
}

Fibre* ReadyQueue::pop_of_first_warp(Random& random) {
  if (random.below(128) == 0) priorities_[random.below(priorities_.size())] = random.next();
  size_t first = of_warp_.size();
  for (size_t warp = 0; warp < of_warp_.size(); ++warp) {
    if (of_warp_[warp].empty()) continue;
    if (first == of_warp_.size() || priorities_[warp] > priorities_[first]) first = warp;
  }
  auto& fibres = of_warp_[first];
  std::swap(fibres[random.below(fibres.size())], fibres.back());
  Fibre* fibre = fibres.back();
  fibres.pop_back();
  return fibre;
}

const Coordinates& coordinates() { return *current_fibre->coordinates; }

bool on_own_stack(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto stack = reinterpret_cast<uintptr_t>(current_fibre->stack);
  return at - stack < STACK_BYTES;
}

int lane() { return static_cast<int>(current_fibre->number % 32); }

const char* to_text(Place place) {
  static thread_local char texts[4][128];
  static thread_local int next;
  char* text = texts[next++ % 4];
  const char* slash = strrchr(place.file, '/');
  snprintf(text, sizeof texts[0], "%s:%d", slash ? slash + 1 : place.file, place.line);
  return text;
}

void fail(const char* format, ...) {
  sanitizers::Ignored ignored;
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  Block& block = *current_block;
  char where[256];
  snprintf(where, sizeof where, "%s, block (%u, %u, %u)", block.kernel, block.index.x, block.index.y,
           block.index.z);
  block.error = where;
  if (current_fibre) block.error += ", thread " + std::to_string(current_fibre->number);
  block.error += std::string(": ") + text;
  leave_to_main(block);
}

void wait_in(const char* what, Place place) {
  current_fibre->waits_in = what;
  current_fibre->place = place;
  go_to(next_ready(*current_block));
}

void maybe_yield() {
  Block& block = *current_block;
  if (block.options.policy < POLICY_UNIFORM || block.random.below(2) == 0) return;
  block.ready.push(current_fibre);
  go_to(next_ready(block));
}

void block_barrier(Place place) {
  sanitizers::Ignored ignored;
  Block& block = *current_block;
  Barrier& barrier = block.barrier;
  if (!barrier.waiting.empty() && barrier.place.line != place.line) {
    fail("threads of one block wait in different __syncthreads(), %s and %s", to_text(barrier.place),
         to_text(place));
  }
  barrier.place = place;
  char* edge = &barrier.edges[barrier.generation];
  sanitizers::release(edge);
  if (barrier.waiting.size() + 1 == block.n_live) {
    release_barrier(block);
    maybe_yield();
  } else {
    barrier.waiting.push_back(current_fibre);
    wait_in("__syncthreads()", place);
  }
  sanitizers::acquire(edge);
}

void leave_barrier(Block& block) {
  const size_t n_waiting = block.barrier.waiting.size();
  if (n_waiting > 0 && n_waiting == block.n_live) release_barrier(block);
}

void run_threads(Block& block) {
  current_block = &block;
  current_fibre = nullptr;
  const size_t n_warps = (block.n_threads + 31) / 32;
  while (block.fibres.size() < block.n_threads) {
    Fibre* fibre = new_fibre();
    if (!fibre) {
      block.error = std::string(block.kernel) + ": no memory for the stacks of the threads";
      return;
    }
    block.fibres.push_back(fibre);
  }
  block.barrier.waiting.clear();
  if (block.collectives.size() < n_warps) block.collectives.resize(n_warps);
  for (auto& of_warp : block.collectives) {
    for (auto& collective : of_warp) collective.n_arrived = 0;
  }
  block.n_live = block.n_threads;
  block.ready.reset(block.options.policy, n_warps, block.random);
  for (uint32_t number = 0; number < block.n_threads; ++number) {
    reset_fibre(block, number);
    block.ready.push(block.fibres[number]);
  }

  Fibre* first = block.ready.pop(block.random);
  current_fibre = first;
  sanitizers::release(&block.begin_edge);
  block.main_tsan_fibre = sanitizers::own_fibre();
  sanitizers::start_switch(&block.main_fake_stack, first->stack, STACK_BYTES);
  sanitizers::switch_to(first->tsan_fibre);
  frostline_emulator_switch(&block.main_stack_pointer, first->stack_pointer);
  const void* old_bottom;
  size_t old_size;
  sanitizers::finish_switch(block.main_fake_stack, &old_bottom, &old_size);
  sanitizers::acquire(&block.end_edge);
  current_fibre = nullptr;
  current_block = nullptr;
  if (block.error.empty()) return;
  // An error left fibres in the middle of a call. The race detector cannot use them again, nor drop them.
  for (Fibre* fibre : block.fibres) {
    sanitizers::acquire_all_of(fibre->tsan_fibre);
    fibre->tsan_fibre = nullptr;
  }
  delete_fibres(block);
}

void delete_fibres(Block& block) {
  for (Fibre* fibre : block.fibres) {
    if (fibre->tsan_fibre) sanitizers::destroy_fibre(fibre->tsan_fibre);
    munmap(fibre->stack, STACK_BYTES);
    delete fibre;
  }
  block.fibres.clear();
}

}  // namespace emulator
