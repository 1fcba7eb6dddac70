// Races between blocks: which block wrote and read each two bytes of global memory last.
//
// Nothing orders two blocks of a launch but atomics. What a thread of block A wrote or read is known to block
// B if A then executed __threadfence() and an atomic, and B, later, an atomic on the same address and
// __threadfence(); the atomic of A must be of the same thread or stand behind a __syncthreads(). So the last
// arriver may read what others left in scratch. Any other pair of accesses of two blocks to the same bytes,
// one of them a write, is an error. Atomics themselves are exempt.
//
// Launches that check run one block after the other, each to its end. The answer does not depend on which
// block came first, except that atomics order them the way they ran.
#pragma once
#include <memory>
#include <unordered_map>

#include "access.h"

namespace emulator {

class BlockMap {
 public:
  void begin_block(uint64_t number);
  void access(uint32_t thread, const void* address, unsigned bytes, Access access, const void* pc);
  void atomic(uint32_t thread, const void* address);
  void fence();
  void block_barrier() { time_.n_barriers++; }

 private:
  static constexpr uint32_t NOBODY = 0xffffffff;
  static constexpr uint16_t ANY_THREAD = 0xffff;
  static constexpr size_t PAGE_UNITS = 2048;

  // When in the life of its block: by the fences and barriers that it had passed.
  struct Time {
    uint16_t n_fences = 0;
    uint16_t n_barriers = 0;
  };
  struct Touch {
    uint32_t block = NOBODY;
    Time time;
    uint16_t thread = 0;
    bool several_blocks = false;  // `block` was not the only one to read
    Instruction instruction;
  };
  struct Cell {
    Touch write;
    Touch read;
  };
  struct Page {
    Cell cells[PAGE_UNITS];
  };
  // What is known of a block: all that came before time.n_fences and before time.n_barriers, and what
  // `thread` did since that barrier.
  struct Known {
    Time time;
    uint16_t thread = ANY_THREAD;
  };
  typedef std::unordered_map<uint32_t, Known> Clock;

  Cell& cell_of(uintptr_t address);
  bool races(const Touch& before) const;
  bool readers_race(const Touch& read) const;
  static void join(Known& to, const Known& from);
  static void join(Clock& to, const Clock& from);
  [[noreturn]] static void report(const char* what, const char* before, const Touch& earlier, const void* pc);

  uint32_t block_ = NOBODY;
  uint32_t n_blocks_begun_ = 0;
  Time time_;
  uint16_t n_fences_to_release_ = 0;
  Clock visible_;   // to the running block
  Clock acquired_;  // visible after its next fence
  bool acquired_more_ = false;
  Clock to_release_;                               // of other blocks, by its next atomic
  std::unordered_map<uintptr_t, Clock> released_;  // per address of an atomic
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  uintptr_t last_page_number_ = ~uintptr_t(0);
  Page* last_page_ = nullptr;
};

}  // namespace emulator
