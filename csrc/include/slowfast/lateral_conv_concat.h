// lateral_conv_concat: the time-strided convolution from the Fast to the Slow pathway, its epilogue and the
// concatenation; in one step (inference form), or in two with batch statistics between them (training form).
//
//   C, Cf, Co: channels of the Slow pathway, the Fast pathway, and the convolution's output; K taps, stride alpha.
//   Views that are optional may be not given(). Vectors [Co] are contiguous and of the accumulator's type, but for the
//   statistics and their gradients (mean, var, grad_mean, grad_var), which are double: a rounded mean would shift all
//   gradients of a channel the same way.
#pragma once

#include "slowfast/tensor_view.h"

namespace slowfast {

// output[:, :C] = slow or relu(slow + residual); output[:, C:] = relu?(conv(fast) * scale + shift)
struct LateralConvConcatParams {
  TensorView slow;      // [N, C, T, H, W]
  TensorView fast;      // [N, Cf, alpha T, H, W]
  TensorView weight;    // [Co, Cf, K, 1, 1]
  TensorView scale;     // [Co], optional
  TensorView shift;     // [Co], optional
  TensorView residual;  // [N, C, T, H, W], optional
  TensorView output;    // [N, C + Co, T, H, W]
  int64_t alpha;
  bool relu;
};

// Training form, first step: the convolution, and mean and biased variance of its output per channel.
struct LateralConvStatisticsParams {
  TensorView fast;
  TensorView weight;
  TensorView conv;  // [N, Co, T, H, W]
  TensorView mean;  // [Co]
  TensorView var;   // [Co]
  int64_t alpha;
};

// Training form, second step: output[:, C:] = relu?((conv - mean) / sqrt(var + eps) * gamma + beta)
struct LateralNormConcatParams {
  TensorView slow;
  TensorView conv;
  TensorView mean;
  TensorView var;
  TensorView gamma;     // [Co], optional
  TensorView beta;      // [Co], optional
  TensorView residual;  // optional
  TensorView output;
  double eps;
  bool relu;
};

// Backward of the convolution, in both forms. The gradient of the convolution's output is
//   grad [* (output > 0)] [* scale]                                                      inference form
//   grad + (grad_mean + 2 (conv - mean) grad_var) / (N T H W)                            training form
// Outputs that are not given() are not computed.
struct LateralConvBackwardParams {
  TensorView grad;         // [N, Co, T, H, W]
  TensorView output;       // [N, Co, T, H, W], optional: the output after the ReLU
  TensorView scale;        // [Co], optional
  TensorView conv;         // [N, Co, T, H, W], optional; it and the next three are given together
  TensorView mean;         // [Co]
  TensorView grad_mean;    // [Co]
  TensorView grad_var;     // [Co]
  TensorView fast;         // [N, Cf, alpha T, H, W]
  TensorView weight;       // [Co, Cf, K, 1, 1]
  TensorView grad_fast;    // like fast, optional
  TensorView grad_weight;  // like weight, optional; needed for the next two
  TensorView grad_scale;   // [Co], optional
  TensorView grad_shift;   // [Co], optional
  int64_t alpha;
};

// Backward of the second step of the training form, for the lateral channels.
struct LateralNormBackwardParams {
  TensorView grad;       // [N, Co, T, H, W]
  TensorView conv;       // [N, Co, T, H, W]
  TensorView mean;       // [Co]
  TensorView var;        // [Co]
  TensorView gamma;      // [Co], optional
  TensorView beta;       // [Co], optional
  TensorView grad_conv;  // [N, Co, T, H, W]
  TensorView grad_mean;  // [Co], and so the next three
  TensorView grad_var;
  TensorView grad_gamma;
  TensorView grad_beta;
  double eps;
  bool relu;
};

// `workspace` has as many elements of the accumulator's type as the function of that name says.
int64_t lateral_conv_concat_workspace_cpu(const LateralConvConcatParams& params, int num_threads);
void lateral_conv_concat_forward_cpu(const LateralConvConcatParams& params, void* workspace, int num_threads);
int64_t lateral_conv_statistics_workspace_cpu(const LateralConvStatisticsParams& params, int num_threads);
void lateral_conv_statistics_cpu(const LateralConvStatisticsParams& params, void* workspace, int num_threads);
int64_t lateral_conv_backward_workspace_cpu(const LateralConvBackwardParams& params, int num_threads);
void lateral_conv_backward_cpu(const LateralConvBackwardParams& params, void* workspace, int num_threads);
int64_t lateral_norm_workspace_cpu(const TensorView& conv);
void lateral_norm_concat_cpu(const LateralNormConcatParams& params, void* workspace, int num_threads);
void lateral_norm_backward_cpu(const LateralNormBackwardParams& params, void* workspace, int num_threads);

// CUDA: weight must be [Co][K][Cf] in memory. The workspaces are of double, but for the convolution's backward, where
// they are of the accumulator's type.
void lateral_conv_concat_forward_cuda(const LateralConvConcatParams& params, int device, void* stream);
int64_t lateral_conv_statistics_workspace_cuda(const LateralConvStatisticsParams& params);
void lateral_conv_statistics_cuda(const LateralConvStatisticsParams& params, void* workspace, int device, void* stream);
int64_t lateral_conv_backward_workspace_cuda(const LateralConvBackwardParams& params);
void lateral_conv_backward_cuda(const LateralConvBackwardParams& params, void* workspace, int device, void* stream);
void lateral_norm_concat_cuda(const LateralNormConcatParams& params, int device, void* stream);
int64_t lateral_norm_backward_workspace_cuda(const LateralNormBackwardParams& params);
void lateral_norm_backward_cuda(const LateralNormBackwardParams& params, void* workspace, int device, void* stream);

}  // namespace slowfast
