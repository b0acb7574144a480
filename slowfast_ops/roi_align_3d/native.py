"""roi_align_3d on the compiled kernels: the workspace is allocated here, the rest happens in csrc/.

Every function takes (features, rois, output, argmax, options): argmax is None but for the pooled op, and the options
are (bins, spatial_scale, temporal_scale, sampling_ratio, aligned, pool). In a backward, features and output are the
gradients of these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slowfast_ops._native import allocate, cuda_place, library, num_threads, view


def _on_cpu(kernel: str, features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    threads = num_threads()
    needed = library().roi_align_3d_workspace_bytes_cpu(view(features), view(rois), options, threads)
    tensors = (features, rois, output, argmax, allocate((needed,), like=features, dtype=torch.uint8))
    getattr(library(), kernel)(*map(view, tensors), options, threads)


def _on_cuda(
    backward: bool, features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor | None, options: tuple
) -> None:
    needed = library().roi_align_3d_workspace_bytes_cuda(view(features), view(rois), options, backward)
    tensors = (features, rois, output, argmax, allocate((needed,), like=features, dtype=torch.uint8))
    kernel = library().roi_align_3d_backward_cuda if backward else library().roi_align_3d_forward_cuda
    kernel(*map(view, tensors), options, *cuda_place(features))


def forward_cpu(features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    _on_cpu("roi_align_3d_forward_cpu", features, rois, output, argmax, options)


def backward_cpu(features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    _on_cpu("roi_align_3d_backward_cpu", features, rois, output, argmax, options)


def forward_cuda(features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    _on_cuda(False, features, rois, output, argmax, options)


def backward_cuda(features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    _on_cuda(True, features, rois, output, argmax, options)
