"""lateral_conv_concat on the compiled kernels: outputs and workspaces are allocated here, the rest happens in csrc/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slowfast_ops._library import output_memory_format
from slowfast_ops._native import allocate, cuda_place, library, num_threads, view


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernels multiply and sum in, and keep statistics in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def allocate_output(slow: Tensor, lateral_channels: int) -> Tensor:
    n, c, t, h, w = slow.shape
    return allocate((n, c + lateral_channels, t, h, w), like=slow, memory_format=output_memory_format(slow))


def allocate_conv(fast: Tensor, weight: Tensor, alpha: int) -> Tensor:
    n, _, frames, h, w = fast.shape
    shape = (n, weight.shape[0], frames // alpha, h, w)
    return allocate(shape, like=fast, memory_format=output_memory_format(fast))


def allocate_gradient(x: Tensor, wanted: bool = True) -> Tensor:
    """A tensor like `x`; without elements where it is not wanted, because an op returns a fixed number of tensors."""
    return allocate(x.shape, like=x, memory_format=output_memory_format(x)) if wanted else allocate((0,), like=x)


def allocate_vector(length: int, like: Tensor) -> Tensor:
    return allocate((length,), like=like, dtype=accumulator_dtype(like.dtype))


def allocate_statistics(channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, or their gradients: float64 for any dtype (csrc/include/slowfast/lateral_conv_concat.h)."""
    mean, var = (allocate((channels,), like=like, dtype=torch.float64) for _ in range(2))
    return mean, var


def _forward(
    cuda: bool,
    slow: Tensor,
    fast: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    alpha: int,
    relu: bool,
) -> Tensor:
    output = allocate_output(slow, weight.shape[0])
    weight = depth_major(weight) if cuda else weight
    tensors = (slow, fast, weight, vector(scale, slow), vector(shift, slow), residual, output)
    if cuda:
        library().lateral_conv_concat_forward_cuda(*map(view, tensors), alpha, relu, *cuda_place(slow))
    else:
        library().lateral_conv_concat_forward_cpu(*map(view, tensors), alpha, relu, _workspace(slow), num_threads())
    return output


def _backward(
    cuda: bool,
    grad_output: Tensor,
    output: Tensor | None,
    fast: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    alpha: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = allocate_gradients(grad_output, fast, weight, needs)
    laterals = (lateral(grad_output, weight.shape[0]), lateral(output, weight.shape[0]))
    weight = depth_major(weight) if cuda else weight
    inputs = (*laterals, vector(scale, grad_output), None, None, None, None, fast, weight)
    # The gradients of weight, scale and shift come from the same sums.
    wanted = (needs[0], any(needs[1:]), needs[2], needs[3])
    outputs = [view(x) if w else None for x, w in zip(results, wanted, strict=True)]
    _run_backward(cuda, grad_output, *map(view, inputs), *outputs, alpha)
    return results


def _run_backward(cuda: bool, like: Tensor, *arguments: Any) -> None:
    if cuda:
        library().lateral_conv_backward_cuda(*arguments, _workspace(like), *cuda_place(like))
    else:
        library().lateral_conv_backward_cpu(*arguments, _workspace(like), num_threads())


def allocate_gradients(
    grad_output: Tensor, fast: Tensor, weight: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = weight.shape[0]
    return (
        allocate_gradient(fast, needs[0]),
        allocate_gradient(weight, any(needs[1:])),
        allocate_vector(channels if needs[2] else 0, grad_output),
        allocate_vector(channels if needs[3] else 0, grad_output),
    )


def _statistics(cuda: bool, fast: Tensor, weight: Tensor, alpha: int) -> tuple[Tensor, Tensor, Tensor]:
    conv = allocate_conv(fast, weight, alpha)
    mean, var = allocate_statistics(weight.shape[0], fast)
    tensors = (fast, depth_major(weight) if cuda else weight, conv, mean, var)
    if cuda:
        library().lateral_conv_statistics_cuda(
            *map(view, tensors), alpha, _workspace(fast, torch.float64), *cuda_place(fast)
        )
    else:
        library().lateral_conv_statistics_cpu(*map(view, tensors), alpha, _workspace(fast), num_threads())
    return conv, mean, var


def _statistics_backward(
    cuda: bool,
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
    results = allocate_gradient(fast, needs[0]), allocate_gradient(weight, needs[1])
    vectors = [x.double().contiguous() for x in (mean, grad_mean, grad_var)]
    outputs = [view(x) if wanted else None for x, wanted in zip(results, needs, strict=True)]
    weight = depth_major(weight) if cuda else weight
    inputs = (grad_conv, None, None, conv, *vectors, fast, weight)
    _run_backward(cuda, grad_conv, *map(view, inputs), *outputs, None, None, alpha)
    return results


def _norm_concat(
    cuda: bool,
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
    output = allocate_output(slow, conv.shape[1])
    vectors = (mean.double().contiguous(), var.double().contiguous(), vector(gamma, conv), vector(beta, conv))
    tensors = (slow, conv, *vectors, residual, output)
    if cuda:
        library().lateral_norm_concat_cuda(*map(view, tensors), eps, relu, *cuda_place(conv))
    else:
        library().lateral_norm_concat_cpu(*map(view, tensors), eps, relu, _workspace(conv), num_threads())
    return output


def _norm_concat_backward(
    cuda: bool,
    grad_output: Tensor,
    conv: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_conv = allocate_gradient(conv)
    grad_mean, grad_var = allocate_statistics(conv.shape[1], conv)
    grad_gamma, grad_beta = (allocate_vector(conv.shape[1], conv) for _ in range(2))
    vectors = (mean.double().contiguous(), var.double().contiguous(), vector(gamma, conv), vector(beta, conv))
    gradients = (grad_conv, grad_mean, grad_var, grad_gamma, grad_beta)
    tensors = (lateral(grad_output, conv.shape[1]), conv, *vectors, *gradients)
    if cuda:
        library().lateral_norm_backward_cuda(
            *map(view, tensors), eps, relu, _workspace(conv, torch.float64), *cuda_place(conv)
        )
    else:
        library().lateral_norm_backward_cpu(*map(view, tensors), eps, relu, _workspace(conv), num_threads())
    return gradients


def lateral(x: Tensor | None, channels: int) -> Tensor | None:
    """The part of the op's output that the convolution made."""
    return None if x is None else x[:, x.shape[1] - channels :]


def vector(values: Tensor | None, like: Tensor) -> Tensor | None:
    """Per-channel values as the kernels take them: contiguous, in the accumulator's dtype."""
    return None if values is None else values.to(accumulator_dtype(like.dtype)).contiguous()


def depth_major(weight: Tensor) -> Tensor:
    """The weight as the GPU kernels read it, [Co][K][Cf] in memory: itself if it is channels-last, else a copy."""
    fast_channels, taps = weight.shape[1:3]
    if weight.stride()[:3] == (fast_channels * taps, 1, fast_channels):
        return weight
    return weight[..., 0, 0].transpose(1, 2).contiguous().transpose(1, 2)[..., None, None]


def _workspace(like: Tensor, dtype: torch.dtype | None = None) -> Callable[[int], Tensor]:
    return lambda size: allocate((size,), like=like, dtype=dtype or accumulator_dtype(like.dtype))


forward_cpu: Callable = partial(_forward, False)
forward_cuda: Callable = partial(_forward, True)
backward_cpu: Callable = partial(_backward, False)
backward_cuda: Callable = partial(_backward, True)
statistics_cpu: Callable = partial(_statistics, False)
statistics_cuda: Callable = partial(_statistics, True)
statistics_backward_cpu: Callable = partial(_statistics_backward, False)
statistics_backward_cuda: Callable = partial(_statistics_backward, True)
norm_concat_cpu: Callable = partial(_norm_concat, False)
norm_concat_cuda: Callable = partial(_norm_concat, True)
norm_concat_backward_cpu: Callable = partial(_norm_concat_backward, False)
norm_concat_backward_cuda: Callable = partial(_norm_concat_backward, True)
