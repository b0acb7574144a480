"""temporal_gather in Triton. Imported when it first runs, so that nothing else needs Triton."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from slowfast_ops._library import output_memory_format
from slowfast_ops._native import allocate


@triton.jit
def forward_kernel(
    input_ptr,
    indices_ptr,
    output_ptr,
    channels,
    height,
    width,
    frames,
    input_n: tl.int64,
    input_c: tl.int64,
    input_t: tl.int64,
    input_h: tl.int64,
    input_w: tl.int64,
    output_n: tl.int64,
    output_c: tl.int64,
    output_t: tl.int64,
    output_h: tl.int64,
    output_w: tl.int64,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program copies BLOCK elements of one output frame, in the order in which the output lies in memory."""
    n = tl.program_id(1).to(tl.int64) // frames
    t = tl.program_id(1).to(tl.int64) % frames
    c, h, w, inside = _position(tl.program_id(0), channels, height, width, CHANNELS_LAST, BLOCK)
    source = tl.load(indices_ptr + n * frames + t)
    value = tl.load(
        input_ptr + n * input_n + source * input_t + c * input_c + h * input_h + w * input_w, mask=inside, other=0
    )
    tl.store(output_ptr + n * output_n + t * output_t + c * output_c + h * output_h + w * output_w, value, mask=inside)


@triton.jit
def backward_kernel(
    grad_output_ptr,
    indices_ptr,
    grad_input_ptr,
    channels,
    height,
    width,
    frames,
    picked,
    output_n: tl.int64,
    output_c: tl.int64,
    output_t: tl.int64,
    output_h: tl.int64,
    output_w: tl.int64,
    input_n: tl.int64,
    input_c: tl.int64,
    input_t: tl.int64,
    input_h: tl.int64,
    input_w: tl.int64,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program owns BLOCK elements of one frame of grad_input and sums, in order, the frames that read it."""
    n = tl.program_id(1).to(tl.int64) // frames
    t = tl.program_id(1).to(tl.int64) % frames
    c, h, w, inside = _position(tl.program_id(0), channels, height, width, CHANNELS_LAST, BLOCK)
    base = grad_output_ptr + n * output_n + c * output_c + h * output_h + w * output_w
    total = tl.zeros([BLOCK], dtype=tl.float64 if WIDE else tl.float32)
    for k in range(picked):
        reads = tl.load(indices_ptr + n * picked + k) == t
        total += tl.load(base + k * output_t, mask=inside & reads, other=0).to(total.dtype)
    place = grad_input_ptr + n * input_n + t * input_t + c * input_c + h * input_h + w * input_w
    tl.store(place, total.to(grad_input_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _position(block, channels, height, width, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < channels.to(tl.int64) * height * width
    if CHANNELS_LAST:
        c = i % channels
        w = i // channels % width
        h = i // channels // width
    else:
        w = i % width
        h = i // width % height
        c = i // width // height
    return c, h, w, inside


BLOCK = 1024


def _grid(c: int, h: int, w: int, frames: int) -> tuple[int, int]:
    return triton.cdiv(c * h * w, BLOCK), frames


def forward(x: Tensor, indices: Tensor) -> Tensor:
    n, c, _, h, w = x.shape
    frames = indices.shape[1]
    memory_format = output_memory_format(x)
    output = allocate((n, c, frames, h, w), like=x, memory_format=memory_format)
    if output.numel():
        forward_kernel[_grid(c, h, w, n * frames)](
            x,
            indices.contiguous(),
            output,
            c,
            h,
            w,
            frames,
            *x.stride(),
            *output.stride(),
            CHANNELS_LAST=memory_format == torch.channels_last_3d,
            BLOCK=BLOCK,
        )
    return output


def backward(grad_output: Tensor, indices: Tensor, frames: int) -> Tensor:
    n, c, picked, h, w = grad_output.shape
    memory_format = output_memory_format(grad_output)
    grad_input = allocate((n, c, frames, h, w), like=grad_output, memory_format=memory_format)
    if grad_input.numel():
        backward_kernel[_grid(c, h, w, n * frames)](
            grad_output,
            indices.contiguous(),
            grad_input,
            c,
            h,
            w,
            frames,
            picked,
            *grad_output.stride(),
            *grad_input.stride(),
            CHANNELS_LAST=memory_format == torch.channels_last_3d,
            WIDE=grad_output.dtype == torch.float64,
            BLOCK=BLOCK,
        )
    return grad_input


def compile_configurations() -> Iterator[tuple[Any, dict, dict, dict]]:
    """(kernel, signature, constants, options) of what the launchers above ask for, for compiling without a GPU."""
    strides = {f"{tensor}_{axis}": "i64" for tensor in ("input", "output") for axis in "ncthw"}
    for channels_last in (False, True):
        for dtype in ("*bf16", "*fp16", "*fp32"):
            sizes = dict.fromkeys(("channels", "height", "width", "frames"), "i32")
            constants = {"CHANNELS_LAST": channels_last, "BLOCK": BLOCK}
            forward_types = {"input_ptr": dtype, "indices_ptr": "*i64", "output_ptr": dtype, **sizes, **strides}
            yield forward_kernel, forward_types, constants, {}
            backward_types = {"grad_output_ptr": dtype, "indices_ptr": "*i64", "grad_input_ptr": dtype, **sizes}
            backward_types |= {"picked": "i32", **strides}
            yield backward_kernel, backward_types, {**constants, "WIDE": False}, {}
