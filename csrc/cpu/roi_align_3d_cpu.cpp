// CPU kernels of roi_align_3d and roi_align_3d_pool.
//
// First a plan: for every box and axis the weights of each pixel in each bin, and the RoIs of each clip. Then tiles:
// the pixels of some channels, converted and averaged over the frames of a time bin, with the channels innermost
// whatever the memory format; a RoI's bins are Wy tile Wx^T, vectorised over channels. A box is the same on all frames,
// so the RoIs of a clip share the tile.
//
// The backward runs the other way, frame by frame: a tile of the gradient sums the RoIs of its clip in ascending order
// and is written once. Each element has one owner: no atomics, and the same bits for any number of threads.

#include <algorithm>
#include <cstring>

#include "roi_align_3d_plan.h"
#include "slowfast/dtype.h"
#include "slowfast/lanes.h"
#include "slowfast/parallel.h"
#include "slowfast/roi_align_3d.h"

namespace slowfast {
namespace {

using namespace roi_align_3d;

template <typename A>
struct Scratch {
  A *tile, *row, *bins;

  // The channels that fill up the last lanes of a block are zero from here on.
  Scratch(const Plan<A>& plan, int64_t slot)
      : tile(plan.scratch + slot * plan.scratch_size()), row(tile + plan.tile_size), bins(row + plan.row_size) {
    std::fill_n(tile, plan.scratch_size(), A(0));
  }
};

// Some channels of some frames of one clip in a 5-D tensor, in either memory format or any other strides.
template <typename T>
struct Channels {
  T* data;                    // of the first channel, frame 0, pixel (0, 0)
  int64_t count, pitch;       // channels, and what a tile of them has room for
  int64_t lane, frame, y, x;  // strides

  Channels(const TensorView& view, int64_t n, int64_t channel, int64_t pitch)
      : data(view.as<T>() + n * view.stride(0) + channel * view.stride(1)),
        count(std::min(pitch, view.size(1) - channel)),
        pitch(pitch),
        lane(view.stride(1)),
        frame(view.stride(2)),
        y(view.stride(3)),
        x(view.stride(4)) {}
};

struct Rectangle {
  PixelRange y, x;

  int64_t pixels() const { return y.length() * x.length(); }
};

// The frames that are summed into a tile, and how much each counts.
template <typename A>
struct FrameWeights {
  PixelRange range;
  const A* weights;  // of frame f: weights[f * stride]
  int64_t stride;

  SF_INLINE A operator[](int64_t f) const { return weights[f * stride]; }
};

// to[i] = the weighted sum over the frames of from[i + f * step]; frame by frame, since memory is read fastest in
// order.
template <typename T, typename A>
SF_INLINE void sum_frames(const T* from, int64_t step, const FrameWeights<A>& frames, int64_t count, A* to) {
  for (int64_t f = frames.range.begin; f < frames.range.end; ++f) {
    const bool first = f == frames.range.begin;
    const T* frame = from + f * step;
    const A weight = frames[f];
    int64_t i = 0;
    for (; i + Lanes<A>::kCount <= count; i += Lanes<A>::kCount) {
      Lanes<A> sum;
      if (!first) sum = Lanes<A>(to + i);
      sum.add(weight, Lanes<A>(frame + i));
      sum.store(to + i);
    }
    for (; i < count; ++i) to[i] = (first ? A(0) : to[i]) + weight * static_cast<A>(frame[i]);
  }
}

// tile[pixel][channel] = the weighted sum over the frames of the pixels `where`.
template <typename T, typename A>
SF_INLINE void load_tile_inline(const Channels<const T>& from, const FrameWeights<A>& frames, const Rectangle& where,
                                A* plane, A* tile) {
  const int64_t columns = where.x.length(), pixels = where.pixels();
  const T* corner = from.data + where.y.begin * from.y + where.x.begin * from.x;
  if (from.lane == 1) {
    for (int64_t y = 0; y < where.y.length(); ++y)
      for (int64_t x = 0; x < columns; ++x)
        sum_frames(corner + y * from.y + x * from.x, from.frame, frames, from.count,
                   tile + (y * columns + x) * from.pitch);
    return;
  }
  // What lies together in memory: all pixels, those of a row, or (in a tensor with unusual strides) only one.
  const int64_t run = from.x != 1 ? 1 : (from.y == columns ? pixels : columns);
  for (int64_t l = 0; l < from.count; ++l) {
    for (int64_t i = 0; i < pixels; i += run)
      sum_frames(corner + l * from.lane + i / columns * from.y + i % columns * from.x, from.frame, frames, run,
                 plane + i);
    for (int64_t i = 0; i < pixels; ++i) tile[i * from.pitch + l] = plane[i];
  }
}

// bins[p][q][channel] += Wy tile Wx^T, for the box whose pixels lie in the tile `where`.
template <typename A>
SF_INLINE void add_bins_inline(const Plan<A>& plan, int64_t box, const Rectangle& where, int64_t channels,
                               const A* tile, A* row, A* bins) {
  constexpr int kCount = Lanes<A>::kCount;
  const PixelRange span = plan.x.spans[box];
  const int64_t columns = where.x.length();
  for (int64_t lane = 0; lane < channels; lane += kCount) {
    for (int64_t p = 0; p < plan.y.bins; ++p) {
      const PixelRange ys = plan.y.range(box, p);
      if (ys.empty()) continue;
      const A* wy = plan.y.row(box, p);
      for (int64_t x = span.begin; x < span.end; ++x) {
        const A* pixel = tile + ((ys.begin - where.y.begin) * columns + x - where.x.begin) * plan.pitch + lane;
        Lanes<A> sum;
        for (int64_t y = ys.begin; y < ys.end; ++y, pixel += columns * plan.pitch) sum.add(wy[y], Lanes<A>(pixel));
        sum.store(row + (x - span.begin) * kCount);
      }
      for (int64_t q = 0; q < plan.x.bins; ++q) {
        const PixelRange xs = plan.x.range(box, q);
        const A* wx = plan.x.row(box, q);
        A* bin = bins + (p * plan.x.bins + q) * plan.pitch + lane;
        Lanes<A> sum(bin);
        for (int64_t x = xs.begin; x < xs.end; ++x) sum.add(wx[x], Lanes<A>(row + (x - span.begin) * kCount));
        sum.store(bin);
      }
    }
  }
}

// The transpose of add_bins: tile += Wy^T bins Wx; the tile is a whole frame.
template <typename A>
SF_INLINE void add_to_tile_inline(const Plan<A>& plan, int64_t box, int64_t channels, const A* bins, A* row, A* tile) {
  constexpr int kCount = Lanes<A>::kCount;
  const PixelRange span = plan.x.spans[box];
  for (int64_t lane = 0; lane < channels; lane += kCount) {
    for (int64_t p = 0; p < plan.y.bins; ++p) {
      const PixelRange ys = plan.y.range(box, p);
      if (ys.empty()) continue;
      std::fill_n(row, span.length() * kCount, A(0));
      for (int64_t q = 0; q < plan.x.bins; ++q) {
        const PixelRange xs = plan.x.range(box, q);
        const A* wx = plan.x.row(box, q);
        const Lanes<A> bin(bins + (p * plan.x.bins + q) * plan.pitch + lane);
        for (int64_t x = xs.begin; x < xs.end; ++x) {
          Lanes<A> sum(row + (x - span.begin) * kCount);
          sum.add(wx[x], bin);
          sum.store(row + (x - span.begin) * kCount);
        }
      }
      const A* wy = plan.y.row(box, p);
      for (int64_t y = ys.begin; y < ys.end; ++y) {
        A* pixel = tile + (y * plan.width + span.begin) * plan.pitch + lane;
        for (int64_t x = 0; x < span.length(); ++x, pixel += plan.pitch) {
          Lanes<A> sum(pixel);
          sum.add(wy[y], Lanes<A>(row + x * kCount));
          sum.store(pixel);
        }
      }
    }
  }
}

// Writes pixels x channels (of a tile or of bins) to all frames of `range`. The tensor is one of ours: the pixels of a
// frame follow each other.
template <typename T, typename A>
SF_INLINE void store_inline(const A* values, int64_t pixels, PixelRange range, const Channels<T>& to) {
  if (to.lane == 1) {
    for (int64_t f = range.begin; f < range.end; ++f)
      for (int64_t i = 0; i < pixels; ++i) {
        T* pixel = to.data + f * to.frame + i * to.x;
        int64_t l = 0;
        for (; l + Lanes<A>::kCount <= to.count; l += Lanes<A>::kCount)
          Lanes<A>(values + i * to.pitch + l).store(pixel + l);
        for (; l < to.count; ++l) pixel[l] = T(values[i * to.pitch + l]);
      }
    return;
  }
  for (int64_t l = 0; l < to.count; ++l) {
    T* plane = to.data + l * to.lane + range.begin * to.frame;
    for (int64_t i = 0; i < pixels; ++i) plane[i] = T(values[i * to.pitch + l]);
    for (int64_t f = 1; f < range.length(); ++f) std::memcpy(plane + f * to.frame, plane, pixels * sizeof(T));
  }
}

// The largest of the bins and where it is: the first of equals, and NaN if there is one.
template <typename A>
SF_INLINE void largest_inline(const A* bins, int64_t count, int64_t pitch, A* best, int64_t* place) {
  using Half = typename Lanes<A>::Half;
  using Integers = typename Lanes<A>::Integers;
  constexpr int kCount = Lanes<A>::kCount / 2;
  for (int64_t lane = 0; lane < pitch; lane += kCount) {
    Half most;
    std::memcpy(&most, bins + lane, sizeof(most));
    Integers at{};
    for (int i = 1; i < count; ++i) {
      Half value;
      std::memcpy(&value, bins + i * pitch + lane, sizeof(value));
      const Integers better = (value > most) | ((value != value) & (most == most));
      most = better ? value : most;
      at = better ? Integers{} + i : at;
    }
    for (int k = 0; k < kCount; ++k) best[lane + k] = most[k], place[lane + k] = at[k];
  }
}

// The functions above for each dtype and each instruction set.
#define SF_FOR_ACCUMULATOR(A)                                                                                       \
  SF_MULTIVERSION void add_bins(const Plan<A>& plan, int64_t box, const Rectangle& where, int64_t channels,         \
                                const Scratch<A>& scratch) {                                                        \
    add_bins_inline(plan, box, where, channels, scratch.tile, scratch.row, scratch.bins);                           \
  }                                                                                                                 \
  SF_MULTIVERSION void add_to_tile(const Plan<A>& plan, int64_t box, int64_t channels, const Scratch<A>& scratch) { \
    add_to_tile_inline(plan, box, channels, scratch.bins, scratch.row, scratch.tile);                               \
  }                                                                                                                 \
  SF_MULTIVERSION void largest(const A* bins, int64_t count, int64_t pitch, A* best, int64_t* place) {              \
    largest_inline(bins, count, pitch, best, place);                                                                \
  }
#define SF_FOR_DTYPE(T, A)                                                                                             \
  SF_MULTIVERSION void load_tile(const Channels<const T>& from, const FrameWeights<A>& frames, const Rectangle& where, \
                                 A* plane, A* tile) {                                                                  \
    load_tile_inline(from, frames, where, plane, tile);                                                                \
  }                                                                                                                    \
  SF_MULTIVERSION void store(const A* values, int64_t pixels, PixelRange range, const Channels<T>& to) {               \
    store_inline(values, pixels, range, to);                                                                           \
  }
SF_FOR_ACCUMULATOR(float)
SF_FOR_ACCUMULATOR(double)
SF_FOR_DTYPE(float, float)
SF_FOR_DTYPE(double, double)
SF_FOR_DTYPE(bfloat16, float)
#undef SF_FOR_ACCUMULATOR
#undef SF_FOR_DTYPE

template <typename T, typename A>
void store_bins(const Plan<A>& plan, int64_t roi, int64_t channel, int64_t time_bin, const A* bins) {
  const TensorView &output = plan.p.output, &argmax = plan.p.argmax;
  const int64_t count = plan.y.bins * plan.x.bins;
  if (!plan.p.options.pool) {
    const int32_t t = static_cast<int32_t>(time_bin);
    return store(bins, count, {t, t + 1}, Channels<T>(output, roi, channel, plan.pitch));
  }
  A best[kMaxPitch];
  int64_t place[kMaxPitch];
  largest(bins, count, plan.pitch, best, place);
  const int64_t offset = roi * plan.channels + channel;  // both tensors are ours: dense [R, C]
  for (int64_t l = 0; l < std::min(plan.pitch, plan.channels - channel); ++l) {
    output.as<T>()[offset + l] = T(best[l]);
    argmax.as<int64_t>()[offset + l] = place[l];
  }
}

// The pixels to load for a box: whole rows where they follow each other in memory.
template <typename T>
Rectangle visible(const Channels<const T>& features, PixelRange y, PixelRange x, int64_t width) {
  if (features.lane != 1 && features.x == 1 && features.y == width && !x.empty())
    return {y, {0, static_cast<int32_t>(width)}};
  return {y, x};
}

// RoIs that share their frames: all boxes of a clip, or one cuboid.
template <typename T, typename A>
void forward_shared(const Plan<A>& plan, const int64_t* rois, int64_t count, int64_t channel,
                    const Scratch<A>& scratch) {
  if (count == 0) return;
  const Channels<const T> features(plan.p.features, plan.clip[rois[0]], channel, plan.pitch);
  const int64_t time_row = plan.time_row(rois[0]);
  PixelRange ys, xs;
  for (int64_t i = 0; i < count; ++i) {
    ys.include(plan.y.spans[rois[i]]);
    xs.include(plan.x.spans[rois[i]]);
  }
  const Rectangle where = visible(features, ys, xs, plan.width);
  for (int64_t b = 0; b < plan.time.bins; ++b) {
    const FrameWeights<A> frames{plan.time.range(time_row, b), plan.time.row(time_row, b), 1};
    const bool seen = !frames.range.empty() && where.pixels() > 0;
    if (seen) load_tile(features, frames, where, scratch.row, scratch.tile);
    for (int64_t i = 0; i < count; ++i) {
      std::fill_n(scratch.bins, plan.bins_size, A(0));
      if (seen) add_bins(plan, rois[i], where, features.count, scratch);
      store_bins<T>(plan, rois[i], channel, b, scratch.bins);
    }
  }
}

template <typename T, typename A>
void forward_tubelet(const Plan<A>& plan, int64_t roi, int64_t channel, const Scratch<A>& scratch) {
  const Channels<const T> features(plan.p.features, plan.clip[roi], channel, plan.pitch);
  for (int64_t b = 0; b < plan.time.bins; ++b) {
    const PixelRange frames = plan.time.range(0, b);
    std::fill_n(scratch.bins, plan.bins_size, A(0));
    for (int32_t f = frames.begin; f < frames.end; ++f) {
      const int64_t box = plan.box(roi, f);
      const Rectangle where = visible(features, plan.y.spans[box], plan.x.spans[box], plan.width);
      if (where.pixels() == 0) continue;
      const FrameWeights<A> one{{f, f + 1}, plan.time.row(0, b), 1};
      load_tile(features, one, where, scratch.row, scratch.tile);
      add_bins(plan, box, where, features.count, scratch);
    }
    store_bins<T>(plan, roi, channel, b, scratch.bins);
  }
}

// Units: the tiles of every clip (boxes) or of every RoI (cuboids and tubelets).
template <typename T, typename A>
void forward_units(const Plan<A>& plan, int64_t begin, int64_t end, int64_t slot) {
  const Scratch<A> scratch(plan, slot);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit / plan.tiles(), channel = unit % plan.tiles() * plan.pitch;
    if (plan.kind == RoIKind::kBoxes)
      forward_shared<T>(plan, plan.members + plan.first[group], plan.first[group + 1] - plan.first[group], channel,
                        scratch);
    else if (plan.kind == RoIKind::kCuboids)
      forward_shared<T>(plan, &group, 1, channel, scratch);
    else
      forward_tubelet<T>(plan, group, channel, scratch);
  }
}

// bins = what frame f gets of the RoI's gradient, summed over its time bins; false if it gets nothing.
template <typename T, typename A>
bool load_gradient(const Plan<A>& plan, int64_t roi, int64_t channel, int32_t f, const Scratch<A>& scratch) {
  const int64_t time_row = plan.time_row(roi);
  FrameWeights<A> bins{{}, plan.time.row(time_row, 0) + f, plan.frames};
  for (int32_t b = 0; b < plan.time.bins; ++b) {
    const PixelRange frames = plan.time.range(time_row, b);
    if (frames.begin <= f && f < frames.end) bins.range.include({b, b + 1});
  }
  if (bins.range.empty()) return false;
  const TensorView &gradient = plan.p.output, &argmax = plan.p.argmax;
  if (!plan.p.options.pool) {
    const Rectangle all{{0, static_cast<int32_t>(plan.y.bins)}, {0, static_cast<int32_t>(plan.x.bins)}};
    load_tile(Channels<const T>(gradient, roi, channel, plan.pitch), bins, all, scratch.row, scratch.bins);
    return true;
  }
  std::fill_n(scratch.bins, plan.bins_size, A(0));
  const T* value = gradient.as<const T>() + roi * gradient.stride(0) + channel * gradient.stride(1);
  const int64_t* place = argmax.as<const int64_t>() + roi * argmax.stride(0) + channel * argmax.stride(1);
  for (int64_t l = 0; l < std::min(plan.pitch, plan.channels - channel); ++l)
    scratch.bins[place[l * argmax.stride(1)] * plan.pitch + l] =
        bins[0] * static_cast<A>(value[l * gradient.stride(1)]);
  return true;
}

// Units: the tiles of every clip.
template <typename T, typename A>
void backward_units(const Plan<A>& plan, int64_t begin, int64_t end, int64_t slot) {
  const Scratch<A> scratch(plan, slot);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / plan.tiles(), channel = unit % plan.tiles() * plan.pitch;
    const Channels<T> gradient(plan.p.features, n, channel, plan.pitch);
    for (int32_t f = 0, next = 0; f < plan.frames; f = next) {
      for (next = f + 1; next < plan.frames && plan.alike(n, f, next);) ++next;
      std::fill_n(scratch.tile, plan.tile_size, A(0));
      for (int64_t i = plan.first[n]; i < plan.first[n + 1]; ++i) {
        const int64_t roi = plan.members[i];
        if (load_gradient<T>(plan, roi, channel, f, scratch))
          add_to_tile(plan, plan.box(roi, f), gradient.count, scratch);
      }
      store(scratch.tile, plan.height * plan.width, {f, next}, gradient);
    }
  }
}

template <bool kBackward>
void run(const RoIAlign3DParams& p, int num_threads) {
  dispatch_floating(p.features.dtype, "roi_align_3d", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulator_t<T>;
    Plan<A> plan(p, p.workspace.as<char>(), num_threads);
    SF_CHECK(p.workspace.numel() >= plan.arena.used, "roi_align_3d: the workspace is too small");
    if (p.rois.dtype == DType::kFloat64)
      plan.template make<double>(num_threads);
    else
      plan.template make<float>(num_threads);
    const int64_t units = plan.tiles() * (kBackward || plan.kind == RoIKind::kBoxes ? plan.clips : plan.rois);
    const int64_t slots = std::min<int64_t>(std::max(num_threads, 1), units);
    parallel_for(slots, 1, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        if (kBackward)
          backward_units<T>(plan, units * slot / slots, units * (slot + 1) / slots, slot);
        else
          forward_units<T>(plan, units * slot / slots, units * (slot + 1) / slots, slot);
      }
    });
  });
}

}  // namespace

int64_t roi_align_3d_workspace_bytes_cpu(const RoIAlign3DParams& p, int num_threads) {
  if (p.features.dtype == DType::kFloat64) return Plan<double>(p, nullptr, num_threads).arena.used;
  return Plan<float>(p, nullptr, num_threads).arena.used;
}

void roi_align_3d_forward_cpu(const RoIAlign3DParams& p, int num_threads) { run<false>(p, num_threads); }

void roi_align_3d_backward_cpu(const RoIAlign3DParams& p, int num_threads) { run<true>(p, num_threads); }

}  // namespace slowfast
