#include "shared_map.h"

#include <stdio.h>

#include "cuda_host.h"

namespace emulator {

void SharedMap::begin_block(size_t n_threads, size_t shared_bytes) {
  cells_.assign((shared_bytes + UNIT_BYTES - 1) / UNIT_BYTES, Cell{});
  n_barriers_ = 0;
  n_warp_barriers_.assign((n_threads + 31) / 32, 0);
}

SharedMap::Touch SharedMap::now(uint32_t thread, const void* pc) const {
  Touch touch;
  touch.thread = static_cast<uint16_t>(thread);
  touch.warp = static_cast<uint16_t>(thread / 32);
  touch.n_barriers = n_barriers_;
  touch.n_warp_barriers = n_warp_barriers_[touch.warp];
  touch.instruction = Instruction(pc);
  return touch;
}

bool SharedMap::races(const Touch& before, const Touch& touch) {
  if (before.thread == NOBODY || before.n_barriers != touch.n_barriers) return false;
  if (before.thread == SEVERAL_WARPS || before.warp != touch.warp) return true;
  return before.n_warp_barriers == touch.n_warp_barriers && before.thread != touch.thread;
}

void SharedMap::add_reader(Touch& read, const Touch& touch) {
  if (read.thread == NOBODY || read.n_barriers != touch.n_barriers) {
    read = touch;
  } else if (read.thread == SEVERAL_WARPS || read.warp != touch.warp) {
    read.thread = SEVERAL_WARPS;
  } else if (read.n_warp_barriers != touch.n_warp_barriers) {
    read = touch;
  } else if (read.thread != touch.thread) {
    read.thread = SEVERAL_LANES;
  }
}

void SharedMap::report(const char* what, const char* before, const Touch& earlier, size_t offset,
                       const Touch& touch) {
  char who[32];
  if (earlier.thread == SEVERAL_WARPS) {
    snprintf(who, sizeof who, "several warps");
  } else if (earlier.thread == SEVERAL_LANES) {
    snprintf(who, sizeof who, "warp %u", unsigned(earlier.warp));
  } else {
    snprintf(who, sizeof who, "thread %u", unsigned(earlier.thread));
  }
  fail("race in shared memory: thread %u %s byte %zu at %s, which %s %s at %s with no barrier between",
       unsigned(touch.thread), what, offset, line_of(touch.instruction.pc()), who, before,
       line_of(earlier.instruction.pc()));
}

void SharedMap::access(uint32_t thread, size_t offset, unsigned bytes, Access access, const void* pc) {
  const Touch touch = now(thread, pc);
  const bool writes = access == ACCESS_WRITE;
  for (size_t at = offset; at < offset + bytes; at += UNIT_BYTES) {
    Cell& cell = cells_[at / UNIT_BYTES];
    if (cell.copy_under_way) {
      fail(
          "race in shared memory: thread %u %s byte %zu at %s while the cp.async of thread %u at %s may not "
          "have landed",
          thread, writes ? "writes" : "reads", at, line_of(pc), unsigned(cell.write.thread),
          line_of(cell.write.instruction.pc()));
    }
    if (races(cell.write, touch)) report(writes ? "writes" : "reads", "wrote", cell.write, at, touch);
    if (writes) {
      if (races(cell.read, touch)) report("writes", "read", cell.read, at, touch);
      cell.write = touch;
    } else {
      add_reader(cell.read, touch);
    }
  }
}

void SharedMap::copy_issued(uint32_t thread, size_t offset, const void* pc) {
  access(thread, offset, 16, ACCESS_WRITE, pc);
  for (size_t at = offset; at < offset + 16; at += UNIT_BYTES) cells_[at / UNIT_BYTES].copy_under_way = true;
}

// The write ends here: for other threads a barrier has to follow.
void SharedMap::copy_landed(size_t offset) {
  for (size_t at = offset; at < offset + 16; at += UNIT_BYTES) {
    Cell& cell = cells_[at / UNIT_BYTES];
    cell.copy_under_way = false;
    cell.write.n_barriers = n_barriers_;
    cell.write.n_warp_barriers = n_warp_barriers_[cell.write.warp];
  }
}

}  // namespace emulator
