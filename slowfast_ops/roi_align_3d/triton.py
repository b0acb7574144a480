"""roi_align_3d and roi_align_3d_pool in Triton. Imported when it first runs, so that nothing else needs Triton."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from slowfast_ops.roi_align_3d.triton_kernels import backward_kernel, forward_kernel, pool_forward_kernel
from slowfast_ops.roi_align_3d.triton_plan import (
    Plan,
    make_plan,
    members_of_clips,
    plan_configurations,
)

WARPS = 8  # enough that a thread's share of a block stays in registers


def _weights(plan: Plan) -> tuple:
    return (*plan.time, *plan.y, *plan.x, plan.boxes_per_roi, plan.time_rows_per_roi)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of [*, C, T, H, W]; of [*, C], those of the other axes are 0."""
    return (*tensor.stride(), *[0] * (5 - tensor.dim()))


def _blocks(dtype: torch.dtype) -> dict[str, int]:
    """Outputs, inputs and channels that a program works on at a time. In float64, tl.dot is spelled out."""
    if dtype == torch.float64:
        return {"OUTPUTS": 16, "INPUTS": 8, "BLOCK": 16}
    return {"OUTPUTS": 64, "INPUTS": 16, "BLOCK": 32}


def forward(features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    """Fills in output (and argmax); the arguments are those of native.forward_cpu."""
    if output.numel() == 0:
        return
    _, channels, frames, height, width = features.shape
    t, h, w = options[0]
    plan, blocks = make_plan(features, rois, options, backward=False), _blocks(features.dtype)
    tiles, sizes = triton.cdiv(channels, blocks["BLOCK"]), (channels, frames, height, width)
    tensors = (plan.clip, *_weights(plan))
    if argmax is not None:
        pool_forward_kernel[(rois.shape[0] * tiles,)](
            features, output, argmax, *tensors, *sizes, h, w, *features.stride(), **blocks, num_warps=WARPS
        )
        return
    programs = rois.shape[0] * t * triton.cdiv(h * w, blocks["OUTPUTS"]) * tiles
    strides = (*features.stride(), *output.stride())
    forward_kernel[(programs,)](features, output, *tensors, *sizes, t, h, w, *strides, **blocks, num_warps=WARPS)


def backward(grad_features: Tensor, rois: Tensor, grad_output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    """Fills in grad_features; the arguments are those of native.backward_cpu."""
    if grad_features.numel() == 0:
        return
    clips, channels, frames, height, width = grad_features.shape
    t, h, w = options[0]
    plan, blocks = make_plan(grad_features, rois, options, backward=True), _blocks(grad_features.dtype)
    shared = plan.boxes_per_roi == 1 and plan.time_rows_per_roi == 0 and t == 1  # by all frames: the box and its weight
    distinct, pool = 1 if shared else frames, argmax is not None
    tiles, chunks = triton.cdiv(channels, blocks["BLOCK"]), triton.cdiv(height * width, blocks["OUTPUTS"])
    backward_kernel[(clips * distinct * chunks * tiles,)](
        grad_output,
        grad_features,
        argmax if pool else grad_output,
        *members_of_clips(plan, clips),
        *_weights(plan),
        *(rois.shape[0], distinct),
        *(channels, frames, height, width),
        *(1 if pool else t, h, w),
        *_strides(grad_output),
        *grad_features.stride(),
        POOL=pool,
        **blocks,
        num_warps=WARPS,
    )


def compile_configurations() -> Iterator[tuple[Any, dict, dict, dict]]:
    """(kernel, signature, constants, options) of what the launchers above ask for, for compiling without a GPU."""
    yield from plan_configurations()
    sizes = dict.fromkeys(("channels", "frames", "height", "width", "time_bins", "y_bins", "x_bins"), "i32")
    matrices: dict[str, str] = {}
    for axis in ("time", "y", "x"):
        matrices |= {f"{axis}_weights_ptr": "*fp32", f"{axis}_ranges_ptr": "*i32"}
    matrices |= {"boxes_per_roi": "i32", "time_rows_per_roi": "i32"}
    options = {"num_warps": WARPS}
    strides = {tensor: {f"{tensor}_{axis}": "i64" for axis in "ncthw"} for tensor in ("feature", "output")}
    for dtype, torch_dtype in (("*bf16", torch.bfloat16), ("*fp16", torch.float16), ("*fp32", torch.float32)):
        blocks = _blocks(torch_dtype)
        types = {"features_ptr": dtype, "output_ptr": dtype, "clip_ptr": "*i32", **matrices, **sizes}
        yield forward_kernel, {**types, **strides["feature"], **strides["output"]}, blocks, options
        types = {
            "features_ptr": dtype,
            "output_ptr": dtype,
            "argmax_ptr": "*i64",
            "clip_ptr": "*i32",
            **matrices,
            **sizes,
        }
        del types["time_bins"]
        yield pool_forward_kernel, {**types, **strides["feature"]}, blocks, options
        for pool in (False, True):
            types = {"grad_output_ptr": dtype, "grad_features_ptr": dtype, "argmax_ptr": "*i64" if pool else dtype}
            types |= {"members_ptr": "*i32", "counts_ptr": "*i32", **matrices, "rois": "i32", "distinct_frames": "i32"}
            types |= sizes | strides["output"] | strides["feature"]
            yield backward_kernel, types, {"POOL": pool, **blocks}, options
