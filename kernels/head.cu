// From token vectors to the loss and back: pooling, classification heads, cross-entropy.
#include "columns.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// Labels as src/batch.rs has them: a class, IGNORED (any other negative number: logits, but no loss), or
constexpr int ABSENT_LABEL = -1;  // the row has nothing to do with the task: neither logits nor gradients

}  // namespace

// pool_fwd: one vector per sequence.
// MATHS    out[b] = mean of x[t] over the tokens t of sequence b, or x of its first token
// SHAPES   x: [T, D] of E; cu_seqlens: [B + 1]; out: [B, D] f32, or bf16 (_narrow) where a product reads it.
// TRAFFIC  mean: bytes = T*D*E + 4*B*D + 4*(B + 1); flops = T*D + B*D.
//          First token: bytes = B*D*(E + 4) + 4*(B + 1); flops = 0. Memory-bound.
// LAUNCH   a block per sequence and 256 columns: grid = (capacity of B, ceil(D/256)), block = 256,
//          smem = 8192.
//          At most 46 registers (sm_80, sm_90a), no spill.
// PICTURE  token cu_seqlens[b] + 8k + w by warp w, columns 8l .. 8l + 7 of the 256 by lane l.
// NEEDS    no empty sequence. D any (16-byte loads where D % 8 == 0). The order of the sum depends on the
//          sequence alone.
// H100     pool_fwd_bf16: 36 registers, 256 threads, 8192 bytes, 75.0 %; floor 4.3 us +- 10 %.
// HISTORY  not yet measured on a device.
template <class E, class Out>
__device__ __forceinline__ void pool_fwd(const StepState* state, int cols, int takes_mean, const E* x,
                                         const int* cu_seqlens, Out* out) {
  DYNAMIC_SHARED(raw);
  const int sequence = blockIdx.x;
  if (sequence >= state->n_sequences) return;
  const int first_col = blockIdx.y * BLOCK_COLUMNS;
  const int col = first_col + threadIdx.x;
  const int begin = cu_seqlens[sequence];
  float value;
  if (takes_mean) {
    const int end = cu_seqlens[sequence + 1];
    const float sum = column_sum(x, cols, first_col, begin, end, reinterpret_cast<float*>(raw));
    value = sum / static_cast<float>(end - begin);
  } else {
    value = col < cols ? to_float(x[static_cast<size_t>(begin) * cols + col]) : 0.0f;
  }
  if (col < cols) out[static_cast<size_t>(sequence) * cols + col] = from_float<Out>(value);
}

extern "C" __global__ void __launch_bounds__(BLOCK_COLUMNS)
    pool_fwd_f32(const StepState* state, int cols, int takes_mean, const float* x, const int* cu_seqlens,
                 float* out) {
  pool_fwd(state, cols, takes_mean, x, cu_seqlens, out);
}
EXPORT_KERNEL(pool_fwd_f32)

extern "C" __global__ void __launch_bounds__(BLOCK_COLUMNS)
    pool_fwd_bf16(const StepState* state, int cols, int takes_mean, const bf16* x, const int* cu_seqlens,
                  float* out) {
  pool_fwd(state, cols, takes_mean, x, cu_seqlens, out);
}
EXPORT_KERNEL(pool_fwd_bf16)

extern "C" __global__ void __launch_bounds__(BLOCK_COLUMNS)
    pool_fwd_bf16_narrow(const StepState* state, int cols, int takes_mean, const bf16* x,
                         const int* cu_seqlens, bf16* out) {
  pool_fwd(state, cols, takes_mean, x, cu_seqlens, out);
}
EXPORT_KERNEL(pool_fwd_bf16_narrow)

namespace {

// to[i] = factor * from[i] for one row of `cols` columns, by a warp.
template <class E>
__device__ __forceinline__ void scale_row(const E* from, float factor, int cols, float* to) {
  const int lane = threadIdx.x % 32;
  if (cols % 8 != 0) {
    for (int col = lane; col < cols; col += 32) to[col] = factor * to_float(from[col]);
    return;
  }
  for (int col = 8 * lane; col < cols; col += 8 * 32) {
    float values[8];
    load8(from + col, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] *= factor;
    store8(to + col, values);
  }
}

}  // namespace

// pool_bwd: gradient of pool_fwd.
// MATHS    dx[t] = dout[b] / length of b for every token t of sequence b; or dout[b] for its first token
//          and 0 for the others
// SHAPES   dout: [B, D] of E; sequence_ids: [T]; cu_seqlens: [B + 1]; dx: [T, D] f32.
// TRAFFIC  bytes = 4*T*D + B*D*E + 4*(B + 1) (and 4*T for sequence_ids, which the host derives);
//          flops = B*D for the mean, else 0. Memory-bound.
// LAUNCH   a warp per token: grid = ceil(capacity of T / 8), block = 256, smem 0.
//          At most 32 registers (sm_80, sm_90a), no spill.
// PICTURE  columns 8l + 256k .. 8l + 256k + 7 by lane l (l + 32k where D % 8 != 0).
// NEEDS    dout finite where only the first token counts: the others get 0 times it.
// H100     pool_bwd_bf16: 32 registers, 256 threads, 0 bytes, 100.0 %; floor 8.4 us +- 10 %.
// HISTORY  not yet measured on a device.
template <class E>
__device__ __forceinline__ void pool_bwd(const StepState* state, int cols, int takes_mean, const E* dout,
                                         const int* sequence_ids, const int* cu_seqlens, float* dx) {
  const int token = blockIdx.x * WARPS + threadIdx.x / 32;
  if (token >= state->n_tokens) return;
  const int sequence = sequence_ids[token];
  const int begin = cu_seqlens[sequence];
  float factor = token == begin ? 1.0f : 0.0f;
  if (takes_mean) factor = 1.0f / static_cast<float>(cu_seqlens[sequence + 1] - begin);
  const E* from = dout + static_cast<size_t>(sequence) * cols;
  scale_row(from, factor, cols, dx + static_cast<size_t>(token) * cols);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    pool_bwd_f32(const StepState* state, int cols, int takes_mean, const float* dout, const int* sequence_ids,
                 const int* cu_seqlens, float* dx) {
  pool_bwd(state, cols, takes_mean, dout, sequence_ids, cu_seqlens, dx);
}
EXPORT_KERNEL(pool_bwd_f32)

extern "C" __global__ void __launch_bounds__(THREADS)
    pool_bwd_bf16(const StepState* state, int cols, int takes_mean, const bf16* dout, const int* sequence_ids,
                  const int* cu_seqlens, float* dx) {
  pool_bwd(state, cols, takes_mean, dout, sequence_ids, cu_seqlens, dx);
}
EXPORT_KERNEL(pool_bwd_bf16)

namespace {

// The product of two vectors of n elements by a warp, in every lane.
template <class E>
__device__ __forceinline__ float warp_dot(const float* x, const E* y, int n) {
  const int lane = threadIdx.x % 32;
  float sum = 0.0f;
  if (n % 8 != 0) {
    for (int i = lane; i < n; i += 32) sum += x[i] * to_float(y[i]);
    return warp_sum(sum);
  }
  for (int first = 8 * lane; first < n; first += 8 * 32) {
    float left[8], right[8];
    load8(x + first, left);
    load8(y + first, right);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += left[i] * right[i];
  }
  return warp_sum(sum);
}

}  // namespace

// head_fwd: logits of a classification head.
// MATHS    logits[b, c] = x[b] . weight[c] + bias[c] where labels[b] != ABSENT; other rows are not written
// SHAPES   x: [B, D] f32; weight: [C, D] of E; bias: [C] f32; labels: [B]; logits: [B, C] f32.
// TRAFFIC  bytes = 4*B*D + C*D*E + 4*C + 4*B + 4*B*C; flops = 2*P*C*D for P rows that take part. C is small:
//          latency-bound.
// LAUNCH   a warp per logit: grid = ceil(capacity of B * C / 8), block = 256, smem 0.
//          At most 40 registers (sm_80, sm_90a), no spill.
// PICTURE  warp b * C + c; elements 8l + 256k .. 8l + 256k + 7 of both rows by lane l.
// NEEDS    nothing of C and D (16-byte loads where D % 8 == 0).
// H100     head_fwd_bf16: 40 registers, 256 threads, 0 bytes, 75.0 %; a launch.
// HISTORY  not yet measured on a device.
template <class E>
__device__ __forceinline__ void head_fwd(const StepState* state, int cols, int n_labels, const float* x,
                                         const E* weight, const float* bias, const int* labels,
                                         float* logits) {
  const size_t place = static_cast<size_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
  const int row = static_cast<int>(place / n_labels);
  if (row >= state->n_sequences || labels[row] == ABSENT_LABEL) return;
  const int label = static_cast<int>(place % n_labels);
  const float dot =
      warp_dot(x + static_cast<size_t>(row) * cols, weight + static_cast<size_t>(label) * cols, cols);
  if (threadIdx.x % 32 == 0) logits[place] = dot + bias[label];
}

extern "C" __global__ void __launch_bounds__(THREADS)
    head_fwd_f32(const StepState* state, int cols, int n_labels, const float* x, const float* weight,
                 const float* bias, const int* labels, float* logits) {
  head_fwd(state, cols, n_labels, x, weight, bias, labels, logits);
}
EXPORT_KERNEL(head_fwd_f32)

extern "C" __global__ void __launch_bounds__(THREADS)
    head_fwd_bf16(const StepState* state, int cols, int n_labels, const float* x, const bf16* weight,
                  const float* bias, const int* labels, float* logits) {
  head_fwd(state, cols, n_labels, x, weight, bias, labels, logits);
}
EXPORT_KERNEL(head_fwd_bf16)

namespace {

constexpr int XENT_THREADS = 512;
constexpr int XENT_WARPS = XENT_THREADS / 32;

// The number of labelled rows, in every thread. A float counts to 2^24 exactly.
__device__ __forceinline__ float count_labelled(const int* labels, int n_rows, float* shared) {
  int count = 0;
  for (int row = threadIdx.x; row < n_rows; row += XENT_THREADS) count += labels[row] >= 0;
  return block_sum(static_cast<float>(count), shared);
}

// How one row counts in the loss.
struct RowTarget {
  int label;
  float weight;     // multiplies the row's loss and gradient
  float divisor;    // divides its gradient
  float smoothing;  // the share of the target that all classes get alike
};

// The cross-entropy of one row against its target, by a warp, before weight and divisor; its gradient, with both,
// goes to `gradient` where that is not null.
__device__ __forceinline__ float row_loss(const float* logits, int n_labels, const RowTarget& target,
                                          float* gradient) {
  const int lane = threadIdx.x % 32;
  float top = -INFINITY;
  for (int i = lane; i < n_labels; i += 32) top = fmaxf(top, logits[i]);
  top = warp_max(top);
  float sum = 0.0f;
  for (int i = lane; i < n_labels; i += 32) sum += expf(logits[i] - top);
  sum = warp_sum(sum);
  if (gradient != nullptr) {
    const float share_of_all = target.smoothing / static_cast<float>(n_labels);
    for (int i = lane; i < n_labels; i += 32) {
      const float share = (i == target.label ? 1.0f - target.smoothing : 0.0f) + share_of_all;
      gradient[i] = target.weight * (expf(logits[i] - top) / sum - share) / target.divisor;
    }
  }
  const float loss = logf(sum) + (top - logits[target.label]);
  if (target.smoothing == 0.0f) return loss;
  float below = 0.0f;  // how far the logits lie below the label's
  for (int i = lane; i < n_labels; i += 32) below += logits[target.label] - logits[i];
  return loss + target.smoothing * (warp_sum(below) / static_cast<float>(n_labels));
}

}  // namespace

// xent_fwd: cross-entropy summed over the labelled rows by their weights, and its gradient.
// MATHS    t[b, c] = (1 - smoothing) [c = labels[b]] + smoothing / C;  w[b] = weights[b], or 1 / number of labelled
//          rows without weights;  loss = sum over rows with labels[b] >= 0 of w[b] sum_c -t[b, c] log p[b, c] with
//          p = softmax(logits[b]), 0 without any;  dlogits[b, c] = w[b] (p[b, c] - t[b, c]).
//          IGNORED rows: no loss, dlogits 0. ABSENT rows: logits not read, dlogits not written.
// SHAPES   logits, dlogits: [B, C] f32; labels: [B]; weights: [B] f32, or null; loss: [1] f32. dlogits may be null.
// TRAFFIC  bytes = 8*B*C + 4*B + 4 (4*B*C less without dlogits, 4*B more with weights); flops = 6*R*C for R labelled
//          rows (4*R*C; with smoothing 8*R*C, or 5*R*C).
// LAUNCH   one block, for the mean couples all rows: grid = 1, block = 512, smem = 256. A warp per row.
//          At most 40 registers (sm_80, sm_90a), no spill.
// PICTURE  row 16k + w by warp w, logits l + 32i by lane l.
// NEEDS    labels below C. All operands are float or int: one kernel for both element types. A warp adds its
//          rows' losses in double, thread 0 the 16 warps': a fixed order.
// H100     xent_fwd: 40 registers, 512 threads, 256 bytes, 75.0 %; a launch.
// HISTORY  not yet measured on a device.
extern "C" __global__ void __launch_bounds__(XENT_THREADS)
    xent_fwd(const StepState* state, int n_labels, const float* logits, const int* labels, const float* weights,
             float smoothing, float* loss, float* dlogits) {
  DYNAMIC_SHARED(warp_results);
  double* losses = reinterpret_cast<double*>(warp_results);
  float* counts = reinterpret_cast<float*>(losses + XENT_WARPS);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int n_rows = state->n_sequences;
  const float divisor = weights == nullptr ? count_labelled(labels, n_rows, counts) : 1.0f;

  double sum = 0.0;
  for (int row = warp; row < n_rows; row += XENT_WARPS) {
    const int label = labels[row];
    if (label == ABSENT_LABEL) continue;
    const size_t place = static_cast<size_t>(row) * n_labels;
    float* gradient = dlogits == nullptr ? nullptr : dlogits + place;
    if (label >= 0) {
      const RowTarget target = {label, weights == nullptr ? 1.0f : weights[row], divisor, smoothing};
      sum += static_cast<double>(target.weight) * row_loss(logits + place, n_labels, target, gradient);
    } else if (gradient != nullptr) {
      for (int i = lane; i < n_labels; i += 32) gradient[i] = 0.0f;
    }
  }
  if (lane == 0) losses[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int i = 0; i < XENT_WARPS; ++i) total += losses[i];
  *loss = divisor > 0.0f ? static_cast<float>(total / divisor) : 0.0f;
}
EXPORT_KERNEL(xent_fwd)

namespace {

// The heads that one head_dgrad sums at most; src/backend/cuda/launch/head.rs has the same number.
constexpr int MAX_HEADS = 8;

// One head of head_dgrad; a missing one has null pointers.
template <class E>
struct Head {
  const float* dlogits;
  const E* weight;
  const int* labels;
  int n_labels;

  // What the head adds to dx[row, col].
  __device__ __forceinline__ float term(int row, int col, int cols) const {
    if (dlogits == nullptr || labels[row] < 0) return 0.0f;
    const float* gradient = dlogits + static_cast<size_t>(row) * n_labels;
    float sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < n_labels; ++i) {
      sum += gradient[i] * to_float(weight[static_cast<size_t>(i) * cols + col]);
    }
    return sum;
  }
};

}  // namespace

// head_dgrad: gradient at the heads' common input.
// MATHS    dx[b, d] = sum over heads h with labels_h[b] >= 0 of sum_c dlogits_h[b, c] weight_h[c, d]
// SHAPES   dlogits_h: [B, C_h] f32; weight_h: [C_h, D] of E; labels_h: [B]; dx: [B, D] f32. Up to 8 heads,
//          four arguments each; missing ones have null pointers.
// TRAFFIC  bytes = 4*B*D + sum_h (4*B*C_h + C_h*D*E + 4*B); flops = sum_h 2*R_h*C_h*D for R_h labelled rows.
// LAUNCH   a thread per element: grid = (capacity of B, ceil(D/256)), block = 256, smem 0.
//          At most 32 registers (sm_80, sm_90a), no spill.
// PICTURE  thread t of block (b, i) holds dx[b, 256 i + t].
// NEEDS    nothing of C_h and D. Rows without a label for any head get 0. Heads in order, labels in order.
// H100     head_dgrad_bf16: 27 registers, 256 threads, 0 bytes, 100.0 %; a launch.
// HISTORY  not yet measured on a device.
template <class E>
__device__ __forceinline__ void head_dgrad(const StepState* state, int cols, float* dx,
                                           const Head<E> (&heads)[MAX_HEADS]) {
  const int row = blockIdx.x;
  const int col = blockIdx.y * THREADS + threadIdx.x;
  if (row >= state->n_sequences || col >= cols) return;
  float sum = 0.0f;
#pragma unroll
  for (int head = 0; head < MAX_HEADS; ++head) sum += heads[head].term(row, col, cols);
  dx[static_cast<size_t>(row) * cols + col] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    head_dgrad_f32(const StepState* state, int cols, float* dx,                                   //
                   const float* d0, const float* w0, const int* labels0, int n0,                  //
                   const float* d1, const float* w1, const int* labels1, int n1,                  //
                   const float* d2, const float* w2, const int* labels2, int n2,                  //
                   const float* d3, const float* w3, const int* labels3, int n3,                  //
                   const float* d4, const float* w4, const int* labels4, int n4,                  //
                   const float* d5, const float* w5, const int* labels5, int n5,                  //
                   const float* d6, const float* w6, const int* labels6, int n6,                  //
                   const float* d7, const float* w7, const int* labels7, int n7) {
  const Head<float> heads[MAX_HEADS] = {
      {d0, w0, labels0, n0}, {d1, w1, labels1, n1}, {d2, w2, labels2, n2}, {d3, w3, labels3, n3},
      {d4, w4, labels4, n4}, {d5, w5, labels5, n5}, {d6, w6, labels6, n6}, {d7, w7, labels7, n7}};
  head_dgrad(state, cols, dx, heads);
}
EXPORT_KERNEL(head_dgrad_f32)

extern "C" __global__ void __launch_bounds__(THREADS)
    head_dgrad_bf16(const StepState* state, int cols, float* dx,                                  //
                    const float* d0, const bf16* w0, const int* labels0, int n0,                  //
                    const float* d1, const bf16* w1, const int* labels1, int n1,                  //
                    const float* d2, const bf16* w2, const int* labels2, int n2,                  //
                    const float* d3, const bf16* w3, const int* labels3, int n3,                  //
                    const float* d4, const bf16* w4, const int* labels4, int n4,                  //
                    const float* d5, const bf16* w5, const int* labels5, int n5,                  //
                    const float* d6, const bf16* w6, const int* labels6, int n6,                  //
                    const float* d7, const bf16* w7, const int* labels7, int n7) {
  const Head<bf16> heads[MAX_HEADS] = {
      {d0, w0, labels0, n0}, {d1, w1, labels1, n1}, {d2, w2, labels2, n2}, {d3, w3, labels3, n3},
      {d4, w4, labels4, n4}, {d5, w5, labels5, n5}, {d6, w6, labels6, n6}, {d7, w7, labels7, n7}};
  head_dgrad(state, cols, dx, heads);
}
EXPORT_KERNEL(head_dgrad_bf16)

namespace {

// Sums of one thread of head_wgrad.
struct HeadSums {
  float weight;
  float bias;
};

// Over the labelled rows warp, warp + 8, ...: the sums of dlogits[b, label] x[b, col] and dlogits[b, label].
__device__ __forceinline__ HeadSums sum_labelled_rows(int n_rows, int cols, int n_labels, int col, const float* x,
                                                      const float* dlogits, const int* labels) {
  const bool has_x = x != nullptr && col < cols;
  HeadSums sums = {0.0f, 0.0f};
#pragma unroll 4
  for (int row = threadIdx.x / 32; row < n_rows; row += WARPS) {
    const bool is_labelled = labels[row] >= 0;
    const float d = is_labelled ? dlogits[static_cast<size_t>(row) * n_labels + blockIdx.y] : 0.0f;
    const float value = is_labelled && has_x ? x[static_cast<size_t>(row) * cols + col] : 0.0f;
    sums.weight += d * value;
    sums.bias += d;
  }
  return sums;
}

}  // namespace

// head_wgrad: gradients of a head's parameters.
// MATHS    dweight[c, d] = sum over rows b with labels[b] >= 0 of dlogits[b, c] x[b, d];
//          dbias[c] = sum over the same rows of dlogits[b, c]
// SHAPES   x: [B, D] f32; dlogits: [B, C] f32; labels: [B]; dweight: [C, D] f32; dbias: [C] f32. dweight
//          (and then x) or dbias may be null.
// TRAFFIC  bytes = 4*B*D + 4*B*C + 4*B + 4*C*D + 4*C; flops = R*C*(2*D + 1) for R labelled rows.
// LAUNCH   a block per label and 32 columns: grid = (ceil(D/32), C), or (1, C) without dweight; block = 256,
//          smem = 1056.
//          At most 40 registers (sm_80, sm_90a), no spill.
// PICTURE  block (i, c): rows 8k + w by warp w, column 32 i + l by lane l; then warp 0 adds the warps' sums.
// NEEDS    nothing of C and D; one kernel for both types of weights. Rows without a label are not read. The
//          order of the sum depends on the number of the row alone: bitwise repeatable.
// H100     head_wgrad: 32 registers, 256 threads, 1056 bytes, 100.0 %; a launch.
// HISTORY  not yet measured on a device.
extern "C" __global__ void __launch_bounds__(THREADS)
    head_wgrad(const StepState* state, int cols, int n_labels, const float* x, const float* dlogits,
               const int* labels, float* dweight, float* dbias) {
  DYNAMIC_SHARED(partial_sums);
  float* weight_sums = reinterpret_cast<float*>(partial_sums);  // [warp][lane]
  float* bias_sums = weight_sums + THREADS;                     // [warp]
  const int label = blockIdx.y;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int col = blockIdx.x * 32 + lane;
  const float* needed_x = dweight != nullptr ? x : nullptr;
  const HeadSums sums =
      sum_labelled_rows(state->n_sequences, cols, n_labels, col, needed_x, dlogits, labels);
  weight_sums[threadIdx.x] = sums.weight;
  if (lane == 0) bias_sums[warp] = sums.bias;
  __syncthreads();
  if (warp != 0) return;

  float weight_sum = 0.0f;
  float bias_sum = 0.0f;
  for (int i = 0; i < WARPS; ++i) {
    weight_sum += weight_sums[32 * i + lane];
    bias_sum += bias_sums[i];
  }
  if (dweight != nullptr && col < cols) dweight[static_cast<size_t>(label) * cols + col] = weight_sum;
  if (dbias != nullptr && blockIdx.x == 0 && lane == 0) dbias[label] = bias_sum;
}
EXPORT_KERNEL(head_wgrad)
