"""torch.ops.slowfast.roi_align_3d and .roi_align_3d_pool: schema, fake kernels, autograd, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slowfast_ops._library import blocks_double_backward, define, differentiable, output_memory_format
from slowfast_ops._native import allocate
from slowfast_ops.roi_align_3d import native

_OPTIONS = "float spatial_scale, float temporal_scale, int sampling_ratio, bool aligned"


def _fake(features: Tensor, rois: Tensor, output_size: Sequence[int], *options: float) -> Tensor:
    shape = (rois.shape[0], features.shape[1], *output_size)
    return allocate(shape, like=features, memory_format=output_memory_format(features))


def _fake_pool(features: Tensor, rois: Tensor, output_size: Sequence[int], *options: float) -> tuple[Tensor, Tensor]:
    output = allocate((rois.shape[0], features.shape[1]), like=features)
    return output, allocate(output.shape, like=features, dtype=torch.int64)


def _fake_grad_features(like: Tensor, input_size: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    return allocate(input_size, like=like, memory_format=memory_format)


def _fake_backward(
    grad_output: Tensor, rois: Tensor, input_size: Sequence[int], channels_last: bool, *options: float
) -> Tensor:
    return _fake_grad_features(grad_output, input_size, channels_last)


def _fake_pool_backward(
    grad_output: Tensor, argmax: Tensor, rois: Tensor, input_size: Sequence[int], channels_last: bool, *options: Any
) -> Tensor:
    return _fake_grad_features(grad_output, input_size, channels_last)


roi_align_3d = define(
    f"roi_align_3d(Tensor features, Tensor rois, SymInt[] output_size, {_OPTIONS}) -> Tensor",
    cpu=native.forward_cpu,
    fake=_fake,
)
roi_align_3d_backward = define(
    "roi_align_3d_backward(Tensor grad_output, Tensor rois, SymInt[] input_size, bool channels_last, "
    f"{_OPTIONS}) -> Tensor",
    cpu=native.backward_cpu,
    fake=_fake_backward,
)
roi_align_3d_pool = define(
    f"roi_align_3d_pool(Tensor features, Tensor rois, SymInt[] output_size, {_OPTIONS}) -> (Tensor, Tensor argmax)",
    cpu=native.pool_forward_cpu,
    fake=_fake_pool,
)
roi_align_3d_pool_backward = define(
    "roi_align_3d_pool_backward(Tensor grad_output, Tensor argmax, Tensor rois, SymInt[] input_size, "
    f"bool channels_last, SymInt[] output_size, {_OPTIONS}) -> Tensor",
    cpu=native.pool_backward_cpu,
    fake=_fake_pool_backward,
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor | tuple[Tensor, Tensor]) -> None:
    features, rois, *ctx.options = inputs
    ctx.input_size = features.shape
    ctx.channels_last = output_memory_format(features) == torch.channels_last_3d
    if isinstance(output, Tensor):
        ctx.save_for_backward(rois)
    else:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(rois, output[1])


def _backward(ctx: Any, grad_output: Tensor) -> tuple:
    (rois,) = ctx.saved_tensors
    grad = roi_align_3d_backward(grad_output, rois, ctx.input_size, ctx.channels_last, *ctx.options[1:])
    return grad, None, None, None, None, None, None


def _pool_backward(ctx: Any, grad_output: Tensor, _: Tensor | None) -> tuple:
    rois, argmax = ctx.saved_tensors
    grad = roi_align_3d_pool_backward(grad_output, argmax, rois, ctx.input_size, ctx.channels_last, *ctx.options)
    return grad, None, None, None, None, None, None


differentiable(roi_align_3d, backward=_backward, setup_context=_setup_context)
differentiable(roi_align_3d_pool, backward=_pool_backward, setup_context=_setup_context)
blocks_double_backward(roi_align_3d_backward, "roi_align_3d")
blocks_double_backward(roi_align_3d_pool_backward, "roi_align_3d_pool")
# Autocast needs no rule: the features keep their dtype, and the RoIs must (bfloat16 has 8 bits for a coordinate).
