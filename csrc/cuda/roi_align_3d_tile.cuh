// Tiles of roi_align_3d's CUDA kernels: some pixels (or bins) of a rectangle in the channels of a block, in shared
// memory; how they are read, resampled and written.
//
// In channels_last_3d tensors a thread moves 16 bytes of channels; in contiguous ones lanes run along the pixels of a
// row. Tiles have room for one lane's channels more than they need, so that both ways of filling them spread over the
// banks.
#pragma once

#include <cmath>

#include "roi_align_3d_plan.cuh"

namespace slowfast {
namespace roi_align_3d {

constexpr int kThreads = 256, kWarps = kThreads / kLanes;

// What moves at once.
template <typename T, int kBytes>
struct alignas(kBytes) Vector {
  static constexpr int kCount = kBytes / sizeof(T);
  T values[kCount];

  SF_HOST_DEVICE void add(T weight, const Vector& other) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] += weight * other.values[k];
  }
};
template <typename T>
using Packet = Vector<T, 16>;  // to and from memory
template <typename A>
using PerLane = Vector<A, 8>;  // to and from a tile

template <typename A>
constexpr int kChannels = kLanes * PerLane<A>::kCount;  // in a tile
template <typename A>
constexpr int kPitch = kChannels<A> + PerLane<A>::kCount;
constexpr int kPixels = 112, kBins = 64;  // in a tile

// How 16 bytes of a tensor can be moved at once.
enum class Packets { kNone, kOfChannels, kOfPixels };

// Some channels of one clip or RoI of a [*, C, T, H, W] tensor (of [*, C], the strides of the other axes are 0).
template <typename T>
struct Channels {
  T* data;
  int64_t row, channel, frame, y, x;  // strides
  bool inner;                         // channels lie together in memory
  Packets packets = Packets::kNone;
  int count = 0;

  explicit Channels(const TensorView& view)
      : data(static_cast<T*>(view.data)), row(view.strides[0]), channel(view.strides[1]), frame(0), y(0), x(0) {
    const auto size = [&](int dim) { return dim < view.ndim ? view.sizes[dim] : 1; };
    const auto stride = [&](int dim) { return size(dim) > 1 ? view.strides[dim] : 0; };
    frame = stride(2), y = stride(3), x = stride(4);
    inner = channel == 1 && size(1) > 1;
    constexpr int64_t kGroup = Packet<T>::kCount;
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0 || stride(0) % kGroup != 0 || frame % kGroup != 0) return;
    const bool dense = (size(4) == 1 || x == 1) && (size(3) == 1 || y == size(4));
    if (inner && size(1) % kGroup == 0 && y % kGroup == 0 && x % kGroup == 0)
      packets = Packets::kOfChannels;
    else if (!inner && dense && size(3) * size(4) % kGroup == 0 && stride(1) % kGroup == 0)
      packets = Packets::kOfPixels;
  }
  // Up to `most` channels of one row of the tensor.
  SF_HOST_DEVICE Channels at(int index, int first, int channels, int most) const {
    Channels result = *this;
    result.data += index * row + first * channel;
    result.count = channels - first < most ? channels - first : most;
    return result;
  }
  SF_HOST_DEVICE T* pixel(const Rectangle& where, int i) const {
    return data + (where.y + i / where.width) * y + (where.x + i % where.width) * x;
  }
};

// The frames (or time bins) that are summed, and how much each counts.
template <typename A>
struct TimeWeights {
  PixelRange range;
  const A* weights;
  int64_t stride;

  SF_HOST_DEVICE A operator[](int f) const { return weights[f * stride]; }
};

// Calls function(pixel, first, step) for the pixels of a thread and their channels first, first + step, ...: a warp's
// lanes are at neighbouring elements in memory.
template <typename T, typename Function>
__device__ void for_elements(const Channels<T>& tensor, int pixels, const Function& function) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int first_pixel = tensor.inner ? warp : lane, pixel_step = tensor.inner ? kWarps : kLanes;
  const int first_channel = tensor.inner ? lane : warp, channel_step = tensor.inner ? kLanes : kWarps;
#pragma unroll 1
  for (int pixel = first_pixel; pixel < pixels; pixel += pixel_step) function(pixel, first_channel, channel_step);
}

// tile[pixel][channel] = the weighted sum over time.
template <typename T, typename A>
__device__ void load_tile(const Channels<const T>& from, const TimeWeights<A>& time, const Rectangle& where, A* tile) {
  const int pixels = where.area();
  if (from.packets == Packets::kOfChannels) {
    constexpr int kCount = Packet<T>::kCount, kGroups = kChannels<A> / kCount, kStep = kThreads / kGroups;
    constexpr int kBatch = 4;  // packets whose loads are under way together
    const int first = threadIdx.x % kGroups * kCount;
    if (first >= from.count) return;
#pragma unroll 1
    for (int pixel = threadIdx.x / kGroups; pixel < pixels; pixel += kBatch * kStep) {
      const T* at[kBatch];
      A sum[kBatch][kCount] = {};
#pragma unroll
      for (int b = 0; b < kBatch; ++b) at[b] = from.pixel(where, pixel + b * kStep) + first;
#pragma unroll 1
      for (int f = time.range.begin; f < time.range.end; ++f) {
        const A weight = time[f];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          if (pixel + b * kStep >= pixels) continue;
          const Packet<T> packet = *reinterpret_cast<const Packet<T>*>(at[b] + f * from.frame);
#pragma unroll
          for (int k = 0; k < kCount; ++k) sum[b][k] += weight * static_cast<A>(packet.values[k]);
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (pixel + b * kStep >= pixels) continue;
#pragma unroll
        for (int k = 0; k < kCount; ++k) tile[(pixel + b * kStep) * kPitch<A> + first + k] = sum[b][k];
      }
    }
    return;
  }
  for_elements(from, pixels, [&](int pixel, int first, int step) {
    constexpr int kBatch = 8;  // channels whose loads are under way together
#pragma unroll 1
    for (int channel = first; channel < from.count; channel += kBatch * step) {
      const T* at = from.pixel(where, pixel) + channel * from.channel;
      A sum[kBatch] = {};
#pragma unroll 1
      for (int f = time.range.begin; f < time.range.end; ++f) {
        const A weight = time[f];
#pragma unroll
        for (int k = 0; k < kBatch; ++k)
          if (channel + k * step < from.count)
            sum[k] += weight * static_cast<A>(at[k * step * from.channel + f * from.frame]);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k)
        if (channel + k * step < from.count) tile[pixel * kPitch<A> + channel + k * step] = sum[k];
    }
  });
}

// Writes a tile to all frames of `frames`.
template <typename T, typename A>
__device__ void store_tile(const A* tile, const Rectangle& where, PixelRange frames, const Channels<T>& to) {
  const int pixels = where.area();
  if (to.packets == Packets::kOfChannels) {
    constexpr int kCount = Packet<T>::kCount, kGroups = kChannels<A> / kCount;
#pragma unroll 1
    for (int i = threadIdx.x; i < pixels * kGroups; i += kThreads) {
      const int pixel = i / kGroups, first = i % kGroups * kCount;
      if (first >= to.count) continue;
      Packet<T> packet;
#pragma unroll
      for (int k = 0; k < kCount; ++k) packet.values[k] = T(tile[pixel * kPitch<A> + first + k]);
      T* at = to.pixel(where, pixel) + first;
#pragma unroll 1
      for (int f = frames.begin; f < frames.end; ++f) *reinterpret_cast<Packet<T>*>(at + f * to.frame) = packet;
    }
    return;
  }
  for_elements(to, pixels, [&](int pixel, int first, int step) {
    T* at = to.pixel(where, pixel);
#pragma unroll 4
    for (int channel = first; channel < to.count; channel += step) {
      const T value = T(tile[pixel * kPitch<A> + channel]);
      for (int f = frames.begin; f < frames.end; ++f) at[channel * to.channel + f * to.frame] = value;
    }
  });
}

// The largest of some bins: the first of equals, and NaN if there is one.
template <typename A>
struct Largest {
  A value = static_cast<A>(-INFINITY);
  int place = INT32_MAX;

  SF_HOST_DEVICE void include(A other, int other_place) {
    const bool unknown = value != value, other_unknown = other != other;
    const bool same = unknown == other_unknown && (unknown || value == other);
    const bool larger = other > value || (other_unknown && !unknown);
    if (larger || (same && other_place < place)) value = other, place = other_place;
  }
  // The same for a bin behind all those before it.
  SF_HOST_DEVICE void include_next(A other, int other_place) {
    const bool first = place == INT32_MAX, unknown = value != value;
    if (first || other > value || (other != other && !unknown)) value = other, place = other_place;
  }
};

// The sum over the rows `ys` and columns `xs` of the inputs that output (p, q) reads, each times its weights. `at` is
// the first of them; the others are `row` and `column` further on.
template <typename V, typename A>
__device__ V weighted_sum(const AxisWeights<A>& y, int p, PixelRange ys, const AxisWeights<A>& x, int q, PixelRange xs,
                          const V* at, int row, int column) {
  V sum = {};
  // Most outputs read two rows and two columns: four loads under way together.
#pragma unroll 1
  for (int i = ys.begin; i < ys.end; i += 2, at += 2 * row) {
    const bool two_rows = i + 1 < ys.end;
    const A y_weights[] = {y.weight(p, i), two_rows ? y.weight(p, i + 1) : 0};
    const V* input = at;
#pragma unroll 1
    for (int j = xs.begin; j < xs.end; j += 2, input += 2 * column) {
      const bool two_columns = j + 1 < xs.end;
      const A x_weights[] = {x.weight(q, j), two_columns ? x.weight(q, j + 1) : 0};
      V inputs[2][2] = {};
#pragma unroll
      for (int b = 0; b < 4; ++b)
        if ((b < 2 || two_rows) && (b % 2 == 0 || two_columns))
          inputs[b / 2][b % 2] = input[b / 2 * row + b % 2 * column];
#pragma unroll
      for (int b = 0; b < 4; ++b) sum.add(y_weights[b / 2] * x_weights[b % 2], inputs[b / 2][b % 2]);
    }
  }
  return sum;
}

// Calls function(y, x, own) for the pixels of a part of a tile, and the calling lane's channels of them.
template <typename A, typename Function>
__device__ void for_part(const Rectangle& tile, const Rectangle& part, A* values, const Function& function) {
  int y = 0, x = threadIdx.x / kLanes;
  for (;; x += kWarps) {
    while (x >= part.width && y < part.height) x -= part.width, ++y;
    if (y >= part.height) return;
    const int i = (part.y + y - tile.y) * tile.width + part.x + x - tile.x;
    function(part.y + y, part.x + x, reinterpret_cast<PerLane<A>*>(values + i * kPitch<A>)[threadIdx.x % kLanes]);
  }
}

// outputs += Wy inputs Wx^T, for the inputs that are in their tile and a part of the outputs.
template <typename A>
__device__ void resample(const AxisWeights<A>& y, const AxisWeights<A>& x, const Rectangle& from, const A* inputs,
                         const Rectangle& to, const Rectangle& part, A* outputs) {
  constexpr int kColumn = kPitch<A> / PerLane<A>::kCount;
  const auto* const lane = reinterpret_cast<const PerLane<A>*>(inputs) + threadIdx.x % kLanes;
  for_part(to, part, outputs, [&](int p, int q, PerLane<A>& output) {
    const PixelRange ys = overlap(y.ranges[p], from.y, from.height), xs = overlap(x.ranges[q], from.x, from.width);
    const auto* const at = lane + ((ys.begin - from.y) * from.width + xs.begin - from.x) * kColumn;
    output.add(1, weighted_sum(y, p, ys, x, q, xs, at, from.width * kColumn, kColumn));
  });
}

// Finds which of kThreads RoIs, from `first` on, reach a patch of a clip's frame: a bit for each, in shared memory.
template <typename A>
__device__ void find_reaching(const Plan<A>& plan, int clip, int frame, const Rectangle& patch, int first,
                              unsigned* reaching) {
  __syncthreads();  // the bits before these are no longer read
  const int roi = first + threadIdx.x;
  bool reaches = false;
  if (roi < plan.rois) {
    const int64_t box = plan.box(roi, frame);
    const PixelRange ys = plan.y.spans[box], xs = plan.x.spans[box];
    const bool y_reaches = !overlap(ys, patch.y, patch.height).empty();
    const bool x_reaches = !overlap(xs, patch.x, patch.width).empty();
    reaches = (plan.clip[roi] == clip) & y_reaches & x_reaches;  // not &&: all loads are under way together
  }
  const unsigned bits = __ballot_sync(~0u, reaches);
  if (threadIdx.x % kLanes == 0) reaching[threadIdx.x / kLanes] = bits;
  __syncthreads();
}

// These RoIs in ascending order.
class ReachingRoIs {
 public:
  SF_HOST_DEVICE ReachingRoIs(const unsigned* reaching, int first)
      : words_(reaching), bits_(reaching[0]), roi_(first) {}

  // The next one; -1 after the last.
  __device__ int next() {
    while (bits_ == 0) {
      if (++word_ == kWarps) return -1;
      bits_ = words_[word_];
    }
    const int bit = __ffs(static_cast<int>(bits_)) - 1;
    bits_ &= bits_ - 1;
    return roi_ + word_ * kLanes + bit;
  }

 private:
  const unsigned* words_;
  unsigned bits_;
  int roi_, word_ = 0;
};

}  // namespace roi_align_3d
}  // namespace slowfast
