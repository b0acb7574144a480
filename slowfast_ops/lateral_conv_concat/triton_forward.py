"""The forward kernels of lateral_conv_concat in Triton; triton.py launches them.

Every kernel works on tiles [BLOCK_P positions, channels] of one Slow frame, a position being a pixel (h, w). All three
are bound by memory (at most 60 operations a byte in the paper's networks, an H100 has 300), so what counts is that
every element moves once and in wide accesses. The convolution is a matrix product per tile, positions by depth times
depth by output channels, where the depth is all pairs of a tap and a Fast channel: eight channels alone would leave a
tensor core idle. Programs that copy the Slow channels follow those that convolve in the same launch, so that the last
ones to run are short.

Compile-time facts about the tensors, which hold for all of a launch:
    UNIT     the axis along which elements are adjacent: 1 channels, 2 positions, 0 neither
    ALIGN    what divides every other stride and every address (and, if UNIT is 2, the number of positions), up to 16
    EVEN     positions are evenly spaced, so that h and w need not be told apart
    WIDE     float64, which tl.dot does not take everywhere: BLOCK_D is 1, and the products are outer ones
The number of positions comes divided by ALIGN if UNIT is 2, so that the compiler sees that ALIGN divides it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(index, slow_frames, positions, BLOCK_P: tl.constexpr):
    """(clip, Slow frame, positions) of a tile; the tiles of a frame are adjacent."""
    per_frame = tl.cdiv(positions, BLOCK_P)
    frame = (index // per_frame).to(tl.int64)
    p = (index % per_frame).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    return frame // slow_frames, frame % slow_frames, p


@triton.jit
def pointers(
    ptr,
    n,
    c,
    t,
    p,
    width,
    stride_n,
    stride_c,
    stride_t,
    stride_h,
    stride_w,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
):
    """[positions p, channels c] of frame (n, t), or, where t is a vector, each channel of the frame at its side."""
    if not EVEN:
        place = p // width * stride_h + p % width * stride_w
    elif UNIT == 2:
        place = p
    else:
        place = tl.multiple_of(p * stride_w, ALIGN)
    if UNIT == 1:
        channel = c
    else:
        channel = tl.multiple_of(c * stride_c, ALIGN)
    channel += tl.multiple_of(t * stride_t, ALIGN)
    base = tl.multiple_of(ptr + n * stride_n, ALIGN * (ptr.dtype.element_ty.primitive_bitwidth // 8))
    return base + (place[:, None] + channel[None, :])


@triton.jit
def convolve(
    fast_ptr,
    weight_ptr,
    n,
    t,
    p,
    o,
    positions,
    slow_frames,
    width,
    alpha,
    fast_n,
    fast_c,
    fast_t,
    fast_h,
    fast_w,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    TAPS_INNER: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The convolution's output at positions p and channels o; 0 outside. Frames that no tap reaches are not read.

    weight is [CHANNELS, depth] in memory, the depth being [tap, channel], or [channel, tap] if TAPS_INNER.
    """
    DEPTH: tl.constexpr = FAST_CHANNELS * TAPS
    inside = p < positions
    total = tl.zeros([BLOCK_P, BLOCK_O], dtype=tl.float64 if WIDE else tl.float32)
    for first in range(0, DEPTH, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        k = d % TAPS if TAPS_INNER else d // FAST_CHANNELS
        c = d // TAPS if TAPS_INNER else d % FAST_CHANNELS
        frame = t * alpha + k - TAPS // 2
        reached = (frame >= 0) & (frame < slow_frames * alpha) & (d < DEPTH)
        c = c.to(tl.int64)
        from_ptr = pointers(fast_ptr, n, c, frame, p, width, fast_n, fast_c, fast_t, fast_h, fast_w, UNIT, ALIGN, EVEN)
        x = tl.load(from_ptr, mask=inside[:, None] & reached[None, :], other=0)
        known = (d < DEPTH)[:, None] & (o < CHANNELS)[None, :]
        from_ptr = tl.multiple_of(weight_ptr + first, ALIGN * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8))
        w = tl.load(from_ptr + (o[None, :] * DEPTH + tl.arange(0, BLOCK_D)[:, None]), mask=known, other=0)
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
    positions,
    slow_frames,
    width,
    slow_n,
    slow_c,
    slow_t,
    slow_h,
    slow_w,
    residual_n,
    residual_c,
    residual_t,
    residual_h,
    residual_w,
    output_n,
    output_c,
    output_t,
    output_h,
    output_w,
    SLOW_CHANNELS: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of the Slow half of the output: slow, or relu(slow + residual)."""
    groups = tl.cdiv(SLOW_CHANNELS, BLOCK_C)
    n, t, p = tile_of(index // groups, slow_frames, positions, BLOCK_P)
    c = (index % groups).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (p < positions)[:, None] & (c < SLOW_CHANNELS)[None, :]
    from_ptr = pointers(slow_ptr, n, c, t, p, width, slow_n, slow_c, slow_t, slow_h, slow_w, UNIT, ALIGN, EVEN)
    value = tl.load(from_ptr, mask=mask, other=0)
    if residual_ptr is not None:
        wide = tl.float64 if WIDE else tl.float32
        from_ptr = pointers(
            residual_ptr,
            n,
            c,
            t,
            p,
            width,
            residual_n,
            residual_c,
            residual_t,
            residual_h,
            residual_w,
            UNIT,
            ALIGN,
            EVEN,
        )
        shortcut = tl.load(from_ptr, mask=mask, other=0)
        value = (value.to(wide) + shortcut.to(wide)).to(output_ptr.dtype.element_ty)
        value = tl.where(value.to(wide) < 0, 0.0, value.to(wide)).to(output_ptr.dtype.element_ty)  # a NaN stays
    to_ptr = pointers(
        output_ptr, n, c, t, p, width, output_n, output_c, output_t, output_h, output_w, UNIT, ALIGN, EVEN
    )
    tl.store(to_ptr, value, mask=mask)


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
    position_groups,
    slow_frames,
    width,
    alpha,
    slow_n,
    slow_c,
    slow_t,
    slow_h,
    slow_w,
    fast_n,
    fast_c,
    fast_t,
    fast_h,
    fast_w,
    residual_n,
    residual_c,
    residual_t,
    residual_h,
    residual_w,
    output_n,
    output_c,
    output_t,
    output_h,
    output_w,
    SLOW_CHANNELS: tl.constexpr,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    TAPS_INNER: tl.constexpr,
    RELU: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The inference form. The first `convolving` programs make the lateral channels, the others copy the Slow ones."""
    program = tl.program_id(0)
    positions = position_groups * (ALIGN if UNIT == 2 else 1)
    if program < convolving:
        groups: tl.constexpr = (CHANNELS + BLOCK_O - 1) // BLOCK_O
        n, t, p = tile_of(program // groups, slow_frames, positions, BLOCK_P)
        o = (program % groups).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
        value = convolve(
            fast_ptr,
            weight_ptr,
            n,
            t,
            p,
            o,
            positions,
            slow_frames,
            width,
            alpha,
            fast_n,
            fast_c,
            fast_t,
            fast_h,
            fast_w,
            FAST_CHANNELS,
            CHANNELS,
            TAPS,
            TAPS_INNER,
            UNIT,
            ALIGN,
            EVEN,
            WIDE,
            PRECISION,
            BLOCK_P,
            BLOCK_O,
            BLOCK_D,
        )
        if scale_ptr is not None:
            value *= tl.load(scale_ptr + o, mask=o < CHANNELS, other=0)[None, :]
        if shift_ptr is not None:
            value += tl.load(shift_ptr + o, mask=o < CHANNELS, other=0)[None, :]
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # a NaN stays
        to_ptr = pointers(
            output_ptr,
            n,
            SLOW_CHANNELS + o,
            t,
            p,
            width,
            output_n,
            output_c,
            output_t,
            output_h,
            output_w,
            UNIT,
            ALIGN,
            EVEN,
        )
        mask = (p < positions)[:, None] & (o < CHANNELS)[None, :]
        tl.store(to_ptr, value.to(output_ptr.dtype.element_ty), mask=mask)
    else:
        copy_slow(
            program - convolving,
            slow_ptr,
            residual_ptr,
            output_ptr,
            positions,
            slow_frames,
            width,
            slow_n,
            slow_c,
            slow_t,
            slow_h,
            slow_w,
            residual_n,
            residual_c,
            residual_t,
            residual_h,
            residual_w,
            output_n,
            output_c,
            output_t,
            output_h,
            output_w,
            SLOW_CHANNELS,
            UNIT,
            ALIGN,
            EVEN,
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
    position_groups,
    slow_frames,
    width,
    alpha,
    fast_n,
    fast_c,
    fast_t,
    fast_h,
    fast_w,
    conv_n,
    conv_c,
    conv_t,
    conv_h,
    conv_w,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    TAPS_INNER: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The training form's convolution. partials [2, CHANNELS, tiles], float64: mean, squared deviations of a tile."""
    program = tl.program_id(0)
    positions = position_groups * (ALIGN if UNIT == 2 else 1)
    groups: tl.constexpr = (CHANNELS + BLOCK_O - 1) // BLOCK_O
    tile = program // groups
    n, t, p = tile_of(tile, slow_frames, positions, BLOCK_P)
    o = (program % groups).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    value = convolve(
        fast_ptr,
        weight_ptr,
        n,
        t,
        p,
        o,
        positions,
        slow_frames,
        width,
        alpha,
        fast_n,
        fast_c,
        fast_t,
        fast_h,
        fast_w,
        FAST_CHANNELS,
        CHANNELS,
        TAPS,
        TAPS_INNER,
        UNIT,
        ALIGN,
        EVEN,
        WIDE,
        PRECISION,
        BLOCK_P,
        BLOCK_O,
        BLOCK_D,
    )
    mask = (p < positions)[:, None] & (o < CHANNELS)[None, :]
    to_ptr = pointers(conv_ptr, n, o, t, p, width, conv_n, conv_c, conv_t, conv_h, conv_w, UNIT, ALIGN, EVEN)
    tl.store(to_ptr, value.to(conv_ptr.dtype.element_ty), mask=mask)
    # About a first mean that is nearly right, so that nothing cancels and the mean is exact to a part of the deviation.
    count = tl.sum((p < positions).to(tl.int32), 0)
    centre = tl.sum(value, 0) / count.to(value.dtype)
    difference = tl.where(mask, value - centre[None, :], 0.0)
    total = tl.sum(difference, 0).to(tl.float64)
    squares = tl.sum(difference * difference, 0).to(tl.float64)
    correction = total / count.to(tl.float64)
    deviation = tl.maximum(squares - total * correction, 0.0)  # a NaN is in the mean already
    tl.store(partials_ptr + o * tiles + tile, centre.to(tl.float64) + correction, mask=o < CHANNELS)
    tl.store(partials_ptr + (o + CHANNELS) * tiles + tile, deviation, mask=o < CHANNELS)


@triton.jit
def join_statistics_kernel(
    partials_ptr, mean_ptr, var_ptr, tiles, positions, frames, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr
):
    """One channel's mean and biased variance out of those of the tiles of its `frames` frames; 0 if there are none."""
    channel = tl.program_id(0).to(tl.int64)
    per_frame = tl.cdiv(positions, BLOCK_P)
    count = tl.maximum(frames.to(tl.float64) * positions, 1.0)
    means_ptr = partials_ptr + channel * tiles
    deviations_ptr = means_ptr + tl.num_programs(0).to(tl.int64) * tiles
    sums = tl.zeros([BLOCK], dtype=tl.float64)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        share = tl.minimum(positions - tile % per_frame * BLOCK_P, BLOCK_P).to(tl.float64)
        sums += share * tl.load(means_ptr + tile, mask=tile < tiles, other=0)
    mean = tl.sum(sums, 0) / count
    sums = tl.zeros([BLOCK], dtype=tl.float64)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        share = tl.minimum(positions - tile % per_frame * BLOCK_P, BLOCK_P).to(tl.float64)
        difference = tl.load(means_ptr + tile, mask=tile < tiles, other=mean) - mean
        sums += tl.load(deviations_ptr + tile, mask=tile < tiles, other=0) + share * difference * difference
    tl.store(mean_ptr + channel, mean)
    tl.store(var_ptr + channel, tl.sum(sums, 0) / count)
