"""temporal_gather on the compiled kernels: outputs are allocated here, the rest happens in csrc/."""

from __future__ import annotations

from torch import Tensor

from slowfast_ops._library import output_memory_format
from slowfast_ops._native import allocate, library, num_threads, view


def forward_cpu(x: Tensor, indices: Tensor) -> Tensor:
    n, c, _, h, w = x.shape
    output = allocate((n, c, indices.shape[1], h, w), like=x, memory_format=output_memory_format(x))
    library().temporal_gather_forward_cpu(view(x), view(indices), view(output), num_threads())
    return output


def backward_cpu(grad_output: Tensor, indices: Tensor, frames: int) -> Tensor:
    n, c, _, h, w = grad_output.shape
    grad_input = allocate((n, c, frames, h, w), like=grad_output, memory_format=output_memory_format(grad_output))
    library().temporal_gather_backward_cpu(view(grad_output), view(indices), view(grad_input), num_threads())
    return grad_input
