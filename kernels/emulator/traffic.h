// Counts what accesses cost a warp: sectors of global memory, bank conflicts of shared memory.
#pragma once
#include <stdint.h>

#include <array>
#include <deque>
#include <unordered_map>
#include <vector>

#include "abi.h"

namespace emulator {

// One lane's part of an access.
struct LaneAccess {
  uint64_t address;
  uint32_t bytes;
  uint32_t lane;
};

// The lanes of a warp run one after the other here. Their n-th visits to one instruction are taken for one
// access of the warp, complete when all lanes have come or when the block ends.
class Traffic {
 public:
  void begin_block(size_t n_threads);
  void end_block(EmulatorCounts& counts);

  // `address` counts from the beginning of shared memory, or is global.
  void access(uint32_t thread, uint64_t address, unsigned bytes, bool shared, const void* pc);

 private:
  struct WarpAccess {
    bool shared = false;
    std::vector<LaneAccess> lanes;
  };
  // Of one instruction and one warp.
  struct Site {
    std::array<uint32_t, 32> n_visits{};
    uint32_t n_completed = 0;  // the accesses before this one are counted
    std::deque<WarpAccess> open;
  };

  void count(WarpAccess& access);

  size_t n_threads_ = 0;
  size_t n_warps_ = 0;
  std::unordered_map<const void*, size_t> instructions_;
  std::vector<Site> sites_;  // [instruction][warp]
  EmulatorCounts counts_{};
};

// Distinct 32-byte sectors and distinct bytes of an access to global memory.
struct GlobalCost {
  uint64_t sectors;
  uint64_t bytes;
};
GlobalCost global_cost(std::vector<LaneAccess>& lanes);

// Passes beyond the first that bank conflicts cost: 32 banks of 4 bytes; accesses of 4 bytes are served for
// 32 lanes at a time, of 8 bytes for 16, of 16 bytes for 8.
uint64_t shared_conflicts(const std::vector<LaneAccess>& lanes);

}  // namespace emulator
