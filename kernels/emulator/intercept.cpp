// The functions that -fsanitize=thread calls before every access of a kernel, defined here instead of in the
// sanitizer's library: they tell the observer, if there is one. What is on a fibre's own stack is registers
// or local memory on the device and is not looked at.
#include "observer.h"

namespace emulator {

namespace {

__forceinline__ void intercept(const void* address, unsigned bytes, Access access, const void* pc) {
  Block* block = current_block;
  if (__builtin_expect(!block || !block->observer, 1)) return;
  if (on_own_stack(address)) return;
  block->observer->access(current_fibre->number, address, bytes, access, pc);
}

// An access wider than what it is aligned to: the compiler made it of neighbouring scalars, or it copies a
// structure. The device makes it scalar by scalar.
[[maybe_unused]] void intercept_parts(const void* address, size_t bytes, Access access, const void* pc) {
  const size_t part = reinterpret_cast<uintptr_t>(address) % 4 == 0 && bytes % 4 == 0 ? 4 : 2;
  const auto* begin = static_cast<const unsigned char*>(address);
  for (size_t at = 0; at < bytes; at += part) intercept(begin + at, static_cast<unsigned>(part), access, pc);
}

}  // namespace

void copy_whole(void* to, const void* from, unsigned bytes) {
  const void* pc = __builtin_return_address(0);
  intercept(from, bytes, ACCESS_READ, pc);
  intercept(to, bytes, ACCESS_WRITE, pc);
  switch (bytes) {
    case 4:
      __builtin_memcpy(to, from, 4);
      break;
    case 8:
      __builtin_memcpy(to, from, 8);
      break;
    case 16:
      __builtin_memcpy(to, from, 16);
      break;
    default:
      fail("copy_whole of %u bytes", bytes);
  }
}

}  // namespace emulator

#ifndef EMULATOR_TSAN

#define INTERCEPT(name, bytes, access)                                        \
  extern "C" void __tsan_##name(void* address) {                              \
    emulator::intercept(address, bytes, access, __builtin_return_address(0)); \
  }
#define INTERCEPT_PARTS(name, bytes, access)                                        \
  extern "C" void __tsan_##name(void* address) {                                    \
    emulator::intercept_parts(address, bytes, access, __builtin_return_address(0)); \
  }
#define INTERCEPT_SIZE(bytes)                                          \
  INTERCEPT(read##bytes, bytes, emulator::ACCESS_READ)                 \
  INTERCEPT(write##bytes, bytes, emulator::ACCESS_WRITE)               \
  INTERCEPT(volatile_read##bytes, bytes, emulator::ACCESS_READ)        \
  INTERCEPT(volatile_write##bytes, bytes, emulator::ACCESS_WRITE)      \
  INTERCEPT_PARTS(unaligned_read##bytes, bytes, emulator::ACCESS_READ) \
  INTERCEPT_PARTS(unaligned_write##bytes, bytes, emulator::ACCESS_WRITE)
INTERCEPT(read1, 1, emulator::ACCESS_READ)
INTERCEPT(write1, 1, emulator::ACCESS_WRITE)
INTERCEPT_SIZE(2)
INTERCEPT_SIZE(4)
INTERCEPT_SIZE(8)
INTERCEPT_SIZE(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* address, size_t bytes) {
  emulator::intercept_parts(address, bytes, emulator::ACCESS_READ, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  emulator::intercept_parts(address, bytes, emulator::ACCESS_WRITE, __builtin_return_address(0));
}
}

#endif
