// What roi_align_3d_pool does besides roi_align_3d, for the launchers in roi_align_3d_cuda.cu.
#pragma once

#include "roi_align_3d_plan.cuh"

namespace slowfast {
namespace roi_align_3d {

// A call whose RoIs have one time bin in which all frames count the same is one on the temporal mean of the features: a
// clip of one frame. Its `features` are without memory here.
template <typename A>
RoIAlign3DParams on_temporal_mean(const RoIAlign3DParams& p) {
  RoIAlign3DParams result = p;
  TensorView& mean = result.features;
  const int64_t channels = mean.sizes[1], height = mean.sizes[3], width = mean.sizes[4];
  const bool inner = mean.strides[1] == 1 && channels > 1;
  const int64_t strides[] = {channels * height * width, inner ? 1 : height * width, 0,
                             inner ? channels * width : width, inner ? channels : 1};
  mean.data = nullptr;
  mean.dtype = sizeof(A) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
  mean.sizes[2] = 1;
  for (int i = 0; i < 5; ++i) mean.strides[i] = strides[i];
  result.options.bins[0] = 1;
  return result;
}

// Defined in roi_align_3d_pool_cuda.cu. `plan` is one for on_mean.
template <typename T>
void make_temporal_mean(const RoIAlign3DParams& p, const RoIAlign3DParams& on_mean, const Plan<accumulator_t<T>>& plan,
                        void* stream);
template <typename T>
void pool_backward(const RoIAlign3DParams& p, const Plan<accumulator_t<T>>& plan, void* stream);

}  // namespace roi_align_3d
}  // namespace slowfast
