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
    plane,
    channels,
    height,
    width,
    frames,
    source_frames,
    indices_n: tl.int64,
    indices_t: tl.int64,
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
    DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program copies BLOCK elements of one output frame, in the order in which the output lies in memory."""
    n = tl.program_id(1).to(tl.int64) // frames
    t = tl.program_id(1).to(tl.int64) % frames
    b = tl.program_id(0)
    to, inside = _offsets(b, plane, channels, height, width, output_c, output_h, output_w, CHANNELS_LAST, DENSE, BLOCK)
    source, _ = _offsets(b, plane, channels, height, width, input_c, input_h, input_w, CHANNELS_LAST, DENSE, BLOCK)
    index = _index(indices_ptr + n * indices_n + t * indices_t, source_frames)
    value = tl.load(input_ptr + n * input_n + index * input_t + source, mask=inside, other=0)
    tl.store(output_ptr + n * output_n + t * output_t + to, value, mask=inside)


@triton.jit
def backward_kernel(
    grad_output_ptr,
    indices_ptr,
    grad_input_ptr,
    plane,
    channels,
    height,
    width,
    frames,
    picked,
    indices_n: tl.int64,
    indices_t: tl.int64,
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
    DENSE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program owns STEPS * BLOCK elements of one frame of grad_input and sums, in order, the frames that read it.

    It looks once where those begin, because most frames are read by none.
    """
    n = tl.program_id(1).to(tl.int64) // frames
    t = tl.program_id(1).to(tl.int64) % frames
    first = picked
    for k in range(picked):
        is_reader = _index(indices_ptr + n * indices_n + k * indices_t, frames) == t
        first = tl.where(is_reader, tl.minimum(first, k), first)
    for step in range(STEPS):
        b = tl.program_id(0) * STEPS + step
        to, inside = _offsets(b, plane, channels, height, width, input_c, input_h, input_w, CHANNELS_LAST, DENSE, BLOCK)
        source, _ = _offsets(
            b, plane, channels, height, width, output_c, output_h, output_w, CHANNELS_LAST, DENSE, BLOCK
        )
        total = tl.zeros([BLOCK], dtype=tl.float64 if WIDE else tl.float32)
        for k in range(first, picked):
            if _index(indices_ptr + n * indices_n + k * indices_t, frames) == t:
                place = grad_output_ptr + n * output_n + k * output_t + source
                total += tl.load(place, mask=inside, other=0).to(total.dtype)
        place = grad_input_ptr + n * input_n + t * input_t + to
        tl.store(place, total.to(grad_input_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _index(pointer, frames):
    return tl.minimum(tl.maximum(tl.load(pointer), 0), frames - 1)


@triton.jit
def _offsets(
    block,
    plane,
    channels,
    height,
    width,
    stride_c,
    stride_h,
    stride_w,
    CHANNELS_LAST: tl.constexpr,
    DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where the elements of a block lie in a frame of one of the tensors, and which of them exist.

    In a dense frame the pixels of a channel (channels_last_3d: all values) are adjacent: one division at most, and the
    compiler sees that neighbours can share a 16-byte access.
    """
    if DENSE:
        i = block * BLOCK + tl.arange(0, BLOCK)
        inside = i < channels * plane
        offset = i if CHANNELS_LAST else (i // plane).to(tl.int64) * stride_c + i % plane
    else:
        i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < channels.to(tl.int64) * plane
        if CHANNELS_LAST:
            c = i % channels
            w = i // channels % width
            h = i // channels // width
        else:
            w = i % width
            h = i // width % height
            c = i // width // height
        offset = c * stride_c + h * stride_h + w * stride_w
    return offset, inside


BLOCK = 1024
STEPS = 8  # of a program of the backward


def _grid(x: Tensor, frames: int, elements: int) -> tuple[int, int]:
    """Programs for a frame of `x`, each of so many elements, and frames of all clips."""
    n, c, _, h, w = x.shape
    return triton.cdiv(c * h * w, elements), n * frames


def _layout(x: Tensor, output: Tensor) -> dict[str, bool]:
    """How the kernels walk the frames of both tensors; dense if `_offsets` may say so of both."""
    channels_last = output_memory_format(output) == torch.channels_last_3d
    _, c, _, h, w = x.shape
    dense = c * h * w < 2**31
    for tensor in (x, output):
        expected = 1
        for axis in (1, 4, 3) if channels_last else (4, 3):  # from the smallest stride on
            dense = dense and (tensor.shape[axis] == 1 or tensor.stride(axis) == expected)
            expected *= tensor.shape[axis]
    return {"CHANNELS_LAST": channels_last, "DENSE": dense}


def forward(x: Tensor, indices: Tensor) -> Tensor:
    n, c, _, h, w = x.shape
    frames = indices.shape[1]
    memory_format = output_memory_format(x)
    output = allocate((n, c, frames, h, w), like=x, memory_format=memory_format)
    if output.numel():
        forward_kernel[_grid(x, frames, BLOCK)](
            x,
            indices,
            output,
            h * w,
            c,
            h,
            w,
            frames,
            x.shape[2],
            *indices.stride(),
            *x.stride(),
            *output.stride(),
            **_layout(x, output),
            BLOCK=BLOCK,
        )
    return output


def backward(grad_output: Tensor, indices: Tensor, frames: int) -> Tensor:
    n, c, picked, h, w = grad_output.shape
    memory_format = output_memory_format(grad_output)
    grad_input = allocate((n, c, frames, h, w), like=grad_output, memory_format=memory_format)
    if grad_input.numel():
        backward_kernel[_grid(grad_output, frames, STEPS * BLOCK)](
            grad_output,
            indices,
            grad_input,
            h * w,
            c,
            h,
            w,
            frames,
            picked,
            *indices.stride(),
            *grad_output.stride(),
            *grad_input.stride(),
            **_layout(grad_output, grad_input),
            WIDE=grad_output.dtype == torch.float64,
            STEPS=STEPS,
            BLOCK=BLOCK,
        )
    return grad_input


def compile_configurations() -> Iterator[tuple[Any, dict, dict, dict]]:
    """(kernel, signature, constants, options) of what the launchers above ask for, for compiling without a GPU."""
    strides = {f"{tensor}_{axis}": "i64" for tensor in ("input", "output") for axis in "ncthw"}
    strides |= {"indices_n": "i64", "indices_t": "i64"}
    sizes = dict.fromkeys(("plane", "channels", "height", "width", "frames"), "i32")
    for channels_last in (False, True):
        for dense in (False, True):
            layout = {"CHANNELS_LAST": channels_last, "DENSE": dense}
            for dtype in ("*bf16", "*fp16", "*fp32"):
                types = {"input_ptr": dtype, "indices_ptr": "*i64", "output_ptr": dtype, **sizes}
                types |= {"source_frames": "i32", **strides}
                yield forward_kernel, types, {**layout, "BLOCK": BLOCK}, {}
                types = {"grad_output_ptr": dtype, "indices_ptr": "*i64", "grad_input_ptr": dtype, **sizes}
                types |= {"picked": "i32", **strides}
                yield backward_kernel, types, {**layout, "STEPS": STEPS, "BLOCK": BLOCK, "WIDE": False}, {}
