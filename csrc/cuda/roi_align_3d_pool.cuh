// What roi_align_3d_pool does besides roi_align_3d, for the launchers in roi_align_3d_cuda.cu.
#pragma once

#include "roi_align_3d_tile.cuh"

namespace slowfast {
namespace roi_align_3d {

// The temporal mean of the features is [N, H, W, pitch] in memory: pixels are aligned to 16 bytes.
template <typename A>
SF_HOST_DEVICE inline int mean_pitch(const Plan<A>& plan) {
  return divided_up(plan.channels, Packet<A>::kCount) * Packet<A>::kCount;
}

// Forward, where all frames count the same. `plan` is one for clips of one frame; `mean` has room for the mean.
template <typename T>
void pool_forward_on_mean(const RoIAlign3DParams& p, const Plan<accumulator_t<T>>& plan, accumulator_t<T>* mean,
                          void* stream);
template <typename T>
void pool_backward(const RoIAlign3DParams& p, const Plan<accumulator_t<T>>& plan, void* stream);

}  // namespace roi_align_3d
}  // namespace slowfast
