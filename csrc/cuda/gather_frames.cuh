// What the CUDA kernels of gather_frames share: their arguments.
//
// One launch makes both pathways of up to kMaxClips clips of any sizes: what differs between clips is a table in the
// kernel's arguments, so that nothing is copied to the device and a CUDA graph can capture the call.
#pragma once

#include <algorithm>

#include "cuda_utils.cuh"
#include "slowfast/gather_frames.h"
#include "slowfast/gather_frames_math.h"

namespace slowfast {
namespace {

constexpr int kSharedBytes = 48 * 1024;  // what a block gets without asking for more
constexpr int kMaxClips = 32;            // the arguments of a kernel may have 4096 bytes
constexpr int64_t kStagedSide = 16384;   // ResizeAxis<int32_t> and TwoTaps are exact up to here

// How two adjacent pixels of U and of V can be read at once.
enum class ChromaLoads : uint8_t { kBytes, kPlanes, kPairs };  // kPairs: U and V interleaved, as in NV12

struct Clip {
  const uint8_t *frames, *chroma;                  // RGB and nothing, or luma and U and V
  int64_t stride_t, stride_h, stride_w, stride_c;  // of RGB; of luma, and from U to V
  int64_t chroma_t, chroma_h, chroma_w;
  int count, height, width, resized_height, resized_width, top, left;
  int column_factor;  // of the integer weights of the columns in gather_frames_two_taps.cuh
  YuvColour colour;
  bool flip, dense;  // dense: the bytes of a row are adjacent
  ChromaLoads chroma_loads;
};

struct Output {
  void* data;
  int64_t stride_n, stride_c, stride_t, stride_h;
  int64_t frames;
};

// How a staged kernel cuts a frame into blocks.
struct Tiling {
  int rows = 0, columns = 0;  // output pixels
  int row_tiles = 0, column_tiles = 0;
  int pitch = 0;        // of a row in shared memory, padding included
  int taps = 0;         // the most horizontal taps of any clip; for gather_frames_filter.cuh
  int staged_rows = 0;  // of the source in shared memory; these two for gather_frames_two_taps.cuh
  int strip_rows = 0;   // output rows of a warp
};

struct Arguments {
  const int64_t* indices;
  int64_t index_stride_n, index_stride_t;
  Output fast, slow;
  int64_t height, width;
  bool planar, linspace, antialias;
  bool wide;  // rows of both outputs are aligned for the widest stores
  float scale[3], shift[3];
  double scale_wide[3], shift_wide[3];
  Tiling tiling;
  Clip clips[kMaxClips];
};
static_assert(sizeof(Arguments) <= 4096, "the arguments of a kernel may have 4096 bytes");

// A pixel of a row of RGB as a word of red, green and blue bytes, the last one being zero.
__device__ inline uint32_t rgb_pixel(const Clip& clip, const uint8_t* row, int column) {
  const uint8_t* from = row + column * clip.stride_w;
  return static_cast<uint32_t>(from[0]) | static_cast<uint32_t>(from[clip.stride_c]) << 8 |
         static_cast<uint32_t>(from[2 * clip.stride_c]) << 16;
}

// kSize adjacent values, which a thread writes at once.
template <typename T, int kSize>
struct alignas(kSize * sizeof(T)) Pack {
  T values[kSize];
};

__device__ inline int64_t source_frame(const Arguments& a, const Clip& clip, int64_t n, int64_t t) {
  const int64_t index = a.indices[n * a.index_stride_n + t * a.index_stride_t];
  return index < 0 ? 0 : index >= clip.count ? clip.count - 1 : index;
}

// Whether rows, planes and frames of the output all begin at multiples of `bytes`.
inline bool is_aligned(const Output& output, int64_t element, int64_t bytes) {
  for (int64_t stride : {output.stride_n, output.stride_c, output.stride_t, output.stride_h})
    if (stride != 1 && stride * element % bytes) return false;  // 1: interleaved channels
  return reinterpret_cast<uintptr_t>(output.data) % bytes == 0;
}

inline bool are_aligned(const Arguments& a, int64_t element, int64_t bytes) {
  return is_aligned(a.fast, element, bytes) && (a.slow.frames == 0 || is_aligned(a.slow, element, bytes));
}

}  // namespace
}  // namespace slowfast
