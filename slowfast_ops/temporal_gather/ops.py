"""torch.ops.slowfast.temporal_gather: schema, fake kernel, autograd, autocast."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slowfast_ops._library import blocks_double_backward, define, differentiable, output_memory_format
from slowfast_ops._native import allocate
from slowfast_ops.temporal_gather import native


def _fake(x: Tensor, indices: Tensor) -> Tensor:
    n, c, _, h, w = x.shape
    return allocate((n, c, indices.shape[1], h, w), like=x, memory_format=output_memory_format(x))


def _fake_backward(grad_output: Tensor, indices: Tensor, frames: int) -> Tensor:
    n, c, _, h, w = grad_output.shape
    return allocate((n, c, frames, h, w), like=grad_output, memory_format=output_memory_format(grad_output))


temporal_gather = define("temporal_gather(Tensor x, Tensor indices) -> Tensor", cpu=native.forward_cpu, fake=_fake)
temporal_gather_backward = define(
    "temporal_gather_backward(Tensor grad_output, Tensor indices, SymInt frames) -> Tensor",
    cpu=native.backward_cpu,
    fake=_fake_backward,
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, indices = inputs
    ctx.save_for_backward(indices)
    ctx.frames = x.shape[2]


def _backward(ctx: Any, grad_output: Tensor) -> tuple:
    (indices,) = ctx.saved_tensors
    return temporal_gather_backward(grad_output, indices, ctx.frames), None


differentiable(temporal_gather, backward=_backward, setup_context=_setup_context)
blocks_double_backward(temporal_gather_backward, "temporal_gather")
# Autocast needs no rule: there is one floating-point tensor, and gathering keeps its dtype.
