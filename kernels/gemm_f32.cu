// gemm_*_f32: the products of a linear layer in float, for --dtype f32 and as the device's own oracle.
// MATHS    gemm_fwd         out_p = x weight_p^T + bias_p            for P parts, one launch
//          gemm_gelu_fwd    pre = x weight^T + bias;  out = pre Phi(pre)
//          gemm_dgrad       dx = sum_p dout_p weight_p
//          gemm_gelu_dgrad  dx = (dout weight) (Phi(pre) + pre phi(pre))
//          gemm_wgrad       dweight_p = dout_p^T x;  dbias_p = column sums of dout_p
// SHAPES   x [M, K], weight [N, K], bias [N], out, pre of gemm_gelu_fwd and dout [M, N], dx and pre of
//          gemm_gelu_dgrad [M, K], dweight [N, K], dbias [N]: all float, row-major.
// TRAFFIC  flops = 2*M*N*K*P, and 5*M*N or 11*M*K for GELU, and M*N*P for dbias
//          gemm_fwd         bytes = 4*(M*K + P*(N*K + N + M*N))
//          gemm_gelu_fwd    bytes = 4*(M*K + N*K + N + 2*M*N), without pre one M*N less
//          gemm_dgrad       bytes = 4*(P*(M*N + N*K) + M*K)
//          gemm_gelu_dgrad  bytes = 4*(M*N + N*K + 2*M*K)
//          gemm_wgrad       bytes = 4*(M*K + P*(M*N + N*K + N)), without dbias N less; scratch not counted
//          Bound by arithmetic on the plain cores; not tuned.
// LAUNCH   block = 256, 64 x 64 entries of a matrix each; shared memory 8,704 bytes, gemm_wgrad 16 more.
//          gemm_fwd, gemm_gelu_fwd  grid = (P * ceil(N/64), ceil(capacity of M / 64))
//          gemm_dgrad, _gelu_dgrad  grid = (ceil(K/64), ceil(capacity of M / 64))
//          gemm_wgrad               grid = (P * ceil(N/64) * ceil(K/64), slices of M); with several slices
//                                   scratch of 4,160 floats a block, and a counter for each blockIdx.x
//          68-78 registers, gemm_wgrad 114 (sm_80, sm_90a), no spill.
// PICTURE  thread t: rows 4 (t / 16) .. + 3, columns t % 16 + 0, 16, 32, 48 of its block's tile.
// NEEDS    nothing of M, N, K: what is outside a matrix counts as zero. Fixed order of sums: the same bits
//          for the same batch and number of slices.
// H100     gemm_fwd_f32: 78 registers, 256 threads, 8704 bytes, 37.5 %; floor 644 us +- 20 %,
//          gemm_gelu_fwd_f32: 78 registers, 256 threads, 8704 bytes, 37.5 %; floor 646 us +- 20 %,
//          gemm_dgrad_f32: 68 registers, 256 threads, 8704 bytes, 37.5 %; floor 644 us +- 20 %,
//          gemm_gelu_dgrad_f32: 72 registers, 256 threads, 8704 bytes, 37.5 %; floor 649 us +- 20 %,
//          gemm_wgrad_f32: 114 registers, 256 threads, 8720 bytes, 25.0 %; floor 645 us +- 20 %.
// HISTORY  not yet measured on a device.
#include "gemm_plain.cuh"

template <gemm::Layout A, gemm::Layout B>
using PlainF32 = gemm::PlainTile<float, A, B>;

static_assert(PlainF32<gemm::ALONG_K, gemm::ALONG_K>::SHARED_BYTES == 8704, "launch/gemm.rs has this number");

GEMM_KERNELS(f32, PlainF32, float, 256, 2)
