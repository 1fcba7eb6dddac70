#include "observer.h"

namespace emulator {

Observer::Observer(bool counts, bool checks) {
  if (counts) traffic_ = std::make_unique<Traffic>();
  if (!checks) return;
  shared_map_ = std::make_unique<SharedMap>();
  block_map_ = std::make_unique<BlockMap>();
}

void Observer::begin_block(const Block& block, uint64_t number) {
  shared_ = block.shared;
  shared_bytes_ = block.shared_bytes;
  if (traffic_) traffic_->begin_block(block.n_threads);
  if (shared_map_) shared_map_->begin_block(block.n_threads, block.shared_bytes);
  if (block_map_) block_map_->begin_block(number);
}

void Observer::end_block(Block& block) {
  if (traffic_) traffic_->end_block(block.counts);
}

ptrdiff_t Observer::shared_offset(const void* address, unsigned bytes, const void* pc) const {
  const ptrdiff_t offset = static_cast<const unsigned char*>(address) - shared_;
  const auto end = static_cast<ptrdiff_t>(shared_bytes_);
  if (offset < 0 || offset >= end + static_cast<ptrdiff_t>(SHARED_GUARD_BYTES)) return -1;
  if (offset + static_cast<ptrdiff_t>(bytes) > end) {
    fail("access to byte %td of shared memory, which has %zu bytes, at %s", offset, shared_bytes_,
         line_of(pc));
  }
  return offset;
}

void Observer::access(uint32_t thread, const void* address, unsigned bytes, Access access, const void* pc) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (bytes <= 16 && at % bytes != 0) {
    fail("access of %u bytes at an address that is no multiple of it, at %s", bytes, line_of(pc));
  }
  const ptrdiff_t offset = shared_offset(address, bytes, pc);
  const bool shared = offset >= 0;
  if (traffic_) traffic_->access(thread, shared ? static_cast<uint64_t>(offset) : at, bytes, shared, pc);
  if (shared) {
    if (shared_map_) shared_map_->access(thread, static_cast<size_t>(offset), bytes, access, pc);
  } else {
    if (block_map_) block_map_->access(thread, address, bytes, access, pc);
  }
}

void Observer::copy_issued(uint32_t thread, const void* shared, const void* pc, const void* site) {
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(shared) - shared_);
  if (traffic_) traffic_->access(thread, offset, 16, true, site);
  if (shared_map_) shared_map_->copy_issued(thread, offset, pc);
}

void Observer::copy_landed(const void* shared) {
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(shared) - shared_);
  if (shared_map_) shared_map_->copy_landed(offset);
}

void Observer::atomic(uint32_t thread, const void* address) {
  if (block_map_) block_map_->atomic(thread, address);
}

void Observer::fence() {
  if (block_map_) block_map_->fence();
}

void Observer::warp_barrier(size_t warp) {
  if (shared_map_) shared_map_->warp_barrier(warp);
}

void Observer::block_barrier() {
  if (shared_map_) shared_map_->block_barrier();
  if (block_map_) block_map_->block_barrier();
}

}  // namespace emulator
