// For the CUDA kernels of gather_frames: pixels of YUV 4:2:0 frames as RGB, one or four at a time. A pixel is a word of
// red, green and blue bytes, the last one being zero.
#pragma once

#include "gather_frames.cuh"

namespace slowfast {
namespace {

__device__ inline uint32_t rgb_word(int luma, const ChromaTerms<int>& chroma) {
  return static_cast<uint32_t>(clamped_to_byte(luma + chroma.red)) |
         static_cast<uint32_t>(clamped_to_byte(luma + chroma.green)) << 8 |
         static_cast<uint32_t>(clamped_to_byte(luma + chroma.blue)) << 16;
}

// A row of a frame, and the row of chroma that goes with it.
struct YuvRow {
  const uint8_t *luma, *chroma;

  __device__ uint32_t pixel(const Clip& clip, int column) const {
    const uint8_t* u = chroma + column / 2 * clip.chroma_w;
    return rgb_word(luma_term<int>(clip.colour, luma[column * clip.stride_w]),
                    ChromaTerms<int>(clip.colour, u[0], u[clip.stride_c]));
  }

  // Whether FourYuvPixels can load at `column`: its words of luma lie inside the row.
  __device__ static bool has_words(const Clip& clip, int column) {
    return clip.dense && column > 0 && column + 8 <= clip.width;
  }
};

// Pixels `column` to `column + 3`, a multiple of 4, on their way to shared memory.
struct FourYuvPixels {
  uint32_t luma[2];  // the aligned words that they are in
  uint32_t chroma;   // U of two chroma pixels, V of both
  unsigned skipped;  // bits in front of luma

  __device__ void load(const Clip& clip, const YuvRow& row, int column) {
    const uint8_t *y = row.luma + column, *u = row.chroma + column / 2 * clip.chroma_w;
    const unsigned offset = static_cast<unsigned>(reinterpret_cast<uintptr_t>(y) & 3);
    skipped = 8 * offset;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(y - offset);
    luma[0] = __ldg(words);
    luma[1] = offset ? __ldg(words + 1) : 0;
    if (clip.chroma_loads == ChromaLoads::kPlanes) {
      chroma = __ldg(reinterpret_cast<const uint16_t*>(u)) |
               static_cast<uint32_t>(__ldg(reinterpret_cast<const uint16_t*>(u + clip.stride_c))) << 16;
    } else if (clip.chroma_loads == ChromaLoads::kPairs) {
      chroma = __byte_perm(__ldg(reinterpret_cast<const uint32_t*>(u)), 0, 0x3120);
    } else {
      const uint8_t* v = u + clip.stride_c;
      chroma = static_cast<uint32_t>(__ldg(u)) | static_cast<uint32_t>(__ldg(u + clip.chroma_w)) << 8 |
               static_cast<uint32_t>(__ldg(v)) << 16 | static_cast<uint32_t>(__ldg(v + clip.chroma_w)) << 24;
    }
  }

  __device__ uint4 pixels(const YuvColour& colour) const {
    const uint32_t four = __funnelshift_r(luma[0], luma[1], skipped);
    const auto byte = [](uint32_t word, int i) { return static_cast<int>(word >> 8 * i & 0xFF); };
    const ChromaTerms<int> left(colour, byte(chroma, 0), byte(chroma, 2)),
        right(colour, byte(chroma, 1), byte(chroma, 3));
    return make_uint4(
        rgb_word(luma_term<int>(colour, byte(four, 0)), left), rgb_word(luma_term<int>(colour, byte(four, 1)), left),
        rgb_word(luma_term<int>(colour, byte(four, 2)), right), rgb_word(luma_term<int>(colour, byte(four, 3)), right));
  }
};

}  // namespace
}  // namespace slowfast
