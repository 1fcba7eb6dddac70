// The optimizer: sums of gradients over batches, the norm of all gradients, and AdamW over all trained tensors, each in one
// launch.
#include "columns.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int VECTOR = 4;

// Elements of a tensor that one block goes over; src/backend/cuda/launch/optimizer.rs has the same number.
constexpr int CHUNK = 4096;
static_assert(CHUNK % (THREADS * VECTOR) == 0, "every thread of a whole chunk does the same");

// One trained tensor: a row of eight 64-bit words, as src/backend/cuda/launch/optimizer.rs writes it.
struct Tensor {
  uint64_t value;    // float; bf16 where there is a master; the sum of gradients where those are summed
  uint64_t master;   // float, or 0
  uint64_t grad;     // float
  uint64_t moment1;  // float
  uint64_t moment2;  // float
  uint64_t n_elements;
  uint64_t flags;
  float rate_scale;        // multiplies the learning rate
  unsigned skipped_steps;  // steps of the run in which the tensor did not train
};
static_assert(sizeof(Tensor) == 64, "the host writes eight words");

constexpr uint64_t FLAG_DECAYS = 1;   // weight decay applies
constexpr uint64_t FLAG_IS_HEAD = 2;  // the head's learning rate applies

template <class T>
__device__ __forceinline__ T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

// The elements of the chunk that this block goes over: {tensor, chunk within it} = chunks[blockIdx.x].
struct Range {
  uint64_t begin;
  uint64_t end;

  __device__ __forceinline__ Range(const Tensor& tensor, unsigned chunk)
      : begin(static_cast<uint64_t>(chunk) * CHUNK), end(min(begin + CHUNK, tensor.n_elements)) {}
};

__device__ __forceinline__ float sum_of_squares(const float* x, const Range& range) {
  float sum = 0.0f;
#pragma unroll
  for (int offset = 0; offset < CHUNK; offset += THREADS * VECTOR) {
    const size_t first = range.begin + offset + VECTOR * threadIdx.x;
    if (first + VECTOR <= range.end) {
      float values[VECTOR];
      load4(x + first, values);
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) sum += values[i] * values[i];
    } else {
      for (size_t i = first; i < range.end; ++i) sum += x[i] * x[i];
    }
  }
  return sum;
}

// The sum of n numbers in a fixed order, in thread 0; `shared` holds a double a thread.
__device__ __forceinline__ double sum_in_double(const float* x, unsigned n, double* shared) {
  double sum = 0.0;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < n; i += THREADS) sum += x[i];
  shared[threadIdx.x] = sum;
  for (unsigned width = THREADS / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
  }
  return threadIdx.x == 0 ? shared[0] : 0.0;  // the others must not look: thread 0 may still be adding
}

}  // namespace

// grad_accumulate: adds the gradients of a batch to those of the batches before it in the same step.
// MATHS    sum = sum + grad, or sum = grad where it begins
// SHAPES   tensors: the rows (value: the sum; grad, n_elements); chunks: [n_chunks] of {tensor, chunk}; all f32.
// TRAFFIC  bytes = 12*P (8*P where it begins) for P gradients; flops = P (0). Memory-bound: floor = bytes / bandwidth.
// LAUNCH   a block per chunk of 4096 elements: grid = n_chunks, block = 256, smem 0.
//          At most 32 registers (sm_80, sm_90a), no spill.
// PICTURE  element 4096 chunk + 1024 k + 4 t + i, i = 0..3, by thread t.
// NEEDS    all arrays 16-byte aligned; at least one chunk. One kernel for both element types. Does not read the step's
//          state, nor the sum where it begins.
// H100     grad_accumulate: 32 registers, 256 threads, 0 bytes, 100.0 %; floor 435 us +- 10 %.
// HISTORY  not yet measured on a device.
extern "C" __global__ void __launch_bounds__(THREADS)
    grad_accumulate(const StepState*, const uint64_t* tensors, const uint2* chunks, int begins) {
  const uint2 place = chunks[blockIdx.x];
  const Tensor& tensor = reinterpret_cast<const Tensor*>(tensors)[place.x];
  const Range range(tensor, place.y);
  const float* grad = pointer<const float>(tensor.grad);
  float* sum = pointer<float>(tensor.value);
#pragma unroll 1
  for (size_t first = range.begin + VECTOR * threadIdx.x; first < range.end; first += THREADS * VECTOR) {
    if (first + VECTOR <= range.end) {
      float sums[VECTOR] = {}, grads[VECTOR];
      if (!begins) load4(sum + first, sums);
      load4(grad + first, grads);
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) sums[i] += grads[i];
      store4(sum + first, sums);
    } else {
      for (size_t i = first; i < range.end; ++i) sum[i] = begins ? grad[i] : sum[i] + grad[i];
    }
  }
}
EXPORT_KERNEL(grad_accumulate)

// grad_norm: global norm of the gradients, and the factor that clips it.
// MATHS    out[0] = sqrt(sum g^2) over all tensors;  out[1] = min(1, max_norm / (out[0] + 1e-6))
// SHAPES   tensors: the gradients' rows (grad and n_elements are read); chunks: [n_chunks] of
//          {tensor, chunk}; partial: [n_chunks] f32 scratch; counter: one; out: [2] f32.
// TRAFFIC  bytes = 4*P + 8 for P gradients; flops = 2*P. Memory-bound: floor = bytes / bandwidth.
// LAUNCH   a block per chunk of 4096 elements: grid = n_chunks, block = 256, smem = 2048.
//          At most 31 registers (sm_80, sm_90a), no spill.
// PICTURE  element 4096 chunk + 1024 k + 4 t + i, i = 0..3, by thread t. A chunk is summed in float, lanes
//          by a butterfly, warps in order; the last block to arrive adds the chunks in double.
// NEEDS    gradients 16-byte aligned; at least one chunk. All operands are float: one kernel for both element
//          types. Fixed order: bitwise repeatable. The norm does not read the step's state.
// H100     grad_norm: 31 registers, 256 threads, 2048 bytes, 100.0 %; floor 145 us +- 10 %.
// HISTORY  not yet measured on a device.
extern "C" __global__ void __launch_bounds__(THREADS)
    grad_norm(const StepState*, const uint64_t* tensors, const uint2* chunks, float max_norm,
              float* partial, unsigned* counter, float* out) {
  DYNAMIC_SHARED(raw);
  float* floats = reinterpret_cast<float*>(raw);
  const uint2 place = chunks[blockIdx.x];
  const Tensor& tensor = reinterpret_cast<const Tensor*>(tensors)[place.x];
  const float own = sum_of_squares(pointer<const float>(tensor.grad), Range(tensor, place.y));
  const float sum = block_sum(own, floats);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
  if (!is_last_block(counter, gridDim.x, floats)) return;

  __syncthreads();
  const double total = sum_in_double(partial, gridDim.x, reinterpret_cast<double*>(raw));
  if (threadIdx.x != 0) return;
  const double norm = sqrt(total);
  out[0] = static_cast<float>(norm);
  out[1] = static_cast<float>(fmin(1.0, max_norm / (norm + 1e-6)));
}
EXPORT_KERNEL(grad_norm)

namespace {

// The constants of torch.optim.AdamW; src/backend/mod.rs has the same.
constexpr float BETA1 = static_cast<float>(0.9);
constexpr float BETA2 = static_cast<float>(0.999);
constexpr float ONE_MINUS_BETA1 = static_cast<float>(1.0 - 0.9);
constexpr float ONE_MINUS_BETA2 = static_cast<float>(1.0 - 0.999);
constexpr float EPSILON = 1e-8f;
constexpr float LOG_BETA1 = -0.10536051565782628f;
constexpr float LOG_BETA2 = -0.0010005003335835335f;

// 1 - beta^n, without the cancellation that beta = 0.999 and a small n would suffer.
__device__ __forceinline__ float bias_correction(float log_beta, unsigned n) {
  return -expm1f(static_cast<float>(n) * log_beta);
}

// The scalars of one tensor's update.
struct Update {
  float decay;  // learning rate x weight decay
  float rate;   // learning rate / bias correction of the first moment
  float root;   // square root of the bias correction of the second moment
  float clip;

  __device__ __forceinline__ Update(const StepState* state, const Tensor& tensor, const float* norm_and_clip) {
    const float base = tensor.flags & FLAG_IS_HEAD ? state->head_learning_rate : state->learning_rate;
    const float learning_rate = base * tensor.rate_scale;
    const unsigned step = state->step - tensor.skipped_steps;
    decay = tensor.flags & FLAG_DECAYS ? learning_rate * state->weight_decay : 0.0f;
    rate = learning_rate / bias_correction(LOG_BETA1, step);
    root = sqrtf(bias_correction(LOG_BETA2, step));
    clip = norm_and_clip == nullptr ? 1.0f : norm_and_clip[1];
  }

  // The decay is subtracted, not multiplied as 1 - decay: that rounds a decay of 1e-7 to 1.2e-7 or 6e-8.
  __device__ __forceinline__ void apply(float grad, float& value, float& moment1, float& moment2) const {
    grad *= clip;
    moment1 = BETA1 * moment1 + ONE_MINUS_BETA1 * grad;
    moment2 = BETA2 * moment2 + ONE_MINUS_BETA2 * grad * grad;
    value = fmaf(-decay, value, value);
    value -= rate * moment1 / (sqrtf(moment2) / root + EPSILON);
  }
};

// The arrays of one tensor. `value` is what is updated: the master where there is one, whose bf16 copy goes
// to `narrow`.
struct Arrays {
  const float* grad;
  float* value;
  float* moment1;
  float* moment2;
  bf16* narrow;

  __device__ __forceinline__ explicit Arrays(const Tensor& tensor)
      : grad(pointer<const float>(tensor.grad)),
        value(pointer<float>(tensor.master != 0 ? tensor.master : tensor.value)),
        moment1(pointer<float>(tensor.moment1)),
        moment2(pointer<float>(tensor.moment2)),
        narrow(tensor.master != 0 ? pointer<bf16>(tensor.value) : nullptr) {}

  __device__ __forceinline__ void update4(const Update& update, size_t first) const {
    float grads[VECTOR], values[VECTOR], moments1[VECTOR], moments2[VECTOR];
    load4(grad + first, grads);
    load4(value + first, values);
    load4(moment1 + first, moments1);
    load4(moment2 + first, moments2);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) update.apply(grads[i], values[i], moments1[i], moments2[i]);
    store4(value + first, values);
    store4(moment1 + first, moments1);
    store4(moment2 + first, moments2);
    if (narrow != nullptr) store4(narrow + first, values);
  }

  __device__ __forceinline__ void update1(const Update& update, size_t at) const {
    update.apply(grad[at], value[at], moment1[at], moment2[at]);
    if (narrow != nullptr) narrow[at] = from_float<bf16>(value[at]);
  }
};

}  // namespace

// adamw_step: torch.optim.AdamW over all trained tensors, in place.
// MATHS    g = grad clip;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p - lr wd p;
//          p = p - lr / (1 - b1^n) m / (sqrt(v) / sqrt(1 - b2^n) + eps);  b1 0.9, b2 0.999, eps 1e-8,
//          lr the group's rate times the tensor's scale, n the steps in which the tensor trained
// SHAPES   tensors: the items' rows; chunks: [n_chunks] of {tensor, chunk}; norm_and_clip: what grad_norm
//          wrote, or null (clip = 1). p is the master where there is one, and the value its bf16 copy.
// TRAFFIC  bytes = 28*P in f32, 30*P where the value is bf16, of P values; flops = 13*P, + P each for decay
//          and clipping. Memory-bound: floor = bytes / bandwidth.
// LAUNCH   a block per chunk of 4096 elements: grid = n_chunks, block = 256, smem 0.
//          At most 48 registers (sm_80, sm_90a), no spill.
// PICTURE  element 4096 chunk + 1024 k + 4 t + i, i = 0..3, by thread t: 16 bytes of f32 or 8 of bf16 an access;
//          the last elements of a tensor, where fewer than 4 are left, one by one.
// NEEDS    all arrays 16-byte aligned; at least one chunk. Which tensors are bf16 stands in the table: one
//          kernel for both element types.
// H100     adamw_step: 43 registers, 256 threads, 0 bytes, 62.5 %; floor 1089 us +- 10 %.
// HISTORY  not yet measured on a device.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_step(const StepState* state, const uint64_t* tensors, const uint2* chunks,
               const float* norm_and_clip) {
  const uint2 place = chunks[blockIdx.x];
  const Tensor& tensor = reinterpret_cast<const Tensor*>(tensors)[place.x];
  const Range range(tensor, place.y);
  const Arrays arrays(tensor);
  const Update update(state, tensor, norm_and_clip);
#pragma unroll 1
  for (size_t first = range.begin + VECTOR * threadIdx.x; first < range.end; first += THREADS * VECTOR) {
    if (first + VECTOR <= range.end) {
      arrays.update4(update, first);
    } else {
      for (size_t i = first; i < range.end; ++i) arrays.update1(update, i);
    }
  }
}
EXPORT_KERNEL(adamw_step)
