#include "block_map.h"

#include <algorithm>

#include "cuda_host.h"

namespace emulator {

void BlockMap::begin_block(uint64_t number) {
  block_ = static_cast<uint32_t>(number);
  n_blocks_begun_++;
  time_ = {};
  n_fences_to_release_ = 0;
  visible_.clear();
  acquired_.clear();
  acquired_more_ = false;
  to_release_.clear();
}

BlockMap::Cell& BlockMap::cell_of(uintptr_t address) {
  const uintptr_t unit = address / UNIT_BYTES;
  const uintptr_t number = unit / PAGE_UNITS;
  if (number != last_page_number_) {
    auto& page = pages_[number];
    if (!page) page = std::make_unique<Page>();
    last_page_number_ = number;
    last_page_ = page.get();
  }
  return last_page_->cells[unit % PAGE_UNITS];
}

bool BlockMap::races(const Touch& before) const {
  if (before.block == NOBODY || before.block == block_) return false;
  const auto found = visible_.find(before.block);
  if (found == visible_.end()) return true;
  const Known& known = found->second;
  if (before.time.n_fences >= known.time.n_fences) return true;
  if (before.time.n_barriers != known.time.n_barriers) return before.time.n_barriers > known.time.n_barriers;
  return known.thread != ANY_THREAD && known.thread != before.thread;
}

// Of several blocks that read only the last is on record: the others may be any that ran before.
bool BlockMap::readers_race(const Touch& read) const {
  return races(read) || (read.several_blocks && visible_.size() + 1 < n_blocks_begun_);
}

void BlockMap::join(Known& to, const Known& from) {
  const bool same_barrier = to.time.n_barriers == from.time.n_barriers;
  if (to.time.n_fences == 0 || from.time.n_barriers > to.time.n_barriers) {
    to.thread = from.thread;
  } else if (same_barrier && to.thread != from.thread) {
    to.thread = ANY_THREAD;
  }
  to.time.n_fences = std::max(to.time.n_fences, from.time.n_fences);
  to.time.n_barriers = std::max(to.time.n_barriers, from.time.n_barriers);
}

void BlockMap::join(Clock& to, const Clock& from) {
  for (const auto& [block, known] : from) join(to[block], known);
}

void BlockMap::report(const char* what, const char* before, const Touch& earlier, const void* pc) {
  fail(
      "race between blocks: bytes of global memory, %s at %s, were %s by block number %u at %s, and no fence "
      "and atomic order the two",
      what, line_of(pc), before, earlier.block, line_of(earlier.instruction.pc()));
}

void BlockMap::access(uint32_t thread, const void* address, unsigned bytes, Access access, const void* pc) {
  Touch touch;
  touch.block = block_;
  touch.time = time_;
  touch.thread = static_cast<uint16_t>(thread);
  touch.instruction = Instruction(pc);
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const bool writes = access == ACCESS_WRITE;
  for (uintptr_t at = begin; at < begin + bytes; at += UNIT_BYTES) {
    Cell& cell = cell_of(at);
    if (races(cell.write)) report(writes ? "written" : "read", "written", cell.write, pc);
    if (writes) {
      if (readers_race(cell.read)) report("written", "read", cell.read, pc);
      cell.write = touch;
      cell.read = Touch{};
    } else {
      const Touch& read = cell.read;
      touch.several_blocks = read.several_blocks || (read.block != NOBODY && read.block != block_);
      cell.read = touch;
    }
  }
}

void BlockMap::fence() {
  n_fences_to_release_ = ++time_.n_fences;
  if (!acquired_more_) return;
  join(visible_, acquired_);
  visible_.erase(block_);
  to_release_ = visible_;
  acquired_more_ = false;
}

void BlockMap::atomic(uint32_t thread, const void* address) {
  Clock& released = released_[reinterpret_cast<uintptr_t>(address)];
  join(acquired_, released);
  acquired_more_ = true;
  join(released, to_release_);
  if (n_fences_to_release_ == 0) return;
  const Time time{n_fences_to_release_, time_.n_barriers};
  join(released[block_], {time, static_cast<uint16_t>(thread)});
}

}  // namespace emulator
