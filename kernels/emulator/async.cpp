// cp.async. A copy may happen at any time between its issue and the wait for its group; the two extremes are
// emulated: at once, or, with deferred_async, in the wait. A group that nobody waits for is never copied
// then.
#include "observer.h"
#include "runtime.h"
#include "sanitizers.h"

namespace emulator {

namespace {

void execute(AsyncCopy& copy) {
  if (copy.valid) {
    observe(current_fibre->number, copy.global, ACCESS_READ, copy.pc);
    __builtin_memcpy(copy.shared, copy.global, 16);
  } else {
    __builtin_memset(copy.shared, 0, 16);
  }
#ifdef EMULATOR_TSAN  // the observer hears of the issue and of the landing instead
  observe(current_fibre->number, copy.shared, ACCESS_WRITE, copy.pc);
#endif
  copy.done = true;
}

// Names a line of a kernel. The compiler makes two calls of a copy that is valid or not, and the lanes of a warp
// come to one or the other, where the GPU has one access of all of them.
const void* source_line(Place place) {
  constexpr uintptr_t MOST_LINES = 1 << 16;
  return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(place.file) * MOST_LINES + place.line);
}

}  // namespace

void cp_async16(void* shared, const void* global, bool valid, Place place) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) {
    fail("cp.async at %s: the shared address is not 16-byte aligned", to_text(place));
  }
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    fail("cp.async at %s: the global address is not 16-byte aligned", to_text(place));
  }
  require_shared(shared, 16, "cp.async", place);
  current_block->counts.async_copies++;
  const void* pc = __builtin_return_address(0);
  Observer* observer = current_block->observer;
  if (observer) observer->copy_issued(current_fibre->number, shared, pc, source_line(place));
  AsyncCopy copy{shared, global, valid, false, pc};
  if (!current_block->options.deferred_async) execute(copy);
  if (copy.done && !observer) return;
  sanitizers::Ignored ignored;
  current_fibre->copies.push_back(copy);
}

void cp_async_commit() {
  sanitizers::Ignored ignored;
  current_fibre->groups.push_back(current_fibre->copies.size());
}

void cp_async_wait(size_t groups_left_open) {
  auto& copies = current_fibre->copies;
  auto& groups = current_fibre->groups;
  if (groups.size() <= groups_left_open) return;
  const size_t n_groups = groups.size() - groups_left_open;
  const size_t n_copies = groups[n_groups - 1];
  Observer* observer = current_block->observer;
  for (size_t i = 0; i < n_copies; ++i) {
    if (!copies[i].done) execute(copies[i]);
    if (observer) observer->copy_landed(copies[i].shared);
  }
  sanitizers::Ignored ignored;
  copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(n_copies));
  groups.erase(groups.begin(), groups.begin() + static_cast<ptrdiff_t>(n_groups));
  for (auto& end : groups) end -= n_copies;
}

}  // namespace emulator
