// CPU kernel of gather_frames. One unit of work is one row of one output frame, made in steps that stay in the
// first-level cache:
//   mix_rows     the source rows that the output row needs, weighted and summed; still interleaved RGB
//   mix_columns  the source pixels of each output pixel, weighted and summed; normalised; in the order of the output
//   cast_row     to the output's dtype
// A row of a frame that is neither resized nor flipped takes one step, plain_row. Rows of Slow frames are copies of the
// Fast rows that they are. Rows of YUV frames first become RGB (gather_frames_yuv.h).

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "gather_frames_yuv.h"
#include "slowfast/gather_frames.h"
#include "slowfast/gather_frames_math.h"
#include "slowfast/parallel.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only
#endif

namespace slowfast {
namespace {

constexpr int64_t kGroup = 4;  // output pixels that mix_columns makes at a time

// What one clip's rows are made with. Offsets of columns are in elements of the mixed row, which begins at source
// column `left`. The tables of columns are padded to a whole group, and mirrored when the clip is flipped.
template <typename A>
struct Tables {
  int64_t row_taps, column_taps, left, columns;
  int64_t *first_row, *first_column;
  A *row_weights, *column_weights;
  bool plain;  // neither resized nor flipped, and its rows are dense
};

template <typename A>
void fill_axis(const ResizeAxis<int64_t>& axis, int64_t begin, int64_t count, bool flip, int64_t* first, A* weights) {
  const int64_t taps = axis.taps();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = begin + (flip ? count - 1 - i : i);
    first[i] = axis.first(position);
    int64_t sum = 0;
    for (int64_t k = 0; k < taps; ++k) sum += axis.raw_weight(position, first[i] + k);
    for (int64_t k = 0; k < taps; ++k)
      weights[i * taps + k] =
          static_cast<A>(static_cast<double>(axis.raw_weight(position, first[i] + k)) / static_cast<double>(sum));
  }
}

ResizeAxis<int64_t> vertical_axis(const GatherFramesParams& p, const GatherFramesClip& clip) {
  return {clip.frames.size(1), clip.resized_height, p.antialias};
}

ResizeAxis<int64_t> horizontal_axis(const GatherFramesParams& p, const GatherFramesClip& clip) {
  return {clip.frames.size(2), clip.resized_width, p.antialias};
}

// Where clip n's tables are in the workspace, filled or not.
template <typename A>
Tables<A> tables_of(const GatherFramesParams& p, int64_t n) {
  const GatherFramesClip& clip = p.clips[n];
  const int64_t h = p.fast.size(3), w = p.fast.size(4);
  Tables<A> tables;
  tables.row_taps = vertical_axis(p, clip).taps();
  tables.column_taps = horizontal_axis(p, clip).taps();
  tables.left = horizontal_axis(p, clip).first(clip.left);
  tables.columns =
      std::min(horizontal_axis(p, clip).first(clip.left + w - 1) + tables.column_taps, clip.frames.size(2)) -
      tables.left;
  tables.first_row = p.firsts.as<int64_t>() + n * p.firsts.size(1);
  tables.first_column = tables.first_row + h;
  tables.row_weights = p.weights.as<A>() + n * p.weights.size(1);
  tables.column_weights = tables.row_weights + tables.row_taps * h;
  tables.plain = tables.row_taps == 1 && tables.column_taps == 1 && !clip.flip &&
                 (clip.chroma.given() || (clip.frames.stride(2) == 3 && clip.frames.stride(3) == 1));
  return tables;
}

template <typename A>
void fill_tables(const GatherFramesParams& p, int64_t n) {
  const GatherFramesClip& clip = p.clips[n];
  const int64_t h = p.fast.size(3), w = p.fast.size(4);
  const Tables<A> tables = tables_of<A>(p, n);
  const int64_t taps = tables.column_taps;
  check_clip(clip, n);
  SF_CHECK(
      clip.top >= 0 && clip.left >= 0 && clip.top + h <= clip.resized_height && clip.left + w <= clip.resized_width,
      "gather_frames: the crop is not inside the resized frame of clip ", n);
  const int64_t pairs = (clip.frames.size(2) + 1) / 2;
  SF_CHECK(!clip.chroma.given() || 3 * (tables.row_taps + 2) * 2 * pairs <= p.rgb.size(1),
           "gather_frames: the workspace is too small");
  SF_CHECK(h + w + kGroup - 1 <= p.firsts.size(1) &&
               tables.row_taps * h + taps * (w + kGroup - 1) <= p.weights.size(1) &&
               3 * (clip.frames.size(2) + taps + w) + 4 <= p.rows.size(1),
           "gather_frames: the workspace is too small");
  fill_axis(vertical_axis(p, clip), clip.top, h, false, tables.first_row, tables.row_weights);
  fill_axis(horizontal_axis(p, clip), clip.left, w, clip.flip, tables.first_column, tables.column_weights);
  for (int64_t x = 0; x < w; ++x) tables.first_column[x] = 3 * (tables.first_column[x] - tables.left);
  for (int64_t x = w; x < w + kGroup - 1; ++x) {
    tables.first_column[x] = tables.first_column[w - 1];
    std::copy_n(tables.column_weights + (w - 1) * taps, taps, tables.column_weights + x * taps);
  }
}

// Two taps are a + (b - a) w, so that a constant image stays exactly constant.
template <typename A>
SF_INLINE void mix_rows(const uint8_t* SF_RESTRICT source, int64_t row_stride, int64_t pixel_stride,
                        int64_t channel_stride, const A* SF_RESTRICT weights, int64_t taps, int64_t columns,
                        A* SF_RESTRICT mixed) {
  const int64_t length = 3 * columns;
  const bool dense = pixel_stride == 3 && channel_stride == 1;
  if (dense && taps == 1) {
    for (int64_t i = 0; i < length; ++i) mixed[i] = static_cast<A>(source[i]);
  } else if (dense && taps == 2) {
    const A weight = weights[1];
    const uint8_t* SF_RESTRICT next = weight != 0 ? source + row_stride : source;  // there may be no next row
    for (int64_t i = 0; i < length; ++i) {
      const A a = static_cast<A>(source[i]), b = static_cast<A>(next[i]);
      mixed[i] = a + (b - a) * weight;
    }
  } else {
    std::fill(mixed, mixed + length, A(0));
    for (int64_t k = 0; k < taps && weights[k] != 0; ++k) {
      const uint8_t* SF_RESTRICT row = source + k * row_stride;
      const A weight = weights[k];
      if (dense) {
        for (int64_t i = 0; i < length; ++i) mixed[i] += weight * static_cast<A>(row[i]);
      } else {
        for (int64_t x = 0; x < columns; ++x)
          for (int64_t c = 0; c < 3; ++c)
            mixed[3 * x + c] += weight * static_cast<A>(row[x * pixel_stride + c * channel_stride]);
      }
    }
  }
}

// Four values: red, green and blue of a pixel, and one that is not used; or four pixels' values of a channel.
template <typename A>
struct Vector {
  typedef A type __attribute__((vector_size(4 * sizeof(A))));
};
template <typename A>
using vector_t = typename Vector<A>::type;

template <typename A>
SF_INLINE vector_t<A> load(const A* source) {
  vector_t<A> value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

// kTaps = 0: as many as `taps` says.
template <typename A, int kTaps>
SF_INLINE vector_t<A> mix_pixel(const A* SF_RESTRICT source, const A* SF_RESTRICT weights, int64_t taps) {
  const vector_t<A> a = load(source);
  if constexpr (kTaps == 1) return a;
  if constexpr (kTaps == 2) return a + (load(source + 3) - a) * weights[1];
  vector_t<A> sum = a * weights[0];
  for (int64_t k = 1; k < taps; ++k) sum += load(source + 3 * k) * weights[k];
  return sum;
}

// Output pixels x to x + 3: out[c] holds the values of channel c (planar), or the three hold them interleaved.
template <typename A, int kTaps>
SF_INLINE void mix_group(const A* SF_RESTRICT mixed, const int64_t* SF_RESTRICT first, const A* SF_RESTRICT weights,
                         int64_t taps, vector_t<A> scale, vector_t<A> shift, bool planar, vector_t<A>* out) {
  using V = vector_t<A>;
  V p[kGroup];
  for (int64_t i = 0; i < kGroup; ++i)
    p[i] = mix_pixel<A, kTaps>(mixed + first[i], weights + i * taps, taps) * scale + shift;
  if (planar) {
    for (int c = 0; c < 3; ++c) out[c] = V{p[0][c], p[1][c], p[2][c], p[3][c]};
  } else {
    out[0] = V{p[0][0], p[0][1], p[0][2], p[1][0]};
    out[1] = V{p[1][1], p[1][2], p[2][0], p[2][1]};
    out[2] = V{p[2][2], p[3][0], p[3][1], p[3][2]};
  }
}

// Writes `count` pixels to three rows (planar), or to one row of interleaved pixels.
template <typename A, int kTaps, bool kPlanar>
SF_INLINE void mix_columns(const A* SF_RESTRICT mixed, const Tables<A>& tables, vector_t<A> scale, vector_t<A> shift,
                           int64_t count, A* const* output) {
  const int64_t taps = kTaps ? kTaps : tables.column_taps, whole = count - count % kGroup;
  const int64_t* SF_RESTRICT first = tables.first_column;
  const A* SF_RESTRICT weights = tables.column_weights;
  vector_t<A> out[3];
  for (int64_t x = 0; x < whole; x += kGroup) {
    mix_group<A, kTaps>(mixed, first + x, weights + x * taps, taps, scale, shift, kPlanar, out);
    if constexpr (kPlanar) {
      for (int c = 0; c < 3; ++c) std::memcpy(output[c] + x, &out[c], sizeof(out[c]));
    } else {
      std::memcpy(output[0] + 3 * x, out, sizeof(out));
    }
  }
  if (whole == count) return;
  const int64_t rest = (count - whole) * sizeof(A);
  mix_group<A, kTaps>(mixed, first + whole, weights + whole * taps, taps, scale, shift, kPlanar, out);
  if constexpr (kPlanar) {
    for (int c = 0; c < 3; ++c) std::memcpy(output[c] + whole, &out[c], rest);
  } else {
    std::memcpy(output[0] + 3 * whole, out, 3 * rest);
  }
}

template <typename A, bool kPlanar>
SF_INLINE void mix_columns(const A* mixed, const Tables<A>& tables, vector_t<A> scale, vector_t<A> shift, int64_t count,
                           A* const* output) {
  if (tables.column_taps == 1) return mix_columns<A, 1, kPlanar>(mixed, tables, scale, shift, count, output);
  if (tables.column_taps == 2) return mix_columns<A, 2, kPlanar>(mixed, tables, scale, shift, count, output);
  mix_columns<A, 0, kPlanar>(mixed, tables, scale, shift, count, output);
}

template <typename T>
SF_INLINE void cast_row(const float* SF_RESTRICT source, int64_t count, T* SF_RESTRICT output) {
  for (int64_t i = 0; i < count; ++i) output[i] = to_output<T>(source[i]);
}

template <typename A, typename T>
SF_INLINE void plain_row(const uint8_t* SF_RESTRICT source, vector_t<A> scale, vector_t<A> shift, int64_t count,
                         bool planar, T* const* output) {
  const A s0 = scale[0], s1 = scale[1], s2 = scale[2], b0 = shift[0], b1 = shift[1], b2 = shift[2];
  T* SF_RESTRICT red = output[0];
  T* SF_RESTRICT green = output[1];
  T* SF_RESTRICT blue = output[2];
  if (planar) {
    for (int64_t x = 0; x < count; ++x) {
      red[x] = to_output<T>(static_cast<A>(source[3 * x]) * s0 + b0);
      green[x] = to_output<T>(static_cast<A>(source[3 * x + 1]) * s1 + b1);
      blue[x] = to_output<T>(static_cast<A>(source[3 * x + 2]) * s2 + b2);
    }
  } else {
    for (int64_t x = 0; x < count; ++x) {
      red[3 * x] = to_output<T>(static_cast<A>(source[3 * x]) * s0 + b0);
      red[3 * x + 1] = to_output<T>(static_cast<A>(source[3 * x + 1]) * s1 + b1);
      red[3 * x + 2] = to_output<T>(static_cast<A>(source[3 * x + 2]) * s2 + b2);
    }
  }
}

// The rows of one slot, a fixed share of all output rows, with a workspace of its own.
template <typename A, typename T>
SF_INLINE void make_rows(const GatherFramesParams& p, int64_t slot) {
  const TensorView &fast = p.fast, &slow = p.slow;
  const int64_t frames = fast.size(2), h = fast.size(3), w = fast.size(4);
  const int64_t slots = p.rows.size(0), units = fast.size(0) * frames * h;
  const bool planar = fast.stride(4) == 1;

  vector_t<A> scale{1, 1, 1, 0}, shift{0, 0, 0, 0};
  if constexpr (!std::is_same_v<T, uint8_t>) {
    for (int c = 0; c < 3; ++c) {
      scale[c] = static_cast<A>(1 / (255 * p.std[c]));
      shift[c] = static_cast<A>(-p.mean[c] / p.std[c]);
    }
  }

  A* mixed = p.rows.as<A>() + slot * p.rows.size(1);
  std::fill_n(mixed, p.rows.size(1), A(0));  // elements that only zero weights reach must be finite
  A* converted = mixed + p.rows.size(1) - 3 * w;

  Tables<A> tables{};
  RgbRows rgb(p.rgb.as<uint8_t>() + slot * p.rgb.size(1));
  int64_t current = -1;
  for (int64_t unit = units * slot / slots; unit < units * (slot + 1) / slots; ++unit) {
    const int64_t n = unit / (frames * h), t = unit / h % frames, y = unit % h;
    const GatherFramesClip& clip = p.clips[n];
    if (n != current) tables = tables_of<A>(p, n), current = n;
    const int64_t frame = p.indices.as<const int64_t>()[n * p.indices.stride(0) + t * p.indices.stride(1)];
    SF_CHECK(frame >= 0 && frame < clip.frames.size(0), "gather_frames: index ", frame, " outside [0, ",
             clip.frames.size(0), "), the frames of clip ", n);
    const TensorView& f = clip.frames;
    const bool yuv = clip.chroma.given();
    const uint8_t* source =
        yuv ? rgb.rows(clip, n, frame, tables.first_row[y], tables.row_taps, tables.left, tables.columns)
            : f.as<const uint8_t>() + frame * f.stride(0) + tables.first_row[y] * f.stride(1) +
                  tables.left * f.stride(2);
    T* row = fast.as<T>() + n * fast.stride(0) + t * fast.stride(2) + y * fast.stride(3);
    T* const output[3] = {row, row + fast.stride(1), row + 2 * fast.stride(1)};

    if (tables.plain) {
      plain_row<A, T>(source, scale, shift, w, planar, output);
    } else {
      mix_rows<A>(source, yuv ? rgb.pitch() : f.stride(1), yuv ? 3 : f.stride(2), yuv ? 1 : f.stride(3),
                  tables.row_weights + y * tables.row_taps, tables.row_taps, tables.columns, mixed);
      A* target[3];
      for (int c = 0; c < 3; ++c) {
        if constexpr (std::is_same_v<A, T>) {
          target[c] = output[c];
        } else {
          target[c] = converted + c * w;
        }
      }
      if (planar) {
        mix_columns<A, true>(mixed, tables, scale, shift, w, target);
      } else {
        mix_columns<A, false>(mixed, tables, scale, shift, w, target);
      }
      if constexpr (!std::is_same_v<A, T>) {
        if (planar) {
          for (int c = 0; c < 3; ++c) cast_row(target[c], w, output[c]);
        } else {
          cast_row(target[0], 3 * w, row);
        }
      }
    }

    const int64_t slow_t = slow_frame_of(t, frames, slow.size(2), p.linspace);
    if (slow_t < 0) continue;
    T* copy = slow.as<T>() + n * slow.stride(0) + slow_t * slow.stride(2) + y * slow.stride(3);
    for (int c = 0; c < (planar ? 3 : 1); ++c)
      std::memcpy(copy + c * slow.stride(1), output[c], (planar ? w : 3 * w) * sizeof(T));
  }
}

SF_MULTIVERSION void make_rows_f32(const GatherFramesParams& p, int64_t slot) { make_rows<float, float>(p, slot); }
SF_MULTIVERSION void make_rows_f64(const GatherFramesParams& p, int64_t slot) { make_rows<double, double>(p, slot); }
SF_MULTIVERSION void make_rows_bf16(const GatherFramesParams& p, int64_t slot) { make_rows<float, bfloat16>(p, slot); }
SF_MULTIVERSION void make_rows_f16(const GatherFramesParams& p, int64_t slot) { make_rows<float, float16>(p, slot); }
SF_MULTIVERSION void make_rows_u8(const GatherFramesParams& p, int64_t slot) { make_rows<float, uint8_t>(p, slot); }

template <typename A, typename Function>
void run(const GatherFramesParams& p, const Function& function) {
  for (int64_t n = 0; n < p.fast.size(0); ++n) fill_tables<A>(p, n);
  const int64_t slots = p.rows.size(0);
  parallel_for(slots, 1, static_cast<int>(slots), [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) function(p, slot);
  });
}

}  // namespace

void gather_frames_cpu(const GatherFramesParams& p) {
  if (p.fast.numel() == 0) return;
  SF_CHECK(p.indices.dtype == DType::kInt64 && p.indices.ndim == 2 && p.indices.size(0) == p.fast.size(0) &&
               p.indices.size(1) == p.fast.size(2),
           "gather_frames: indices is not int64 [N, T']");
  switch (p.fast.dtype) {
    case DType::kFloat32:
      return run<float>(p, make_rows_f32);
    case DType::kFloat64:
      return run<double>(p, make_rows_f64);
    case DType::kBFloat16:
      return run<float>(p, make_rows_bf16);
    case DType::kFloat16:
      return run<float>(p, make_rows_f16);
    case DType::kUInt8:
      return run<float>(p, make_rows_u8);
    default:
      SF_CHECK(false, "gather_frames: no output of dtype ", name_of(p.fast.dtype));
  }
}

}  // namespace slowfast
