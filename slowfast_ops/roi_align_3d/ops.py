"""torch.ops.slowfast.roi_align_3d and .roi_align_3d_pool (and on Triton): schema, fake kernels, autograd, autocast.

A kernel is a function (features, rois, output, argmax, options) that fills in its outputs, see native.py; what the ops
allocate for it, and what autograd saves, is the same for all of them and written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from slowfast_ops._library import blocks_double_backward, define, differentiable, output_memory_format
from slowfast_ops._native import allocate
from slowfast_ops.roi_align_3d import native

_OPTIONS = "float spatial_scale, float temporal_scale, int sampling_ratio, bool aligned"
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, tuple], None]


def _no_kernel(*tensors_and_options: Any) -> None:
    """The kernel of fake tensors: allocating is all they do."""


def _triton_forward(*tensors_and_options: Any) -> None:
    from slowfast_ops.roi_align_3d import triton

    triton.forward(*tensors_and_options)


def _triton_backward(*tensors_and_options: Any) -> None:
    from slowfast_ops.roi_align_3d import triton

    triton.backward(*tensors_and_options)


def _forward_with(kernel: Kernel) -> Callable[..., Tensor]:
    def forward(features: Tensor, rois: Tensor, output_size: Sequence[int], *options: float) -> Tensor:
        shape = (rois.shape[0], features.shape[1], *output_size)
        output = allocate(shape, like=features, memory_format=output_memory_format(features))
        kernel(features, rois, output, None, (tuple(output_size), *options, False))
        return output

    return forward


def _pool_forward_with(kernel: Kernel) -> Callable[..., tuple[Tensor, Tensor]]:
    def forward(features: Tensor, rois: Tensor, output_size: Sequence[int], *options: float) -> tuple[Tensor, Tensor]:
        output = allocate((rois.shape[0], features.shape[1]), like=features)
        argmax = allocate(output.shape, like=features, dtype=torch.int64)
        kernel(features, rois, output, argmax, (tuple(output_size), *options, True))
        return output, argmax

    return forward


def _grad_features(like: Tensor, input_size: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    return allocate(input_size, like=like, memory_format=memory_format)


def _backward_with(kernel: Kernel) -> Callable[..., Tensor]:
    def backward(
        grad_output: Tensor, rois: Tensor, input_size: Sequence[int], channels_last: bool, *options: float
    ) -> Tensor:
        grad_features = _grad_features(grad_output, input_size, channels_last)
        kernel(grad_features, rois, grad_output, None, (tuple(grad_output.shape[2:]), *options, False))
        return grad_features

    return backward


def _pool_backward_with(kernel: Kernel) -> Callable[..., Tensor]:
    def backward(
        grad_output: Tensor,
        argmax: Tensor,
        rois: Tensor,
        input_size: Sequence[int],
        channels_last: bool,
        output_size: Sequence[int],
        *options: float,
    ) -> Tensor:
        grad_features = _grad_features(grad_output, input_size, channels_last)
        kernel(grad_features, rois, grad_output, argmax, (tuple(output_size), *options, True))
        return grad_features

    return backward


def _setup_context(ctx: Any, inputs: tuple, output: Tensor | tuple[Tensor, Tensor]) -> None:
    features, rois, *ctx.options = inputs
    ctx.input_size = features.shape
    ctx.channels_last = output_memory_format(features) == torch.channels_last_3d
    if isinstance(output, Tensor):
        ctx.save_for_backward(rois)
    else:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else a kernel would write zeros as the gradient of argmax
        ctx.save_for_backward(rois, output[1])


def _define(suffix: str, cpu: tuple[Kernel, Kernel], cuda: tuple[Kernel, Kernel]) -> tuple[Any, Any]:
    """(roi_align_3d, roi_align_3d_pool) on the (forward, backward) kernels of each device."""

    def define_on(schema: str, op_with: Callable, direction: int) -> Any:
        on_cpu = op_with(cpu[direction])
        on_cuda = on_cpu if cuda is cpu else op_with(cuda[direction])
        return define(schema, cpu=on_cpu, cuda=on_cuda, fake=op_with(_no_kernel))

    align = define_on(
        f"roi_align_3d{suffix}(Tensor features, Tensor rois, SymInt[] output_size, {_OPTIONS}) -> Tensor",
        _forward_with,
        0,
    )
    align_backward = define_on(
        f"roi_align_3d{suffix}_backward(Tensor grad_output, Tensor rois, SymInt[] input_size, bool channels_last, "
        f"{_OPTIONS}) -> Tensor",
        _backward_with,
        1,
    )
    pool = define_on(
        f"roi_align_3d_pool{suffix}(Tensor features, Tensor rois, SymInt[] output_size, {_OPTIONS}) "
        "-> (Tensor, Tensor argmax)",
        _pool_forward_with,
        0,
    )
    pool_backward = define_on(
        f"roi_align_3d_pool{suffix}_backward(Tensor grad_output, Tensor argmax, Tensor rois, SymInt[] input_size, "
        f"bool channels_last, SymInt[] output_size, {_OPTIONS}) -> Tensor",
        _pool_backward_with,
        1,
    )

    def align_gradients(ctx: Any, grad_output: Tensor) -> tuple:
        (rois,) = ctx.saved_tensors
        grad = align_backward(grad_output, rois, ctx.input_size, ctx.channels_last, *ctx.options[1:])
        return grad, None, None, None, None, None, None

    def pool_gradients(ctx: Any, grad_output: Tensor | None, _: Tensor | None) -> tuple:
        if grad_output is None:  # no gradient at all reached the output
            return None, None, None, None, None, None, None
        rois, argmax = ctx.saved_tensors
        grad = pool_backward(grad_output, argmax, rois, ctx.input_size, ctx.channels_last, *ctx.options)
        return grad, None, None, None, None, None, None

    differentiable(align, backward=align_gradients, setup_context=_setup_context)
    differentiable(pool, backward=pool_gradients, setup_context=_setup_context)
    blocks_double_backward(align_backward, "roi_align_3d")
    blocks_double_backward(pool_backward, "roi_align_3d_pool")
    return align, pool


# Autocast needs no rule: the features keep their dtype, and the RoIs must (bfloat16 has 8 bits for a coordinate).
roi_align_3d, roi_align_3d_pool = _define(
    "", (native.forward_cpu, native.backward_cpu), (native.forward_cuda, native.backward_cuda)
)
_on_triton = (_triton_forward, _triton_backward)
roi_align_3d_triton, roi_align_3d_pool_triton = _define("_triton", _on_triton, _on_triton)
