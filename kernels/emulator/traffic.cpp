#include "traffic.h"

#include <algorithm>

namespace emulator {

namespace {

constexpr uint64_t SECTOR_BYTES = 32;
constexpr uint64_t BANK_BYTES = 4;
constexpr size_t N_BANKS = 32;

}  // namespace

GlobalCost global_cost(std::vector<LaneAccess>& lanes) {
  std::sort(lanes.begin(), lanes.end(),
            [](const LaneAccess& a, const LaneAccess& b) { return a.address < b.address; });
  GlobalCost cost{0, 0};
  uint64_t next_sector = 0;  // sectors below are counted, and so are the bytes below next_byte
  uint64_t next_byte = 0;
  for (const LaneAccess& lane : lanes) {
    const uint64_t end = lane.address + lane.bytes;
    const uint64_t first_sector = std::max(next_sector, lane.address / SECTOR_BYTES);
    const uint64_t end_sector = (end + SECTOR_BYTES - 1) / SECTOR_BYTES;
    if (end_sector > first_sector) cost.sectors += end_sector - first_sector;
    next_sector = std::max(next_sector, end_sector);
    const uint64_t first_byte = std::max(next_byte, lane.address);
    if (end > first_byte) cost.bytes += end - first_byte;
    next_byte = std::max(next_byte, end);
  }
  return cost;
}

uint64_t shared_conflicts(const std::vector<LaneAccess>& lanes) {
  uint32_t bytes = 4;
  for (const LaneAccess& lane : lanes) bytes = std::max(bytes, lane.bytes);
  const uint32_t lanes_at_once = 32 * 4 / bytes;
  uint64_t conflicts = 0;
  for (uint32_t first = 0; first < 32; first += lanes_at_once) {
    std::vector<uint64_t> words;
    for (const LaneAccess& lane : lanes) {
      if (lane.lane < first || lane.lane >= first + lanes_at_once) continue;
      const uint64_t end = lane.address + lane.bytes;
      for (uint64_t word = lane.address / BANK_BYTES; word * BANK_BYTES < end; ++word) words.push_back(word);
    }
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    std::array<uint64_t, N_BANKS> of_bank{};
    for (const uint64_t word : words) of_bank[word % N_BANKS]++;
    const uint64_t passes = *std::max_element(of_bank.begin(), of_bank.end());
    if (passes > 1) conflicts += passes - 1;
  }
  return conflicts;
}

void Traffic::begin_block(size_t n_threads) {
  n_threads_ = n_threads;
  n_warps_ = (n_threads + 31) / 32;
}

void Traffic::end_block(EmulatorCounts& counts) {
  for (Site& site : sites_) {
    for (WarpAccess& access : site.open) count(access);
    site = Site{};
  }
  counts.global_sectors += counts_.global_sectors;
  counts.global_bytes += counts_.global_bytes;
  counts.shared_conflicts += counts_.shared_conflicts;
  counts_ = {};
}

void Traffic::access(uint32_t thread, uint64_t address, unsigned bytes, bool shared, const void* pc) {
  const size_t warp = thread / 32;
  const uint32_t lane = thread % 32;
  const size_t instruction = instructions_.try_emplace(pc, instructions_.size()).first->second;
  if (sites_.size() < (instruction + 1) * n_warps_) sites_.resize((instruction + 1) * n_warps_);
  Site& site = sites_[instruction * n_warps_ + warp];
  // Complete accesses leave from the front; one that waits for a lane keeps those behind it.
  const uint32_t at = site.n_visits[lane]++ - site.n_completed;
  while (site.open.size() <= at) site.open.emplace_back();
  WarpAccess& access = site.open[at];
  access.shared = shared;
  access.lanes.push_back({address, bytes, lane});
  const size_t n_lanes = std::min<size_t>(32, n_threads_ - warp * 32);
  while (!site.open.empty() && site.open.front().lanes.size() == n_lanes) {
    count(site.open.front());
    site.open.pop_front();
    site.n_completed++;
  }
}

void Traffic::count(WarpAccess& access) {
  if (access.lanes.empty()) return;
  if (access.shared) {
    counts_.shared_conflicts += shared_conflicts(access.lanes);
    return;
  }
  const GlobalCost cost = global_cost(access.lanes);
  counts_.global_sectors += cost.sectors;
  counts_.global_bytes += cost.bytes;
}

}  // namespace emulator
