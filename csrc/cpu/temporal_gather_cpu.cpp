// CPU kernels of temporal_gather. One unit of work is one output frame of one channel (contiguous) or of all channels
// (channels-last); a frame whose rows are dense is copied whole.
//
// The backward is in gather form: each frame of grad_input sums the output frames that read it, in ascending order,
// so it needs no atomics and gives the same bits for any number of threads.

#include <algorithm>
#include <cstring>

#include "slowfast/dtype.h"
#include "slowfast/parallel.h"
#include "slowfast/temporal_gather.h"

namespace slowfast {
namespace {

// A frame [C, H, W] of a 5-D tensor, its dimensions ordered from the largest stride to the smallest.
struct FrameLoop {
  int64_t size[3];
  int64_t stride[2][3];  // of the two tensors walked together

  FrameLoop(const TensorView& a, const TensorView& b) {
    int order[3] = {1, 3, 4};
    std::sort(order, order + 3,
              [&](int i, int j) { return a.stride(i) != a.stride(j) ? a.stride(i) > a.stride(j) : i < j; });
    for (int k = 0; k < 3; ++k) {
      size[k] = a.size(order[k]);
      stride[0][k] = a.stride(order[k]);
      stride[1][k] = b.stride(order[k]);
    }
    // Merge dimensions that are adjacent in both tensors, so that a dense frame becomes one long row.
    for (int k = 1; k >= 0; --k) {
      bool adjacent = true;
      for (int side = 0; side < 2; ++side) adjacent &= stride[side][k] == stride[side][k + 1] * size[k + 1];
      if (!adjacent) continue;
      size[k + 1] *= size[k];
      for (int side = 0; side < 2; ++side) stride[side][k] = stride[side][k + 1];
      for (int j = k; j > 0; --j) {
        size[j] = size[j - 1];
        for (int side = 0; side < 2; ++side) stride[side][j] = stride[side][j - 1];
      }
      size[0] = 1;
    }
  }

  template <typename RowFunction>
  SF_INLINE void rows(int64_t offset_a, int64_t offset_b, const RowFunction& row) const {
    for (int64_t i = 0; i < size[0]; ++i)
      for (int64_t j = 0; j < size[1]; ++j)
        row(offset_a + i * stride[0][0] + j * stride[0][1], offset_b + i * stride[1][0] + j * stride[1][1]);
  }
};

template <typename T>
void forward_frames(const TemporalGatherParams& p, int64_t begin, int64_t end) {
  const TensorView &x = p.input, &y = p.output;
  const T* input = x.as<const T>();
  T* output = y.as<T>();
  const int64_t* indices = p.indices.as<const int64_t>();
  const FrameLoop loop(y, x);
  const int64_t frames = y.size(2), length = loop.size[2], sy = loop.stride[0][2], sx = loop.stride[1][2];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / frames, t = unit % frames;
    const int64_t source = indices[n * p.indices.stride(0) + t * p.indices.stride(1)];
    SF_CHECK(source >= 0 && source < x.size(2), "temporal_gather: index ", source, " outside [0, ", x.size(2), ")");
    loop.rows(n * y.stride(0) + t * y.stride(2), n * x.stride(0) + source * x.stride(2), [&](int64_t to, int64_t from) {
      if (sy == 1 && sx == 1) {
        std::memcpy(output + to, input + from, length * sizeof(T));
      } else {
        for (int64_t k = 0; k < length; ++k) output[to + k * sy] = input[from + k * sx];
      }
    });
  }
}

template <typename T>
void backward_frames(const TemporalGatherBackwardParams& p, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const TensorView &gy = p.grad_output, &gx = p.grad_input;
  const T* grad_output = gy.as<const T>();
  T* grad_input = gx.as<T>();
  const int64_t* indices = p.indices.as<const int64_t>();
  const FrameLoop loop(gx, gy);
  const int64_t frames = gx.size(2), picked = gy.size(2), length = loop.size[2];
  const int64_t sx = loop.stride[0][2], sy = loop.stride[1][2];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / frames, t = unit % frames;
    const int64_t* index = indices + n * p.indices.stride(0);
    int64_t first = 0;
    while (first < picked && index[first * p.indices.stride(1)] != t) ++first;
    int64_t readers = 0;
    for (int64_t i = first; i < picked; ++i) readers += index[i * p.indices.stride(1)] == t;
    loop.rows(n * gx.stride(0) + t * gx.stride(2), n * gy.stride(0) + first * gy.stride(2),
              [&](int64_t to, int64_t from) {
                if (readers == 0) {
                  for (int64_t k = 0; k < length; ++k) grad_input[to + k * sx] = T(0);
                } else if (readers == 1) {
                  for (int64_t k = 0; k < length; ++k) grad_input[to + k * sx] = grad_output[from + k * sy];
                } else {
                  for (int64_t k = 0; k < length; ++k) {
                    Acc sum = 0;
                    for (int64_t i = first; i < picked; ++i)
                      if (index[i * p.indices.stride(1)] == t)
                        sum += static_cast<Acc>(grad_output[from + (i - first) * gy.stride(2) + k * sy]);
                    grad_input[to + k * sx] = T(sum);
                  }
                }
              });
  }
}

}  // namespace

void temporal_gather_forward_cpu(const TemporalGatherParams& p, int num_threads) {
  if (p.output.numel() == 0) return;
  dispatch_floating(p.input.dtype, "temporal_gather", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(p.output.size(0) * p.output.size(2), 1, num_threads,
                 [&](int64_t begin, int64_t end) { forward_frames<T>(p, begin, end); });
  });
}

void temporal_gather_backward_cpu(const TemporalGatherBackwardParams& p, int num_threads) {
  if (p.grad_input.numel() == 0) return;
  dispatch_floating(p.grad_output.dtype, "temporal_gather_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(p.grad_input.size(0) * p.grad_input.size(2), 1, num_threads,
                 [&](int64_t begin, int64_t end) { backward_frames<T>(p, begin, end); });
  });
}

}  // namespace slowfast
