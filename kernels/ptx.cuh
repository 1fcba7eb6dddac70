// The only inline PTX: each instruction once as device code and once as a call of the emulator
// (kernels/emulator). Kernels use these wrappers and ordinary CUDA C++.
#pragma once
#include <cuda_bf16.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__

// The block's dynamic shared memory as `unsigned char*`, 1024-byte aligned.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
// Makes a kernel known by name to the emulator.
#define EXPORT_KERNEL(symbol)

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts to copy 16 bytes, both addresses 16-byte aligned; without `valid` it writes zeros and reads nothing.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's latest groups are under way. Other threads see the bytes after a
// barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit elements: lane 8 i + r gives the address of row r of matrix i, and r[i] of
// lane l holds elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, each matrix transposed: r[i] holds elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// D += A B with A [16, 16], B [16, 8], D [16, 8]. With g = lane / 4 and t = 2 (lane % 4), pairs low half
// first:
//   a[0] A(g, t..t+1)   a[1] A(g+8, t..)   a[2] A(g, t+8..)   a[3] A(g+8, t+8..)
//   b0   B(t..t+1, g)   b1   B(t+8.., g)
//   d[0] D(g, t)   d[1] D(g, t+1)   d[2] D(g+8, t)   d[3] D(g+8, t+1)
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x, within 2 units in the last place; subnormal results become 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// tanh x with a relative error of up to 2^-11.
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ptx

#else

#define DYNAMIC_SHARED(name) unsigned char* const name = emulator::coordinates().shared
#define EXPORT_KERNEL(symbol)                       \
  static emulator::Kernel emulator_kernel_##symbol( \
      #symbol, [](void** parameters) { emulator::call(&symbol, parameters); }, EMULATOR_OBSERVED != 0);

namespace ptx {

using emulator::Place;

__forceinline__ void cp_async16(void* shared, const void* global, bool valid = true,
                                Place place = Place::here()) {
  emulator::cp_async16(shared, global, valid, place);
}

__forceinline__ void cp_async_commit() { emulator::cp_async_commit(); }

template <int N>
__forceinline__ void cp_async_wait() {
  emulator::cp_async_wait(N);
}

__forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row, Place place = Place::here()) {
  emulator::ldmatrix_x4(r, row, false, place);
}

__forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Place place = Place::here()) {
  emulator::ldmatrix_x4(r, row, true, place);
}

__forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                       Place place = Place::here()) {
  emulator::mma_m16n8k16_bf16(d, a, b0, b1, place);
}

__forceinline__ float exp2_approx(float x) { return exp2f(x); }
__forceinline__ float tanh_approx(float x) { return tanhf(x); }

}  // namespace ptx

#endif
