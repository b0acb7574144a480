"""The backward kernels of the lateral convolution in Triton, for both forms of the op; triton.py launches them.

The gradient of the convolution's output is computed, as its tiles are loaded, from what the forward kept; it is never
stored. The gradient of fast is in gather form: a program owns a tile of a Fast frame and sums over the Slow frames that
read it (at most one where alpha >= K). The gradient of weight is a sum over all positions: programs take parts of them,
a split that depends on the shapes only, and a second kernel adds the parts in their order.

The tiles and the compile-time facts are those of triton_forward.py. KEPT says what the forward kept: 0 nothing, 1 the
output behind the ReLU, 2 the convolution's output (training form). SCALED: whether the gradient goes through `scale`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slowfast_ops.lateral_conv_concat.triton_forward import (
    pointers,
    tile_of,
)


@triton.jit
def conv_gradient(
    grad_ptr,
    kept_ptr,
    scale_ptr,
    mean_ptr,
    grad_mean_ptr,
    grad_var_ptr,
    n,
    t,
    p,
    o,
    count,
    positions,
    width,
    grad_n,
    grad_c,
    grad_t,
    grad_h,
    grad_w,
    kept_n,
    kept_c,
    kept_t,
    kept_h,
    kept_w,
    CHANNELS: tl.constexpr,
    KEPT: tl.constexpr,
    SCALED: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The gradient of the convolution's output at positions p and channels o of frame (n, t); 0 outside.

    `count` is the number of values per channel. Training form: grad + (grad_mean + 2 (conv - mean) grad_var) / count,
    where what rounding takes from the mean goes into the constant.
    """
    wide = tl.float64 if WIDE else tl.float32
    inside = o < CHANNELS
    mask = (p < positions)[:, None] & inside[None, :]
    from_ptr = pointers(grad_ptr, n, o, t, p, width, grad_n, grad_c, grad_t, grad_h, grad_w, UNIT, ALIGN, EVEN)
    value = tl.load(from_ptr, mask=mask, other=0).to(wide)
    if KEPT > 0:
        from_ptr = pointers(kept_ptr, n, o, t, p, width, kept_n, kept_c, kept_t, kept_h, kept_w, UNIT, ALIGN, EVEN)
        kept = tl.load(from_ptr, mask=mask, other=0).to(wide)
    if KEPT == 1:
        value = tl.where(kept <= 0, 0.0, value)
    if KEPT == 2:
        mean = tl.load(mean_ptr + o, mask=inside, other=0)
        centre = mean.to(wide)
        multiply = 2.0 * tl.load(grad_var_ptr + o, mask=inside, other=0) / count
        add = tl.load(grad_mean_ptr + o, mask=inside, other=0) / count + multiply * (centre.to(tl.float64) - mean)
        value += add.to(wide)[None, :] + multiply.to(wide)[None, :] * (kept - centre[None, :])
        value = tl.where(mask, value, 0.0)  # float16 could make an infinity of it, which times 0 is a NaN
    if SCALED:
        value *= tl.load(scale_ptr + o, mask=inside, other=0)[None, :]
    return value


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
    position_groups,
    slow_frames,
    width,
    alpha,
    grad_n,
    grad_c,
    grad_t,
    grad_h,
    grad_w,
    kept_n,
    kept_c,
    kept_t,
    kept_h,
    kept_w,
    fast_n,
    fast_c,
    fast_t,
    fast_h,
    fast_w,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    KEPT: tl.constexpr,
    SCALED: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """A tile of a Fast frame; 0 if no tap reaches it. The tiles that read the same Slow frame are adjacent."""
    DEPTH: tl.constexpr = FAST_CHANNELS * TAPS
    groups: tl.constexpr = (FAST_CHANNELS + BLOCK_F - 1) // BLOCK_F
    positions = position_groups * (ALIGN if UNIT == 2 else 1)
    program = tl.program_id(0)
    f = (program % groups).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    n, slot, p = tile_of(program // groups // alpha, slow_frames, positions, BLOCK_P)
    frame = slot * alpha + program // groups % alpha
    weight_align: tl.constexpr = ALIGN * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    reach = frame + TAPS // 2  # Slow frame t reads it through tap reach - alpha t
    first = tl.maximum(reach - TAPS + alpha, 0) // alpha
    end = tl.minimum(reach // alpha + 1, slow_frames)
    total = tl.zeros([BLOCK_P, BLOCK_F], dtype=tl.float64 if WIDE else tl.float32)
    for t in range(first, end):
        tap = reach - alpha * t
        for first_channel in range(0, CHANNELS, BLOCK_O):
            o = (first_channel + tl.arange(0, BLOCK_O)).to(tl.int64)
            x = conv_gradient(
                grad_ptr,
                kept_ptr,
                scale_ptr,
                mean_ptr,
                grad_mean_ptr,
                grad_var_ptr,
                n,
                t,
                p,
                o,
                count,
                positions,
                width,
                grad_n,
                grad_c,
                grad_t,
                grad_h,
                grad_w,
                kept_n,
                kept_c,
                kept_t,
                kept_h,
                kept_w,
                CHANNELS,
                KEPT,
                SCALED,
                UNIT,
                ALIGN,
                EVEN,
                WIDE,
            )
            mask = (o < CHANNELS)[:, None] & (f < FAST_CHANNELS)[None, :]
            from_ptr = tl.multiple_of(weight_ptr + first_channel * DEPTH, weight_align)
            w = tl.load(
                from_ptr + (tl.arange(0, BLOCK_O)[:, None] * DEPTH + (tap * FAST_CHANNELS + f)[None, :]),
                mask=mask,
                other=0,
            )
            if WIDE:
                total += x * w
            else:
                total = tl.dot(x.to(w.dtype), w, total, input_precision=PRECISION)
    to_ptr = pointers(grad_fast_ptr, n, f, frame, p, width, fast_n, fast_c, fast_t, fast_h, fast_w, UNIT, ALIGN, EVEN)
    mask = (p < positions)[:, None] & (f < FAST_CHANNELS)[None, :]
    tl.store(to_ptr, total.to(grad_fast_ptr.dtype.element_ty), mask=mask)


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
    position_groups,
    slow_frames,
    width,
    alpha,
    grad_n,
    grad_c,
    grad_t,
    grad_h,
    grad_w,
    kept_n,
    kept_c,
    kept_t,
    kept_h,
    kept_w,
    fast_n,
    fast_c,
    fast_t,
    fast_h,
    fast_w,
    FAST_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    KEPT: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """partials [part, channels, depth + 1]: a part's unscaled gradient of weight, [tap, channel], and of shift."""
    DEPTH: tl.constexpr = FAST_CHANNELS * TAPS
    groups: tl.constexpr = (DEPTH + BLOCK_D - 1) // BLOCK_D
    positions = position_groups * (ALIGN if UNIT == 2 else 1)
    program = tl.program_id(0)
    d = program % groups * BLOCK_D + tl.arange(0, BLOCK_D)
    k = d // FAST_CHANNELS
    c = (d % FAST_CHANNELS).to(tl.int64)
    o_groups = tl.cdiv(CHANNELS, BLOCK_O)
    o = (program // groups % o_groups).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    part = program // groups // o_groups
    total = tl.zeros([BLOCK_O, BLOCK_D], dtype=tl.float64 if WIDE else tl.float32)
    sums = tl.zeros([BLOCK_O], dtype=total.dtype)
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tiles)):
        n, t, p = tile_of(tile, slow_frames, positions, BLOCK_P)
        frame = t * alpha + k - TAPS // 2
        reached = (frame >= 0) & (frame < slow_frames * alpha) & (d < DEPTH)
        g = conv_gradient(
            grad_ptr,
            kept_ptr,
            None,
            mean_ptr,
            grad_mean_ptr,
            grad_var_ptr,
            n,
            t,
            p,
            o,
            count,
            positions,
            width,
            grad_n,
            grad_c,
            grad_t,
            grad_h,
            grad_w,
            kept_n,
            kept_c,
            kept_t,
            kept_h,
            kept_w,
            CHANNELS,
            KEPT,
            False,
            UNIT,
            ALIGN,
            EVEN,
            WIDE,
        )
        sums += tl.sum(g, 0)
        from_ptr = pointers(fast_ptr, n, c, frame, p, width, fast_n, fast_c, fast_t, fast_h, fast_w, UNIT, ALIGN, EVEN)
        x = tl.load(from_ptr, mask=(p < positions)[:, None] & reached[None, :], other=0)
        if WIDE:
            total += tl.trans(g) * x
        else:
            total = tl.dot(tl.trans(g.to(x.dtype)), x, total, input_precision=PRECISION)
    rows = partials_ptr + (part.to(tl.int64) * CHANNELS + o) * (DEPTH + 1)
    tl.store(rows[:, None] + d[None, :], total, mask=(o < CHANNELS)[:, None] & (d < DEPTH)[None, :])
    tl.store(rows + DEPTH, sums, mask=(o < CHANNELS) & (program % groups == 0))


@triton.jit
def join_weight_backward_kernel(
    partials_ptr,
    weight_ptr,
    scale_ptr,
    grad_weight_ptr,
    grad_scale_ptr,
    grad_shift_ptr,
    parts,
    grad_weight_o,
    grad_weight_c,
    grad_weight_k,
    FAST_CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """One output channel: adds the parts in order; the convolution is linear in weight, so that the gradient of scale
    is the product of weight and its unscaled gradient."""
    DEPTH: tl.constexpr = FAST_CHANNELS * TAPS
    wide = tl.float64 if WIDE else tl.float32
    o = tl.program_id(0).to(tl.int64)
    part_size = tl.num_programs(0).to(tl.int64) * (DEPTH + 1)
    products = tl.zeros([BLOCK], dtype=wide)
    for first in range(0, DEPTH + 1, BLOCK):
        d = first + tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], dtype=wide)
        for first_part in range(0, parts, BLOCK_PARTS):
            part = first_part + tl.arange(0, BLOCK_PARTS).to(tl.int64)
            place = partials_ptr + (part[:, None] * part_size + (o * (DEPTH + 1) + d)[None, :])
            total += tl.sum(tl.load(place, mask=(part < parts)[:, None] & (d <= DEPTH)[None, :], other=0), 0)
        if grad_scale_ptr is not None:
            weight = tl.load(weight_ptr + o * DEPTH + d, mask=d < DEPTH, other=0).to(wide)
            products += tl.where(d < DEPTH, total * weight, 0.0)
        if grad_shift_ptr is not None:
            tl.store(grad_shift_ptr + o + d * 0, total, mask=d == DEPTH)
        if scale_ptr is not None:
            total *= tl.load(scale_ptr + o)
        place = o * grad_weight_o + d % FAST_CHANNELS * grad_weight_c + d // FAST_CHANNELS * grad_weight_k
        tl.store(grad_weight_ptr + place, total.to(grad_weight_ptr.dtype.element_ty), mask=d < DEPTH)
    if grad_scale_ptr is not None:
        tl.store(grad_scale_ptr + o, tl.sum(products, 0))
