// Sees every load and store of an observed kernel, in launches that ask for counts or for checks, and hands
// it on: traffic.h counts, shared_map.h finds races within a block, block_map.h between blocks.
#pragma once
#include <memory>

#include "block_map.h"
#include "runtime.h"
#include "sanitizers.h"
#include "shared_map.h"
#include "traffic.h"

namespace emulator {

class Observer {
 public:
  Observer(bool counts, bool checks);

  void begin_block(const Block& block, uint64_t number);
  void end_block(Block& block);

  void access(uint32_t thread, const void* address, unsigned bytes, Access access, const void* pc);
  // A cp.async writes its 16 bytes at any time between these two.
  // `site` is the same for all lanes of a warp.
  void copy_issued(uint32_t thread, const void* shared, const void* pc, const void* site);
  void copy_landed(const void* shared);

  void atomic(uint32_t thread, const void* address);
  void fence();
  void warp_barrier(size_t warp);
  void block_barrier();

 private:
  // Offset into the block's shared memory; `bytes` from there on must lie inside. Negative: global memory.
  ptrdiff_t shared_offset(const void* address, unsigned bytes, const void* pc) const;

  const unsigned char* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  std::unique_ptr<Traffic> traffic_;
  std::unique_ptr<SharedMap> shared_map_;
  std::unique_ptr<BlockMap> block_map_;
};

// An access that the runtime makes for a thread of the running block.
inline void observe(uint32_t thread, const void* address, Access access, const void* pc) {
#ifdef EMULATOR_TSAN
  (void)thread;
  if (access == ACCESS_WRITE) {
    __tsan_write16_pc(const_cast<void*>(address), const_cast<void*>(pc));
  } else {
    __tsan_read16_pc(const_cast<void*>(address), const_cast<void*>(pc));
  }
#else
  if (current_block->observer) current_block->observer->access(thread, address, 16, access, pc);
#endif
}

}  // namespace emulator
