// temporal_gather: frames of a clip picked by index along time, x[n, c, indices[n, t'], h, w], and its gradient.
#pragma once

#include "slowfast/tensor_view.h"

namespace slowfast {

struct TemporalGatherParams {
  TensorView input;    // [N, C, T, H, W]
  TensorView indices;  // int64 [N, T'], values in [0, T)
  TensorView output;   // [N, C, T', H, W]
};

struct TemporalGatherBackwardParams {
  TensorView grad_output;  // [N, C, T', H, W]
  TensorView indices;      // int64 [N, T']
  TensorView grad_input;   // [N, C, T, H, W], every element written
};

void temporal_gather_forward_cpu(const TemporalGatherParams& params, int num_threads);
void temporal_gather_backward_cpu(const TemporalGatherBackwardParams& params, int num_threads);
void temporal_gather_forward_cuda(const TemporalGatherParams& params, int device, void* stream);
void temporal_gather_backward_cuda(const TemporalGatherBackwardParams& params, int device, void* stream);

}  // namespace slowfast
