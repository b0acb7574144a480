// The arithmetic of gather_frames that every backend shares: which source pixels make an output pixel, along one axis.
#pragma once

#include <cstdint>

#include "slowfast/macros.h"

namespace slowfast {

// Bilinear resizing of one axis with half-pixel centres, as a triangle filter: the weight of source pixel j for output
// pixel i falls linearly with the distance of their centres and reaches zero at `reach`. The weights of an output pixel
// are divided by their sum, which at the borders has the effect of clamping the coordinate. Everything is a multiple of
// 1 / (2 * resized) source pixels, so integers represent positions and weights exactly.
struct ResizeAxis {
  int64_t source;   // pixels of the frame
  int64_t resized;  // pixels of the whole resized frame
  bool antialias;   // when shrinking: a filter as wide as the reduction, instead of the two nearest pixels

  SF_HOST_DEVICE SF_INLINE int64_t reach() const { return 2 * (antialias && source > resized ? source : resized); }

  // The most source pixels that have a weight.
  SF_HOST_DEVICE SF_INLINE int64_t taps() const { return source == resized ? 1 : (reach() + resized - 1) / resized; }

  // The first source pixel with a weight for output pixel i.
  SF_HOST_DEVICE SF_INLINE int64_t first(int64_t i) const {
    const int64_t numerator = source * (2 * i + 1) - reach() + resized;
    return numerator > 0 ? numerator / (2 * resized) : 0;
  }

  // The weight of source pixel j for output pixel i before division by their sum; 0 where j is outside the frame.
  SF_HOST_DEVICE SF_INLINE int64_t raw_weight(int64_t i, int64_t j) const {
    const int64_t distance = (2 * j + 1) * resized - source * (2 * i + 1);
    const int64_t weight = reach() - (distance < 0 ? -distance : distance);
    return j < source && weight > 0 ? weight : 0;
  }
};

}  // namespace slowfast
