// CUDA C++ as ordinary C++: what a kernel file needs to compile with g++ and run on the CPU, one fibre per
// CUDA thread. Every kernel and every file of the runtime is compiled with `-include cuda_host.h`.
//
// Plain loads and stores of kernels can be observed (runtime option check_blocks and the counts of memory
// traffic): kernel files compiled with -fsanitize=thread call __tsan_read4 and its like before each access,
// and intercept.cpp defines these functions instead of the sanitizer's library. The same objects serve for
// ordinary runs: with nothing to observe such a call returns at once, which costs 10 to 40 % of the time.
// With EMULATOR_TSAN the real library is linked instead.
#pragma once
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#if defined(__SANITIZE_THREAD__) && !defined(EMULATOR_TSAN)
#define EMULATOR_OBSERVED 1
#else
#define EMULATOR_OBSERVED 0
#endif

namespace emulator {

// A line of a kernel, for messages.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Copies 4, 8 or 16 bytes as the one access that the device makes of it.
void copy_whole(void* to, const void* from, unsigned bytes);

}  // namespace emulator

// Members of a vector type of the device. The compiler would split its copies into scalars; observed
// kernels move it whole. Functions that take or return one are always inlined: observed objects pass it
// another way than others, so that no function of theirs may serve both.
#if EMULATOR_OBSERVED
#define EMULATOR_VECTOR(Type)                                                                   \
  Type() = default;                                                                             \
  __forceinline__ Type(const Type& other) { emulator::copy_whole(this, &other, sizeof(Type)); } \
  __forceinline__ Type& operator=(const Type& other) {                                          \
    emulator::copy_whole(this, &other, sizeof(Type));                                           \
    return *this;                                                                               \
  }
#else
#define EMULATOR_VECTOR(Type) Type() = default;
#endif

#define EMULATOR_VECTOR2(Type, Scalar)       \
  struct alignas(2 * sizeof(Scalar)) Type {  \
    Scalar x, y;                             \
    EMULATOR_VECTOR(Type)                    \
    Type(Scalar x, Scalar y) : x(x), y(y) {} \
  };                                         \
  __forceinline__ Type make_##Type(Scalar x, Scalar y) { return {x, y}; }

#define EMULATOR_VECTOR4(Type, Scalar)                                       \
  struct alignas(4 * sizeof(Scalar)) Type {                                  \
    Scalar x, y, z, w;                                                       \
    EMULATOR_VECTOR(Type)                                                    \
    Type(Scalar x, Scalar y, Scalar z, Scalar w) : x(x), y(y), z(z), w(w) {} \
  };                                                                         \
  __forceinline__ Type make_##Type(Scalar x, Scalar y, Scalar z, Scalar w) { return {x, y, z, w}; }

EMULATOR_VECTOR2(float2, float)
EMULATOR_VECTOR2(int2, int)
EMULATOR_VECTOR2(uint2, unsigned)
EMULATOR_VECTOR4(float4, float)
EMULATOR_VECTOR4(int4, int)
EMULATOR_VECTOR4(uint4, unsigned)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

// What a thread knows of itself. It lies at the top of the fibre's stack, whose accesses are not observed.
struct Coordinates {
  uint3 thread;
  uint3 block;
  dim3 block_size;
  dim3 grid_size;
  unsigned char* shared;
};

// Of the running thread; constant while it runs.
const Coordinates& coordinates() __attribute__((const));

// Computes for all lanes of a warp at once: arguments[lane] is null outside the mask.
typedef void (*CollectiveFunction)(void** arguments);
void warp_collective(uint32_t mask, void* argument, CollectiveFunction function, Place place);
void warp_barrier(uint32_t mask, Place place);
void block_barrier(Place place);
int lane();

void cp_async16(void* shared, const void* global, bool valid, Place place);
void cp_async_commit();
void cp_async_wait(size_t groups_left_open);
void ldmatrix_x4(uint32_t (&registers)[4], const void* row, bool transposed, Place place);
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place);

uint32_t atomic_add(uint32_t* address, uint32_t value);
void device_fence();

// Ends the launch with an error text.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Kernels by name: a list linked by constructors that need no other object to be constructed before.
typedef void (*Thunk)(void** parameters);
struct Kernel {
  Kernel(const char* name, Thunk thunk, bool observed);
  const char* name;
  Thunk thunk;
  bool observed;  // its loads and stores report themselves
  Kernel* next;
};

// Not observed: on the device, reading parameters is no traffic.
template <class... P, size_t... I>
__attribute__((no_sanitize("thread"))) inline void call_with(void (*kernel)(P...), void** parameters,
                                                             std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<P>*>(parameters[I])...);
}

template <class... P>
inline void call(void (*kernel)(P...), void** parameters) {
  call_with(kernel, parameters, std::index_sequence_for<P...>{});
}

// The value that lane `source` of the warp calls this with.
uint64_t shuffle_bits(uint32_t mask, uint64_t value, int source, Place place);

template <class T>
inline T shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "the device shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle_bits(mask, bits, source, place);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

unsigned ballot(unsigned mask, bool predicate, Place place);

}  // namespace emulator

#define threadIdx (emulator::coordinates().thread)
#define blockIdx (emulator::coordinates().block)
#define blockDim (emulator::coordinates().block_size)
#define gridDim (emulator::coordinates().grid_size)

inline void __syncthreads(emulator::Place place = emulator::Place::here()) { emulator::block_barrier(place); }
inline void __syncwarp(unsigned mask = ~0u, emulator::Place place = emulator::Place::here()) {
  emulator::warp_barrier(mask, place);
}
inline void __threadfence() { emulator::device_fence(); }
inline void __threadfence_block() {}

// Shuffles within groups of `width` lanes; a lane whose source lies outside its group keeps its value.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                     emulator::Place place = emulator::Place::here()) {
  const int group = emulator::lane() & ~(width - 1);
  return emulator::shuffle(mask, value, group + (source & (width - 1)), place);
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                         emulator::Place place = emulator::Place::here()) {
  const int lane = emulator::lane();
  const int source = lane ^ lane_mask;
  const bool above = (source & ~(width - 1)) > (lane & ~(width - 1));
  return emulator::shuffle(mask, value, above ? lane : source, place);
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, int distance, int width = 32,
                          emulator::Place place = emulator::Place::here()) {
  const int lane = emulator::lane();
  const bool inside = (lane & (width - 1)) + distance < width;
  return emulator::shuffle(mask, value, inside ? lane + distance : lane, place);
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, int distance, int width = 32,
                        emulator::Place place = emulator::Place::here()) {
  const int lane = emulator::lane();
  const bool inside = (lane & (width - 1)) >= distance;
  return emulator::shuffle(mask, value, inside ? lane - distance : lane, place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Place place = emulator::Place::here()) {
  return emulator::ballot(mask, predicate != 0, place);
}
inline int __any_sync(unsigned mask, int predicate, emulator::Place place = emulator::Place::here()) {
  return emulator::ballot(mask, predicate != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Place place = emulator::Place::here()) {
  return emulator::ballot(mask, predicate == 0, place) == 0;
}

inline unsigned atomicAdd(unsigned* address, unsigned value) { return emulator::atomic_add(address, value); }
inline int atomicAdd(int* address, int value) {
  return static_cast<int>(
      emulator::atomic_add(reinterpret_cast<uint32_t*>(address), static_cast<uint32_t>(value)));
}

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }

// Macros: glibc keeps hidden functions of these names.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __powf(x, y) powf(x, y)
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t(a) * b >> 32); }

template <class T>
__forceinline__ T __ldg(const T* address) {
  return *address;
}

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
