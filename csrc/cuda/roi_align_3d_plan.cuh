// What all CUDA kernels of roi_align_3d and roi_align_3d_pool know about a call: its sizes and, in the workspace, the
// weights of its boxes.
//
// RoIAlign is separable (`out = Wt Wy Wx features`): for each box and axis there is a small matrix, the weight of every
// pixel in every bin, and where a row of it is not zero. No value of a RoI is read by the host; the launches depend on
// shapes alone, so that a CUDA graph may be replayed with other boxes.
#pragma once

#include "cuda_utils.cuh"
#include "slowfast/arena.h"
#include "slowfast/roi_align_3d.h"
#include "slowfast/roi_align_3d_math.h"

namespace slowfast {
namespace roi_align_3d {

constexpr int kLanes = 32;

struct Rectangle {
  int y, x, height, width;

  SF_HOST_DEVICE int area() const { return height * width; }
};

SF_HOST_DEVICE inline PixelRange overlap(PixelRange a, int begin, int size) {
  const int end = begin + size;
  return {a.begin > begin ? a.begin : begin, a.end < end ? a.end : end};
}

SF_HOST_DEVICE inline Rectangle overlap(const Rectangle& a, PixelRange ys, PixelRange xs) {
  ys = overlap(ys, a.y, a.height), xs = overlap(xs, a.x, a.width);
  return {ys.begin, xs.begin, ys.end - ys.begin, xs.end - xs.begin};
}

SF_HOST_DEVICE inline int divided_up(int a, int b) { return (a + b - 1) / b; }

// A rectangle cut into pieces of about equal size, at most `capacity` pixels: bands of rows, or parts of rows where
// these are longer. The rows of a band are a multiple of `multiple` where that fits.
struct Pieces {
  Rectangle whole;
  int rows, columns, across, count;

  SF_HOST_DEVICE Pieces(Rectangle whole, int capacity, int multiple = 1)
      : whole(whole), rows(1), columns(1), across(0), count(0) {
    if (whole.height <= 0 || whole.width <= 0) return;
    across = divided_up(whole.width, capacity);
    columns = divided_up(whole.width, across);
    const int most = capacity / columns;
    rows = divided_up(whole.height, divided_up(whole.height, most));
    const int rounded = divided_up(rows, multiple) * multiple;
    if (rounded <= most) rows = rounded;
    count = divided_up(whole.height, rows) * across;
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
    return weights[output * output_stride + input * input_stride];
  }
};

// The weights of one axis for all boxes, in the workspace.
template <typename A>
struct Axis {
  int bins, size;
  A* weights;          // [boxes, size, bins]: lanes with different bins of one pixel read a line
  PixelRange* ranges;  // the pixels of each bin; or, for a backward from bins to pixels, the bins of each pixel
  PixelRange* spans;   // [boxes]: all pixels of the box

  Axis(Arena& arena, int64_t boxes, int bins, int size)
      : bins(bins),
        size(size),
        weights(arena.take<A>(boxes * size * bins)),
        ranges(arena.take<PixelRange>(boxes * (bins > size ? bins : size))),
        spans(arena.take<PixelRange>(boxes)) {
    SF_CHECK(static_cast<int64_t>(size) * bins <= INT32_MAX, "roi_align_3d: ", bins, " bins of ", size,
             " pixels are more than the CUDA kernels can count");
  }

  SF_HOST_DEVICE AxisWeights<A> from_pixels(int64_t box) const {
    return {weights + box * bins * size, 1, bins, ranges + box * bins};
  }
  SF_HOST_DEVICE AxisWeights<A> from_bins(int64_t box) const {
    return {weights + box * bins * size, bins, 1, ranges + box * size};
  }
};

inline int to_int(int64_t size) {
  SF_CHECK(size <= INT32_MAX, "roi_align_3d: an axis of ", size, " is longer than the CUDA kernels can count");
  return static_cast<int>(size);
}

inline dim3 grid(int64_t x, int64_t y = 1) {
  SF_CHECK(x <= INT32_MAX && y <= 65535, "roi_align_3d: ", x, " x ", y, " blocks are more than a CUDA grid can have");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

// Everything that the kernels know about a call besides the tensors.
template <typename A>
struct Plan {
  RoIKind kind;
  bool aligned;
  int rois, clips, channels, frames, height, width;
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
  // Whether each RoI has one time bin, in which all frames count the same.
  SF_HOST_DEVICE bool frames_alike() const {
    return kind == RoIKind::kBoxes && time.bins == 1 && frames % averaged == 0;
  }
};

// Writes the weights of all boxes; Axis::ranges are of bins, or of pixels if kFromBins. Defined in
// roi_align_3d_weights_cuda.cu.
template <typename A, bool kFromBins>
void make_weights(const RoIAlign3DParams& p, const Plan<A>& plan, void* stream);

// The range that includes those of all lanes of a warp.
__device__ inline PixelRange union_over_warp(PixelRange range) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    range.include({__shfl_xor_sync(~0u, range.begin, offset), __shfl_xor_sync(~0u, range.end, offset)});
  return range;
}

}  // namespace roi_align_3d
}  // namespace slowfast
