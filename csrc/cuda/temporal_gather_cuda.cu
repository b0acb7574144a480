// CUDA kernels of temporal_gather: a copy, so all that matters is wide, coalesced accesses.
//
// Grid: x over the elements of a frame, y over frames, z over clips. Where both frames are dense and aligned, a thread
// moves 16 bytes; otherwise one element. The backward is in gather form: a thread owns one element of grad_input and
// sums over the output frames that read its frame in ascending order, so there is nothing to synchronise.

#include "cuda_utils.cuh"
#include "slowfast/temporal_gather.h"
#include "slowfast/temporal_gather_math.h"

namespace slowfast {
namespace {

constexpr int kThreads = 256;

struct GatherLoop {
  FrameLoop frame;  // sizes and strides in units of the kernel's type
  int64_t clip_stride_a, clip_stride_b, time_stride_a, time_stride_b;
  int64_t index_clip_stride, index_time_stride;
};

// Where element i of a frame lies in the two tensors. A dense frame is one row: no divisions.
template <bool kDense>
SF_HOST_DEVICE inline void offsets(const FrameLoop& frame, int64_t i, int64_t* a, int64_t* b) {
  if (kDense) {
    *a = i * frame.stride_a[2];
    *b = i * frame.stride_b[2];
    return;
  }
  const int64_t k2 = i % frame.size[2], rest = i / frame.size[2];
  const int64_t k1 = rest % frame.size[1], k0 = rest / frame.size[1];
  *a = k0 * frame.stride_a[0] + k1 * frame.stride_a[1] + k2 * frame.stride_a[2];
  *b = k0 * frame.stride_b[0] + k1 * frame.stride_b[1] + k2 * frame.stride_b[2];
}

template <typename Unit, bool kDense>
__global__ void __launch_bounds__(kThreads)
    temporal_gather_forward_kernel(const Unit* input, const int64_t* indices, Unit* output, GatherLoop loop) {
  const int64_t n = blockIdx.z, t = blockIdx.y;
  const int64_t source = indices[n * loop.index_clip_stride + t * loop.index_time_stride];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loop.frame.numel(); i += step) {
    int64_t to, from;
    offsets<kDense>(loop.frame, i, &to, &from);
    output[n * loop.clip_stride_a + t * loop.time_stride_a + to] =
        input[n * loop.clip_stride_b + source * loop.time_stride_b + from];
  }
}

template <typename T, bool kDense>
__global__ void __launch_bounds__(kThreads)
    temporal_gather_backward_kernel(const T* grad_output, const int64_t* indices, T* grad_input, int64_t picked,
                                    GatherLoop loop) {
  using Acc = accumulator_t<T>;
  const int64_t n = blockIdx.z, t = blockIdx.y;
  const int64_t* index = indices + n * loop.index_clip_stride;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loop.frame.numel(); i += step) {
    int64_t to, from;
    offsets<kDense>(loop.frame, i, &to, &from);
    Acc sum = 0;
    for (int64_t k = 0; k < picked; ++k)
      if (index[k * loop.index_time_stride] == t)
        sum += static_cast<Acc>(grad_output[n * loop.clip_stride_b + k * loop.time_stride_b + from]);
    grad_input[n * loop.clip_stride_a + t * loop.time_stride_a + to] = T(sum);
  }
}

GatherLoop make_loop(const TensorView& a, const TensorView& b, const TensorView& indices) {
  return {FrameLoop(a, b), a.stride(0), b.stride(0), a.stride(2), b.stride(2), indices.stride(0), indices.stride(1)};
}

// Whether every access can move `bytes` at once; if so, turns the loop's units from elements into groups of them.
bool widen(GatherLoop* loop, const void* a, const void* b, int64_t element, int64_t bytes) {
  const int64_t group = bytes / element;
  FrameLoop& frame = loop->frame;
  if (frame.stride_a[2] != 1 || frame.stride_b[2] != 1 || frame.size[2] % group) return false;
  if (reinterpret_cast<uintptr_t>(a) % bytes || reinterpret_cast<uintptr_t>(b) % bytes) return false;
  int64_t* strides[] = {&frame.stride_a[0],   &frame.stride_a[1],   &frame.stride_b[0],   &frame.stride_b[1],
                        &loop->clip_stride_a, &loop->clip_stride_b, &loop->time_stride_a, &loop->time_stride_b};
  for (const int64_t* stride : strides)
    if (*stride % group) return false;
  for (int64_t* stride : strides) *stride /= group;
  frame.size[2] /= group;
  return true;
}

bool is_dense(const GatherLoop& loop) { return loop.frame.size[0] == 1 && loop.frame.size[1] == 1; }

dim3 make_grid(const GatherLoop& loop, int64_t frames, int64_t clips) {
  const int64_t blocks = (loop.frame.numel() + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096), static_cast<unsigned>(frames),
              static_cast<unsigned>(clips));
}

template <typename Unit>
void forward(const TemporalGatherParams& p, const GatherLoop& loop, void* stream) {
  const auto kernel =
      is_dense(loop) ? temporal_gather_forward_kernel<Unit, true> : temporal_gather_forward_kernel<Unit, false>;
  SF_LAUNCH(kernel, make_grid(loop, p.output.size(2), p.output.size(0)), dim3(kThreads), 0, stream,
            p.input.as<const Unit>(), p.indices.as<const int64_t>(), p.output.as<Unit>(), loop);
}

}  // namespace

void temporal_gather_forward_cuda(const TemporalGatherParams& p, int device, void* stream) {
  if (p.output.numel() == 0) return;
  const DeviceGuard guard(device);
  GatherLoop loop = make_loop(p.output, p.input, p.indices);
  const int64_t element = size_of(p.input.dtype);
  if (widen(&loop, p.output.data, p.input.data, element, 16)) return forward<uint4>(p, loop, stream);
  if (element == 8) return forward<uint64_t>(p, loop, stream);
  if (element == 4) return forward<uint32_t>(p, loop, stream);
  return forward<uint16_t>(p, loop, stream);
}

void temporal_gather_backward_cuda(const TemporalGatherBackwardParams& p, int device, void* stream) {
  if (p.grad_input.numel() == 0) return;
  const DeviceGuard guard(device);
  const GatherLoop loop = make_loop(p.grad_input, p.grad_output, p.indices);
  dispatch_floating_cuda(p.grad_output.dtype, "temporal_gather_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto kernel =
        is_dense(loop) ? temporal_gather_backward_kernel<T, true> : temporal_gather_backward_kernel<T, false>;
    SF_LAUNCH(kernel, make_grid(loop, p.grad_input.size(2), p.grad_input.size(0)), dim3(kThreads), 0, stream,
              p.grad_output.as<const T>(), p.indices.as<const int64_t>(), p.grad_input.as<T>(), p.grad_output.size(2),
              loop);
  });
}

}  // namespace slowfast
