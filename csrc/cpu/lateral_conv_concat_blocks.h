// What the CPU kernels of lateral_conv_concat share: walking tensors of any strides by blocks of positions, and
// carving the workspace.
//
// A position is a pixel (h, w) of a frame. A block is a run of positions of one Slow frame, small enough for what is
// computed from it to stay in a core's cache. Where the tensor is channels-last a block is a matrix
// [position][channel], else [channel][position], and the matrix products go the same way around: their vectors are
// contiguous in the tensor.
#pragma once

#include <algorithm>
#include <type_traits>

#include "slowfast/block_product.h"
#include "slowfast/dtype.h"
#include "slowfast/lateral_conv_concat_math.h"
#include "slowfast/macros.h"
#include "slowfast/parallel.h"
#include "slowfast/tensor_view.h"

namespace slowfast {

inline int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
inline int64_t round_up(int64_t value, int64_t multiple) { return divide_up(value, multiple) * multiple; }

inline bool is_channels_last(const TensorView& view) { return view.stride(1) == 1 && view.size(1) > 1; }
inline int64_t positions_of(const TensorView& view) { return view.size(3) * view.size(4); }

// Whether the positions of a frame are evenly spaced, so that (h, w) may be written (0, h W + w).
inline bool is_even(const TensorView& view) {
  return !view.given() || view.size(3) == 1 || view.stride(3) == view.size(4) * view.stride(4);
}

// Element (channel, position) is data[channel * this->channel + position * this->position].
template <typename T>
struct Matrix {
  T* data;
  int64_t channel, position;

  SF_INLINE Matrix at(int64_t c, int64_t p) const { return {data + c * channel + p * position, channel, position}; }
};

// The matrix that starts at channel 0, position (h, w) of a frame.
template <typename T>
SF_INLINE Matrix<T> matrix_at(const TensorView& v, int64_t n, int64_t t, int64_t h, int64_t w) {
  return {v.as<T>() + n * v.stride(0) + t * v.stride(2) + h * v.stride(3) + w * v.stride(4), v.stride(1), v.stride(4)};
}

// function(channel)(a, b, ...) for the elements a, b, ... of all matrices. It comes in two steps so that what depends
// on the channel is loaded once per row, or as vectors, whichever way the loops go.
template <typename Function, typename... Types>
SF_INLINE void for_each_by_channel(int64_t channels, int64_t positions, const Function& function,
                                   const Matrix<Types>&... m) {
  if (((m.channel == 1) && ...)) {
    for (int64_t p = 0; p < positions; ++p)
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) function(c)(m.data[p * m.position + c]...);
  } else if (((m.position == 1) && ...)) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto element = function(c);
#pragma GCC ivdep
      for (int64_t p = 0; p < positions; ++p) element(m.data[c * m.channel + p]...);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      const auto element = function(c);
      for (int64_t p = 0; p < positions; ++p) element(m.data[c * m.channel + p * m.position]...);
    }
  }
}

// function(a, b, ...) for the elements of all matrices; a dense block is one long row.
template <typename Function, typename... Types>
SF_INLINE void for_each(int64_t channels, int64_t positions, const Function& function, const Matrix<Types>&... m) {
  const bool dense = ((m.channel == 1 && m.position == channels) && ...);
  const auto same = [&](int64_t) SF_INLINE_LAMBDA { return function; };
  for_each_by_channel(dense ? channels * positions : channels, dense ? 1 : positions, same, m...);
}

// function(offset from begin, h, w, length) for runs of evenly spaced positions that make up [begin, end).
template <typename Function>
SF_INLINE void for_each_run(bool even, int64_t width, int64_t begin, int64_t end, const Function& function) {
  int64_t length;
  for (int64_t p = begin; p < end; p += length) {
    length = even ? end - begin : std::min(width - p % width, end - p);
    function(p - begin, even ? 0 : p / width, even ? p : p % width, length);
  }
}

// out = slow, or relu(slow + residual), over positions [begin, end) of frame (n, t).
template <typename T>
SF_INLINE void write_slow(const TensorView& slow, const TensorView& residual, const TensorView& out, int64_t n,
                          int64_t t, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const bool even = is_even(slow) && is_even(residual) && is_even(out);
  for_each_run(even, out.size(4), begin, end, [&](int64_t, int64_t h, int64_t w, int64_t length) SF_INLINE_LAMBDA {
    const auto to = matrix_at<T>(out, n, t, h, w);
    const auto from = matrix_at<const T>(slow, n, t, h, w);
    if (residual.given()) {
      for_each(
          out.size(1), length,
          [](T& y, const T& a, const T& b) SF_INLINE_LAMBDA {
            const T sum(static_cast<Acc>(a) + static_cast<Acc>(b));
            y = static_cast<Acc>(sum) < 0 ? T(Acc(0)) : sum;  // a NaN stays, as in torch.relu
          },
          to, from, matrix_at<const T>(residual, n, t, h, w));
    } else {
      for_each(out.size(1), length, [](T& y, const T& a) SF_INLINE_LAMBDA { y = a; }, to, from);
    }
  });
}

struct Block {
  int64_t n, t, begin, end;  // positions [begin, end) of Slow frame (n, t)

  int64_t count() const { return end - begin; }
};

// The blocks of a tensor [N, ., T, H, W], of nearly equal size: a multiple of `multiple`, at most about `most`.
struct Blocks {
  int64_t clips, frames, positions, size, per_frame;

  Blocks(const TensorView& view, int64_t most, int64_t multiple)
      : clips(view.size(0)), frames(view.size(2)), positions(positions_of(view)) {
    const int64_t wanted = divide_up(positions, std::max(most, multiple));
    size = round_up(divide_up(positions, std::max<int64_t>(wanted, 1)), multiple);
    per_frame = divide_up(positions, std::max<int64_t>(size, 1));
  }
  int64_t count() const { return clips * frames * per_frame; }
  Block operator[](int64_t index) const {
    const int64_t frame = index / per_frame, begin = index % per_frame * size;
    return {frame / frames, frame % frames, begin, std::min(begin + size, positions)};
  }
};

// Hands out pieces of the workspace; with data == nullptr it only counts.
template <typename T>
struct Workspace {
  T* data;
  int64_t used = 0;

  T* take(int64_t count) {
    T* piece = data == nullptr ? nullptr : data + used;
    used += round_up(count, 64 / sizeof(T));
    return piece;
  }
};

// function(slot, begin, end) over [0, units): one slot per thread, so that each can have a workspace of its own.
inline int64_t slots_for(int64_t units, int num_threads) {
  return std::max<int64_t>(1, std::min<int64_t>(units, num_threads));
}
template <typename Function>
void parallel_slots(int64_t units, int64_t slots, int num_threads, const Function& function) {
  parallel_for(slots, 1, num_threads, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) function(slot, units * slot / slots, units * (slot + 1) / slots);
  });
}

// A matrix [row][position] whose positions are split into panels: data[panel][row][lane]. Matrix products take it as
// their B.
template <typename T>
struct Panels {
  T* data;
  int64_t rows, lanes;

  SF_INLINE T* row(int64_t index, int64_t panel) const { return data + (panel * rows + index) * lanes; }
};

// function(channel)(to, a, b, ...) for the elements of `to`, rows [first_row, first_row + channels) and positions
// [offset, offset + length), and those of all matrices.
template <typename T, typename Function, typename... Types>
SF_INLINE void for_each_in_panels(int64_t channels, int64_t length, int64_t offset, const Function& function,
                                  const Panels<T>& to, int64_t first_row, const Matrix<Types>&... m) {
  constexpr int64_t kStep = 16 / sizeof(T);  // a constant that divides the lanes, for the compiler to vectorise
  const bool dense = ((m.position == 1) && ...) && to.lanes % kStep == 0;
  for (int64_t c = 0; c < channels; ++c) {
    const auto element = function(c);
    int64_t lane = offset % to.lanes, count;
    T* SF_RESTRICT panel = to.row(first_row + c, offset / to.lanes);
    for (int64_t p = 0; p < length; p += count, panel += to.rows * to.lanes, lane = 0) {
      count = std::min(to.lanes - lane, length - p);
      if (dense && count == to.lanes) {
        for (int64_t l = 0; l < count; l += kStep)
#pragma GCC ivdep
          for (int64_t i = l; i < l + kStep; ++i) element(panel[i], m.data[c * m.channel + p + i]...);
      } else {
        for (int64_t l = 0; l < count; ++l) element(panel[lane + l], m.data[c * m.channel + (p + l) * m.position]...);
      }
    }
  }
}

// Zeroes what the last panel has past `positions`.
template <typename T>
SF_INLINE void clear_tail(const Panels<T>& to, int64_t positions) {
  const int64_t lane = positions % to.lanes;
  if (lane == 0) return;
  for (int64_t r = 0; r < to.rows; ++r)
    std::fill(to.row(r, positions / to.lanes) + lane, to.row(r, positions / to.lanes) + to.lanes, T(0));
}

// The frames that the taps of output frame t reach, as matrix products take them: [tap][position][channel] if
// channels-last, each tap of the size of a full block; else panels of rows (tap, channel).
template <typename T, typename Acc>
SF_INLINE void load_frames(const TensorView& fast, const LateralTaps& taps, const Block& block, int64_t block_size,
                           bool channels_last, int64_t lanes, Acc* x) {
  const int64_t channels = fast.size(1), first = taps.first_tap(block.t), end = taps.end_tap(block.t);
  const Panels<Acc> panels{x, (end - first) * channels, lanes};
  const auto convert = [](Acc& y, const T& a) SF_INLINE_LAMBDA { y = static_cast<Acc>(a); };
  for (int64_t k = first; k < end; ++k) {
    const Matrix<Acc> to{x + (k - first) * channels * block_size, 1, channels};
    for_each_run(is_even(fast), fast.size(4), block.begin, block.end,
                 [&](int64_t offset, int64_t h, int64_t w, int64_t length) SF_INLINE_LAMBDA {
                   const auto from = matrix_at<const T>(fast, block.n, taps.fast_frame(block.t, k), h, w);
                   if (channels_last)
                     for_each(channels, length, convert, to.at(0, offset), from);
                   else
                     for_each_in_panels(
                         channels, length, offset, [&](int64_t) SF_INLINE_LAMBDA { return convert; }, panels,
                         (k - first) * channels, from);
                 });
  }
  if (!channels_last) clear_tail(panels, block.count());
}

// Whether `frames_in_place` may be used: a dense channels-last tensor of the type that products are computed in.
template <typename T>
bool has_frames_in_place(const TensorView& v) {
  return std::is_same<T, accumulator_t<T>>::value && v.stride(1) == 1 && v.stride(4) == v.size(1) &&
         v.stride(3) == v.stride(4) * v.size(4) && v.stride(2) == v.stride(3) * v.size(3) &&
         v.stride(0) == v.stride(2) * v.size(2);
}

// The same blocks [tap][position][channel] where they lie in memory, stride(2) apart; nullptr if whole tiles of the
// matrix product would read past the tensor's end.
template <typename T>
SF_INLINE const accumulator_t<T>* frames_in_place(const TensorView& fast, const LateralTaps& taps, const Block& block) {
  const int64_t positions = positions_of(fast), first = taps.fast_frame(block.t, taps.first_tap(block.t));
  const int64_t last = taps.fast_frame(block.t, taps.end_tap(block.t) - 1);
  const int64_t end = block.begin + round_up(block.count(), kRowTile);
  if ((block.n * fast.size(2) + last) * positions + end > fast.size(0) * fast.size(2) * positions) return nullptr;
  return fast.as<const accumulator_t<T>>() + block.n * fast.stride(0) + first * fast.stride(2) +
         block.begin * fast.stride(4);
}

// Whether the gradient of weight may take rows of channels or of positions from where they lie in memory: they are of
// the type that products are computed in, contiguous, evenly spaced, and whole tiles of channels do not pass the end.
template <typename T>
bool has_rows_in_place(const TensorView& v, bool channels_last) {
  return std::is_same<T, accumulator_t<T>>::value && v.stride(channels_last ? 1 : 4) == 1 && is_even(v) &&
         v.size(1) % kRowTile == 0;
}

// Rows of a matrix whose columns are split into panels of `lanes`: to[panel][row][lane], zero past the last column.
template <typename Acc, typename Function>
SF_INLINE void pack_panel(Acc* to, int64_t panel, int64_t rows, int64_t columns, int64_t lanes, const Function& value) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t column = panel * lanes + lane;
      to[(panel * rows + row) * lanes + lane] = column < columns ? value(row, column) : Acc(0);
    }
}

// Element (co, cf, k) of the convolution's weight.
template <typename T>
struct Weight {
  const T* data;
  int64_t co, cf, k;

  explicit Weight(const TensorView& view)
      : data(view.as<const T>()), co(view.stride(0)), cf(view.stride(1)), k(view.stride(2)) {}
  SF_INLINE accumulator_t<T> operator()(int64_t o, int64_t f, int64_t tap) const {
    return static_cast<accumulator_t<T>>(data[o * co + f * cf + tap * k]);
  }
};

}  // namespace slowfast
