// roi_align_3d: RoIAlign of boxes, cuboids and tubelets on video features, its pooled form, and their gradients.
#pragma once

#include "slowfast/tensor_view.h"

namespace slowfast {

enum class RoIKind { kBoxes, kCuboids, kTubelets };

inline RoIKind roi_kind(const TensorView& rois) {
  return rois.ndim == 3 ? RoIKind::kTubelets : (rois.size(1) == 7 ? RoIKind::kCuboids : RoIKind::kBoxes);
}

struct RoIAlign3DOptions {
  int64_t bins[3];  // t, h, w
  double spatial_scale, temporal_scale;
  int64_t sampling_ratio;  // 0: adaptive
  bool aligned;
  bool pool;  // roi_align_3d_pool: the mean over t and the maximum over h, w
};

// forward: features -> output (and argmax); backward: the gradient of output (and argmax) -> that of features.
struct RoIAlign3DParams {
  TensorView features;   // [N, C, T, H, W]; its gradient: every element is written
  TensorView rois;       // float32 or float64 [R, 5], [R, 7] or [R, T, 5]
  TensorView output;     // [R, C, t, h, w]; pool: [R, C]
  TensorView argmax;     // pool: int64 [R, C], the bin that is the maximum, as p * w + q
  TensorView workspace;  // uint8, as many as roi_align_3d_workspace_bytes_cpu() or _cuda() says
  RoIAlign3DOptions options;
};

// What a kernel needs for these features (and rois, options); their workspace and outputs are not looked at.
int64_t roi_align_3d_workspace_bytes_cpu(const RoIAlign3DParams& params, int num_threads);
void roi_align_3d_forward_cpu(const RoIAlign3DParams& params, int num_threads);
void roi_align_3d_backward_cpu(const RoIAlign3DParams& params, int num_threads);
int64_t roi_align_3d_workspace_bytes_cuda(const RoIAlign3DParams& params, bool backward);
void roi_align_3d_forward_cuda(const RoIAlign3DParams& params, int device, void* stream);
void roi_align_3d_backward_cuda(const RoIAlign3DParams& params, int device, void* stream);

}  // namespace slowfast
