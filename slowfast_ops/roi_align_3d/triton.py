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

MEAN_BLOCK = {"BLOCK": 1024, "num_warps": 4}


def _weights(plan: Plan) -> tuple:
    return (*plan.time, *plan.y, *plan.x, plan.boxes_per_roi, plan.time_rows_per_roi)


def _channels_last(tensor: Tensor) -> bool:
    return tensor.stride(1) == 1 and tensor.shape[1] > 1


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Of a tensor whose last two axes are one in memory, as of those that the ops allocate: without the axis H."""
    return (*tensor.stride()[:3], tensor.stride(4))


def _blocks(channels_last: bool, dtype: torch.dtype) -> dict[str, int]:
    """Outputs and channels of a program: a thread has 16 bytes of channels, or two of the outputs of one channel."""
    if channels_last:
        return {"OUTPUTS": 16, "BLOCK": 256 // dtype.itemsize, "num_warps": 8}
    if dtype == torch.float64:  # Triton 3.6 fails to compile wider tiles of it
        return {"OUTPUTS": 16, "BLOCK": 16, "num_warps": 4}
    return {"OUTPUTS": 32, "BLOCK": 8, "num_warps": 4}


def _pool_blocks(channels_last: bool) -> dict[str, int]:
    """Pixels and channels of a program of the pool's backward: many along the memory, few across."""
    if channels_last:
        return {"PIXELS": 16, "BLOCK": 128, "num_warps": 4}
    return {"PIXELS": 64, "BLOCK": 16, "num_warps": 4}


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
    mean_forward_kernel[(clips * triton.cdiv(channels * height * width, MEAN_BLOCK["BLOCK"]),)](
        features,
        mean,
        *(channels, frames, height, width),
        *features.stride(),
        CHANNELS_LAST=channels_last,
        **MEAN_BLOCK,
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
    )


def compile_configurations() -> Iterator[tuple[Any, dict, dict, dict]]:
    """(kernel, signature, constants, options) of what the launchers above ask for, for compiling without a GPU."""
    yield from plan_configurations()
    sizes = dict.fromkeys(("channels", "frames", "height", "width", "time_bins", "y_bins", "x_bins"), "i32")
    matrices: dict[str, str] = {}
    for axis in ("time", "y", "x"):
        matrices |= {f"{axis}_weights_ptr": "*fp32", f"{axis}_ranges_ptr": "*i32"}
    per_roi = dict.fromkeys(("boxes_per_roi", "time_rows_per_roi"), "i32")
    members = {"members_ptr": "*i32", "counts_ptr": "*i32"}
    clip = {"clip_ptr": "*i32", **matrices, **per_roi}
    dtypes = {"*bf16": torch.bfloat16, "*fp16": torch.float16, "*fp32": torch.float32}
    for dtype, last in itertools.product(dtypes, (False, True)):
        # Strides of channels_last_3d tensors are multiples of the channels, of 16 in any network.
        stride = "i64:16" if last else "i64"
        strides = {name: {f"{name}_{axis}": stride for axis in "ncthw"} for name in ("feature", "output")}
        dense = {name: {f"{name}_{axis}": stride for axis in "nctw"} for name in ("feature", "output")}
        data = {f"{name}_ptr": f"{dtype}:16" for name in ("features", "output", "grad_features", "grad_output")}
        layouts = {"FEATURES_CHANNELS_LAST": last, "OUTPUT_CHANNELS_LAST": last}

        forward_types = {**data, "argmax_ptr": "*i64", **clip, **sizes, **strides["feature"], **dense["output"]}
        backward_types = {**data, "argmax_ptr": "*i64", **members, **matrices, **per_roi, **sizes}
        backward_types |= {"rois": "i32", "distinct_frames": "i32", **strides["output"], **dense["feature"]}
        of_mean = {**forward_types, "features_ptr": "*fp32:16"}
        one_layout = {"CHANNELS_LAST": last}
        blocks = _blocks(last, dtypes[dtype])
        yield _configuration(forward_kernel, forward_types, layouts, blocks)
        yield _configuration(backward_kernel, backward_types, layouts, blocks)
        yield _configuration(mean_forward_kernel, {**forward_types, "mean_ptr": "*fp32:16"}, one_layout, MEAN_BLOCK)
        yield _configuration(pool_forward_kernel, forward_types, one_layout, blocks)
        yield _configuration(pool_forward_kernel, of_mean, one_layout, _blocks(last, torch.float32))
        yield _configuration(pool_backward_kernel, backward_types, one_layout, _pool_blocks(last))


def _configuration(kernel: Any, types: dict, constants: dict, blocks: dict) -> tuple[Any, dict, dict, dict]:
    signature = {name: kind for name, kind in types.items() if name in kernel.arg_names}
    shape = {name: value for name, value in blocks.items() if name != "num_warps"}
    return kernel, signature, {**constants, **shape}, {"num_warps": blocks["num_warps"]}
