"""lateral_conv_concat in Triton: launchers, and what they compile. Imported when it first runs.

The kernels are in triton_forward.py, triton_norm.py and triton_backward.py; sizes of tiles and the like in
triton_plan.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from slowfast_ops._native import allocate
from slowfast_ops.lateral_conv_concat import native, triton_backward, triton_forward, triton_norm
from slowfast_ops.lateral_conv_concat import triton_plan as plan
from slowfast_ops.lateral_conv_concat.triton_plan import compile_configurations

__all__ = [
    "backward",
    "compile_configurations",
    "forward",
    "norm_concat",
    "norm_concat_backward",
    "statistics",
    "statistics_backward",
]


def forward(
    slow: Tensor,
    fast: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    alpha: int,
    relu: bool,
) -> Tensor:
    output = native.allocate_output(slow, weight.shape[0])
    if output.numel() == 0:
        return output
    weight = native.depth_major(weight)
    layout = plan.layout(slow, fast, residual, output)
    blocks = plan.forward_blocks(slow, weight) | plan.copy_block(slow)
    tiles = triton.cdiv(plan.row_count(slow), blocks["BLOCK_P"])
    convolving = tiles * triton.cdiv(weight.shape[0], blocks["BLOCK_O"])
    programs = convolving + tiles * triton.cdiv(slow.shape[1], blocks["BLOCK_C"])
    triton_forward.forward_kernel[(programs,)](
        slow,
        fast,
        weight,
        _vector(scale),
        _vector(shift),
        residual,
        output,
        convolving,
        plan.spacing(convolving, programs),
        plan.extent(slow, layout),
        alpha,
        slow.stride(),
        fast.stride(),
        (slow if residual is None else residual).stride(),
        output.stride(),
        **plan.shape(weight),
        SLOW_CHANNELS=slow.shape[1],
        RELU=relu,
        LAYOUT=layout,
        WIDE=slow.dtype == torch.float64,
        PRECISION=plan.precision(),
        **blocks,
    )
    return output


def backward(
    grad_output: Tensor,
    output: Tensor | None,
    fast: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    alpha: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = native.allocate_gradients(grad_output, fast, weight, needs)
    grad, kept = (native.lateral(x, weight.shape[0]) for x in (grad_output, output))
    wanted = (needs[0], any(needs[1:]), *needs[2:])
    _conv_backward(grad, kept, _vector(scale), (None, None, None), fast, weight, alpha, grads, wanted)
    return grads


def statistics(fast: Tensor, weight: Tensor, alpha: int) -> tuple[Tensor, Tensor, Tensor]:
    conv = native.allocate_conv(fast, weight, alpha)
    mean, var = native.allocate_statistics(weight.shape[0], fast)
    weight = native.depth_major(weight)
    layout, rows = plan.layout(fast, conv), plan.row_count(conv)
    blocks = plan.statistics_blocks(conv, weight)
    tiles = triton.cdiv(rows, blocks["BLOCK_P"])
    partials = allocate((2, conv.shape[1], tiles), like=fast, dtype=torch.float64)
    if tiles:
        triton_forward.statistics_forward_kernel[(tiles * triton.cdiv(weight.shape[0], blocks["BLOCK_O"]),)](
            fast,
            weight,
            conv,
            partials,
            tiles,
            plan.extent(conv, layout),
            alpha,
            fast.stride(),
            conv.stride(),
            **plan.shape(weight),
            LAYOUT=layout,
            WIDE=fast.dtype == torch.float64,
            PRECISION=plan.precision(),
            **blocks,
        )
    triton_forward.join_statistics_kernel[(conv.shape[1],)](
        partials, mean, var, tiles, rows, BLOCK_P=blocks["BLOCK_P"], BLOCK=plan.PARTIALS_BLOCK
    )
    return conv, mean, var


def statistics_backward(
    grad_conv: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    fast: Tensor,
    weight: Tensor,
    conv: Tensor,
    mean: Tensor,
    alpha: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    grads = native.allocate_gradient(fast, needs[0]), native.allocate_gradient(weight, needs[1])
    vectors = tuple(x.double().contiguous() for x in (mean, grad_mean, grad_var))
    kept: Tensor | None = conv
    if plan.stores_conv_gradient(weight):
        grad_conv, kept, vectors = _conv_gradient(grad_conv, conv, vectors), None, (None, None, None)
    wanted = (*needs, False, False)
    _conv_backward(grad_conv, kept, None, vectors, fast, weight, alpha, (*grads, None, None), wanted)
    return grads


def _conv_gradient(grad: Tensor, conv: Tensor, vectors: Sequence[Tensor | None]) -> Tensor:
    grad_conv = native.allocate_gradient(conv)
    layout, blocks, rows = plan.layout(grad, conv, grad_conv), plan.norm_blocks(conv), plan.row_count(conv)
    programs = triton.cdiv(rows, blocks["BLOCK_P"]) * triton.cdiv(conv.shape[1], blocks["BLOCK_O"])
    if programs:
        triton_backward.conv_gradient_kernel[(programs,)](
            grad,
            conv,
            *vectors,
            grad_conv,
            rows,
            plan.extent(conv, layout),
            grad.stride(),
            conv.stride(),
            grad_conv.stride(),
            CHANNELS=conv.shape[1],
            LAYOUT=layout,
            WIDE=conv.dtype == torch.float64,
            **blocks,
        )
    return grad_conv


def _conv_backward(
    grad: Tensor,
    kept: Tensor | None,
    scale: Tensor | None,
    vectors: Sequence[Tensor | None],
    fast: Tensor,
    weight: Tensor,
    alpha: int,
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> None:
    """Both forms: `vectors` are mean, grad_mean and grad_var in the training form, where `kept` is conv."""
    grad_fast, grad_weight, grad_scale, grad_shift = (x if w else None for x, w in zip(grads, wanted, strict=True))
    weight = native.depth_major(weight)
    channels, rows = weight.shape[0], plan.row_count(grad)
    constants = {
        "KEPT": 0 if kept is None else 1 if vectors[0] is None else 2,
        "WIDE": grad.dtype == torch.float64,
        "PRECISION": plan.precision(),
        **plan.shape(weight),
    }
    strides = (grad.stride(), (grad if kept is None else kept).stride())
    if grad_fast is not None and grad_fast.numel():
        layout, blocks = plan.layout(grad, kept, grad_fast), plan.fast_blocks(grad, weight, alpha)
        column_blocks = triton.cdiv(alpha * weight.shape[1], blocks["BLOCK_F"])
        triton_backward.fast_backward_kernel[(triton.cdiv(rows, blocks["BLOCK_P"]) * column_blocks,)](
            grad,
            kept,
            scale,
            *vectors,
            weight,
            grad_fast,
            rows,
            plan.extent(grad, layout),
            *strides,
            grad_fast.stride(),
            **constants,
            ALPHA=alpha,
            LAYOUT=layout,
            **blocks,
        )
    if grad_weight is not None:
        layout, blocks = plan.layout(grad, kept, fast), plan.weight_blocks(grad, weight)
        depth = weight.shape[1] * weight.shape[2]
        tiles = triton.cdiv(rows, blocks["BLOCK_P"])
        groups = triton.cdiv(channels, blocks["BLOCK_O"]) * triton.cdiv(depth, blocks["BLOCK_D"])
        parts, tiles_per_part = plan.split(tiles, groups, plan.WEIGHT_PROGRAMS)
        dtype = native.accumulator_dtype(grad.dtype)
        partials = allocate((parts, channels, depth + 1), like=grad, dtype=dtype)
        if parts:
            triton_backward.weight_backward_kernel[(parts * groups,)](
                grad,
                kept,
                *vectors,
                fast,
                partials,
                tiles,
                tiles_per_part,
                rows,
                plan.extent(grad, layout),
                alpha,
                *strides,
                fast.stride(),
                **constants,
                SHIFT=grad_shift is not None,
                LAYOUT=layout,
                **blocks,
            )
        shares = triton.cdiv(depth + 1, plan.JOIN_BLOCKS["BLOCK"]) if grad_scale is None else 1
        triton_backward.join_weight_backward_kernel[(channels, shares)](
            partials,
            weight,
            scale,
            grad_weight,
            grad_scale,
            grad_shift,
            parts,
            grad_weight.stride(),
            FAST_CHANNELS=weight.shape[1],
            TAPS=weight.shape[2],
            WIDE=constants["WIDE"],
            **plan.JOIN_BLOCKS,
        )


def norm_concat(
    slow: Tensor,
    conv: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> Tensor:
    channels = conv.shape[1]
    output = native.allocate_output(slow, channels)
    if output.numel() == 0:
        return output
    layout = plan.layout(slow, conv, residual, output)
    blocks = plan.norm_blocks(conv) | plan.copy_block(slow)
    tiles = triton.cdiv(plan.row_count(slow), blocks["BLOCK_P"])
    normalising = tiles * triton.cdiv(channels, blocks["BLOCK_O"])
    triton_norm.norm_forward_kernel[(normalising + tiles * triton.cdiv(slow.shape[1], blocks["BLOCK_C"]),)](
        slow,
        conv,
        mean.double().contiguous(),
        var.double().contiguous(),
        _vector(gamma),
        _vector(beta),
        residual,
        output,
        normalising,
        plan.extent(slow, layout),
        plan.bits(eps),
        slow.stride(),
        conv.stride(),
        (slow if residual is None else residual).stride(),
        output.stride(),
        SLOW_CHANNELS=slow.shape[1],
        CHANNELS=channels,
        RELU=relu,
        LAYOUT=layout,
        WIDE=conv.dtype == torch.float64,
        **blocks,
    )
    return output


def norm_concat_backward(
    grad_output: Tensor,
    conv: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels = conv.shape[1]
    grad, grad_conv = grad_output[:, -channels:], native.allocate_gradient(conv)
    grad_mean, grad_var = native.allocate_statistics(channels, conv)
    grad_gamma, grad_beta = (native.allocate_vector(channels, conv) for _ in range(2))
    vectors = (mean.double().contiguous(), var.double().contiguous(), _vector(gamma))
    layout, blocks = plan.layout(grad, conv, grad_conv), plan.norm_blocks(conv)
    groups = triton.cdiv(channels, blocks["BLOCK_O"])
    tiles = triton.cdiv(plan.row_count(conv), blocks["BLOCK_P"])
    parts, tiles_per_part = plan.split(tiles, groups, plan.NORM_PROGRAMS)
    partials = allocate((2, channels, parts), like=conv, dtype=torch.float64)
    wide = conv.dtype == torch.float64
    if parts:
        triton_norm.norm_backward_kernel[(parts * groups,)](
            grad,
            conv,
            *vectors,
            _vector(beta),
            grad_conv,
            partials,
            parts,
            tiles,
            tiles_per_part,
            plan.extent(conv, layout),
            plan.bits(eps),
            grad.stride(),
            conv.stride(),
            grad_conv.stride(),
            CHANNELS=channels,
            RELU=relu,
            LAYOUT=layout,
            WIDE=wide,
            **blocks,
        )
    grads = (grad_mean, grad_var, grad_gamma, grad_beta)
    triton_norm.join_norm_backward_kernel[(channels,)](
        partials, *vectors, *grads, parts, plan.bits(eps), WIDE=wide, BLOCK=plan.PARTIALS_BLOCK
    )
    return grad_conv, *grads


def _vector(values: Tensor | None) -> Tensor | None:
    """Per-channel values in any dtype: the kernels convert them as they load them."""
    return None if values is None else values.contiguous()
