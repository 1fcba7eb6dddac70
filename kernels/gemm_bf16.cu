// gemm_*_bf16_*: the products of a linear layer in bf16 on tensor cores, sums in float.
// MATHS    as gemm_f32.cu. GELU from float sums, by a form whose error no bf16 shows (gelu.cuh).
// SHAPES   as gemm_f32.cu; x, weight, out, pre, dout and dx are bf16, 16-byte aligned, the others float.
// TRAFFIC  flops as gemm_f32.cu
//          gemm_fwd         bytes = 2*(M*K + P*(N*K + M*N)) + 4*P*N
//          gemm_gelu_fwd    bytes = 2*(M*K + N*K + 2*M*N) + 4*N, without pre 2*M*N less
//          gemm_dgrad       bytes = 2*(P*(M*N + N*K) + M*K)
//          gemm_gelu_dgrad  bytes = 2*(M*N + N*K + 2*M*K)
//          gemm_wgrad       bytes = 2*(M*K + P*M*N) + 4*P*(N*K + N), without dbias 4*N less; and scratch
//          Bound by arithmetic: floor = flops / measured peak.
// LAUNCH   block = 128, S x S entries of a matrix each: S = 128 (_128x128), for small grids 64 (_64x64);
//          shared memory 65,536 or 32,768 bytes, gemm_wgrad 16 more.
//          gemm_fwd, gemm_gelu_fwd  grid = (P * ceil(N/S), ceil(capacity of M / S))
//          gemm_dgrad, _gelu_dgrad  grid = (ceil(K/S), ceil(capacity of M / S))
//          gemm_wgrad               grid = (P * ceil(N/S) * ceil(K/S), slices of M); with several slices
//                                   scratch of S * S + S floats a block, and a counter for each blockIdx.x
//          _128x128: 203-255 registers, two blocks a multiprocessor; _64x64: 86-128 registers, four blocks;
//          no spill (sm_80, sm_90a).
//          _plain: launched as gemm_f32.cu, 68-116 registers.
// PICTURE  ring of 4 stages, one barrier a step:   |multiply k|k+1 landed|k+2 under way|k+3 starts|
//          a stage: S rows of 32 steps for an operand whose rows run along the reduction, 32 rows of S for
//          one whose rows run across it (read by ldmatrix.trans); chunks of 16 bytes turned within a row.
//          warp w of 4: a quadrant of the tile, (S/2) x (S/2), in the accumulators of mma.m16n8k16; results
//          leave as 16-byte chunks after a 4 x 4 transposition in each quad of lanes.
// NEEDS    N % 8 == 0 and K % 8 == 0 (else _plain); M any. Fixed order of sums: the same bits for the same
//          batch and number of slices; out, pre and dx of a row the same whatever batch it is in.
// H100     gemm_fwd_bf16_128x128: 209 registers, 128 threads, 65536 bytes, 12.5 %; floor 55 us +- 20 %,
//          gemm_gelu_fwd_bf16_128x128: 255 registers, 128 threads, 65536 bytes, 12.5 %; floor 55 us +- 20 %,
//          gemm_dgrad_bf16_128x128: 211 registers, 128 threads, 65536 bytes, 12.5 %; floor 55 us +- 20 %,
//          gemm_gelu_dgrad_bf16_128x128: 255 registers, 128 threads, 65536 bytes, 12.5 %; floor 56 us +- 20 %,
//          gemm_wgrad_bf16_128x128: 255 registers, 128 threads, 65552 bytes, 12.5 %; floor 55 us +- 20 %.
// HISTORY  not yet measured on a device.
#include "gemm_plain.cuh"
#include "gemm_tile.cuh"

template <gemm::Layout A, gemm::Layout B>
using Tensor128 = gemm::TensorTile<gemm::TileShape<128, 128, 64, 64, 4>, A, B>;
template <gemm::Layout A, gemm::Layout B>
using Tensor64 = gemm::TensorTile<gemm::TileShape<64, 64, 32, 32, 4>, A, B>;
template <gemm::Layout A, gemm::Layout B>
using PlainBf16 = gemm::PlainTile<bf16, A, B>;

static_assert(Tensor128<gemm::ALONG_K, gemm::ALONG_K>::SHARED_BYTES == 65536,
              "launch/gemm.rs has this number");
static_assert(Tensor64<gemm::ALONG_K, gemm::ALONG_K>::SHARED_BYTES == 32768,
              "launch/gemm.rs has this number");

GEMM_KERNELS(bf16_128x128, Tensor128, bf16, 128, 2)
GEMM_KERNELS(bf16_64x64, Tensor64, bf16, 128, 4)
GEMM_KERNELS(bf16_plain, PlainBf16, bf16, 256, 2)
