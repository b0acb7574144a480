// The part of the CPU kernels of roi_align_3d that does not depend on the features' values: the weights of all boxes,
// the RoIs of each clip, and where all of this lies in the workspace.
#pragma once

#include <algorithm>

#include "slowfast/arena.h"
#include "slowfast/check.h"
#include "slowfast/lanes.h"
#include "slowfast/parallel.h"
#include "slowfast/roi_align_3d.h"
#include "slowfast/roi_align_3d_math.h"

namespace slowfast::roi_align_3d {

// The weights of one axis for all boxes.
template <typename A>
struct Axis {
  int64_t bins, size;
  A* weights;          // [boxes, bins, size]
  PixelRange* ranges;  // [boxes, bins]: where a bin's weights are
  PixelRange* spans;   // [boxes]: the union over the bins

  Axis(Arena& arena, int64_t boxes, int64_t bins, int64_t size)
      : bins(bins),
        size(size),
        weights(arena.take<A>(boxes * bins * size)),
        ranges(arena.take<PixelRange>(boxes * bins)),
        spans(arena.take<PixelRange>(boxes)) {}

  SF_INLINE const A* row(int64_t box, int64_t bin) const { return weights + (box * bins + bin) * size; }
  SF_INLINE PixelRange range(int64_t box, int64_t bin) const { return ranges[box * bins + bin]; }

  // Fills in one box. `averaged` axis bins become one: the mean over them.
  template <typename P>
  void fill(int64_t box, const RoIAxis<P>& axis, int64_t averaged) {
    std::fill_n(weights + box * bins * size, bins * size, A(0));
    spans[box] = PixelRange();
    for (int64_t bin = 0; bin < bins; ++bin) {
      PixelRange touched;
      for (int64_t i = 0; i < averaged; ++i)
        add_bin_weights(axis, bin * averaged + i, size, A(1) / static_cast<A>(averaged),
                        weights + (box * bins + bin) * size, touched);
      ranges[box * bins + bin] = touched;
      spans[box].include(touched);
    }
  }
};

constexpr int64_t kMaxPitch = 128;

// Channels in a tile, a multiple of Lanes::kCount: more where channels lie together in memory, fewer if there would be
// too few tiles for the threads.
inline int64_t channels_per_tile(const TensorView& features, int num_threads) {
  int64_t pitch = features.stride(1) == 1 ? kMaxPitch : kMaxPitch / 2;
  while (pitch > 32 && features.size(0) * (features.size(1) / pitch) < 2 * num_threads) pitch /= 2;
  return pitch;
}

// Everything that does not depend on the features' values.
template <typename A>
struct Plan {
  const RoIAlign3DParams& p;
  const RoIKind kind;
  const int64_t rois, clips, channels, frames, height, width;
  const int64_t pitch;  // channels in a tile
  Arena arena;
  Axis<A> time, y, x;
  int64_t* first;  // [clips + 1]: clip n has the RoIs members[first[n]] to members[first[n + 1] - 1]
  int64_t* members;
  int64_t* clip;  // [rois]
  int64_t tile_size, row_size, bins_size;
  A* scratch;  // a Scratch for each thread

  Plan(const RoIAlign3DParams& p, char* memory, int num_threads)
      : p(p),
        kind(roi_kind(p.rois)),
        rois(p.rois.size(0)),
        clips(p.features.size(0)),
        channels(p.features.size(1)),
        frames(p.features.size(2)),
        height(p.features.size(3)),
        width(p.features.size(4)),
        pitch(channels_per_tile(p.features, num_threads)),
        arena{memory},
        time(arena, kind == RoIKind::kCuboids ? rois : 1, p.options.pool ? 1 : p.options.bins[0], frames),
        y(arena, boxes(), p.options.bins[1], height),
        x(arena, boxes(), p.options.bins[2], width),
        first(arena.take<int64_t>(clips + 1)),
        members(arena.take<int64_t>(rois)),
        clip(arena.take<int64_t>(rois)),
        tile_size(height * width * pitch),
        row_size(std::max({height * width, width * Lanes<A>::kCount, y.bins * x.bins})),
        bins_size(y.bins * x.bins * pitch),
        scratch(arena.take<A>(std::max(num_threads, 1) * scratch_size())) {}

  int64_t boxes() const { return kind == RoIKind::kTubelets ? rois * frames : rois; }
  SF_INLINE int64_t box(int64_t roi, int64_t frame) const {
    return kind == RoIKind::kTubelets ? roi * frames + frame : roi;
  }
  SF_INLINE int64_t time_row(int64_t roi) const { return kind == RoIKind::kCuboids ? roi : 0; }
  int64_t tiles() const { return (channels + pitch - 1) / pitch; }
  int64_t scratch_size() const { return tile_size + row_size + bins_size; }

  // Whether two frames of clip n get the same gradient.
  bool alike(int64_t n, int64_t f, int64_t g) const {
    if (first[n] == first[n + 1]) return true;
    for (int64_t b = 0; b < time.bins; ++b)
      if (time.row(0, b)[f] != time.row(0, b)[g]) return false;
    return kind == RoIKind::kBoxes;
  }

  template <typename P>
  void make(int num_threads) {
    const RoIAlign3DOptions& o = p.options;
    const TensorView& view = p.rois;
    const P* values = view.as<const P>();
    const int64_t column = view.stride(view.ndim - 1), averaged = o.pool ? o.bins[0] : 1;
    const auto corner = [&](int64_t box) {
      return kind == RoIKind::kTubelets ? values + box / frames * view.stride(0) + box % frames * view.stride(1)
                                        : values + box * view.stride(0);
    };
    const int x1 = kind == RoIKind::kCuboids ? 2 : 1, x2 = x1 + (kind == RoIKind::kCuboids ? 3 : 2);
    parallel_for(boxes(), 64, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t box = begin; box < end; ++box) {
        const P* at = corner(box);
        const auto axis = [&](int low, int high, double scale, int64_t bins) {
          return RoIAxis<P>::make(at[low * column], at[high * column], static_cast<P>(scale), bins, o.sampling_ratio,
                                  o.aligned);
        };
        x.fill(box, axis(x1, x2, o.spatial_scale, o.bins[2]), 1);
        y.fill(box, axis(x1 + 1, x2 + 1, o.spatial_scale, o.bins[1]), 1);
        if (kind == RoIKind::kCuboids) time.fill(box, axis(1, 4, o.temporal_scale, o.bins[0]), averaged);
      }
    });
    if (kind != RoIKind::kCuboids)  // the clip's own frames: t = T is a frame per bin, whatever the spatial sampling
      time.fill(0, RoIAxis<P>::make(0, static_cast<P>(frames), 1, o.bins[0], 0, true), averaged);

    std::fill_n(first, clips + 1, 0);
    for (int64_t roi = 0; roi < rois; ++roi) {
      const P index = values[roi * view.stride(0)];
      SF_CHECK(index >= 0 && index < static_cast<P>(clips), "roi_align_3d: rois[", roi, "] has batch index ", index,
               ", outside [0, ", clips, ")");
      clip[roi] = static_cast<int64_t>(index);
      ++first[clip[roi] + 1];
    }
    for (int64_t n = 0; n < clips; ++n) first[n + 1] += first[n];
    for (int64_t roi = 0; roi < rois; ++roi) members[first[clip[roi]]++] = roi;
    for (int64_t n = clips; n > 0; --n) first[n] = first[n - 1];
    first[0] = 0;
  }
};

}  // namespace slowfast::roi_align_3d
