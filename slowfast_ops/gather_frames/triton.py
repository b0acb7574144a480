"""gather_frames in Triton. Imported when it first runs, so that nothing else needs Triton.

One launch makes both pathways of all clips. What differs between clips is a table on the device, copied there from
pinned memory without waiting.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from slowfast_ops._transfer import to_device
from slowfast_ops.gather_frames.native import colours_of, outputs, windows_of

BLOCK = 128
LINES = 4
# By antialias, whose loops do enough for each value to make up for what comes before.
STEPS = {False: 8, True: 1}
COLUMNS = tl.constexpr(30)  # of the table: see _table
NARROW_SIDE = 16384  # up to so many pixels, positions and weights are exact in int32


@triton.jit
def forward_kernel(
    table_ptr,
    indices_ptr,
    fast_ptr,
    slow_ptr,
    frames,
    slow_frames,
    height,
    width,
    indices_n: tl.int64,
    indices_t: tl.int64,
    fast_n: tl.int64,
    fast_c: tl.int64,
    fast_t: tl.int64,
    fast_h: tl.int64,
    slow_n: tl.int64,
    slow_c: tl.int64,
    slow_t: tl.int64,
    slow_h: tl.int64,
    LINSPACE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    YUV: tl.constexpr,
    NARROW: tl.constexpr,
    DOUBLE: tl.constexpr,
    STEPS: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program makes BLOCK values of STEPS * LINES lines of a frame, LINES at a time.

    A line is what is adjacent in memory: a row of interleaved pixels (channels_last_3d), or a row of one channel.
    """
    Real: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    Int: tl.constexpr = tl.int32 if NARROW else tl.int64
    lines = height if CHANNELS_LAST else 3 * height
    length = 3 * width if CHANNELS_LAST else width
    blocks = tl.cdiv(length, BLOCK)
    tiles = tl.cdiv(lines, STEPS * LINES)
    program = tl.program_id(0)
    place = program % blocks * BLOCK + tl.arange(0, BLOCK)
    tile = program // blocks % tiles
    t = (program // blocks // tiles).to(tl.int64)
    n = tl.program_id(1).to(tl.int64)

    clip = table_ptr + n * COLUMNS
    stride_t, stride_h = tl.load(clip + 1), tl.load(clip + 2)
    stride_w, stride_c = tl.load(clip + 3), tl.load(clip + 4)
    count = tl.load(clip + 5)
    source_height, source_width = tl.load(clip + 6).to(Int), tl.load(clip + 7).to(Int)
    resized_height, resized_width = tl.load(clip + 8).to(Int), tl.load(clip + 9).to(Int)
    top, left, flip = tl.load(clip + 10).to(Int), tl.load(clip + 11).to(Int), tl.load(clip + 12)
    scales, shifts = _three(clip + 13, Real), _three(clip + 16, Real)
    index = tl.load(indices_ptr + n * indices_n + t * indices_t)
    index = tl.minimum(tl.maximum(index, 0), count - 1)
    frame = tl.load(clip).to(tl.pointer_type(tl.uint8)) + index * stride_t
    if YUV:
        chroma = tl.load(clip + 19).to(tl.pointer_type(tl.uint8)) + index * tl.load(clip + 20)
        chroma_c, chroma_h, chroma_w = tl.load(clip + 21), tl.load(clip + 22), tl.load(clip + 23)
        black, luma_factor = tl.load(clip + 24).to(tl.int32), tl.load(clip + 25).to(tl.int32)
        red_v, green_u = tl.load(clip + 26).to(tl.int32), tl.load(clip + 27).to(tl.int32)
        green_v, blue_u = tl.load(clip + 28).to(tl.int32), tl.load(clip + 29).to(tl.int32)

    x = place // 3 if CHANNELS_LAST else place
    column = left + tl.where(flip != 0, width - 1 - x, x)
    if ANTIALIAS:
        first_column = _first(column, source_width, resized_width)
    else:
        first_column, across = _two_taps(column, source_width, resized_width, Real)
    is_slow, slow_index = _slow_frame(t, frames, slow_frames, LINSPACE)
    fast_frame = fast_ptr + n * fast_n + t * fast_t
    slow_frame = slow_ptr + n * slow_n + slow_index * slow_t

    for step in range(STEPS):
        line = (tile * STEPS + step) * LINES + tl.arange(0, LINES)
        inside = (line < lines)[:, None] & (place < length)[None, :]
        y = line if CHANNELS_LAST else line % height
        channel = (place % 3)[None, :] if CHANNELS_LAST else (line // height)[:, None]
        row = top + y
        if YUV:
            factor_u = tl.where(channel == 0, 0, tl.where(channel == 1, green_u, blue_u))
            factor_v = tl.where(channel == 0, red_v, tl.where(channel == 1, green_v, 0))
            colour = (chroma_c, black, luma_factor, factor_u, factor_v)

        if ANTIALIAS:
            first_row = _first(row, source_height, resized_height)
            value = tl.zeros([LINES, BLOCK], dtype=Real)
            row_weights = tl.zeros([LINES], dtype=Int)
            for k in range(_taps(source_height, resized_height)):
                row_weight = _raw_weight(row, first_row + k, source_height, resized_height)
                row_weights += row_weight
                mixed = tl.zeros([LINES, BLOCK], dtype=Real)
                column_weights = tl.zeros([BLOCK], dtype=Int)
                for i in range(_taps(source_width, resized_width)):
                    weight = _raw_weight(column, first_column + i, source_width, resized_width)
                    column_weights += weight
                    reached = inside & (row_weight > 0)[:, None] & (weight > 0)[None, :]
                    offset = ((first_row + k) * stride_h)[:, None] + ((first_column + i) * stride_w)[None, :]
                    if YUV:
                        u_row = chroma + ((first_row + k) // 2 * chroma_h)[:, None]
                        u = u_row + ((first_column + i) // 2 * chroma_w)[None, :]
                        pixel = _converted(frame + offset, u, colour, reached)
                    else:
                        pixel = tl.load(frame + channel * stride_c + offset, mask=reached, other=0)
                    mixed += (pixel.to(Real) - mixed) * (weight.to(Real) / tl.maximum(column_weights, 1).to(Real))[
                        None, :
                    ]
                value += (mixed - value) * (row_weight.to(Real) / tl.maximum(row_weights, 1).to(Real))[:, None]
        else:
            first_row, down = _two_taps(row, source_height, resized_height, Real)
            rows = (first_row * stride_h)[:, None]
            columns = (first_column * stride_w)[None, :]
            below = tl.where(down > 0, stride_h, 0)[:, None]
            right = tl.where(across > 0, stride_w, 0)[None, :]
            if YUV:
                upper = frame + rows + columns
                u_rows = chroma + (first_row // 2 * chroma_h)[:, None]
                u_rows_below = chroma + ((first_row + (down > 0)) // 2 * chroma_h)[:, None]
                u_columns = (first_column // 2 * chroma_w)[None, :]
                u_columns_right = ((first_column + (across > 0)) // 2 * chroma_w)[None, :]
                a = _converted(upper, u_rows + u_columns, colour, inside)
                b = _converted(upper + right, u_rows + u_columns_right, colour, inside)
                c = _converted(upper + below, u_rows_below + u_columns, colour, inside)
                d = _converted(upper + below + right, u_rows_below + u_columns_right, colour, inside)
            else:
                upper = frame + channel * stride_c + rows + columns
                a = tl.load(upper, mask=inside, other=0)
                b = tl.load(upper + right, mask=inside, other=0)
                c = tl.load(upper + below, mask=inside, other=0)
                d = tl.load(upper + below + right, mask=inside, other=0)
            a, b, c, d = _raised(a, Real), _raised(b, Real), _raised(c, Real), _raised(d, Real)
            value = (a - 8388608.0) + (b - a) * across[None, :]
            value += ((c - 8388608.0) + (d - c) * across[None, :] - value) * down[:, None]

        if fast_ptr.dtype.element_ty == tl.uint8:
            # In 2^23 + value, only the integer nearest to value is left of it, the even one on a tie. (Its bits are not
            # taken from there by a bitcast, because some versions of ptxas store the byte of a float wrongly.)
            result = (value + 8388608.0 - 8388608.0).to(tl.int32).to(tl.uint8)
        else:
            scale = tl.where(channel == 0, scales[0], tl.where(channel == 1, scales[1], scales[2]))
            shift = tl.where(channel == 0, shifts[0], tl.where(channel == 1, shifts[1], shifts[2]))
            result = (value * scale + shift).to(fast_ptr.dtype.element_ty)

        fast_line, slow_line = (y * fast_h)[:, None], (y * slow_h)[:, None]
        if not CHANNELS_LAST:
            fast_line += channel * fast_c
            slow_line += channel * slow_c
        tl.store(fast_frame + fast_line + place[None, :], result, mask=inside)
        if is_slow:
            tl.store(slow_frame + slow_line + place[None, :], result, mask=inside)


@triton.jit
def _converted(luma, u, colour, mask):
    """A channel of YUV pixels, 0 to 255 in int32: `coefficients` of yuv.py. V is `colour[0]` bytes behind U."""
    chroma_c, black, luma_factor, factor_u, factor_v = colour
    value = _product(luma_factor, tl.load(luma, mask=mask, other=0), black)
    value += _product(factor_u, tl.load(u, mask=mask, other=0), 128)
    value += _product(factor_v, tl.load(u + chroma_c, mask=mask, other=0), 128)
    return tl.minimum(tl.maximum(value, 0), 255)


@triton.jit
def _product(factor, byte, zero):
    return (factor * 8 * (byte.to(tl.int32) - zero)) >> 16


@triton.jit
def _raised(pixel, Real: tl.constexpr):
    """2^23 + pixel. As a float32 its last bits are those of the pixel, which saves the slower conversion."""
    if Real == tl.float32:
        return (pixel.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)
    else:
        return pixel.to(Real) + 8388608.0


# The arithmetic of ResizeAxis in csrc/include/slowfast/gather_frames_math.h.


@triton.jit
def _slow_frame(t, frames, slow_frames, LINSPACE: tl.constexpr):
    """Whether frame t is one of the Slow pathway, and which: slow_frame_of in gather_frames_math.h."""
    if LINSPACE:
        i = (t * (slow_frames - 1) + frames - 2) // tl.maximum(frames - 1, 1)
        return (slow_frames > 0) & (i * (frames - 1) // tl.maximum(slow_frames - 1, 1) == t), i
    else:
        stride = frames // tl.maximum(slow_frames, 1)
        return (slow_frames > 0) & (t % stride == 0), t // stride


@triton.jit
def _two_taps(position, source, resized, Real: tl.constexpr):
    """Without antialiasing: the first of the two pixels, and the weight of the second (0 where there is none)."""
    numerator = tl.maximum(source * (2 * position + 1) - resized, 0)
    first = numerator // (2 * resized)
    fraction = (numerator - first * 2 * resized).to(Real) / (2 * resized).to(Real)
    return first, tl.where(first + 1 < source, fraction, 0.0)


@triton.jit
def _taps(source, resized):
    return tl.where(source == resized, 1, (2 * tl.maximum(source, resized) + resized - 1) // resized)


@triton.jit
def _first(position, source, resized):
    numerator = source * (2 * position + 1) - 2 * tl.maximum(source, resized) + resized
    return tl.maximum(numerator, 0) // (2 * resized)


@triton.jit
def _raw_weight(position, pixel, source, resized):
    distance = tl.abs((2 * pixel + 1) * resized - source * (2 * position + 1))
    weight = tl.maximum(2 * tl.maximum(source, resized) - distance, 0)
    return tl.where(pixel < source, weight, 0)


@triton.jit
def _three(pointer, Real: tl.constexpr):
    """Three float64 values of the table."""
    a = tl.load(pointer).to(tl.float64, bitcast=True).to(Real)
    b = tl.load(pointer + 1).to(tl.float64, bitcast=True).to(Real)
    c = tl.load(pointer + 2).to(tl.float64, bitcast=True).to(Real)
    return a, b, c


def _table(
    clips: Sequence[Tensor],
    chroma: Sequence[Tensor],
    colour: Sequence[int],
    geometry: Sequence[int],
    flip: Sequence[bool],
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """int64 [N, 30] on the clips' device.

    For each clip: address, four strides (of luma three, and 0), frames, height, width, resized height, resized width,
    top, left, flip; as float64 bits the factor and the summand of each channel; and for YUV the address of chroma, its
    four strides and the six integers of the colour, else zeros.
    """
    normalisation = [1 / (255 * s) for s in std] + [-m / s for m, s in zip(mean, std, strict=True)]
    bits = struct.unpack("6q", struct.pack("6d", *normalisation))
    planes = [[c.data_ptr(), *c.stride(), *integers] for c, integers in zip(chroma, colours_of(colour), strict=True)]
    rows = [
        [clip.data_ptr(), *(*clip.stride(), 0)[:4], *clip.shape[:3], *window, int(flipped), *bits, *yuv]
        for clip, window, flipped, yuv in zip(
            clips, windows_of(geometry), flip, planes or [[0] * 11] * len(clips), strict=True
        )
    ]
    return to_device(torch.tensor(rows, dtype=torch.int64), clips[0].device)


def _lines_at_a_time(antialias: bool, yuv: bool) -> int:
    """For a filter over YUV pixels fewer, since its registers would spill."""
    return LINES // 2 if antialias and yuv else LINES


def forward(
    clips: Sequence[Tensor],
    chroma: Sequence[Tensor],
    colour: Sequence[int],
    indices: Tensor,
    geometry: Sequence[int],
    size: Sequence[int],
    flip: Sequence[bool],
    alpha: int,
    slow_sampling: str,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    antialias: bool,
) -> tuple[Tensor, Tensor]:
    slow, fast = outputs(clips, indices, size, alpha, dtype, memory_format)
    if fast.numel() == 0:
        return slow, fast
    n, _, frames, height, width = fast.shape
    channels_last, at_a_time = memory_format == torch.channels_last_3d, _lines_at_a_time(antialias, bool(chroma))
    lines, length = (height, 3 * width) if channels_last else (3 * height, width)
    sides = [side for clip, window in zip(clips, windows_of(geometry), strict=True) for side in (*clip.shape, *window)]
    forward_kernel[triton.cdiv(length, BLOCK) * triton.cdiv(lines, STEPS[antialias] * at_a_time) * frames, n](
        _table(clips, chroma, colour, geometry, flip, mean, std),
        indices,
        fast,
        slow,
        frames,
        slow.shape[2],
        height,
        width,
        *indices.stride(),
        *fast.stride()[:4],
        *slow.stride()[:4],
        LINSPACE=slow_sampling == "linspace",
        CHANNELS_LAST=channels_last,
        ANTIALIAS=antialias,
        YUV=bool(chroma),
        NARROW=max(sides) <= NARROW_SIDE,
        DOUBLE=dtype == torch.float64,
        STEPS=STEPS[antialias],
        LINES=at_a_time,
        BLOCK=BLOCK,
    )
    return slow, fast


def compile_configurations() -> Iterator[tuple[Any, dict, dict, dict]]:
    """(kernel, signature, constants, options) of what the launcher above asks for, for compiling without a GPU."""
    strides = {f"indices_{axis}": "i64" for axis in "nt"}
    strides |= {f"{tensor}_{axis}": "i64" for tensor in ("fast", "slow") for axis in "ncth"}
    sizes = dict.fromkeys(("frames", "slow_frames", "height", "width"), "i32")
    for channels_last, antialias, yuv in itertools.product((False, True), repeat=3):
        for dtype in ("*bf16",) if yuv else ("*bf16", "*fp16", "*fp32", "*u8"):
            types = {"fast_ptr": dtype, "table_ptr": "*i64", "indices_ptr": "*i64", "slow_ptr": dtype}
            constants = {
                "LINSPACE": True,
                "CHANNELS_LAST": channels_last,
                "ANTIALIAS": antialias,
                "YUV": yuv,
                "NARROW": True,
                "DOUBLE": False,
                "STEPS": STEPS[antialias],
                "LINES": _lines_at_a_time(antialias, yuv),
                "BLOCK": BLOCK,
            }
            yield forward_kernel, {**types, **sizes, **strides}, constants, {}
