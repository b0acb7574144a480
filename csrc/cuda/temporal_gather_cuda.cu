// CUDA kernels of temporal_gather: a copy, so all that matters is wide, coalesced accesses.
//
// Grid: x over the units of a frame, y over frames, z over clips. A unit is 16 bytes where both frames are aligned and
// their rows are that wide, otherwise one element. The backward is in gather form: a thread owns units of grad_input
// and sums over the output frames that read its frame in ascending order, so there is nothing to synchronise; the lanes
// of a warp look for those together.

#include "cuda_utils.cuh"
#include "slowfast/temporal_gather.h"
#include "slowfast/temporal_gather_math.h"

namespace slowfast {
namespace {

constexpr int kThreads = 256;
constexpr int kUnits = 4;  // of a thread in the backward

struct GatherLoop {
  FrameLoop frame;  // sizes and strides in units of the kernel's type
  int64_t clip_stride_a, clip_stride_b, time_stride_a, time_stride_b;
  int64_t index_clip_stride, index_time_stride;
  int64_t frames;  // of the tensor that the indices point into, which they are clamped to

  SF_HOST_DEVICE int64_t index(const int64_t* indices, int64_t n, int64_t t) const {
    const int64_t value = indices[n * index_clip_stride + t * index_time_stride];
    return value < 0 ? 0 : value >= frames ? frames - 1 : value;
  }
};

// kSize adjacent values.
template <typename T, int kSize>
struct alignas(kSize * sizeof(T)) Pack {
  T values[kSize];
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
  const int64_t source = loop.index(indices, n, t);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loop.frame.numel(); i += step) {
    int64_t to, from;
    offsets<kDense>(loop.frame, i, &to, &from);
    output[n * loop.clip_stride_a + t * loop.time_stride_a + to] =
        input[n * loop.clip_stride_b + source * loop.time_stride_b + from];
  }
}

template <typename T, int kSize, bool kDense>
__global__ void __launch_bounds__(kThreads)
    temporal_gather_backward_kernel(const Pack<T, kSize>* grad_output, const int64_t* indices,
                                    Pack<T, kSize>* grad_input, int64_t picked, GatherLoop loop) {
  using Acc = accumulator_t<T>;
  const int64_t n = blockIdx.z, t = blockIdx.y;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kThreads * kUnits + threadIdx.x;
  const int lane = static_cast<int>(threadIdx.x % 32);
  Acc sums[kUnits][kSize] = {};
  int64_t to[kUnits], from[kUnits];
  for (int u = 0; u < kUnits; ++u) offsets<kDense>(loop.frame, begin + u * kThreads, &to[u], &from[u]);
  for (int64_t base = 0; base < picked; base += 32) {
    const bool reads = base + lane < picked && loop.index(indices, n, base + lane) == t;
    for (unsigned readers = __ballot_sync(0xFFFFFFFFu, reads); readers; readers &= readers - 1) {
      const int64_t k = base + __ffs(static_cast<int>(readers)) - 1;
      for (int u = 0; u < kUnits; ++u) {
        if (begin + u * kThreads >= loop.frame.numel()) break;
        const Pack<T, kSize> read = grad_output[n * loop.clip_stride_b + k * loop.time_stride_b + from[u]];
        for (int j = 0; j < kSize; ++j) sums[u][j] += static_cast<Acc>(read.values[j]);
      }
    }
  }
  for (int u = 0; u < kUnits; ++u) {
    if (begin + u * kThreads >= loop.frame.numel()) break;
    Pack<T, kSize> sum;
    for (int j = 0; j < kSize; ++j) sum.values[j] = T(sums[u][j]);
    grad_input[n * loop.clip_stride_a + t * loop.time_stride_a + to[u]] = sum;
  }
}

GatherLoop make_loop(const TensorView& a, const TensorView& b, const TensorView& indices, int64_t frames) {
  return {FrameLoop(a, b), a.stride(0),       b.stride(0),       a.stride(2),
          b.stride(2),     indices.stride(0), indices.stride(1), frames};
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

dim3 make_grid(const GatherLoop& loop, int64_t frames, int64_t clips, int64_t units_per_block, int64_t most_blocks) {
  const int64_t blocks = (loop.frame.numel() + units_per_block - 1) / units_per_block;
  return dim3(static_cast<unsigned>(std::min(blocks, most_blocks)), static_cast<unsigned>(frames),
              static_cast<unsigned>(clips));
}

template <typename Unit>
void forward(const TemporalGatherParams& p, const GatherLoop& loop, void* stream) {
  const auto kernel =
      is_dense(loop) ? temporal_gather_forward_kernel<Unit, true> : temporal_gather_forward_kernel<Unit, false>;
  SF_LAUNCH(kernel, make_grid(loop, p.output.size(2), p.output.size(0), kThreads, 4096), dim3(kThreads), 0, stream,
            p.input.as<const Unit>(), p.indices.as<const int64_t>(), p.output.as<Unit>(), loop);
}

template <typename T, int kSize>
void backward(const TemporalGatherBackwardParams& p, const GatherLoop& loop, void* stream) {
  const auto kernel = is_dense(loop) ? temporal_gather_backward_kernel<T, kSize, true>
                                     : temporal_gather_backward_kernel<T, kSize, false>;
  SF_LAUNCH(kernel, make_grid(loop, p.grad_input.size(2), p.grad_input.size(0), kThreads * kUnits, 0x7FFFFFFF),
            dim3(kThreads), 0, stream, p.grad_output.as<const Pack<T, kSize>>(), p.indices.as<const int64_t>(),
            p.grad_input.as<Pack<T, kSize>>(), p.grad_output.size(2), loop);
}

}  // namespace

void temporal_gather_forward_cuda(const TemporalGatherParams& p, int device, void* stream) {
  if (p.output.numel() == 0) return;
  const DeviceGuard guard(device);
  GatherLoop loop = make_loop(p.output, p.input, p.indices, p.input.size(2));
  const int64_t element = size_of(p.input.dtype);
  if (widen(&loop, p.output.data, p.input.data, element, 16)) return forward<uint4>(p, loop, stream);
  if (element == 8) return forward<uint64_t>(p, loop, stream);
  if (element == 4) return forward<uint32_t>(p, loop, stream);
  return forward<uint16_t>(p, loop, stream);
}

void temporal_gather_backward_cuda(const TemporalGatherBackwardParams& p, int device, void* stream) {
  if (p.grad_input.numel() == 0) return;
  const DeviceGuard guard(device);
  GatherLoop loop = make_loop(p.grad_input, p.grad_output, p.indices, p.grad_input.size(2));
  const bool wide = widen(&loop, p.grad_input.data, p.grad_output.data, size_of(p.grad_output.dtype), 16);
  dispatch_floating_cuda(p.grad_output.dtype, "temporal_gather_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    wide ? backward<T, 16 / sizeof(T)>(p, loop, stream) : backward<T, 1>(p, loop, stream);
  });
}

}  // namespace slowfast
