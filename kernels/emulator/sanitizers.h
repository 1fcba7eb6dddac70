// Notes for AddressSanitizer and ThreadSanitizer, empty in ordinary builds: which stack is in use, what
// orders two threads, and what the race detector should not look at.
#pragma once
#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef EMULATOR_TSAN
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read16_pc(void* address, void* pc);
void __tsan_write16_pc(void* address, void* pc);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace emulator {
namespace sanitizers {

#if defined(__SANITIZE_ADDRESS__)
inline void start_switch(void** fake_stack, const void* bottom, size_t size) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, size);
}
inline void finish_switch(void* fake_stack, const void** old_bottom, size_t* old_size) {
  __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_size);
}
inline void poison(const void* from, size_t bytes) { __asan_poison_memory_region(from, bytes); }
inline void unpoison(const void* from, size_t bytes) { __asan_unpoison_memory_region(from, bytes); }
#else
inline void start_switch(void**, const void*, size_t) {}
inline void finish_switch(void*, const void**, size_t*) {}
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
#endif

#ifdef EMULATOR_TSAN
inline void* create_fibre() { return __tsan_create_fiber(0); }
inline void destroy_fibre(void* fibre) { __tsan_destroy_fiber(fibre); }
inline void* own_fibre() { return __tsan_get_current_fiber(); }
// Flag 1: the switch orders nothing.
inline void switch_to(void* fibre) { __tsan_switch_to_fiber(fibre, 1); }
// What was released at an address happens before what follows an acquire of it.
inline void acquire(void* address) { __tsan_acquire(address); }
inline void release(void* address) { __tsan_release(address); }
// All that a fibre did so far, which will not go on, happens before what follows in this one.
inline void acquire_all_of(void* fibre) {
  void* own = own_fibre();
  char edge;
  switch_to(fibre);
  release(&edge);
  switch_to(own);
  acquire(&edge);
}

// The runtime's own accesses between these points are not the kernel's.
struct Ignored {
  Ignored() { begin(); }
  ~Ignored() { end(); }
  void begin() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  void end() {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  }
};
#else
inline void* create_fibre() { return nullptr; }
inline void destroy_fibre(void*) {}
inline void* own_fibre() { return nullptr; }
inline void switch_to(void*) {}
inline void acquire(void*) {}
inline void release(void*) {}
inline void acquire_all_of(void*) {}
struct Ignored {
  Ignored() {}
  void begin() {}
  void end() {}
};
#endif

}  // namespace sanitizers
}  // namespace emulator
