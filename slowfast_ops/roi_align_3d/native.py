"""roi_align_3d and roi_align_3d_pool on the compiled kernels: outputs and workspace are allocated here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slowfast_ops._library import output_memory_format
from slowfast_ops._native import allocate, library, num_threads, view


def _run(kernel: str, features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    """Calls a kernel with (bins, spatial_scale, temporal_scale, sampling_ratio, aligned, pool)."""
    options = (tuple(options[0]), *options[1:], argmax is not None)
    arguments, threads = (view(features), view(rois)), num_threads()
    needed = library().roi_align_3d_workspace_bytes_cpu(*arguments, options, threads)
    workspace = allocate((needed,), like=features, dtype=torch.uint8)
    getattr(library(), kernel)(*arguments, view(output), view(argmax), view(workspace), options, threads)


def forward_cpu(features: Tensor, rois: Tensor, output_size: Sequence[int], *options: float) -> Tensor:
    shape = (rois.shape[0], features.shape[1], *output_size)
    output = allocate(shape, like=features, memory_format=output_memory_format(features))
    _run("roi_align_3d_forward_cpu", features, rois, output, None, (output_size, *options))
    return output


def backward_cpu(
    grad_output: Tensor, rois: Tensor, input_size: Sequence[int], channels_last: bool, *options: float
) -> Tensor:
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    grad_features = allocate(input_size, like=grad_output, memory_format=memory_format)
    size = grad_output.shape[2:]
    _run("roi_align_3d_backward_cpu", grad_features, rois, grad_output, None, (size, *options))
    return grad_features


def pool_forward_cpu(
    features: Tensor, rois: Tensor, output_size: Sequence[int], *options: float
) -> tuple[Tensor, Tensor]:
    output = allocate((rois.shape[0], features.shape[1]), like=features)
    argmax = allocate(output.shape, like=features, dtype=torch.int64)
    _run("roi_align_3d_forward_cpu", features, rois, output, argmax, (output_size, *options))
    return output, argmax


def pool_backward_cpu(
    grad_output: Tensor,
    argmax: Tensor,
    rois: Tensor,
    input_size: Sequence[int],
    channels_last: bool,
    output_size: Sequence[int],
    *options: float,
) -> Tensor:
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    grad_features = allocate(input_size, like=grad_output, memory_format=memory_format)
    _run("roi_align_3d_backward_cpu", grad_features, rois, grad_output, argmax, (output_size, *options))
    return grad_features
