// What a warp does together: each lane leaves a pointer to its arguments and the last one to arrive computes
// for all. Also atomics and fences, which need nobody else.
#include <algorithm>

#include "observer.h"
#include "runtime.h"
#include "sanitizers.h"
#include "truncated_sum.h"

namespace emulator {

namespace {

// The collective that lanes with this mask are gathering for, or a free one.
Collective& find_collective(Block& block, size_t warp, uint32_t mask) {
  auto& of_warp = block.collectives[warp];
  Collective* free = nullptr;
  for (auto& collective : of_warp) {
    if (collective.n_arrived == 0) {
      free = &collective;
    } else if (collective.mask == mask) {
      return collective;
    }
  }
  return free ? *free : of_warp.emplace_back();
}

// Lanes of the mask that exist: the last warp of a block may be short.
uint32_t existing_lanes(const Block& block, size_t warp, uint32_t mask) {
  const size_t n_lanes = block.n_threads - warp * 32;
  return n_lanes >= 32 ? mask : mask & ((1u << n_lanes) - 1);
}

void nothing(void**) {}

// `orders`: memory accesses before it happen before those after it, in all lanes. On the device only
// __syncwarp promises that; a shuffle or an mma does not.
void gather(uint32_t mask, void* argument, CollectiveFunction function, Place place, bool orders) {
  sanitizers::Ignored ignored;
  Block& block = *current_block;
  const size_t warp = current_fibre->number / 32;
  const int own_lane = lane();
  if (!(mask >> own_lane & 1)) {
    fail("lane %d calls a collective of mask %08x, which leaves it out (%s)", own_lane, mask, to_text(place));
  }
  Collective& collective = find_collective(block, warp, mask);
  if (collective.n_arrived == 0) {
    collective.mask = mask;
    collective.function = function;
    collective.place = place;
    std::fill_n(collective.arguments, 32, nullptr);
  } else if (collective.function != function || collective.place.line != place.line) {
    fail("lanes of one warp are in different collectives, %s and %s", to_text(collective.place),
         to_text(place));
  }
  char* edge = &collective.edges[collective.generation];
  if (orders) sanitizers::release(edge);
  collective.arguments[own_lane] = argument;
  collective.fibres[collective.n_arrived++] = current_fibre;
  const int n_lanes = __builtin_popcount(existing_lanes(block, warp, mask));
  if (collective.n_arrived < n_lanes) {
    wait_in("a collective of the warp", place);
  } else {
    block.counts.collectives++;
    if (orders && block.observer) block.observer->warp_barrier(warp);
    ignored.end();  // what the collective itself loads counts
    function(collective.arguments);
    ignored.begin();
    for (int i = 0; i < n_lanes - 1; ++i) block.ready.push(collective.fibres[i]);
    collective.n_arrived = 0;
    collective.generation ^= 1;
    maybe_yield();
  }
  if (orders) sanitizers::acquire(edge);
}

struct Shuffle {
  uint64_t value;
  uint64_t result;
  int source;
};

void shuffle_lanes(void** arguments) {
  for (int i = 0; i < 32; ++i) {
    if (!arguments[i]) continue;
    auto* to = static_cast<Shuffle*>(arguments[i]);
    const auto* from = static_cast<const Shuffle*>(arguments[to->source]);
    if (!from) fail("lane %d shuffles from lane %d, which does not take part", i, to->source);
    to->result = from->value;
  }
}

struct Vote {
  bool predicate;
  unsigned result;
};

void count_votes(void** arguments) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) {
    if (arguments[i] && static_cast<Vote*>(arguments[i])->predicate) result |= 1u << i;
  }
  for (int i = 0; i < 32; ++i) {
    if (arguments[i]) static_cast<Vote*>(arguments[i])->result = result;
  }
}

void require_whole_warp(void** arguments, const char* what) {
  for (int i = 0; i < 32; ++i) {
    if (!arguments[i]) fail("%s in a warp without lane %d", what, i);
  }
}

struct LoadMatrix {
  const void* row;
  uint32_t* registers;
  bool transposed;
  Place place;
  const void* pc;
};

void load_matrices(void** arguments) {
  require_whole_warp(arguments, "ldmatrix");
  const uint32_t first_thread = current_fibre->number / 32 * 32;
  const unsigned char* rows[32];
  for (int i = 0; i < 32; ++i) {
    const auto& load = *static_cast<const LoadMatrix*>(arguments[i]);
    rows[i] = static_cast<const unsigned char*>(load.row);
    if (reinterpret_cast<uintptr_t>(load.row) % 16 != 0) {
      fail("ldmatrix at %s: the row of lane %d is not 16-byte aligned", to_text(load.place), i);
    }
    require_shared(load.row, 16, "ldmatrix", load.place);
    observe(first_thread + static_cast<uint32_t>(i), load.row, ACCESS_READ, load.pc);
  }
  const bool transposed = static_cast<const LoadMatrix*>(arguments[0])->transposed;
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int i = 0; i < 32; ++i) {
      uint16_t pair[2];
      for (int element = 0; element < 2; ++element) {
        const int across = 2 * (i % 4) + element;
        const int row = transposed ? across : i / 4;
        const int column = transposed ? i / 4 : across;
        memcpy(&pair[element], rows[8 * matrix + row] + 2 * column, 2);
      }
      static_cast<LoadMatrix*>(arguments[i])->registers[matrix] = pair[0] | uint32_t(pair[1]) << 16;
    }
  }
}

struct Mma {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Calls function(row, column, accumulator) for all 16 x 8 of a warp.
template <class Function>
void each_accumulator(void** arguments, const Function& function) {
  for (int i = 0; i < 32; ++i) {
    const auto& mma = *static_cast<const Mma*>(arguments[i]);
    const int g = i / 4, t = 2 * (i % 4);
    for (int lower = 0; lower < 2; ++lower) {
      for (int right = 0; right < 2; ++right) function(g + 8 * lower, t + right, mma.d[2 * lower + right]);
    }
  }
}

void add_rounded(void** arguments, const float (&a)[16][16], const float (&b)[16][8]) {
  float d[16][8] = {};
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    }
  }
  each_accumulator(arguments, [&](int row, int column, float& sum) { sum += d[row][column]; });
}

void add_cut_off(void** arguments, const float (&a)[16][16], const float (&b)[16][8]) {
  float d[16][8];
  each_accumulator(arguments, [&](int row, int column, float& sum) { d[row][column] = sum; });
  for (int i = 0; i < 16; ++i) add_truncated_row(d[i], a[i], b);
  each_accumulator(arguments, [&](int row, int column, float& sum) { sum = d[row][column]; });
}

void multiply_matrices(void** arguments) {
  require_whole_warp(arguments, "mma");
  float a[16][16], b[16][8];
  for (int i = 0; i < 32; ++i) {
    const auto& mma = *static_cast<const Mma*>(arguments[i]);
    const int g = i / 4, t = 2 * (i % 4);
    for (int half = 0; half < 2; ++half) {
      for (int lower = 0; lower < 2; ++lower) {
        const uint32_t pair = mma.a[2 * half + lower];
        a[g + 8 * lower][t + 8 * half] = low_half(pair);
        a[g + 8 * lower][t + 8 * half + 1] = high_half(pair);
      }
      b[t + 8 * half][g] = low_half(mma.b[half]);
      b[t + 8 * half + 1][g] = high_half(mma.b[half]);
    }
  }
  if (current_block->options.truncate_mma) {
    add_cut_off(arguments, a, b);
  } else {
    add_rounded(arguments, a, b);
  }
  current_block->counts.mma++;
}

}  // namespace

void warp_collective(uint32_t mask, void* argument, CollectiveFunction function, Place place) {
  gather(mask, argument, function, place, false);
}

void warp_barrier(uint32_t mask, Place place) { gather(mask, nullptr, nothing, place, true); }

uint64_t shuffle_bits(uint32_t mask, uint64_t value, int source, Place place) {
  Shuffle shuffle{value, value, source};
  warp_collective(mask, &shuffle, shuffle_lanes, place);
  return shuffle.result;
}

unsigned ballot(unsigned mask, bool predicate, Place place) {
  Vote vote{predicate, 0};
  warp_collective(mask, &vote, count_votes, place);
  return vote.result;
}

void ldmatrix_x4(uint32_t (&registers)[4], const void* row, bool transposed, Place place) {
  LoadMatrix load{row, registers, transposed, place, __builtin_return_address(0)};
  warp_collective(~0u, &load, load_matrices, place);
}

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place) {
  Mma mma{d, a, {b0, b1}};
  warp_collective(~0u, &mma, multiply_matrices, place);
}

uint32_t atomic_add(uint32_t* address, uint32_t value) {
  sanitizers::release(address);
  const uint32_t old = __atomic_fetch_add(address, value, __ATOMIC_ACQ_REL);
  sanitizers::acquire(address);
  if (current_block->observer) current_block->observer->atomic(current_fibre->number, address);
  return old;
}

void device_fence() {
  if (current_block->observer) current_block->observer->fence();
}

void require_shared(const void* address, size_t bytes, const char* what, Place place) {
  const Block& block = *current_block;
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto base = reinterpret_cast<uintptr_t>(block.shared);
  if (at >= base && at + bytes <= base + block.shared_bytes) return;
  fail("%s at %s: address %td of shared memory, which has %zu bytes", what, to_text(place),
       static_cast<ptrdiff_t>(at - base), block.shared_bytes);
}

}  // namespace emulator
