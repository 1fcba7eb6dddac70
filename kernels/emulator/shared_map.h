// Races within a block: who touched each two bytes of shared memory last, and when.
//
// Two accesses of different threads to one byte, one of them a write, must be ordered: by __syncthreads(),
// or, between lanes of one warp, by __syncwarp(). Shuffles and mma order nothing. The answer does not depend
// on the order in which the emulator ran the threads.
#pragma once
#include <stdint.h>

#include <vector>

#include "access.h"

namespace emulator {

class SharedMap {
 public:
  void begin_block(size_t n_threads, size_t shared_bytes);
  void access(uint32_t thread, size_t offset, unsigned bytes, Access access, const void* pc);
  void copy_issued(uint32_t thread, size_t offset, const void* pc);
  void copy_landed(size_t offset);
  void block_barrier() { n_barriers_++; }
  void warp_barrier(size_t warp) { n_warp_barriers_[warp]++; }

 private:
  static constexpr uint16_t NOBODY = 0xffff;
  static constexpr uint16_t SEVERAL_LANES = 0xfffe;
  static constexpr uint16_t SEVERAL_WARPS = 0xfffd;

  // The last access of one kind to a byte. `thread` may be SEVERAL_LANES (of `warp`) or SEVERAL_WARPS.
  struct Touch {
    uint16_t thread = NOBODY;
    uint16_t warp = 0;
    uint32_t n_barriers = 0;
    uint32_t n_warp_barriers = 0;
    Instruction instruction;
  };
  struct Cell {
    Touch write;
    Touch read;
    bool copy_under_way = false;
  };

  Touch now(uint32_t thread, const void* pc) const;
  // Whether `before`, recorded earlier, is of another thread and nothing orders the two.
  static bool races(const Touch& before, const Touch& touch);
  static void add_reader(Touch& read, const Touch& touch);
  [[noreturn]] static void report(const char* what, const char* before, const Touch& earlier, size_t offset,
                                  const Touch& touch);

  std::vector<Cell> cells_;  // per unit of two bytes
  uint32_t n_barriers_ = 0;
  std::vector<uint32_t> n_warp_barriers_;
};

}  // namespace emulator
