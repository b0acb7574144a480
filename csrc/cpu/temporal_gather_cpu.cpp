// CPU kernels of temporal_gather: rows are copied whole where they are dense.
//
// The backward is in gather form: each frame of grad_input sums the output frames that read it, in ascending order,
// so it needs no atomics and gives the same bits for any number of threads.

#include <algorithm>
#include <cstring>

#include "slowfast/dtype.h"
#include "slowfast/parallel.h"
#include "slowfast/temporal_gather.h"
#include "slowfast/temporal_gather_math.h"

namespace slowfast {
namespace {

// row(offset in a, offset in b) for every row of a frame.
template <typename RowFunction>
SF_INLINE void for_each_row(const FrameLoop& frame, const RowFunction& row) {
  for (int64_t i = 0; i < frame.size[0]; ++i)
    for (int64_t j = 0; j < frame.size[1]; ++j)
      row(i * frame.stride_a[0] + j * frame.stride_a[1], i * frame.stride_b[0] + j * frame.stride_b[1]);
}

template <typename T>
SF_INLINE void copy_row(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t length) {
  if (to_stride == 1 && from_stride == 1) {
    std::memcpy(to, from, length * sizeof(T));
  } else {
    for (int64_t k = 0; k < length; ++k) to[k * to_stride] = from[k * from_stride];
  }
}

template <typename T>
SF_INLINE void zero_row(T* to, int64_t stride, int64_t length) {
  if (stride == 1) {
    std::memset(static_cast<void*>(to), 0, length * sizeof(T));
  } else {
    for (int64_t k = 0; k < length; ++k) to[k * stride] = T(0);
  }
}

// One unit is one row of one output frame, in the order in which they lie in the output: a contiguous tensor has the
// frames of a channel side by side, a channels-last one the rows of a frame.
template <typename T>
void forward_rows(const TemporalGatherParams& p, const FrameLoop& frame, int64_t begin, int64_t end) {
  const TensorView &x = p.input, &y = p.output;
  const int64_t* indices = p.indices.as<const int64_t>();
  const int64_t frames = y.size(2), rows = frame.size[0] * frame.size[1];
  const bool frames_inside = frame.stride_a[1] > y.stride(2);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / (rows * frames), rest = unit % (rows * frames);
    const int64_t t = frames_inside ? rest % frames : rest / rows, row = frames_inside ? rest / frames : rest % rows;
    const int64_t i = row / frame.size[1], j = row % frame.size[1];
    const int64_t source = indices[n * p.indices.stride(0) + t * p.indices.stride(1)];
    SF_CHECK(source >= 0 && source < x.size(2), "temporal_gather: index ", source, " outside [0, ", x.size(2), ")");
    copy_row(y.as<T>() + n * y.stride(0) + t * y.stride(2) + i * frame.stride_a[0] + j * frame.stride_a[1],
             frame.stride_a[2],
             x.as<const T>() + n * x.stride(0) + source * x.stride(2) + i * frame.stride_b[0] + j * frame.stride_b[1],
             frame.stride_b[2], frame.size[2]);
  }
}

template <typename T>
void backward_frames(const TemporalGatherBackwardParams& p, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  constexpr int64_t kBlock = 256;
  const TensorView &gy = p.grad_output, &gx = p.grad_input;
  const int64_t* indices = p.indices.as<const int64_t>();
  const FrameLoop frame(gx, gy);
  const int64_t frames = gx.size(2), picked = gy.size(2), length = frame.size[2];
  const int64_t to_stride = frame.stride_a[2], from_stride = frame.stride_b[2];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / frames, t = unit % frames;
    const auto reads = [&](int64_t i) { return indices[n * p.indices.stride(0) + i * p.indices.stride(1)] == t; };
    T* grad_input = gx.as<T>() + n * gx.stride(0) + t * gx.stride(2);
    const T* grad_output = gy.as<const T>() + n * gy.stride(0);
    int64_t readers = 0, reader = 0;
    for (int64_t i = picked - 1; i >= 0; --i)
      if (reads(i)) ++readers, reader = i;
    for_each_row(frame, [&](int64_t to, int64_t from) {
      if (readers == 0) {
        zero_row(grad_input + to, to_stride, length);
      } else if (readers == 1) {
        copy_row(grad_input + to, to_stride, grad_output + reader * gy.stride(2) + from, from_stride, length);
      } else {
        for (int64_t start = 0; start < length; start += kBlock) {
          const int64_t count = std::min(kBlock, length - start);
          Acc sum[kBlock] = {};
          for (int64_t i = reader; i < picked; ++i) {
            if (!reads(i)) continue;
            const T* row = grad_output + i * gy.stride(2) + from + start * from_stride;
            for (int64_t k = 0; k < count; ++k) sum[k] += static_cast<Acc>(row[k * from_stride]);
          }
          for (int64_t k = 0; k < count; ++k) grad_input[to + (start + k) * to_stride] = T(sum[k]);
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
    const FrameLoop frame(p.output, p.input);
    const int64_t rows = p.output.size(0) * p.output.size(2) * frame.size[0] * frame.size[1];
    // A copy that fits the caches is over before another thread has woken up.
    const int64_t grain = 1 + (int64_t{1} << 20) / frame.size[2];
    parallel_for(rows, grain, num_threads, [&](int64_t begin, int64_t end) { forward_rows<T>(p, frame, begin, end); });
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
