"""The backward kernels of the lateral convolution in Triton, for both forms of the op; triton.py launches them.

The gradient of the convolution's output is computed from what the forward kept: as its tiles are loaded, or, in the
training form of wide layers, once beforehand. The gradient of fast is in gather form, alpha frames at a time: which
Slow frames read the Fast frames alpha g to alpha g + alpha - 1, and through which taps, is the same for every g, so
that all of them are one matrix product with the weight as it lies in memory. The gradient of weight is a sum over all
rows: programs take parts of them, a split that depends on the shapes only, and a second kernel adds the parts in order.

Tiles, `extent`, `strides` and LAYOUT are those of triton_forward.py. KEPT says what the forward kept: 0 nothing, 1 the
output behind the ReLU, 2 the convolution's output (training form).
"""

from __future__ import annotations

import triton
import triton.language as tl

from slowfast_ops.lateral_conv_concat.triton_forward import channel_offsets, frame_offsets, row_offsets, rows_of


@triton.jit
def coefficients(
    mean_ptr,
    grad_mean_ptr,
    grad_var_ptr,
    o,
    count,
    CHANNELS: tl.constexpr,
    KEPT: tl.constexpr,
    WIDE: tl.constexpr,
):
    """By channel, what grad + add + multiply (conv - centre) needs to be the gradient of the training form's conv.

    That is grad + (grad_mean + 2 (conv - mean) grad_var) / count, where what rounding takes from the mean goes into the
    constant. `count` is the number of values per channel.
    """
    wide = tl.float64 if WIDE else tl.float32
    if KEPT == 2:
        inside = o < CHANNELS
        inverse = 1.0 / tl.cast(count, tl.float64)
        mean = tl.load(mean_ptr + o, mask=inside, other=0)
        centre = mean.to(wide)
        multiply = 2.0 * tl.load(grad_var_ptr + o, mask=inside, other=0) * inverse
        add = tl.load(grad_mean_ptr + o, mask=inside, other=0) * inverse + multiply * (centre.to(tl.float64) - mean)
    else:
        centre = tl.zeros_like(o).to(wide)
        multiply = centre
        add = centre
    return centre, multiply.to(wide), add.to(wide)


@triton.jit
def conv_gradient(
    grad_ptr,
    kept_ptr,
    grad_offsets,
    kept_offsets,
    mask,
    centre,
    multiply,
    add,
    KEPT: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The unscaled gradient of the convolution's output at these offsets; 0 outside."""
    wide = tl.float64 if WIDE else tl.float32
    value = tl.load(grad_ptr + grad_offsets, mask=mask, other=0)
    if KEPT > 0:
        value = value.to(wide)
        kept = tl.load(kept_ptr + kept_offsets, mask=mask, other=0).to(wide)
    if KEPT == 1:
        value = tl.where(kept <= 0, 0.0, value)
    if KEPT == 2:
        value += add[None, :] + multiply[None, :] * (kept - centre[None, :])
        value = tl.where(mask, value, 0.0)
    return value


@triton.jit
def conv_gradient_kernel(
    grad_ptr,
    conv_ptr,
    mean_ptr,
    grad_mean_ptr,
    grad_var_ptr,
    grad_conv_ptr,
    count,
    extent,
    grad_strides,
    conv_strides,
    grad_conv_strides,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """The gradient of the training form's conv, stored: where the products below read it many times, that is faster."""
    groups = tl.cdiv(CHANNELS, BLOCK_O)
    n, t, p, inside = rows_of(tl.program_id(0) // groups, extent, LAYOUT, BLOCK_P)
    o = tl.program_id(0) % groups * BLOCK_O + tl.arange(0, BLOCK_O)
    mask = inside[:, None] & (o < CHANNELS)[None, :]
    centre, multiply, add = coefficients(mean_ptr, grad_mean_ptr, grad_var_ptr, o, count, CHANNELS, 2, WIDE)
    grad_rows = row_offsets(n, t, p, grad_strides, extent, LAYOUT)
    conv_rows = row_offsets(n, t, p, conv_strides, extent, LAYOUT)
    value = conv_gradient(
        grad_ptr,
        conv_ptr,
        grad_rows[:, None] + channel_offsets(o, grad_strides, LAYOUT)[None, :],
        conv_rows[:, None] + channel_offsets(o, conv_strides, LAYOUT)[None, :],
        mask,
        centre,
        multiply,
        add,
        2,
        WIDE,
    )
    rows = row_offsets(n, t, p, grad_conv_strides, extent, LAYOUT)
    to_ptr = grad_conv_ptr + (rows[:, None] + channel_offsets(o, grad_conv_strides, LAYOUT)[None, :])
    tl.store(to_ptr, value.to(grad_conv_ptr.dtype.element_ty), mask=mask)


@triton.jit
def fast_backward_kernel(
    grad_ptr,
    kept_ptr,
    scale_ptr,
    mean_ptr,
    grad_mean_ptr,
    grad_var_ptr,
    weight_ptr,
    grad_fast_ptr,
    count,
    extent,
    grad_strides,
    kept_strides,
    fast_strides,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    ALPHA: tl.constexpr,
    KEPT: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Rows (n, g, p) by columns (j, f): channels f of the Fast frames alpha g + j; 0 where no tap reaches.

    Slow frame g + r reads Fast frame alpha g + j through tap j - alpha r + TAPS // 2: for each r the weight's columns
    are those of the tile, moved by a constant.
    """
    COLUMNS: tl.constexpr = ALPHA * FAST_CHANNELS
    DEPTH: tl.constexpr = FAST_CHANNELS * TAPS
    PAD: tl.constexpr = TAPS // 2
    BEFORE: tl.constexpr = (PAD + ALPHA - 1) // ALPHA  # so many Slow frames before g can reach
    groups: tl.constexpr = (COLUMNS + BLOCK_F - 1) // BLOCK_F
    o_groups: tl.constexpr = (CHANNELS + BLOCK_O - 1) // BLOCK_O
    program = tl.program_id(0)
    n, g, p, inside = rows_of(program // groups, extent, LAYOUT, BLOCK_P)
    first_column = program % groups * BLOCK_F
    column = first_column + tl.arange(0, BLOCK_F)
    low = first_column // FAST_CHANNELS
    high = tl.minimum((first_column + BLOCK_F - 1) // FAST_CHANNELS, ALPHA - 1)
    first = (low - PAD + ALPHA * BEFORE + ALPHA - 1) // ALPHA - BEFORE  # of the r; rounded up
    steps = ((high + PAD) // ALPHA + 1 - first) * o_groups
    grad_rows = row_offsets(n, g, p, grad_strides, extent, LAYOUT)
    kept_rows = row_offsets(n, g, p, kept_strides, extent, LAYOUT)
    total = tl.zeros([BLOCK_P, BLOCK_F], dtype=tl.float64 if WIDE else tl.float32)
    for step in range(steps):
        r = tl.cast(first + step // o_groups, tl.int64)
        o = step % o_groups * BLOCK_O + tl.arange(0, BLOCK_O)
        mask = (inside & (g + r >= 0) & (g + r < extent[1]))[:, None] & (o < CHANNELS)[None, :]
        grad_columns = channel_offsets(o, grad_strides, LAYOUT) + frame_offsets(r, grad_strides, LAYOUT)
        kept_columns = channel_offsets(o, kept_strides, LAYOUT) + frame_offsets(r, kept_strides, LAYOUT)
        centre, multiply, add = coefficients(mean_ptr, grad_mean_ptr, grad_var_ptr, o, count, CHANNELS, KEPT, WIDE)
        x = conv_gradient(
            grad_ptr,
            kept_ptr,
            grad_rows[:, None] + grad_columns[None, :],
            kept_rows[:, None] + kept_columns[None, :],
            mask,
            centre,
            multiply,
            add,
            KEPT,
            WIDE,
        )
        if scale_ptr is not None:
            x = x.to(total.dtype) * tl.load(scale_ptr + o, mask=o < CHANNELS, other=0).to(total.dtype)[None, :]
        d = column + (PAD - ALPHA * r.to(tl.int32)) * FAST_CHANNELS
        known = (o < CHANNELS)[:, None] & ((d >= 0) & (d < DEPTH) & (column < COLUMNS))[None, :]
        w = tl.load(weight_ptr + (o[:, None] * DEPTH + d[None, :]), mask=known, other=0)
        if WIDE:
            total += x * w
        else:
            total = tl.dot(x.to(w.dtype), w, total, input_precision=PRECISION)
    rows = row_offsets(n, g * ALPHA, p, fast_strides, extent, LAYOUT)
    columns = channel_offsets(column % FAST_CHANNELS, fast_strides, LAYOUT)
    columns += frame_offsets(column // FAST_CHANNELS, fast_strides, LAYOUT)
    to_ptr = grad_fast_ptr + (rows[:, None] + columns[None, :])
    tl.store(to_ptr, total.to(grad_fast_ptr.dtype.element_ty), mask=inside[:, None] & (column < COLUMNS)[None, :])


@triton.jit
def weight_backward_kernel(
    grad_ptr,
    kept_ptr,
    mean_ptr,
    grad_mean_ptr,
    grad_var_ptr,
    fast_ptr,
    partials_ptr,
    tiles,
    tiles_per_part,
    count,
    extent,
    alpha,
    grad_strides,
    kept_strides,
    fast_strides,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    KEPT: tl.constexpr,
    SHIFT: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """partials [part, channels, depth + 1]: a part's unscaled gradient of weight, [tap, channel], and, if SHIFT, of
    shift."""
    DEPTH: tl.constexpr = FAST_CHANNELS * TAPS
    groups: tl.constexpr = (DEPTH + BLOCK_D - 1) // BLOCK_D
    o_groups: tl.constexpr = (CHANNELS + BLOCK_O - 1) // BLOCK_O
    program = tl.program_id(0)
    d = program % groups * BLOCK_D + tl.arange(0, BLOCK_D)
    k = (d // FAST_CHANNELS - TAPS // 2).to(tl.int64)
    columns = channel_offsets(d % FAST_CHANNELS, fast_strides, LAYOUT) + frame_offsets(k, fast_strides, LAYOUT)
    o = program // groups % o_groups * BLOCK_O + tl.arange(0, BLOCK_O)
    grad_columns = channel_offsets(o, grad_strides, LAYOUT)
    kept_columns = channel_offsets(o, kept_strides, LAYOUT)
    centre, multiply, add = coefficients(mean_ptr, grad_mean_ptr, grad_var_ptr, o, count, CHANNELS, KEPT, WIDE)
    part = program // groups // o_groups
    total = tl.zeros([BLOCK_D, BLOCK_O], dtype=tl.float64 if WIDE else tl.float32)
    sums = tl.zeros([BLOCK_P, BLOCK_O], dtype=total.dtype)
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tiles)):
        n, t, p, inside = rows_of(tile, extent, LAYOUT, BLOCK_P)
        g = conv_gradient(
            grad_ptr,
            kept_ptr,
            row_offsets(n, t, p, grad_strides, extent, LAYOUT)[:, None] + grad_columns[None, :],
            row_offsets(n, t, p, kept_strides, extent, LAYOUT)[:, None] + kept_columns[None, :],
            inside[:, None] & (o < CHANNELS)[None, :],
            centre,
            multiply,
            add,
            KEPT,
            WIDE,
        )
        if SHIFT:
            sums += g.to(total.dtype)
        frame = (t * alpha)[:, None] + k[None, :]
        reached = inside[:, None] & (frame >= 0) & (frame < extent[1] * alpha) & (d < DEPTH)[None, :]
        rows = row_offsets(n, t * alpha, p, fast_strides, extent, LAYOUT)
        x = tl.load(fast_ptr + (rows[:, None] + columns[None, :]), mask=reached, other=0)
        if WIDE:
            total += tl.trans(x) * g
        else:
            total = tl.dot(tl.trans(x), g.to(x.dtype), total, input_precision=PRECISION)
    rows = (part.to(tl.int64) * CHANNELS + o) * (DEPTH + 1)
    mask = (d < DEPTH)[:, None] & (o < CHANNELS)[None, :]
    tl.store(partials_ptr + (rows[None, :] + d[:, None]), total, mask=mask)
    if SHIFT:
        tl.store(partials_ptr + rows + DEPTH, tl.sum(sums, 0), mask=(o < CHANNELS) & (program % groups == 0))


@triton.jit
def join_weight_backward_kernel(
    partials_ptr,
    weight_ptr,
    scale_ptr,
    grad_weight_ptr,
    grad_scale_ptr,
    grad_shift_ptr,
    parts,
    grad_weight_strides,
    FAST_CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Adds the parts in order, for one output channel and, if there are more programs along the second axis, a share of
    its depth. The convolution is linear in weight, so that the gradient of scale is the product of weight and its
    unscaled gradient; its one program takes the whole depth."""
    DEPTH: tl.constexpr = FAST_CHANNELS * TAPS
    wide = tl.float64 if WIDE else tl.float32
    o = tl.program_id(0).to(tl.int64)
    part_size = tl.num_programs(0).to(tl.int64) * (DEPTH + 1)
    products = tl.zeros([BLOCK], dtype=wide)
    for first in range(tl.program_id(1) * BLOCK, DEPTH + 1, tl.num_programs(1) * BLOCK):
        d = first + tl.arange(0, BLOCK)
        sums = tl.zeros([BLOCK_PARTS, BLOCK], dtype=wide)
        for first_part in range(0, parts, BLOCK_PARTS):
            part = first_part + tl.arange(0, BLOCK_PARTS).to(tl.int64)
            place = partials_ptr + (part[:, None] * part_size + (o * (DEPTH + 1) + d)[None, :])
            sums += tl.load(place, mask=(part < parts)[:, None] & (d <= DEPTH)[None, :], other=0)
        total = tl.sum(sums, 0)
        if grad_scale_ptr is not None:
            weight = tl.load(weight_ptr + o * DEPTH + d, mask=d < DEPTH, other=0).to(wide)
            products += tl.where(d < DEPTH, total * weight, 0.0)
        if grad_shift_ptr is not None:
            tl.store(grad_shift_ptr + o + d * 0, total, mask=d == DEPTH)
        if scale_ptr is not None:
            total *= tl.load(scale_ptr + o).to(wide)
        place = o * grad_weight_strides[0] + d % FAST_CHANNELS * grad_weight_strides[1]
        place += d // FAST_CHANNELS * grad_weight_strides[2]
        tl.store(grad_weight_ptr + place, total.to(grad_weight_ptr.dtype.element_ty), mask=d < DEPTH)
    if grad_scale_ptr is not None:
        tl.store(grad_scale_ptr + o, tl.sum(products, 0))
