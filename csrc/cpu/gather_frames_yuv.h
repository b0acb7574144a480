// For the CPU kernel of gather_frames: rows of YUV 4:2:0 frames as the RGB that its other steps take.
#pragma once

#include <algorithm>
#include <cstring>

#include "slowfast/gather_frames.h"
#include "slowfast/gather_frames_math.h"
#include "slowfast/macros.h"

namespace slowfast {
namespace {

// The chroma terms of two adjacent pixels from each of `count` chroma pixels. kStride = 0: what `stride` says.
template <int kStride>
SF_INLINE void expand_chroma(const uint8_t* SF_RESTRICT u, const uint8_t* SF_RESTRICT v, int64_t stride, int64_t count,
                             const YuvColour& colour, int16_t* SF_RESTRICT red, int16_t* SF_RESTRICT green,
                             int16_t* SF_RESTRICT blue) {
  const int64_t step = kStride ? kStride : stride;
  for (int64_t x = 0; x < count; ++x) {
    const ChromaTerms<int16_t> terms(colour, u[x * step], v[x * step]);
    red[2 * x] = red[2 * x + 1] = terms.red;
    green[2 * x] = green[2 * x + 1] = terms.green;
    blue[2 * x] = blue[2 * x + 1] = terms.blue;
  }
}

// Interleaved RGB from luma and the terms of chroma, in blocks: first planes and then pixels, because compilers make no
// vectors of one loop for both. The last block overlaps the one before it, so that nothing is left over.
template <int kStride>
SF_INLINE void convert_luma(const uint8_t* SF_RESTRICT luma, int64_t stride, const int16_t* SF_RESTRICT red,
                            const int16_t* SF_RESTRICT green, const int16_t* SF_RESTRICT blue, int64_t count,
                            const YuvColour& colour, uint8_t* SF_RESTRICT rgb) {
  constexpr int64_t kBlock = 32;
  const int64_t step = kStride ? kStride : stride;
  const auto convert = [&](int64_t begin, int64_t size) SF_INLINE_LAMBDA {
    uint8_t planes[3][kBlock];
    for (int64_t i = 0; i < size; ++i) {
      const int16_t y = luma_term<int16_t>(colour, luma[(begin + i) * step]);
      planes[0][i] = static_cast<uint8_t>(clamped_to_byte<int16_t>(y + red[begin + i]));
      planes[1][i] = static_cast<uint8_t>(clamped_to_byte<int16_t>(y + green[begin + i]));
      planes[2][i] = static_cast<uint8_t>(clamped_to_byte<int16_t>(y + blue[begin + i]));
    }
    for (int64_t i = 0; i < size; ++i)
      for (int c = 0; c < 3; ++c) rgb[3 * (begin + i) + c] = planes[c][i];
  };
  if (count < kBlock) return convert(0, count);
  for (int64_t begin = 0; begin < count; begin += kBlock) convert(std::min(begin, count - kBlock), kBlock);
}

// Copies of the colour, which the bytes that are written might alias.
SF_MULTIVERSION void expand_chroma_row(const uint8_t* u, const uint8_t* v, int64_t stride, int64_t count,
                                       YuvColour colour, int16_t* red, int16_t* green, int16_t* blue) {
  if (stride == 1) return expand_chroma<1>(u, v, stride, count, colour, red, green, blue);
  if (stride == 2) return expand_chroma<2>(u, v, stride, count, colour, red, green, blue);
  expand_chroma<0>(u, v, stride, count, colour, red, green, blue);
}

SF_MULTIVERSION void convert_luma_row(const uint8_t* luma, int64_t stride, const int16_t* red, const int16_t* green,
                                      const int16_t* blue, int64_t count, YuvColour colour, uint8_t* rgb) {
  if (stride == 1) return convert_luma<1>(luma, stride, red, green, blue, count, colour, rgb);
  convert_luma<0>(luma, stride, red, green, blue, count, colour, rgb);
}

// The rows of RGB that the current output row is made of. Those that the next output row needs as well are kept, and
// so are the chroma terms, which two rows share.
class RgbRows {
 public:
  // See GatherFramesParams::rgb.
  explicit RgbRows(uint8_t* workspace) : workspace_(workspace) {}

  // Pixel `left` of row `first` of a frame. `columns` pixels of this row and of the `count - 1` next ones (those that
  // there are), `pitch` bytes apart, are valid until the next call.
  const uint8_t* rows(const GatherFramesClip& clip, int64_t n, int64_t frame, int64_t first, int64_t count,
                      int64_t left, int64_t columns) {
    if (n != n_ || frame != frame_) {
      n_ = n, frame_ = frame, first_ = end_ = 0, chroma_row_ = -1;
      pairs_ = (clip.frames.size(2) + 1) / 2;
    }
    uint8_t* const to = workspace_ + 2 * pitch();  // behind three rows of int16_t, the chroma terms
    const int64_t end = std::min(first + count, clip.frames.size(1));
    const int64_t begin = left - left % 2;  // where chroma pixels begin
    int64_t row = first;
    if (first_ <= first && first < end_) {
      std::memmove(to, to + (first - first_) * pitch(), (end_ - first) * pitch());
      row = end_;
    }
    for (; row < end; ++row) convert(clip, row, begin, left + columns - begin, to + (row - first) * pitch());
    first_ = first;
    end_ = end;
    return to + 3 * (left - begin);
  }

  int64_t pitch() const { return 6 * pairs_; }

 private:
  void convert(const GatherFramesClip& clip, int64_t row, int64_t begin, int64_t count, uint8_t* rgb) {
    const TensorView &luma = clip.frames, &chroma = clip.chroma;
    int16_t *red = reinterpret_cast<int16_t*>(workspace_), *green = red + 2 * pairs_, *blue = green + 2 * pairs_;
    if (row / 2 != chroma_row_) {
      chroma_row_ = row / 2;
      const uint8_t* u = chroma.as<const uint8_t>() + frame_ * chroma.stride(0) + chroma_row_ * chroma.stride(2) +
                         begin / 2 * chroma.stride(3);
      expand_chroma_row(u, u + chroma.stride(1), chroma.stride(3), (count + 1) / 2, clip.colour, red, green, blue);
    }
    const uint8_t* y =
        luma.as<const uint8_t>() + frame_ * luma.stride(0) + row * luma.stride(1) + begin * luma.stride(2);
    convert_luma_row(y, luma.stride(2), red, green, blue, count, clip.colour, rgb);
  }

  uint8_t* workspace_;
  int64_t n_ = -1, frame_ = -1, first_ = 0, end_ = 0;  // the clip, the frame and its rows that are there
  int64_t chroma_row_ = -1;                            // whose terms are there
  int64_t pairs_ = 0;                                  // of pixels in a row
};

}  // namespace
}  // namespace slowfast
