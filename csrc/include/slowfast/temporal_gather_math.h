// FrameLoop: how to walk the same frame [C, H, W] of two 5-D tensors, shared by the CPU and CUDA kernels.
#pragma once

#include <algorithm>

#include "slowfast/tensor_view.h"

namespace slowfast {

// The frame's dimensions from the largest stride of `a` to the smallest; those that are adjacent in both tensors are
// merged, so that a dense frame is one long row: size = {1, 1, C*H*W}.
struct FrameLoop {
  int64_t size[3];
  int64_t stride_a[3];
  int64_t stride_b[3];

  FrameLoop(const TensorView& a, const TensorView& b) {
    int order[3] = {1, 3, 4};
    std::sort(order, order + 3,
              [&](int i, int j) { return a.stride(i) != a.stride(j) ? a.stride(i) > a.stride(j) : i < j; });
    for (int k = 0; k < 3; ++k) {
      size[k] = a.size(order[k]);
      stride_a[k] = a.stride(order[k]);
      stride_b[k] = b.stride(order[k]);
    }
    for (int k = 1; k >= 0; --k) {
      const bool adjacent =
          stride_a[k] == stride_a[k + 1] * size[k + 1] && stride_b[k] == stride_b[k + 1] * size[k + 1];
      if (!adjacent) continue;
      size[k + 1] *= size[k];
      if (k == 1) {
        size[1] = size[0];
        stride_a[1] = stride_a[0];
        stride_b[1] = stride_b[0];
      }
      size[0] = 1;
    }
  }

  SF_HOST_DEVICE int64_t numel() const { return size[0] * size[1] * size[2]; }
};

}  // namespace slowfast
