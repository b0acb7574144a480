"""The lateral connection in plain PyTorch: the definition that every kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from slowfast_ops._library import output_memory_format


def lateral_conv_concat(
    slow: Tensor,
    fast: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    alpha: int,
    relu: bool,
) -> Tensor:
    """The inference form: batch norm, if any, is folded into scale and shift."""
    lateral = _conv(fast, weight, alpha)
    return _concat(slow, _affine(lateral, scale, shift), residual, relu)


def lateral_conv_statistics(fast: Tensor, weight: Tensor, alpha: int) -> tuple[Tensor, Tensor, Tensor]:
    """First half of the training form: the convolution, and mean and (biased) variance of its output by channel."""
    conv = _conv(fast, weight, alpha)
    values = conv.double() if conv.dtype == torch.float64 else conv.float()
    mean = values.mean((0, 2, 3, 4)) if conv.numel() else values.new_zeros(conv.shape[1])
    var = (values - _channel(mean)).square().mean((0, 2, 3, 4)) if conv.numel() else mean
    return conv, mean, var


def lateral_norm_concat(
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
    """Second half of the training form: normalisation by those statistics, ReLU and concatenation."""
    normalized = (conv - _channel(mean)) * _channel((var + eps).rsqrt())
    return _concat(slow, _affine(normalized, gamma, beta).to(conv.dtype), residual, relu)


def _conv(fast: Tensor, weight: Tensor, alpha: int) -> Tensor:
    return F.conv3d(fast, weight, stride=(alpha, 1, 1), padding=(weight.shape[2] // 2, 0, 0))


def _affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    y = x if scale is None else x * _channel(scale)
    y = y if shift is None else y + _channel(shift)
    return y.to(x.dtype)


def _concat(slow: Tensor, lateral: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    first = slow if residual is None else (slow + residual).relu()
    second = lateral.relu() if relu else lateral
    return torch.cat([first, second], dim=1).contiguous(memory_format=output_memory_format(slow))


def _channel(values: Tensor) -> Tensor:
    return values[:, None, None, None]
