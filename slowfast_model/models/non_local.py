"""Non-local blocks: attention over all positions of a feature map, added to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_model.models.config import NonLocalConfig, NonLocalInstantiation
from slowfast_model.models.convolution import PlanarConv3d, memory_format_of


class Attention(nn.Module):
    """Sums of ``values`` weighted by the affinity of ``queries`` to ``keys``; no parameters."""

    def __init__(self, instantiation: NonLocalInstantiation) -> None:
        super().__init__()
        self.instantiation = instantiation

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries [N, L, C], keys and values [N, S, C] -> [N, L, C]."""
        if self.instantiation == "softmax":
            return F.scaled_dot_product_attention(queries, keys, values)  # scaled by C ** -0.5
        return torch.bmm(torch.bmm(queries, keys.transpose(1, 2)) / keys.shape[1], values)


class NonLocalBlock(nn.Module):
    """``x + bn(out(attention(theta(x), phi(pool(x)), g(pool(x)))))`` with half of the channels inside.

    Args:
        channels: channels of input and output.
        config: instantiation and pooling.
    """

    def __init__(self, channels: int, config: NonLocalConfig) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.theta = PlanarConv3d(channels, inner, (1, 1, 1), bias=True)
        self.phi = PlanarConv3d(channels, inner, (1, 1, 1), bias=True)
        self.g = PlanarConv3d(channels, inner, (1, 1, 1), bias=True)
        self.attention = Attention(config.instantiation)
        self.out = PlanarConv3d(inner, channels, (1, 1, 1), bias=True)
        self.bn = nn.BatchNorm3d(channels)
        self.pool = config.pool

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[N, C, T, H, W] to (output of the same shape, None): no ReLU follows, so the output is complete."""
        attended = x
        if max(self.pool) > 1:  # a map smaller than the pooling is one bin
            attended = F.max_pool3d(x, [min(size, kernel) for size, kernel in zip(x.shape[2:], self.pool, strict=True)])
        queries, keys, values = (
            y.flatten(2).transpose(1, 2) for y in (self.theta(x), self.phi(attended), self.g(attended))
        )
        y = self.attention(queries, keys, values).transpose(1, 2).unflatten(2, x.shape[2:])
        y = y.contiguous(memory_format=memory_format_of(x))
        return self.bn(self.out(y)).add_(x), None
