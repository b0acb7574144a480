"""torch.ops.slowfast.lateral_*: schemas, fake kernels, autograd, autocast; and the same ops on Triton.

    lateral_conv_concat        the inference form, one op
    lateral_conv_statistics    the training form's convolution, with the mean and variance of its output in float64
    lateral_norm_concat        normalisation by those (or by those of all processes), ReLU and concatenation

Each has a backward op. The gradient of `slow` needs none: it is a part of the output's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from slowfast_ops._library import autocasts, blocks_double_backward, cast_floating, define, differentiable, widest
from slowfast_ops.lateral_conv_concat import native

PUBLIC_NAME = "lateral_conv_concat"


# ---- fake kernels


def _fake(slow: Tensor, fast: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return native.allocate_output(slow, weight.shape[0])


def _fake_backward(
    grad_output: Tensor,
    output: Tensor | None,
    fast: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    alpha: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return native.allocate_gradients(grad_output, fast, weight, needs)


def _fake_statistics(fast: Tensor, weight: Tensor, alpha: int) -> tuple[Tensor, Tensor, Tensor]:
    return native.allocate_conv(fast, weight, alpha), *native.allocate_statistics(weight.shape[0], fast)


def _fake_statistics_backward(grad_conv: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    _, _, fast, weight, _, _, _, needs = args
    return native.allocate_gradient(fast, needs[0]), native.allocate_gradient(weight, needs[1])


def _fake_norm_concat(slow: Tensor, conv: Tensor, *options: Any) -> Tensor:
    return native.allocate_output(slow, conv.shape[1])


def _fake_norm_concat_backward(grad_output: Tensor, conv: Tensor, *args: Any) -> tuple:
    channels = conv.shape[1]
    affine = [native.allocate_vector(channels, conv) for _ in range(2)]
    return native.allocate_gradient(conv), *native.allocate_statistics(channels, conv), *affine


# ---- autocast: a convolution lowers its inputs, a concatenation widens them


def _autocast_conv_concat(args: Sequence[Any], lower: torch.dtype) -> list[Any]:
    """The output has the dtype that torch.cat would give it; where that is float32, so does the convolution."""
    slow, residual = args[0], args[5]
    return cast_floating(args, widest([lower, *(x.dtype for x in (slow, residual) if x is not None)]), (0, 1, 2, 5))


def _autocast_norm_concat(args: Sequence[Any], lower: torch.dtype) -> list[Any]:
    """As _autocast_conv_concat; statistics, gamma and beta keep their dtype, as in torch.batch_norm."""
    return cast_floating(args, widest([args[i].dtype for i in (0, 1, 6) if args[i] is not None]), (0, 1, 6))


# ---- the ops, once for the compiled kernels and once for Triton


def _grad_slow(grad_output: Tensor, rectified: Tensor | None, slow_channels: int) -> Tensor:
    """The gradient of slow (and of residual): a view without a residual, else through relu(slow + residual)."""
    grad = grad_output[:, :slow_channels]
    return grad if rectified is None else torch.ops.aten.threshold_backward(grad, rectified[:, :slow_channels], 0)


def _define_conv_concat(suffix: str, forward: dict, backward: dict) -> Any:
    op = define(
        f"lateral_conv_concat{suffix}(Tensor slow, Tensor fast, Tensor weight, Tensor? scale, Tensor? shift, "
        "Tensor? residual, int alpha, bool relu) -> Tensor",
        fake=_fake,
        **forward,
    )
    # `output` is given where there is a ReLU to go back through; `needs`: which gradients are wanted of fast, weight,
    # scale and shift.
    backward_op = define(
        f"lateral_conv_concat{suffix}_backward(Tensor grad_output, Tensor? output, Tensor fast, Tensor weight, "
        "Tensor? scale, int alpha, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_backward,
        **backward,
    )

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        slow, fast, weight, scale, shift, residual, alpha, relu = inputs
        ctx.save_for_backward(fast, weight, scale, output if relu or residual is not None else None)
        ctx.dtypes = [None if x is None else x.dtype for x in (scale, shift)]
        ctx.alpha, ctx.relu, ctx.has_residual, ctx.slow_channels = alpha, relu, residual is not None, slow.shape[1]

    def gradients(ctx: Any, grad_output: Tensor) -> tuple:
        fast, weight, scale, output = ctx.saved_tensors
        grad_slow = _grad_slow(grad_output, output if ctx.has_residual else None, ctx.slow_channels)
        needs = [bool(needed) for needed in ctx.needs_input_grad[1:5]]
        grads: list[Tensor | None] = [None] * 4
        if any(needs):
            rectified = output if ctx.relu else None
            results = backward_op(grad_output, rectified, fast, weight, scale, ctx.alpha, needs)
            grads = [grad if needed else None for grad, needed in zip(results, needs, strict=True)]
            grads[2:] = [None if g is None else g.to(dtype) for g, dtype in zip(grads[2:], ctx.dtypes, strict=True)]
        return grad_slow, *grads, grad_slow if ctx.has_residual else None, None, None

    differentiable(op, backward=gradients, setup_context=setup_context)
    blocks_double_backward(backward_op, PUBLIC_NAME)
    autocasts(op, _autocast_conv_concat)
    return op


def _define_statistics(suffix: str, forward: dict, backward: dict) -> Any:
    op = define(
        f"lateral_conv_statistics{suffix}(Tensor fast, Tensor weight, int alpha) -> (Tensor, Tensor, Tensor)",
        fake=_fake_statistics,
        **forward,
    )
    backward_op = define(
        f"lateral_conv_statistics{suffix}_backward(Tensor grad_conv, Tensor grad_mean, Tensor grad_var, Tensor fast, "
        "Tensor weight, Tensor conv, Tensor mean, int alpha, bool[] needs) -> (Tensor, Tensor)",
        fake=_fake_statistics_backward,
        **backward,
    )

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        fast, weight, ctx.alpha = inputs
        conv, mean, _ = output
        ctx.save_for_backward(fast, weight, conv, mean)

    def gradients(ctx: Any, grad_conv: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple:
        needs = [bool(needed) for needed in ctx.needs_input_grad[:2]]
        grads = backward_op(grad_conv, grad_mean, grad_var, *ctx.saved_tensors, ctx.alpha, needs)
        return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), None

    differentiable(op, backward=gradients, setup_context=setup_context)
    blocks_double_backward(backward_op, PUBLIC_NAME)
    autocasts(op, "lower")
    return op


def _define_norm_concat(suffix: str, forward: dict, backward: dict) -> Any:
    op = define(
        f"lateral_norm_concat{suffix}(Tensor slow, Tensor conv, Tensor mean, Tensor var, Tensor? gamma, Tensor? beta, "
        "Tensor? residual, bool relu, float eps) -> Tensor",
        fake=_fake_norm_concat,
        **forward,
    )
    backward_op = define(
        f"lateral_norm_concat{suffix}_backward(Tensor grad_output, Tensor conv, Tensor mean, Tensor var, "
        "Tensor? gamma, Tensor? beta, bool relu, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_norm_concat_backward,
        **backward,
    )

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        slow, conv, mean, var, gamma, beta, residual, ctx.relu, ctx.eps = inputs
        ctx.has_residual, ctx.slow_channels = residual is not None, slow.shape[1]
        ctx.save_for_backward(conv, mean, var, gamma, beta, output if ctx.has_residual else None)
        ctx.dtypes = [None if x is None else x.dtype for x in (gamma, beta)]

    def gradients(ctx: Any, grad_output: Tensor) -> tuple:
        *saved, output = ctx.saved_tensors
        grad_slow = _grad_slow(grad_output, output, ctx.slow_channels)
        *grads, grad_gamma, grad_beta = backward_op(grad_output, *saved, ctx.relu, ctx.eps)
        affine = [None if d is None else g.to(d) for g, d in zip((grad_gamma, grad_beta), ctx.dtypes, strict=True)]
        return grad_slow, *grads, *affine, grad_slow if ctx.has_residual else None, None, None

    differentiable(op, backward=gradients, setup_context=setup_context)
    blocks_double_backward(backward_op, PUBLIC_NAME)
    autocasts(op, _autocast_norm_concat)
    return op


def _triton(name: str) -> dict[str, Callable]:
    """A launcher of triton.py for either device; it imports Triton when it first runs."""

    def launch(*args: Any) -> Any:
        from slowfast_ops.lateral_conv_concat import triton

        return getattr(triton, name)(*args)

    return {"cpu": launch, "cuda": launch}


# Both have the functions of reference.py: lateral_conv_concat, lateral_conv_statistics and lateral_norm_concat.
compiled = SimpleNamespace(
    lateral_conv_concat=_define_conv_concat(
        "",
        {"cpu": native.forward_cpu, "cuda": native.forward_cuda},
        {"cpu": native.backward_cpu, "cuda": native.backward_cuda},
    ),
    lateral_conv_statistics=_define_statistics(
        "",
        {"cpu": native.statistics_cpu, "cuda": native.statistics_cuda},
        {"cpu": native.statistics_backward_cpu, "cuda": native.statistics_backward_cuda},
    ),
    lateral_norm_concat=_define_norm_concat(
        "",
        {"cpu": native.norm_concat_cpu, "cuda": native.norm_concat_cuda},
        {"cpu": native.norm_concat_backward_cpu, "cuda": native.norm_concat_backward_cuda},
    ),
)
triton = SimpleNamespace(
    lateral_conv_concat=_define_conv_concat("_triton", _triton("forward"), _triton("backward")),
    lateral_conv_statistics=_define_statistics("_triton", _triton("statistics"), _triton("statistics_backward")),
    lateral_norm_concat=_define_norm_concat("_triton", _triton("norm_concat"), _triton("norm_concat_backward")),
)
