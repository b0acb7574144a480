// The arithmetic of gather_frames that every backend shares: which source pixels make an output pixel, along one axis,
// what a YUV pixel is in RGB, which frames of the Fast pathway the Slow pathway gets, and the cast of a result.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "slowfast/macros.h"

namespace slowfast {

// Bilinear resizing of one axis with half-pixel centres, as a triangle filter: the weight of source pixel j for output
// pixel i falls linearly with the distance of their centres and reaches zero at `reach`. The weights of an output pixel
// are divided by their sum, which at the borders has the effect of clamping the coordinate. Everything is a multiple of
// 1 / (2 * resized) source pixels, so integers represent positions and weights exactly: int64_t always, int32_t for
// axes of at most 16384 pixels before and after resizing.
template <typename Int>
struct ResizeAxis {
  Int source;      // pixels of the frame
  Int resized;     // pixels of the whole resized frame
  bool antialias;  // when shrinking: a filter as wide as the reduction, instead of the two nearest pixels

  SF_HOST_DEVICE SF_INLINE Int reach() const { return 2 * (antialias && source > resized ? source : resized); }

  // The most source pixels that have a weight.
  SF_HOST_DEVICE SF_INLINE Int taps() const { return source == resized ? 1 : (reach() + resized - 1) / resized; }

  // The first source pixel with a weight for output pixel i.
  SF_HOST_DEVICE SF_INLINE Int first(Int i) const {
    const Int numerator = source * (2 * i + 1) - reach() + resized;
    return numerator > 0 ? numerator / (2 * resized) : 0;
  }

  // The weight of source pixel j for output pixel i before division by their sum; 0 where j is outside the frame.
  SF_HOST_DEVICE SF_INLINE Int raw_weight(Int i, Int j) const {
    const Int distance = (2 * j + 1) * resized - source * (2 * i + 1);
    const Int weight = reach() - (distance < 0 ? -distance : distance);
    return j < source && weight > 0 ? weight : 0;
  }
};

// `coefficients` of slowfast_ops/gather_frames/yuv.py, which says what they mean.
struct YuvColour {
  int16_t black, luma, red_v, green_u, green_v, blue_u;
};

// factor * 8 * value / 2^16, rounded down, for a factor of YuvColour and a difference of two bytes. In int16_t it is
// what SIMD units have an instruction for.
template <typename Int>
SF_HOST_DEVICE SF_INLINE Int yuv_product(Int factor, Int value) {
  return static_cast<Int>((static_cast<int32_t>(factor) * static_cast<Int>(8 * value)) >> 16);
}

// What chroma adds to the luma of a pixel, in each channel.
template <typename Int>
struct ChromaTerms {
  Int red, green, blue;

  SF_HOST_DEVICE SF_INLINE ChromaTerms(const YuvColour& colour, Int u, Int v)
      : red(yuv_product<Int>(colour.red_v, v - 128)),
        green(yuv_product<Int>(colour.green_u, u - 128) + yuv_product<Int>(colour.green_v, v - 128)),
        blue(yuv_product<Int>(colour.blue_u, u - 128)) {}
};

template <typename Int>
SF_HOST_DEVICE SF_INLINE Int luma_term(const YuvColour& colour, Int luma) {
  return yuv_product<Int>(colour.luma, luma - colour.black);
}

template <typename Int>
SF_HOST_DEVICE SF_INLINE Int clamped_to_byte(Int value) {
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

// Which Slow frame is frame t of the Fast pathway, or -1: the inverse of slow_frame_indices in
// slowfast_ops/temporal_gather/api.py. uint32_t does for up to 65535 frames.
template <typename Int>
SF_HOST_DEVICE SF_INLINE int64_t slow_frame_of(Int t, Int frames, Int slow_frames, bool linspace) {
  if (slow_frames == 0) return -1;
  if (!linspace || slow_frames == 1) {
    const Int stride = frames / slow_frames;
    if (t % stride || (linspace && t)) return -1;
    return t / stride;
  }
  const Int i = (t * (slow_frames - 1) + frames - 2) / (frames - 1);  // the first Slow frame not before t
  return i * (frames - 1) / (slow_frames - 1) == t ? static_cast<int64_t>(i) : -1;
}

// A result in the dtype of the output; an integer is the nearest one, to even on a tie.
template <typename T>
SF_HOST_DEVICE SF_INLINE T to_output(float value) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    const float shifted = value + 8388608.0f;  // in [0, 255] by construction: the last bits of 2^23 + value are it
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof(bits));
    return static_cast<uint8_t>(bits);
  } else {
    return T(value);
  }
}

template <typename T>
SF_HOST_DEVICE SF_INLINE T to_output(double value) {
  return static_cast<T>(value);
}

}  // namespace slowfast
