"""torch.ops.slowfast.temporal_gather: schema, fake kernel, autograd, autocast; and the same op on Triton."""

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


def _triton_forward(x: Tensor, indices: Tensor) -> Tensor:
    from slowfast_ops.temporal_gather import triton

    return triton.forward(x, indices)


def _triton_backward(grad_output: Tensor, indices: Tensor, frames: int) -> Tensor:
    from slowfast_ops.temporal_gather import triton

    return triton.backward(grad_output, indices, frames)


def _define_pair(suffix: str, forward: dict, backward: dict) -> Any:
    op = define(f"temporal_gather{suffix}(Tensor x, Tensor indices) -> Tensor", fake=_fake, **forward)
    backward_op = define(
        f"temporal_gather{suffix}_backward(Tensor grad_output, Tensor indices, SymInt frames) -> Tensor",
        fake=_fake_backward,
        **backward,
    )

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, indices = inputs
        ctx.save_for_backward(indices)
        ctx.frames = x.shape[2]

    def gradients(ctx: Any, grad_output: Tensor) -> tuple:
        (indices,) = ctx.saved_tensors
        return backward_op(grad_output, indices, ctx.frames), None

    differentiable(op, backward=gradients, setup_context=setup_context)
    blocks_double_backward(backward_op, "temporal_gather")
    return op


# Autocast needs no rule: there is one floating-point tensor, and gathering keeps its dtype.
temporal_gather = _define_pair(
    "",
    {"cpu": native.forward_cpu, "cuda": native.forward_cuda},
    {"cpu": native.backward_cpu, "cuda": native.backward_cuda},
)
temporal_gather_triton = _define_pair(
    "_triton",
    {"cpu": _triton_forward, "cuda": _triton_forward},
    {"cpu": _triton_backward, "cuda": _triton_backward},
)
