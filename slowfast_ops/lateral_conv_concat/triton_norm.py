"""The second step of the training form in Triton, forward and backward; triton.py launches them.

Both are one pass over the data, bound by memory. The tiles and the compile-time facts are those of triton_forward.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slowfast_ops.lateral_conv_concat.triton_forward import (
    copy_slow,
    pointers,
    tile_of,
)


@triton.jit
def normalisation(mean_ptr, var_ptr, gamma_ptr, beta_ptr, c, channels, eps_bits, WIDE: tl.constexpr):
    """By channel, in the accumulator's type: 1 / sqrt(var + eps), and the scale and shift of conv that follow."""
    wide = tl.float64 if WIDE else tl.float32
    inside = c < channels
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)  # a float argument would be rounded to float32
    inverse = (1.0 / tl.sqrt(tl.load(var_ptr + c, mask=inside, other=1) + eps)).to(wide)
    scale = inverse
    if gamma_ptr is not None:
        scale = inverse * tl.load(gamma_ptr + c, mask=inside, other=0)
    shift = -tl.load(mean_ptr + c, mask=inside, other=0) * scale.to(tl.float64)
    if beta_ptr is not None:
        shift += tl.load(beta_ptr + c, mask=inside, other=0).to(tl.float64)
    return inverse, scale, shift.to(wide)


@triton.jit
def norm_forward_kernel(
    slow_ptr,
    conv_ptr,
    mean_ptr,
    var_ptr,
    gamma_ptr,
    beta_ptr,
    residual_ptr,
    output_ptr,
    normalising,
    position_groups,
    slow_frames,
    width,
    eps_bits,
    slow_n,
    slow_c,
    slow_t,
    slow_h,
    slow_w,
    conv_n,
    conv_c,
    conv_t,
    conv_h,
    conv_w,
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
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The first `normalising` programs make the lateral channels, the others copy the Slow ones."""
    program = tl.program_id(0)
    positions = position_groups * (ALIGN if UNIT == 2 else 1)
    if program < normalising:
        groups = tl.cdiv(CHANNELS, BLOCK_C)
        n, t, p = tile_of(program // groups, slow_frames, positions, BLOCK_P)
        c = (program % groups).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
        mask = (p < positions)[:, None] & (c < CHANNELS)[None, :]
        _, scale, shift = normalisation(mean_ptr, var_ptr, gamma_ptr, beta_ptr, c, CHANNELS, eps_bits, WIDE)
        from_ptr = pointers(conv_ptr, n, c, t, p, width, conv_n, conv_c, conv_t, conv_h, conv_w, UNIT, ALIGN, EVEN)
        x = tl.load(from_ptr, mask=mask, other=0).to(scale.dtype)
        value = x * scale[None, :] + shift[None, :]
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # a NaN stays
        to_ptr = pointers(
            output_ptr,
            n,
            SLOW_CHANNELS + c,
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
        tl.store(to_ptr, value.to(output_ptr.dtype.element_ty), mask=mask)
    else:
        copy_slow(
            program - normalising,
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
def norm_backward_kernel(
    grad_ptr,
    conv_ptr,
    mean_ptr,
    var_ptr,
    gamma_ptr,
    beta_ptr,
    grad_conv_ptr,
    partials_ptr,
    parts,
    tiles,
    tiles_per_part,
    position_groups,
    slow_frames,
    width,
    eps_bits,
    grad_n,
    grad_c,
    grad_t,
    grad_h,
    grad_w,
    conv_n,
    conv_c,
    conv_t,
    conv_h,
    conv_w,
    grad_conv_n,
    grad_conv_c,
    grad_conv_t,
    grad_conv_h,
    grad_conv_w,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of conv with mean and var held fixed, and the sums that all other gradients are made of.

    A program takes a part of the tiles, one after the other. partials [2, channels, parts], float64: of the gradient g
    behind the ReLU, and of g * (conv - mean as the accumulator's type has it).
    """
    positions = position_groups * (ALIGN if UNIT == 2 else 1)
    groups = tl.cdiv(CHANNELS, BLOCK_C)
    part = tl.program_id(0) // groups
    c = (tl.program_id(0) % groups).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    _, scale, shift = normalisation(mean_ptr, var_ptr, gamma_ptr, beta_ptr, c, CHANNELS, eps_bits, WIDE)
    centre = tl.load(mean_ptr + c, mask=c < CHANNELS, other=0).to(scale.dtype)
    sums = tl.zeros([BLOCK_C], dtype=tl.float64)
    products = tl.zeros([BLOCK_C], dtype=tl.float64)
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tiles)):
        n, t, p = tile_of(tile, slow_frames, positions, BLOCK_P)
        mask = (p < positions)[:, None] & (c < CHANNELS)[None, :]
        from_ptr = pointers(grad_ptr, n, c, t, p, width, grad_n, grad_c, grad_t, grad_h, grad_w, UNIT, ALIGN, EVEN)
        g = tl.load(from_ptr, mask=mask, other=0).to(scale.dtype)
        from_ptr = pointers(conv_ptr, n, c, t, p, width, conv_n, conv_c, conv_t, conv_h, conv_w, UNIT, ALIGN, EVEN)
        x = tl.load(from_ptr, mask=mask, other=0).to(scale.dtype)
        if RELU:
            g = tl.where(x * scale[None, :] + shift[None, :] <= 0, 0.0, g)
        to_ptr = pointers(
            grad_conv_ptr,
            n,
            c,
            t,
            p,
            width,
            grad_conv_n,
            grad_conv_c,
            grad_conv_t,
            grad_conv_h,
            grad_conv_w,
            UNIT,
            ALIGN,
            EVEN,
        )
        tl.store(to_ptr, (g * scale[None, :]).to(grad_conv_ptr.dtype.element_ty), mask=mask)
        sums += tl.sum(g, 0).to(tl.float64)
        products += tl.sum(g * (x - centre[None, :]), 0).to(tl.float64)
    tl.store(partials_ptr + c * parts + part, sums, mask=c < CHANNELS)
    tl.store(partials_ptr + (c + CHANNELS) * parts + part, products, mask=c < CHANNELS)


@triton.jit
def join_norm_backward_kernel(
    partials_ptr,
    mean_ptr,
    var_ptr,
    gamma_ptr,
    grad_mean_ptr,
    grad_var_ptr,
    grad_gamma_ptr,
    grad_beta_ptr,
    parts,
    eps_bits,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One channel: adds its partial sums and derives its gradients."""
    wide = tl.float64 if WIDE else tl.float32
    channel = tl.program_id(0).to(tl.int64)
    channels = tl.num_programs(0).to(tl.int64)
    sums = tl.zeros([BLOCK], dtype=tl.float64)
    products = tl.zeros([BLOCK], dtype=tl.float64)
    for first in range(0, parts, BLOCK):
        part = first + tl.arange(0, BLOCK)
        sums += tl.load(partials_ptr + channel * parts + part, mask=part < parts, other=0)
        products += tl.load(partials_ptr + (channel + channels) * parts + part, mask=part < parts, other=0)
    total = tl.sum(sums, 0)
    mean = tl.load(mean_ptr + channel)
    product = tl.sum(products, 0) + (mean.to(wide).to(tl.float64) - mean) * total
    inverse, scale, _ = normalisation(mean_ptr, var_ptr, gamma_ptr, None, channel, channels, eps_bits, WIDE)
    inverse, scale = inverse.to(tl.float64), scale.to(tl.float64)
    tl.store(grad_mean_ptr + channel, -total * scale)
    tl.store(grad_var_ptr + channel, -0.5 * product * scale * inverse * inverse)
    tl.store(grad_gamma_ptr + channel, (product * inverse).to(wide))
    tl.store(grad_beta_ptr + channel, total.to(wide))
