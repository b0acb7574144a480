"""roi_align_3d and roi_align_3d_pool in Triton. Imported when it first runs, so that nothing else needs Triton."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from slowfast_ops._native import allocate
from slowfast_ops.roi_align_3d.triton_kernels import backward_kernel, forward_kernel
from slowfast_ops.roi_align_3d.triton_plan import (
    Plan,
    make_plan,
    members_of_clips,
    plan_configurations,
)
from slowfast_ops.roi_align_3d.triton_pool_kernels import (
    mean_forward_kernel,
    pool_backward_kernel,
    pool_forward_kernel,
)

WARPS = 4
MEAN_BLOCK, MEAN_WARPS = 1024, 4
POOL_WARPS = 4  # of the pool's backward


def _weights(plan: Plan) -> tuple:
    return (*plan.time, *plan.y, *plan.x, plan.boxes_per_roi, plan.time_rows_per_roi)


def _channels_last(tensor: Tensor) -> bool:
    return tensor.stride(1) == 1 and tensor.shape[1] > 1


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Of a tensor whose last two axes are one in memory, as of those that the ops allocate: without the axis H."""
    return (*tensor.stride()[:3], tensor.stride(4))


def _blocks(channels_last: bool, dtype: torch.dtype) -> dict[str, int]:
    """Outputs and channels of a program: a thread keeps what it knows of each of its outputs in registers."""
    return {"OUTPUTS": 16, "BLOCK": 128 // dtype.itemsize} if channels_last else {"OUTPUTS": 32, "BLOCK": 8}


def _pool_blocks(channels_last: bool) -> dict[str, int]:
    """Pixels and channels of a program of the pool's backward: many along the memory, few across."""
    return {"PIXELS": 16, "BLOCK": 128} if channels_last else {"PIXELS": 64, "BLOCK": 16}


def _frames_alike(features: Tensor, rois: Tensor, options: tuple) -> bool:
    """Whether each RoI has one time bin, in which all frames count the same."""
    (t, _, _), pool = options[0], options[-1]
    return rois.dim() == 2 and rois.shape[1] == 5 and (features.shape[2] % t == 0 if pool else t == 1)


def _temporal_mean(features: Tensor) -> Tensor:
    """The mean over all frames, in float32 or wider: [N, C, 1, H, W], in memory in the order of `features`."""
    clips, channels, frames, height, width = features.shape
    channels_last = _channels_last(features)
    mean = allocate(
        (clips, channels, 1, height, width),
        like=features,
        dtype=torch.promote_types(features.dtype, torch.float32),
        memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format,
    )
    mean_forward_kernel[(clips * triton.cdiv(channels * height * width, MEAN_BLOCK),)](
        features,
        mean,
        *(channels, frames, height, width),
        *features.stride(),
        CHANNELS_LAST=channels_last,
        BLOCK=MEAN_BLOCK,
        num_warps=MEAN_WARPS,
    )
    return mean


def forward(features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    """Fills in output (and argmax); the arguments are those of native.forward_cpu."""
    if output.numel() == 0:
        return
    if argmax is not None:
        _pool_forward(features, rois, output, argmax, options)
        return
    _, channels, frames, height, width = features.shape
    t, h, w = options[0]
    plan, blocks = make_plan(features, rois, options, backward=False), _blocks(_channels_last(features), features.dtype)
    programs = rois.shape[0] * t * triton.cdiv(h * w, blocks["OUTPUTS"]) * triton.cdiv(channels, blocks["BLOCK"])
    forward_kernel[(programs,)](
        features,
        output,
        plan.clip,
        *_weights(plan),
        *(channels, frames, height, width),
        *(t, h, w),
        *features.stride(),
        *_strides(output),
        FEATURES_CHANNELS_LAST=_channels_last(features),
        OUTPUT_CHANNELS_LAST=_channels_last(output),
        **blocks,
        num_warps=WARPS,
    )


def _pool_forward(features: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, options: tuple) -> None:
    if _frames_alike(features, rois, options):  # a clip of one frame
        features, options = _temporal_mean(features), ((1, *options[0][1:]), *options[1:])
    _, channels, frames, height, width = features.shape
    plan, blocks = make_plan(features, rois, options, backward=False), _blocks(_channels_last(features), features.dtype)
    pool_forward_kernel[(rois.shape[0] * triton.cdiv(channels, blocks["BLOCK"]),)](
        features,
        output,
        argmax,
        plan.clip,
        *_weights(plan),
        *(channels, frames, height, width),
        *options[0][1:],
        *features.stride(),
        CHANNELS_LAST=_channels_last(features),
        **blocks,
        num_warps=WARPS,
    )


def backward(grad_features: Tensor, rois: Tensor, grad_output: Tensor, argmax: Tensor | None, options: tuple) -> None:
    """Fills in grad_features; the arguments are those of native.backward_cpu."""
    if grad_features.numel() == 0:
        return
    clips, channels, frames, height, width = grad_features.shape
    t, h, w = options[0]
    plan = make_plan(grad_features, rois, options, backward=True)
    distinct = 1 if _frames_alike(grad_features, rois, options) else frames
    channels_last = _channels_last(grad_features)
    if argmax is not None:
        pool_blocks = _pool_blocks(channels_last)
        chunks = triton.cdiv(height * width, pool_blocks["PIXELS"])
        pool_backward_kernel[(clips * distinct * chunks * triton.cdiv(channels, pool_blocks["BLOCK"]),)](
            grad_output,
            grad_features,
            argmax,
            *members_of_clips(plan, clips),
            plan.time.weights,
            *plan.y,
            *plan.x,
            *(plan.boxes_per_roi, plan.time_rows_per_roi, rois.shape[0], distinct),
            *(channels, frames, height, width),
            *(h, w),
            *grad_output.stride(),
            *_strides(grad_features),
            CHANNELS_LAST=channels_last,
            **pool_blocks,
            num_warps=POOL_WARPS,
        )
        return
    blocks = _blocks(channels_last, grad_features.dtype)
    chunks = triton.cdiv(height * width, blocks["OUTPUTS"])
    backward_kernel[(clips * distinct * chunks * triton.cdiv(channels, blocks["BLOCK"]),)](
        grad_output,
        grad_features,
        *members_of_clips(plan, clips),
        *_weights(plan),
        *(rois.shape[0], distinct),
        *(channels, frames, height, width),
        *(t, h, w),
        *grad_output.stride(),
        *_strides(grad_features),
        OUTPUT_CHANNELS_LAST=_channels_last(grad_output),
        FEATURES_CHANNELS_LAST=channels_last,
        **blocks,
        num_warps=WARPS,
    )


def compile_configurations() -> Iterator[tuple[Any, dict, dict, dict]]:
    """(kernel, signature, constants, options) of what the launchers above ask for, for compiling without a GPU."""
    yield from plan_configurations()
    sizes = dict.fromkeys(("channels", "frames", "height", "width", "time_bins", "y_bins", "x_bins"), "i32")
    pool_sizes = {name: kind for name, kind in sizes.items() if name != "time_bins"}
    mean_sizes = dict.fromkeys(("channels", "frames", "height", "width"), "i32")
    matrices: dict[str, str] = {}
    for axis in ("time", "y", "x"):
        matrices |= {f"{axis}_weights_ptr": "*fp32", f"{axis}_ranges_ptr": "*i32"}
    per_roi = dict.fromkeys(("boxes_per_roi", "time_rows_per_roi"), "i32")
    members = {"members_ptr": "*i32", "counts_ptr": "*i32"}
    strides = {tensor: {f"{tensor}_{axis}": "i64" for axis in "ncthw"} for tensor in ("feature", "output")}
    dense = {tensor: {f"{tensor}_{axis}": "i64" for axis in "nctw"} for tensor in ("feature", "output")}
    options, clip = {"num_warps": WARPS}, {"clip_ptr": "*i32", **matrices, **per_roi}
    dtypes = {"*bf16": torch.bfloat16, "*fp16": torch.float16, "*fp32": torch.float32}
    for dtype, last in itertools.product(dtypes, (False, True)):
        blocks = _blocks(last, dtypes[dtype])
        both = {"FEATURES_CHANNELS_LAST": last, "OUTPUT_CHANNELS_LAST": last, **blocks}
        types = {"features_ptr": dtype, "output_ptr": dtype, **clip, **sizes, **strides["feature"], **dense["output"]}
        yield forward_kernel, types, both, options

        types = {"grad_output_ptr": dtype, "grad_features_ptr": dtype, **members, **matrices, **per_roi}
        types |= {"rois": "i32", "distinct_frames": "i32", **sizes, **strides["output"], **dense["feature"]}
        yield backward_kernel, types, both, options

        types = {"features_ptr": dtype, "mean_ptr": "*fp32", **mean_sizes, **strides["feature"]}
        yield mean_forward_kernel, types, {"CHANNELS_LAST": last, "BLOCK": MEAN_BLOCK}, {"num_warps": MEAN_WARPS}

        types = {"output_ptr": dtype, "argmax_ptr": "*i64", **clip, **pool_sizes, **strides["feature"]}
        for features in {dtype, "*fp32"}:  # as they are, or their mean
            constants = {"CHANNELS_LAST": last, **_blocks(last, dtypes[features])}
            yield pool_forward_kernel, {"features_ptr": features, **types}, constants, options

        types = {"grad_output_ptr": dtype, "grad_features_ptr": dtype, "argmax_ptr": "*i64", **members}
        types |= {name: kind for name, kind in matrices.items() if name != "time_ranges_ptr"}
        types |= {**per_roi, "rois": "i32", "distinct_frames": "i32", **pool_sizes}
        types |= {"output_n": "i64", "output_c": "i64", **dense["feature"]}
        constants = {"CHANNELS_LAST": last, **_pool_blocks(last)}
        yield pool_backward_kernel, types, constants, {"num_warps": POOL_WARPS}
