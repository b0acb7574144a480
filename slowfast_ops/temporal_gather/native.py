"""temporal_gather on the compiled kernels: outputs are allocated here, the rest happens in csrc/."""

from __future__ import annotations

from torch import Tensor

from slowfast_ops._library import output_memory_format
from slowfast_ops._native import allocate, cuda_place, library, num_threads, view


def _output(x: Tensor, frames: int) -> Tensor:
    n, c, _, h, w = x.shape
    return allocate((n, c, frames, h, w), like=x, memory_format=output_memory_format(x))


def forward_cpu(x: Tensor, indices: Tensor) -> Tensor:
    output = _output(x, indices.shape[1])
    library().temporal_gather_forward_cpu(view(x), view(indices), view(output), num_threads())
    return output


def forward_cuda(x: Tensor, indices: Tensor) -> Tensor:
    output = _output(x, indices.shape[1])
    library().temporal_gather_forward_cuda(view(x), view(indices), view(output), *cuda_place(x))
    return output


def backward_cpu(grad_output: Tensor, indices: Tensor, frames: int) -> Tensor:
    grad_input = _output(grad_output, frames)
    library().temporal_gather_backward_cpu(view(grad_output), view(indices), view(grad_input), num_threads())
    return grad_input


def backward_cuda(grad_output: Tensor, indices: Tensor, frames: int) -> Tensor:
    grad_input = _output(grad_output, frames)
    library().temporal_gather_backward_cuda(
        view(grad_output), view(indices), view(grad_input), *cuda_place(grad_output)
    )
    return grad_input
