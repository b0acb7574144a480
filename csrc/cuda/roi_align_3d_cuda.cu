// CUDA kernels of roi_align_3d and roi_align_3d_pool: a kernel for the weights of all boxes, and one for everything
// else.
//
// RoIAlign is separable (`out = Wt Wy Wx features`), so the first kernel writes small matrices into the workspace, for
// each box and axis: the weight of every pixel in every bin, and where a row of it is not zero. No value of a RoI is
// read by the host; the launches depend on shapes alone, so that a CUDA graph may be replayed with other boxes.
//
// Forward: a block owns a RoI, a time bin and 32 channels. It sums the time bin's frames into a tile of pixels in
// shared memory, once per pixel, then a warp takes a bin and its lanes the channels. The pooled form keeps the running
// maximum and writes [R, C]. What bounds it is reading the boxes' pixels (a clip's RoIs overlap, and the second read of
// a pixel comes from L2), hence 16-byte loads and a sum over frames before the bins, where there are T times fewer
// values.
//
// Backward: in gather form, the same two steps transposed. A block owns a patch of grad_features (up to 128 pixels, 32
// channels), walks in ascending order over the RoIs that reach it, and writes it once. Sorted segments would need a
// sort and one partial sum for each pixel that a RoI touches, R C T h' w' of them in memory; here nothing is written
// but the gradient, which is what bounds it, and a block finds its RoIs by testing 128 boxes at once. No atomics: one
// owner and one order for each element, so the same bits each time. For boxes with one time bin all frames have one
// gradient: it is computed once and stored T times. The pooled form reads a lane's bin from the argmax that the forward
// has saved (8 bytes per RoI and channel; finding it again would read the features again).
//
// In channels_last_3d tensors a thread moves 16 bytes of channels; in contiguous ones lanes run along the pixels of a
// row. Tiles have 33 channels' room, so that neither way of filling them has bank conflicts.

#include <cmath>
#include <type_traits>

#include "cuda_utils.cuh"
#include "slowfast/arena.h"
#include "slowfast/roi_align_3d.h"
#include "slowfast/roi_align_3d_math.h"

namespace slowfast {
namespace {

constexpr int kThreads = 128, kLanes = 32, kWarps = kThreads / kLanes;
constexpr int kPitch = kLanes + 1;
constexpr int kBins = 64;  // bins in a tile
template <typename A>
constexpr int kPixels = 512 / sizeof(A);  // pixels in a tile
constexpr int kWeightThreads = 64;
// Blocks per multiprocessor that leave each kernel the registers it needs.
constexpr int kForwardBlocks = 4, kBackwardBlocks = 6;

struct Rectangle {
  int y, x, height, width;

  SF_HOST_DEVICE int area() const { return height * width; }
};

SF_HOST_DEVICE inline PixelRange overlap(PixelRange a, int begin, int size) {
  const int end = begin + size;
  return {a.begin > begin ? a.begin : begin, a.end < end ? a.end : end};
}

// A rectangle cut into pieces of at most `capacity` pixels: bands of rows, or parts of rows where these are longer.
struct Pieces {
  Rectangle whole;
  int rows, columns, across, count;

  SF_HOST_DEVICE Pieces(Rectangle whole, int capacity) : whole(whole), rows(1), columns(1), across(0), count(0) {
    if (whole.height <= 0 || whole.width <= 0) return;
    columns = whole.width < capacity ? whole.width : capacity;
    rows = capacity / columns;
    across = (whole.width + columns - 1) / columns;
    count = (whole.height + rows - 1) / rows * across;
  }
  SF_HOST_DEVICE Rectangle operator[](int i) const {
    const int y = i / across * rows, x = i % across * columns;
    return {whole.y + y, whole.x + x, rows < whole.height - y ? rows : whole.height - y,
            columns < whole.width - x ? columns : whole.width - x};
  }
};

// One axis of a box as the resampling sees it: how much each input counts in each output, and where that is not zero.
template <typename A>
struct AxisWeights {
  const A* weights;
  int output_stride, input_stride;
  const PixelRange* ranges;

  SF_HOST_DEVICE A weight(int output, int input) const {
    return weights[static_cast<int64_t>(output) * output_stride + static_cast<int64_t>(input) * input_stride];
  }
};

// The weights of one axis for all boxes, in the workspace.
template <typename A>
struct Axis {
  int bins, size;
  A* weights;          // [boxes, size, bins]: lanes with different bins of one pixel read a line
  PixelRange* ranges;  // forward: the pixels of each bin; backward: the bins of each pixel
  PixelRange* spans;   // [boxes]: all pixels of the box

  Axis(Arena& arena, int64_t boxes, int bins, int size)
      : bins(bins),
        size(size),
        weights(arena.take<A>(boxes * size * bins)),
        ranges(arena.take<PixelRange>(boxes * (bins > size ? bins : size))),
        spans(arena.take<PixelRange>(boxes)) {}

  SF_HOST_DEVICE AxisWeights<A> from_pixels(int64_t box) const {
    return {weights + box * bins * size, 1, bins, ranges + box * bins};
  }
  SF_HOST_DEVICE AxisWeights<A> from_bins(int64_t box) const {
    return {weights + box * bins * size, bins, 1, ranges + box * size};
  }
};

int to_int(int64_t size) {
  SF_CHECK(size <= INT32_MAX, "roi_align_3d: an axis of ", size, " is longer than the CUDA kernels can count");
  return static_cast<int>(size);
}

// Everything that the kernels know about a call besides the tensors.
template <typename A>
struct Plan {
  RoIKind kind;
  bool aligned;
  int rois, clips, channels, frames, height, width;
  int channel_tiles;
  int averaged;  // pool: the time bins that are averaged into one
  int64_t sampling_ratio;
  double spatial_scale, temporal_scale;
  Arena arena;
  Axis<A> time, y, x;
  int* clip;  // [rois]: the RoI's clip, or -1

  Plan(const RoIAlign3DParams& p, char* memory)
      : kind(roi_kind(p.rois)),
        aligned(p.options.aligned),
        rois(to_int(p.rois.size(0))),
        clips(to_int(p.features.size(0))),
        channels(to_int(p.features.size(1))),
        frames(to_int(p.features.size(2))),
        height(to_int(p.features.size(3))),
        width(to_int(p.features.size(4))),
        channel_tiles((channels + kLanes - 1) / kLanes),
        averaged(p.options.pool ? to_int(p.options.bins[0]) : 1),
        sampling_ratio(p.options.sampling_ratio),
        spatial_scale(p.options.spatial_scale),
        temporal_scale(p.options.temporal_scale),
        arena{memory},
        time(arena, time_rows(), to_int(p.options.bins[0]) / averaged, frames),
        y(arena, boxes(), to_int(p.options.bins[1]), height),
        x(arena, boxes(), to_int(p.options.bins[2]), width),
        clip(arena.take<int>(rois)) {}

  SF_HOST_DEVICE int64_t boxes() const { return box(rois, 0); }
  SF_HOST_DEVICE int64_t box(int roi, int frame) const {
    return kind == RoIKind::kTubelets ? static_cast<int64_t>(roi) * frames + frame : roi;
  }
  SF_HOST_DEVICE int time_rows() const { return kind == RoIKind::kCuboids ? rois : 1; }
  SF_HOST_DEVICE int time_row(int roi) const { return kind == RoIKind::kCuboids ? roi : 0; }
  // Whether all frames of a clip have the same gradient.
  SF_HOST_DEVICE bool frames_alike() const { return kind == RoIKind::kBoxes && time.bins * averaged == 1; }
};

// 32 channels of one clip or RoI of a [*, C, T, H, W] tensor (of [*, C], the strides of the other axes are 0).
template <typename T>
struct Channels {
  T* data;
  int64_t row, channel, frame, y, x;  // strides
  bool inner;                         // channels lie together in memory
  bool wide;                          // and 16 bytes of them can be moved at once
  int count = kLanes;

  explicit Channels(const TensorView& view)
      : data(static_cast<T*>(view.data)), row(view.strides[0]), channel(view.strides[1]), frame(0), y(0), x(0) {
    const auto stride = [&](int dim) { return dim < view.ndim && view.sizes[dim] > 1 ? view.strides[dim] : 0; };
    frame = stride(2), y = stride(3), x = stride(4);
    inner = channel == 1 && view.sizes[1] > 1;
    const int64_t group = 16 / sizeof(T);
    wide = inner && reinterpret_cast<uintptr_t>(data) % 16 == 0 && view.sizes[1] % group == 0 &&
           (view.sizes[0] == 1 || row % group == 0) && frame % group == 0 && y % group == 0 && x % group == 0;
  }
  // The channels of a tile in one row of the tensor.
  SF_HOST_DEVICE Channels at(int index, int first, int channels) const {
    Channels result = *this;
    result.data += index * row + first * channel;
    result.count = channels - first < kLanes ? channels - first : kLanes;
    return result;
  }
  SF_HOST_DEVICE T* pixel(const Rectangle& where, int i) const {
    return data + (where.y + i / where.width) * y + (where.x + i % where.width) * x;
  }
};

template <typename T>
struct alignas(16) Packet {
  static constexpr int kCount = 16 / sizeof(T);
  T values[kCount];
};

// The frames (or time bins) that are summed, and how much each counts.
template <typename A>
struct TimeWeights {
  PixelRange range;
  const A* weights;
  int64_t stride;

  SF_HOST_DEVICE A operator[](int f) const { return weights[f * stride]; }
};

// tile[pixel][channel] = the weighted sum over time; channels beyond the tensor's are 0.
template <typename T, typename A>
__device__ void load_tile(const Channels<const T>& from, const TimeWeights<A>& time, const Rectangle& where, A* tile) {
  const int pixels = where.area();
  if (from.wide) {
    constexpr int kCount = Packet<T>::kCount, kGroups = kLanes / kCount;
#pragma unroll 1
    for (int i = threadIdx.x; i < pixels * kGroups; i += kThreads) {
      const int pixel = i / kGroups, first = i % kGroups * kCount;
      A sum[kCount] = {};
      if (first < from.count) {
        const T* at = from.pixel(where, pixel) + first;
#pragma unroll 4
        for (int f = time.range.begin; f < time.range.end; ++f) {
          const Packet<T> packet = *reinterpret_cast<const Packet<T>*>(at + f * from.frame);
          const A weight = time[f];
#pragma unroll
          for (int k = 0; k < kCount; ++k) sum[k] += weight * static_cast<A>(packet.values[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < kCount; ++k) tile[pixel * kPitch + first + k] = sum[k];
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < pixels * kLanes; i += kThreads) {
    const int lane = from.inner ? i % kLanes : i / pixels, pixel = from.inner ? i / kLanes : i % pixels;
    A sum = 0;
    if (lane < from.count) {
      const T* at = from.pixel(where, pixel) + lane * from.channel;
#pragma unroll 4
      for (int f = time.range.begin; f < time.range.end; ++f) sum += time[f] * static_cast<A>(at[f * from.frame]);
    }
    tile[pixel * kPitch + lane] = sum;
  }
}

// Writes a tile to all frames of `frames`.
template <typename T, typename A>
__device__ void store_tile(const A* tile, const Rectangle& where, PixelRange frames, const Channels<T>& to) {
  const int pixels = where.area();
  if (to.wide) {
    constexpr int kCount = Packet<T>::kCount, kGroups = kLanes / kCount;
#pragma unroll 1
    for (int i = threadIdx.x; i < pixels * kGroups; i += kThreads) {
      const int pixel = i / kGroups, first = i % kGroups * kCount;
      if (first >= to.count) continue;
      Packet<T> packet;
#pragma unroll
      for (int k = 0; k < kCount; ++k) packet.values[k] = T(tile[pixel * kPitch + first + k]);
      T* at = to.pixel(where, pixel) + first;
#pragma unroll 1
      for (int f = frames.begin; f < frames.end; ++f) *reinterpret_cast<Packet<T>*>(at + f * to.frame) = packet;
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < pixels * kLanes; i += kThreads) {
    const int lane = to.inner ? i % kLanes : i / pixels, pixel = to.inner ? i / kLanes : i % pixels;
    if (lane >= to.count) continue;
    const T value = T(tile[pixel * kPitch + lane]);
    T* at = to.pixel(where, pixel) + lane * to.channel;
#pragma unroll 1
    for (int f = frames.begin; f < frames.end; ++f) at[f * to.frame] = value;
  }
}

// What a thread does with a tile of outputs: always the same pixels and channel, so that these need no barrier.
template <typename Function>
__device__ void for_own(const Rectangle& tile, const Function& function) {
#pragma unroll 1
  for (int i = threadIdx.x / kLanes; i < tile.area(); i += kWarps)
    function(tile.y + i / tile.width, tile.x + i % tile.width, i * kPitch + threadIdx.x % kLanes);
}

// outputs += Wy inputs Wx^T, for the inputs and the outputs that are in the tiles.
template <typename A>
__device__ void resample(const AxisWeights<A>& y, const AxisWeights<A>& x, const Rectangle& from, const A* inputs,
                         const Rectangle& to, A* outputs) {
  for_own(to, [&](int output_y, int output_x, int output) {
    const PixelRange ys = overlap(y.ranges[output_y], from.y, from.height);
    const PixelRange xs = overlap(x.ranges[output_x], from.x, from.width);
    A sum = 0;
#pragma unroll 1
    for (int i = ys.begin; i < ys.end; ++i) {
      const A* input = inputs + ((i - from.y) * from.width + xs.begin - from.x) * kPitch + threadIdx.x % kLanes;
      A row = 0;
#pragma unroll 1
      for (int j = xs.begin; j < xs.end; ++j, input += kPitch) row += x.weight(output_x, j) * *input;
      sum += y.weight(output_y, i) * row;
    }
    outputs[output] += sum;
  });
}

// The values of the RoIs, float or double, with the strides of their tensor.
template <typename P>
struct RoIValues {
  const P* data;
  int64_t roi, frame, column;
};

template <typename A>
struct BinWeights {  // of one bin, for add_bin_weights
  A* weights;
  int64_t stride;

  SF_HOST_DEVICE A& operator[](int64_t pixel) const { return weights[pixel * stride]; }
};

// A block makes one axis of one box: y, x or time by its blockIdx.y.
template <typename P, typename A, bool kBackward>
__global__ void __launch_bounds__(kWeightThreads) roi_align_3d_weights_kernel(RoIValues<P> values, Plan<A> plan) {
  __shared__ PixelRange touched_by[kWeightThreads];
  const bool tubelets = plan.kind == RoIKind::kTubelets, cuboids = plan.kind == RoIKind::kCuboids;
  const bool is_y = blockIdx.y == 0, is_time = blockIdx.y == 2;
  if (is_time && blockIdx.x >= plan.time_rows()) return;
  const int64_t box = blockIdx.x;
  const int frame = tubelets ? blockIdx.x % plan.frames : 0, roi = tubelets ? blockIdx.x / plan.frames : blockIdx.x;
  const Axis<A>& axis = is_time ? plan.time : (is_y ? plan.y : plan.x);
  const int averaged = is_time ? plan.averaged : 1;

  // The clip's own frames: t = T is a frame per bin, whatever the spatial sampling.
  RoIAxis<P> samples = RoIAxis<P>::make(0, static_cast<P>(plan.frames), 1, axis.bins * averaged, 0, true);
  if (!is_time || cuboids) {
    const P* at = values.data + roi * values.roi;
    const int clip = *at >= 0 && *at < static_cast<P>(plan.clips) ? static_cast<int>(*at) : -1;
    if (is_y && frame == 0 && threadIdx.x == 0) plan.clip[roi] = clip;
    at += frame * values.frame;
    const int low = is_time ? 1 : (cuboids ? 2 : 1) + is_y, high = low + (cuboids ? 3 : 2);
    samples = RoIAxis<P>::make(at[low * values.column], at[high * values.column],
                               static_cast<P>(is_time ? plan.temporal_scale : plan.spatial_scale), axis.bins * averaged,
                               plan.sampling_ratio, plan.aligned);
    if (clip < 0) samples.samples = 0;
  }

  A* weights = axis.weights + box * axis.bins * axis.size;
  PixelRange touched;
  for (int bin = threadIdx.x; bin < axis.bins; bin += kWeightThreads) {
    const BinWeights<A> row{weights + bin, axis.bins};
    for (int pixel = 0; pixel < axis.size; ++pixel) row[pixel] = 0;
    PixelRange range;
    for (int i = 0; i < averaged; ++i)
      add_bin_weights(samples, bin * averaged + i, axis.size, A(1) / static_cast<A>(averaged), row, range);
    if (!kBackward) axis.ranges[box * axis.bins + bin] = range;
    touched.include(range);
  }
  touched_by[threadIdx.x] = touched;
  __syncthreads();  // the weights of all bins are written, too
  if (threadIdx.x == 0) {
    for (int i = 1; i < kWeightThreads; ++i) touched.include(touched_by[i]);
    axis.spans[box] = touched;
  }
  if constexpr (kBackward) {
    for (int pixel = threadIdx.x; pixel < axis.size; pixel += kWeightThreads) {
      PixelRange bins;
      for (int bin = 0; bin < axis.bins; ++bin)
        if (weights[static_cast<int64_t>(pixel) * axis.bins + bin] != 0) bins.include({bin, bin + 1});
      axis.ranges[box * axis.size + pixel] = bins;
    }
  }
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
};

// Blocks: x over RoIs and, fastest, tiles of channels; y over time bins.
template <typename T, bool kPool>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    roi_align_3d_forward_kernel(Plan<accumulator_t<T>> plan, Channels<const T> features, Channels<T> output,
                                Channels<int64_t> argmax) {
  using A = accumulator_t<T>;
  SF_DYNAMIC_SHARED(A, shared);
  A *const inputs = shared, *const outputs = shared + kPixels<A> * kPitch;
  const int channel = blockIdx.x % plan.channel_tiles * kLanes, roi = blockIdx.x / plan.channel_tiles;
  const int time_bin = blockIdx.y, clip = plan.clip[roi];
  const Channels<const T> from = features.at(clip < 0 ? 0 : clip, channel, plan.channels);
  const Channels<T> result = output.at(roi, channel, plan.channels);
  const AxisWeights<A> time = plan.time.from_pixels(plan.time_row(roi));
  const PixelRange frames = time.ranges[time_bin];
  const Pieces bins({0, 0, plan.y.bins, plan.x.bins}, kBins);
  Largest<A> largest;
  for (int piece = 0; piece < bins.count; ++piece) {
    const Rectangle to = bins[piece];
    for_own(to, [&](int, int, int i) { outputs[i] = 0; });
    // Frames that share a box: all of them, or a tubelet's one by one.
    for (int first = frames.begin, last; first < frames.end; first = last) {
      last = plan.kind == RoIKind::kTubelets ? first + 1 : frames.end;
      const int64_t box = plan.box(roi, first);
      const PixelRange ys = plan.y.spans[box], xs = plan.x.spans[box];
      const Pieces pixels({ys.begin, xs.begin, ys.end - ys.begin, xs.end - xs.begin}, kPixels<A>);
      const TimeWeights<A> weights{{first, last}, time.weights + time_bin, time.input_stride};
      for (int i = 0; i < pixels.count; ++i) {
        load_tile(from, weights, pixels[i], inputs);
        __syncthreads();
        resample(plan.y.from_pixels(box), plan.x.from_pixels(box), pixels[i], inputs, to, outputs);
        __syncthreads();
      }
    }
    if (kPool) {
      for_own(to, [&](int p, int q, int i) { largest.include(outputs[i], p * plan.x.bins + q); });
    } else {
      __syncthreads();
      store_tile(outputs, to, {time_bin, time_bin + 1}, result);
      __syncthreads();
    }
  }
  if constexpr (kPool) {  // the maxima of the warps meet where the tile was
    A* const values = inputs;
    int* const places = reinterpret_cast<int*>(inputs + kThreads);
    values[threadIdx.x] = largest.value;
    places[threadIdx.x] = largest.place;
    __syncthreads();
    if (threadIdx.x >= result.count) return;
    for (int i = threadIdx.x + kLanes; i < kThreads; i += kLanes) largest.include(values[i], places[i]);
    const Channels<int64_t> place = argmax.at(roi, channel, plan.channels);
    result.data[threadIdx.x * result.channel] = T(largest.value);
    place.data[threadIdx.x * place.channel] = largest.place;
  }
}

// Blocks: x over clips, patches of pixels and, fastest, tiles of channels; y over frames (one, if all are alike).
template <typename T, bool kPool>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    roi_align_3d_backward_kernel(Plan<accumulator_t<T>> plan, Channels<T> grad_features, Channels<const T> grad_output,
                                 Channels<const int64_t> argmax) {
  using A = accumulator_t<T>;
  SF_DYNAMIC_SHARED(A, shared);
  A *const inputs = shared, *const outputs = shared + kBins * kPitch;
  int* const reaching = reinterpret_cast<int*>(outputs + kPixels<A> * kPitch);
  const Pieces pixels({0, 0, plan.height, plan.width}, kPixels<A>), bins({0, 0, plan.y.bins, plan.x.bins}, kBins);
  const int channel = blockIdx.x % plan.channel_tiles * kLanes, rest = blockIdx.x / plan.channel_tiles;
  const int frame = blockIdx.y, clip = rest / pixels.count, lane = threadIdx.x % kLanes;
  const Rectangle to = pixels[rest % pixels.count];
  for_own(to, [&](int, int, int i) { outputs[i] = 0; });
  for (int first = 0; first < plan.rois; first += kThreads) {
    const int count = plan.rois - first < kThreads ? plan.rois - first : kThreads;
    __syncthreads();
    if (threadIdx.x < count) {
      const int roi = first + threadIdx.x;
      const int64_t box = plan.box(roi, frame);
      reaching[threadIdx.x] = plan.clip[roi] == clip && !overlap(plan.y.spans[box], to.y, to.height).empty() &&
                              !overlap(plan.x.spans[box], to.x, to.width).empty();
    }
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      if (!reaching[i]) continue;
      const int roi = first + i;
      const int64_t box = plan.box(roi, frame);
      const AxisWeights<A> time = plan.time.from_bins(plan.time_row(roi));
      const TimeWeights<A> weights{time.ranges[frame], time.weights + frame * static_cast<int64_t>(plan.time.bins), 1};
      if (weights.range.empty()) continue;
      const AxisWeights<A> y = plan.y.from_bins(box), x = plan.x.from_bins(box);
      const Channels<const T> from = grad_output.at(roi, channel, plan.channels);
      if (!kPool) {
        for (int piece = 0; piece < bins.count; ++piece) {
          load_tile(from, weights, bins[piece], inputs);
          __syncthreads();
          resample(y, x, bins[piece], inputs, to, outputs);
          __syncthreads();
        }
      } else if (lane < from.count) {  // one bin has all of the gradient
        const Channels<const int64_t> places = argmax.at(roi, channel, plan.channels);
        const int place = static_cast<int>(places.data[lane * places.channel]);
        const int p = place / plan.x.bins, q = place % plan.x.bins;
        const A value = weights[0] * static_cast<A>(from.data[lane * from.channel]);
        for_own(to, [&](int pixel_y, int pixel_x, int output) {
          if (y.ranges[pixel_y].empty() || x.ranges[pixel_x].empty()) return;
          outputs[output] += y.weight(pixel_y, p) * x.weight(pixel_x, q) * value;
        });
      }
    }
  }
  __syncthreads();
  store_tile(outputs, to, {frame, plan.frames_alike() ? plan.frames : frame + 1},
             grad_features.at(clip, channel, plan.channels));
}

dim3 grid(int64_t x, int64_t y) {
  SF_CHECK(x <= INT32_MAX && y <= 65535, "roi_align_3d: ", x, " x ", y, " blocks are more than a CUDA grid can have");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

template <typename P, typename A, bool kBackward>
void make_weights(const RoIAlign3DParams& p, const Plan<A>& plan, void* stream) {
  if (plan.rois == 0) return;
  const TensorView& r = p.rois;
  const bool tubelets = plan.kind == RoIKind::kTubelets;
  const RoIValues<P> values{r.as<const P>(), r.stride(0), tubelets ? r.stride(1) : 0, r.stride(r.ndim - 1)};
  SF_LAUNCH((roi_align_3d_weights_kernel<P, A, kBackward>), grid(plan.boxes(), 3), kWeightThreads, 0, stream, values,
            plan);
}

template <typename A>
constexpr int kSharedBytes = (kPixels<A> + kBins) * kPitch * sizeof(A);

template <typename T, bool kPool>
void forward(const RoIAlign3DParams& p, const Plan<accumulator_t<T>>& plan, void* stream) {
  SF_LAUNCH((roi_align_3d_forward_kernel<T, kPool>),
            grid(static_cast<int64_t>(plan.rois) * plan.channel_tiles, plan.time.bins), kThreads,
            kSharedBytes<accumulator_t<T>>, stream, plan, Channels<const T>(p.features), Channels<T>(p.output),
            Channels<int64_t>(p.argmax));
}

template <typename T, bool kPool>
void backward(const RoIAlign3DParams& p, const Plan<accumulator_t<T>>& plan, void* stream) {
  using A = accumulator_t<T>;
  const Pieces pixels({0, 0, plan.height, plan.width}, kPixels<A>);
  SF_LAUNCH(
      (roi_align_3d_backward_kernel<T, kPool>),
      grid(static_cast<int64_t>(plan.clips) * pixels.count * plan.channel_tiles, plan.frames_alike() ? 1 : plan.frames),
      kThreads, kSharedBytes<A> + kThreads * sizeof(int), stream, plan, Channels<T>(p.features),
      Channels<const T>(p.output), Channels<const int64_t>(p.argmax));
}

template <bool kBackward>
void run(const RoIAlign3DParams& p, int device, void* stream) {
  if ((kBackward ? p.features : p.output).numel() == 0) return;
  const DeviceGuard guard(device);
  dispatch_floating_cuda(p.features.dtype, "roi_align_3d", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulator_t<T>;
    const Plan<A> plan(p, p.workspace.as<char>());
    SF_CHECK(p.workspace.numel() >= plan.arena.used, "roi_align_3d: the workspace is too small");
    if (p.rois.dtype == DType::kFloat64) {
      make_weights<double, A, kBackward>(p, plan, stream);
    } else if constexpr (std::is_same_v<A, float>) {
      make_weights<float, A, kBackward>(p, plan, stream);
    } else {
      SF_CHECK(false, "roi_align_3d: float64 features need float64 rois, got ", name_of(p.rois.dtype));
    }
    if constexpr (kBackward)
      p.options.pool ? backward<T, true>(p, plan, stream) : backward<T, false>(p, plan, stream);
    else
      p.options.pool ? forward<T, true>(p, plan, stream) : forward<T, false>(p, plan, stream);
  });
}

}  // namespace

int64_t roi_align_3d_workspace_bytes_cuda(const RoIAlign3DParams& p) {
  if (p.features.dtype == DType::kFloat64) return Plan<double>(p, nullptr).arena.used;
  return Plan<float>(p, nullptr).arena.used;
}

void roi_align_3d_forward_cuda(const RoIAlign3DParams& p, int device, void* stream) { run<false>(p, device, stream); }

void roi_align_3d_backward_cuda(const RoIAlign3DParams& p, int device, void* stream) { run<true>(p, device, stream); }

}  // namespace slowfast
