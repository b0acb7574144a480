// gather_frames: from decoded uint8 frames to the normalised clips of both pathways in one pass.
#pragma once

#include "slowfast/check.h"
#include "slowfast/gather_frames_math.h"
#include "slowfast/tensor_view.h"

namespace slowfast {

// One decoded clip, and the window of its resized frames that is wanted.
struct GatherFramesClip {
  TensorView frames;                      // uint8 RGB [T, H, W, 3], or luma [T, H, W], any strides
  TensorView chroma;                      // uint8 [T, 2, ceil(H/2), ceil(W/2)], any strides; not given for RGB
  YuvColour colour;                       // what luma and chroma mean
  int64_t resized_height, resized_width;  // of the whole frame; H and W where it is not resized
  int64_t top, left;                      // of the window, in resized pixels; its size is the output's
  bool flip;                              // left to right
};

struct GatherFramesParams {
  const GatherFramesClip* clips;  // [N]
  TensorView indices;             // int64 [N, T'], frames of the clips
  TensorView slow;                // [N, 3, T_slow, h, w], contiguous or channels_last_3d
  TensorView fast;                // [N, 3, T', h, w], of the same dtype and format
  bool linspace;                  // the rule by which the Slow pathway gets its frames; else by a stride
  double mean[3], std[3];         // in [0, 1] units; a uint8 output is not normalised
  bool antialias;
  // Workspaces of the CPU kernel (the CUDA kernel has none), contiguous. A is double for a float64 output, else float;
  // K_y and K_x are the most taps (see gather_frames_math.h) of any clip along an axis, W the width of its widest
  // frame.
  TensorView firsts;   // int64 [N, h + w + 3]
  TensorView weights;  // A [N, K_y h + K_x (w + 3)]
  TensorView rows;     // A [threads, 3 (W + K_x + w) + 4]
  TensorView rgb;      // uint8 [threads, 3 (K_y + 2) (W rounded up to an even number)], nothing for RGB
};

inline void check_clip(const GatherFramesClip& clip, int64_t n) {
  const TensorView &f = clip.frames, &c = clip.chroma;
  if (clip.chroma.given()) {
    SF_CHECK(f.dtype == DType::kUInt8 && f.ndim == 3, "gather_frames: the luma of clip ", n, " is not uint8 [T, H, W]");
    SF_CHECK(c.dtype == DType::kUInt8 && c.ndim == 4 && c.size(0) == f.size(0) && c.size(1) == 2 &&
                 c.size(2) == (f.size(1) + 1) / 2 && c.size(3) == (f.size(2) + 1) / 2,
             "gather_frames: the chroma of clip ", n, " is not uint8 [T, 2, ceil(H/2), ceil(W/2)]");
  } else {
    SF_CHECK(f.dtype == DType::kUInt8 && f.ndim == 4 && f.size(3) == 3, "gather_frames: clip ", n,
             " is not uint8 [T, H, W, 3]");
  }
}

void gather_frames_cpu(const GatherFramesParams& params);
void gather_frames_cuda(const GatherFramesParams& params, int device, void* stream);

}  // namespace slowfast
