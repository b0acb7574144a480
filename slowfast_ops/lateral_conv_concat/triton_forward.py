"""The forward kernels of lateral_conv_concat in Triton; triton.py launches them.

The rows of every tile are positions: pixels (h, w) of all Slow frames of all clips, counted through, so that small
frames share a tile. Its columns are channels. All three kernels are bound by memory (at most 60 operations a byte in
the paper's networks, an H100 has 300), so what counts is that every element moves once and in wide accesses. The
convolution is a matrix product per tile, positions by depth times depth by output channels, where the depth is all
pairs of a tap and a Fast channel: eight channels alone would leave a tensor core idle. The Slow channels are copied by
other programs of the same launch.

What all kernels are told about the tensors of a launch:
    extent   (groups of ALIGN positions of a frame if UNIT is 2, else its positions; Slow frames; clips; width)
    strides  of a tensor, by n, c, t, h and w
    LAYOUT   (UNIT, ALIGN, EVEN), known to the compiler:
             UNIT   the axis along which elements are adjacent: 1 channels, 2 positions, 0 neither
             ALIGN  what divides every other stride and every address (and the positions, if UNIT is 2), up to 16
             EVEN   positions are evenly spaced, so that h and w need not be told apart
    WIDE     float64, which tl.dot does not take everywhere: the depth of a step is 1, and the products are outer ones
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(tile, extent, LAYOUT: tl.constexpr, BLOCK_P: tl.constexpr):
    """(clip, Slow frame, position, whether there is such a row) for every row of a tile."""
    UNIT: tl.constexpr = LAYOUT[0]
    ALIGN: tl.constexpr = LAYOUT[1]
    groups, frames, clips, _ = extent
    positions = groups * (ALIGN if UNIT == 2 else 1)
    first = tl.cast(tile, tl.int64) * BLOCK_P
    frame = first // positions
    p = (first % positions).to(tl.int32) + tl.arange(0, BLOCK_P)
    t = (frame % frames).to(tl.int32) + p // positions
    n = frame // frames + t // frames
    t = (t % frames).to(tl.int64)
    if UNIT == 2:  # no frame ends within ALIGN positions
        n, t = tl.max_constancy(n, ALIGN), tl.max_constancy(t, ALIGN)
    return n, t, (p % positions).to(tl.int64), n < clips


@triton.jit
def row_offsets(n, t, p, strides, extent, LAYOUT: tl.constexpr):
    """Where the rows (n, t, p) of a tensor begin, in elements."""
    UNIT: tl.constexpr = LAYOUT[0]
    ALIGN: tl.constexpr = LAYOUT[1]
    if LAYOUT[2]:
        place = p * strides[4]
    else:
        place = p // extent[3] * strides[3] + p % extent[3] * strides[4]
    offsets = tl.multiple_of(n * strides[0] + t * strides[2] + place, ALIGN)
    if UNIT == 2:
        offsets = tl.max_contiguous(offsets, ALIGN)
    return offsets


@triton.jit
def channel_offsets(c, strides, LAYOUT: tl.constexpr):
    """Where channels c are in a row, in elements."""
    ALIGN: tl.constexpr = LAYOUT[1]
    if LAYOUT[0] == 1:
        offsets = c.to(tl.int64)
    else:
        offsets = tl.multiple_of(c.to(tl.int64) * strides[1], ALIGN)
    return offsets


@triton.jit
def frame_offsets(t, strides, LAYOUT: tl.constexpr):
    """How far t frames are, in elements."""
    ALIGN: tl.constexpr = LAYOUT[1]
    return tl.multiple_of(t.to(tl.int64) * strides[2], ALIGN)


@triton.jit
def convolve(
    fast_ptr,
    weight_ptr,
    n,
    t,
    p,
    inside,
    o,
    extent,
    alpha,
    strides,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The convolution's output at rows (n, t, p) and channels o; 0 outside. Frames that no tap reaches are not read.

    weight is [CHANNELS, TAPS, FAST_CHANNELS] in memory.
    """
    DEPTH: tl.constexpr = FAST_CHANNELS * TAPS
    frames = extent[1] * alpha
    rows = row_offsets(n, t * alpha, p, strides, extent, LAYOUT)
    total = tl.zeros([BLOCK_P, BLOCK_O], dtype=tl.float64 if WIDE else tl.float32)
    for first in range(0, DEPTH, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        if FAST_CHANNELS % BLOCK_D == 0:  # the step is part of one tap
            k = tl.cast(first // FAST_CHANNELS - TAPS // 2, tl.int64)
            c = tl.multiple_of(first % FAST_CHANNELS, BLOCK_D) + tl.arange(0, BLOCK_D)
            reached = (inside & (t * alpha + k >= 0) & (t * alpha + k < frames))[:, None]
        else:
            k = (d // FAST_CHANNELS - TAPS // 2).to(tl.int64)
            c = d % FAST_CHANNELS
            frame = (t * alpha)[:, None] + k[None, :]
            reached = inside[:, None] & (frame >= 0) & (frame < frames) & (d < DEPTH)[None, :]
        columns = channel_offsets(c, strides, LAYOUT) + frame_offsets(k, strides, LAYOUT)
        x = tl.load(fast_ptr + (rows[:, None] + columns[None, :]), mask=reached, other=0)
        known = (d < DEPTH)[:, None] & (o < CHANNELS)[None, :]
        w = tl.load(weight_ptr + (o[None, :] * DEPTH + d[:, None]), mask=known, other=0)
        if WIDE:
            total += x * w
        else:
            total = tl.dot(x, w, total, input_precision=PRECISION)
    return total


@triton.jit
def copy_slow(
    index,
    slow_ptr,
    residual_ptr,
    output_ptr,
    extent,
    slow_strides,
    residual_strides,
    output_strides,
    SLOW_CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of the Slow half of the output: slow, or relu(slow + residual)."""
    groups = tl.cdiv(SLOW_CHANNELS, BLOCK_C)
    n, t, p, inside = rows_of(index // groups, extent, LAYOUT, BLOCK_P)
    c = index % groups * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = inside[:, None] & (c < SLOW_CHANNELS)[None, :]
    rows = row_offsets(n, t, p, slow_strides, extent, LAYOUT)
    # What is read once shall not drive the Fast frames, which several taps read, out of the cache.
    from_ptr = slow_ptr + (rows[:, None] + channel_offsets(c, slow_strides, LAYOUT)[None, :])
    value = tl.load(from_ptr, mask=mask, other=0, eviction_policy="evict_first")
    if residual_ptr is not None:
        wide = tl.float64 if WIDE else tl.float32
        rows = row_offsets(n, t, p, residual_strides, extent, LAYOUT)
        columns = channel_offsets(c, residual_strides, LAYOUT)
        shortcut = tl.load(residual_ptr + (rows[:, None] + columns[None, :]), mask=mask, other=0)
        value = (value.to(wide) + shortcut.to(wide)).to(output_ptr.dtype.element_ty)
        value = tl.where(value.to(wide) < 0, 0.0, value.to(wide)).to(output_ptr.dtype.element_ty)  # a NaN stays
    rows = row_offsets(n, t, p, output_strides, extent, LAYOUT)
    to_ptr = output_ptr + (rows[:, None] + channel_offsets(c, output_strides, LAYOUT)[None, :])
    tl.store(to_ptr, value, mask=mask, eviction_policy="evict_first")


@triton.jit
def forward_kernel(
    slow_ptr,
    fast_ptr,
    weight_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    output_ptr,
    convolving,
    spacing,
    extent,
    alpha,
    slow_strides,
    fast_strides,
    residual_strides,
    output_strides,
    SLOW_CHANNELS: tl.constexpr,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    RELU: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The inference form. Every `spacing`-th program makes lateral channels until these are done, the others copy Slow
    ones: the copies use the memory while the tensor cores are at work, and the last programs to run are short."""
    program = tl.program_id(0)
    index = program // spacing
    if (program % spacing == 0) & (index < convolving):
        groups: tl.constexpr = (CHANNELS + BLOCK_O - 1) // BLOCK_O
        n, t, p, inside = rows_of(index // groups, extent, LAYOUT, BLOCK_P)
        o = index % groups * BLOCK_O + tl.arange(0, BLOCK_O)
        value = convolve(
            fast_ptr,
            weight_ptr,
            n,
            t,
            p,
            inside,
            o,
            extent,
            alpha,
            fast_strides,
            FAST_CHANNELS,
            CHANNELS,
            TAPS,
            LAYOUT,
            WIDE,
            PRECISION,
            BLOCK_P,
            BLOCK_O,
            BLOCK_D,
        )
        if scale_ptr is not None:
            value *= tl.load(scale_ptr + o, mask=o < CHANNELS, other=0).to(value.dtype)[None, :]
        if shift_ptr is not None:
            value += tl.load(shift_ptr + o, mask=o < CHANNELS, other=0).to(value.dtype)[None, :]
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # a NaN stays
        rows = row_offsets(n, t, p, output_strides, extent, LAYOUT)
        columns = channel_offsets(SLOW_CHANNELS + o, output_strides, LAYOUT)
        mask = inside[:, None] & (o < CHANNELS)[None, :]
        tl.store(output_ptr + (rows[:, None] + columns[None, :]), value.to(output_ptr.dtype.element_ty), mask=mask)
    else:
        copy_slow(
            program - tl.minimum(index + 1, convolving),
            slow_ptr,
            residual_ptr,
            output_ptr,
            extent,
            slow_strides,
            residual_strides,
            output_strides,
            SLOW_CHANNELS,
            LAYOUT,
            WIDE,
            BLOCK_P,
            BLOCK_C,
        )


@triton.jit
def statistics_forward_kernel(
    fast_ptr,
    weight_ptr,
    conv_ptr,
    partials_ptr,
    tiles,
    extent,
    alpha,
    fast_strides,
    conv_strides,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The training form's convolution. partials [2, CHANNELS, tiles], float64: mean, squared deviations of a tile."""
    program = tl.program_id(0)
    groups: tl.constexpr = (CHANNELS + BLOCK_O - 1) // BLOCK_O
    tile = program // groups
    n, t, p, inside = rows_of(tile, extent, LAYOUT, BLOCK_P)
    o = program % groups * BLOCK_O + tl.arange(0, BLOCK_O)
    value = convolve(
        fast_ptr,
        weight_ptr,
        n,
        t,
        p,
        inside,
        o,
        extent,
        alpha,
        fast_strides,
        FAST_CHANNELS,
        CHANNELS,
        TAPS,
        LAYOUT,
        WIDE,
        PRECISION,
        BLOCK_P,
        BLOCK_O,
        BLOCK_D,
    )
    mask = inside[:, None] & (o < CHANNELS)[None, :]
    rows = row_offsets(n, t, p, conv_strides, extent, LAYOUT)
    to_ptr = conv_ptr + (rows[:, None] + channel_offsets(o, conv_strides, LAYOUT)[None, :])
    tl.store(to_ptr, value.to(conv_ptr.dtype.element_ty), mask=mask)
    # About a first mean that is nearly right, so that nothing cancels and the mean is exact to a part of the deviation.
    count = tl.sum(inside.to(tl.int32), 0)
    centre = tl.sum(value, 0) / count.to(value.dtype)
    difference = tl.where(mask, value - centre[None, :], 0.0)
    total = tl.sum(difference, 0).to(tl.float64)
    squares = tl.sum(difference * difference, 0).to(tl.float64)
    correction = total / count.to(tl.float64)
    deviation = tl.maximum(squares - total * correction, 0.0)  # a NaN is in the mean already
    place = partials_ptr + (o.to(tl.int64) * tiles + tile)
    tl.store(place, centre.to(tl.float64) + correction, mask=o < CHANNELS)
    tl.store(place + tl.cast(tiles, tl.int64) * CHANNELS, deviation, mask=o < CHANNELS)


@triton.jit
def join_statistics_kernel(partials_ptr, mean_ptr, var_ptr, tiles, rows, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr):
    """One channel's mean and biased variance out of those of the tiles of all rows; 0 if there are none."""
    channel = tl.program_id(0).to(tl.int64)
    count = tl.maximum(tl.cast(rows, tl.float64), 1.0)
    means_ptr = partials_ptr + channel * tiles
    deviations_ptr = means_ptr + tl.num_programs(0).to(tl.int64) * tiles
    sums = tl.zeros([BLOCK], dtype=tl.float64)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        share = tl.minimum(rows - tile.to(tl.int64) * BLOCK_P, BLOCK_P).to(tl.float64)
        sums += tl.where(tile < tiles, share, 0.0) * tl.load(means_ptr + tile, mask=tile < tiles, other=0)
    mean = tl.sum(sums, 0) / count
    sums = tl.zeros([BLOCK], dtype=tl.float64)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        share = tl.minimum(rows - tile.to(tl.int64) * BLOCK_P, BLOCK_P).to(tl.float64)
        difference = tl.load(means_ptr + tile, mask=tile < tiles, other=mean) - mean
        sums += tl.load(deviations_ptr + tile, mask=tile < tiles, other=0) + share * difference * difference
    tl.store(mean_ptr + channel, mean)
    tl.store(var_ptr + channel, tl.sum(sums, 0) / count)
