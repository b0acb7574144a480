"""The second step of the training form in Triton, forward and backward; triton.py launches them.

Both are one pass over the data, bound by memory. Tiles, `extent`, `strides` and LAYOUT are those of triton_forward.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slowfast_ops.lateral_conv_concat.triton_forward import channel_offsets, copy_slow, row_offsets, rows_of


@triton.jit
def normalisation(mean_ptr, var_ptr, gamma_ptr, beta_ptr, c, channels, eps_bits, WIDE: tl.constexpr):
    """By channel, in the accumulator's type: 1 / sqrt(var + eps), and the scale and shift of conv that follow."""
    wide = tl.float64 if WIDE else tl.float32
    inside = c < channels
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)  # a float argument would be rounded to float32
    inverse = (1.0 / tl.sqrt(tl.load(var_ptr + c, mask=inside, other=1) + eps)).to(wide)
    scale = inverse
    if gamma_ptr is not None:
        scale = inverse * tl.load(gamma_ptr + c, mask=inside, other=0).to(wide)
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
    extent,
    eps_bits,
    slow_strides,
    conv_strides,
    residual_strides,
    output_strides,
    SLOW_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The first `normalising` programs make the lateral channels, the others copy the Slow ones."""
    program = tl.program_id(0)
    if program < normalising:
        groups = tl.cdiv(CHANNELS, BLOCK_O)
        n, t, p, inside = rows_of(program // groups, extent, LAYOUT, BLOCK_P)
        o = program % groups * BLOCK_O + tl.arange(0, BLOCK_O)
        mask = inside[:, None] & (o < CHANNELS)[None, :]
        _, scale, shift = normalisation(mean_ptr, var_ptr, gamma_ptr, beta_ptr, o, CHANNELS, eps_bits, WIDE)
        rows = row_offsets(n, t, p, conv_strides, extent, LAYOUT)
        columns = channel_offsets(o, conv_strides, LAYOUT)
        x = tl.load(conv_ptr + (rows[:, None] + columns[None, :]), mask=mask, other=0).to(scale.dtype)
        value = x * scale[None, :] + shift[None, :]
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # a NaN stays
        rows = row_offsets(n, t, p, output_strides, extent, LAYOUT)
        columns = channel_offsets(SLOW_CHANNELS + o, output_strides, LAYOUT)
        tl.store(output_ptr + (rows[:, None] + columns[None, :]), value.to(output_ptr.dtype.element_ty), mask=mask)
    else:
        copy_slow(
            program - normalising,
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
    extent,
    eps_bits,
    grad_strides,
    conv_strides,
    grad_conv_strides,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """The gradient of conv with mean and var held fixed, and the sums that all other gradients are made of.

    A program takes a part of the tiles, one after the other. partials [2, channels, parts], float64: of the gradient g
    behind the ReLU, and of g * (conv - mean as the accumulator's type has it).
    """
    groups = tl.cdiv(CHANNELS, BLOCK_O)
    part = tl.program_id(0) // groups
    o = tl.program_id(0) % groups * BLOCK_O + tl.arange(0, BLOCK_O)
    _, scale, shift = normalisation(mean_ptr, var_ptr, gamma_ptr, beta_ptr, o, CHANNELS, eps_bits, WIDE)
    centre = tl.load(mean_ptr + o, mask=o < CHANNELS, other=0).to(scale.dtype)
    grad_columns = channel_offsets(o, grad_strides, LAYOUT)
    conv_columns = channel_offsets(o, conv_strides, LAYOUT)
    grad_conv_columns = channel_offsets(o, grad_conv_strides, LAYOUT)
    sums = tl.zeros([BLOCK_P, BLOCK_O], dtype=scale.dtype)  # each of so few values that no double is needed yet
    products = tl.zeros([BLOCK_P, BLOCK_O], dtype=scale.dtype)
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tiles)):
        n, t, p, inside = rows_of(tile, extent, LAYOUT, BLOCK_P)
        mask = inside[:, None] & (o < CHANNELS)[None, :]
        rows = row_offsets(n, t, p, grad_strides, extent, LAYOUT)
        g = tl.load(grad_ptr + (rows[:, None] + grad_columns[None, :]), mask=mask, other=0).to(scale.dtype)
        rows = row_offsets(n, t, p, conv_strides, extent, LAYOUT)
        x = tl.load(conv_ptr + (rows[:, None] + conv_columns[None, :]), mask=mask, other=0).to(scale.dtype)
        if RELU:
            g = tl.where(x * scale[None, :] + shift[None, :] <= 0, 0.0, g)
        rows = row_offsets(n, t, p, grad_conv_strides, extent, LAYOUT)
        to_ptr = grad_conv_ptr + (rows[:, None] + grad_conv_columns[None, :])
        tl.store(to_ptr, (g * scale[None, :]).to(grad_conv_ptr.dtype.element_ty), mask=mask)
        sums += g
        products += g * (x - centre[None, :])
    place = partials_ptr + (o.to(tl.int64) * parts + part)
    tl.store(place, tl.sum(sums.to(tl.float64), 0), mask=o < CHANNELS)
    tl.store(place + tl.cast(parts, tl.int64) * CHANNELS, tl.sum(products.to(tl.float64), 0), mask=o < CHANNELS)


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
