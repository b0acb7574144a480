// Where RoIAlign samples and how much each pixel weighs in a bin, one axis at a time: the mean over a bin's grid of
// (tri)linear samples is a product of one such weight per axis. Shared by the CPU and CUDA kernels.
//
// Positions are computed in P, float or double, in one fixed order of operations and without fused multiply-adds on
// x86-64 and on GPUs: the number of adaptive samples is a rounding-up, which one bit more would change.
#pragma once

#include <cmath>
#include <cstdint>

#include "slowfast/macros.h"

namespace slowfast {

// Pixels [begin, end) of an axis.
struct PixelRange {
  int32_t begin = 0, end = 0;

  SF_HOST_DEVICE bool empty() const { return begin >= end; }
  SF_HOST_DEVICE int64_t length() const { return end > begin ? end - begin : 0; }
  SF_HOST_DEVICE void include(PixelRange other) {
    if (other.empty()) return;
    if (empty()) begin = other.begin, end = other.end;
    begin = other.begin < begin ? other.begin : begin;
    end = other.end > end ? other.end : end;
  }
};

// a * b, rounded before anything is added to it.
template <typename P>
SF_HOST_DEVICE inline P rounded_product(P a, P b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(P) == sizeof(double))
    return __dmul_rn(a, b);
  else
    return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// One axis of a RoI in feature pixels, cut into bins of `bin_length` with `samples` samples each.
template <typename P>
struct RoIAxis {
  P start, bin_length;
  int64_t samples;
  bool adaptive;

  // An unknown (NaN) end makes the axis empty; the limit makes an infinite box a merely huge one.
  SF_HOST_DEVICE static RoIAxis make(P low, P high, P scale, int64_t bins, int64_t sampling_ratio, bool aligned) {
    if (low != low || high != high) return {0, 0, 0, false};
    const P offset = aligned ? P(0.5) : P(0);
    const P start = clamp(rounded_product(low, scale)) - offset, end = clamp(rounded_product(high, scale)) - offset;
    P length = end - start;
    if (!aligned && length < 1) length = 1;
    const P bin_length = length / static_cast<P>(bins);
    if (sampling_ratio > 0) return {start, bin_length, sampling_ratio, false};
    const P samples = std::ceil(bin_length);
    return {start, bin_length, samples > 0 ? static_cast<int64_t>(samples) : 0, true};
  }

  SF_HOST_DEVICE static P clamp(P x) {
    constexpr P kLimit = P(1 << 20);
    return x < -kLimit ? -kLimit : (x > kLimit ? kLimit : x);
  }
};

// Adds `scale` times the mean over the samples of one bin to weights[0 to size - 1], a pointer or another thing with an
// index, and the pixels touched to `touched`.
template <typename P, typename W, typename Weights>
SF_HOST_DEVICE void add_bin_weights(const RoIAxis<P>& axis, int64_t bin, int64_t size, W scale, const Weights& weights,
                                    PixelRange& touched) {
  if (axis.samples == 0) return;
  const P samples = static_cast<P>(axis.samples);
  const P bin_start = axis.start + rounded_product(static_cast<P>(bin), axis.bin_length);
  int64_t first = 0, last = axis.samples;
  if (axis.adaptive) {
    // Two adaptive samples are more than half a pixel apart: few of them are near the image, however large the box.
    const P before = std::floor((P(-1) - bin_start) / (axis.bin_length / samples) - P(1));
    first = before > 0 ? static_cast<int64_t>(before) : 0;
    last = first + 2 * size + 6 < last ? first + 2 * size + 6 : last;
  }
  const W share = scale / static_cast<W>(axis.samples);
  for (int64_t i = first; i < last; ++i) {
    P position = bin_start + (static_cast<P>(i) + P(0.5)) * axis.bin_length / samples;
    if (!(position >= -1 && position <= static_cast<P>(size))) continue;
    position = position < 0 ? 0 : position;
    int32_t low = static_cast<int32_t>(position), high = low + 1;
    W part = static_cast<W>(position - static_cast<P>(low));
    if (high >= size) low = high = static_cast<int32_t>(size - 1), part = 0;
    weights[low] += share * (1 - part);
    weights[high] += share * part;
    touched.include({low, part == 0 ? low + 1 : low + 2});
  }
}

}  // namespace slowfast
