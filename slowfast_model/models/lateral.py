"""The lateral connections between the pathways (section 3.4); the paper's own runs on slowfast_ops' fused operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_model.models.config import LateralConfig, ModelConfig
from slowfast_model.models.convolution import PlanarConv3d, memory_format_of
from slowfast_model.models.residual import join
from slowfast_ops import LateralConvConcat


class LateralRearrange(nn.Module):
    """Fast to Slow without a convolution: some of the frames, or all of them as channels; concatenated or added.

    Args:
        config: kind, norm, relu.
        fast_channels: channels of the Fast features.
        alpha: Fast frames per Slow frame.
    """

    def __init__(self, config: LateralConfig, fast_channels: int, alpha: int) -> None:
        super().__init__()
        self.config = config
        self.alpha = alpha
        channels = fast_channels if config.kind == "time_strided_sample" else alpha * fast_channels
        self.bn = nn.BatchNorm3d(channels) if config.norm else None

    def forward(self, slow: Tensor, fast: Tensor, residual: Tensor | None = None) -> Tensor:
        """slow [N, C, T, H, W], fast [N, Cf, alpha T, H, W] to the fused Slow features; as `LateralConvConcat`."""
        slow = join(slow, residual)
        if self.config.kind == "time_strided_sample":
            x = fast[:, :, :: self.alpha]
        else:
            x = fast.unflatten(2, (-1, self.alpha)).transpose(2, 3).flatten(1, 2)
        x = x.contiguous(memory_format=memory_format_of(slow))
        x = x if self.bn is None else self.bn(x)
        x = F.relu(x) if self.config.relu else x
        return slow + x if self.config.kind == "time_to_channel_sum" else torch.cat([slow, x], dim=1)


class SlowToFast(nn.Module):
    """The way back of a bidirectional connection: ``fast + repeat(relu(bn(conv(slow))))``.

    Args:
        config: norm, relu.
        slow_channels, fast_channels: of the features, before they are fused.
        alpha: Fast frames per Slow frame.
    """

    def __init__(self, config: LateralConfig, slow_channels: int, fast_channels: int, alpha: int) -> None:
        super().__init__()
        self.alpha = alpha
        self.relu = config.relu
        self.conv = PlanarConv3d(slow_channels, fast_channels, (1, 1, 1))
        self.bn = nn.BatchNorm3d(fast_channels) if config.norm else None

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        """slow [N, C, T, H, W], fast [N, Cf, alpha T, H, W] to the fused Fast features, of the shape of ``fast``."""
        x = self.conv(slow)
        x = x if self.bn is None else self.bn(x)
        x = F.relu(x) if self.relu else x
        return (fast.unflatten(2, (-1, self.alpha)) + x.unsqueeze(3)).flatten(2, 3)


def enlarge(fast: Tensor, slow: Tensor) -> Tensor:
    """Half-size Fast features at the size of the Slow ones, by nearest neighbours (the paper does not say how)."""
    return F.interpolate(fast, size=(fast.shape[2], *slow.shape[3:]))


def lateral_channels(config: ModelConfig, level: int) -> int:
    """Channels that the lateral connection after ``level`` (0: stem, 1: res2, ...) adds to the Slow pathway."""
    if config.lateral is None or level == len(config.pathways[0].stages):
        return 0
    return config.lateral.added_channels(config.pathways[1].level_channels[level], config.alpha)


def build_laterals(config: ModelConfig, level_names: list[str]) -> nn.ModuleDict:
    """One connection to the Slow pathway per level but the last, by the level's name; empty without connections."""
    laterals = nn.ModuleDict()
    lateral = config.lateral
    if lateral is None:
        return laterals
    for level, name in enumerate(level_names[:-1]):
        channels = config.pathways[1].level_channels[level]
        laterals[name] = (
            LateralConvConcat(
                channels,
                lateral.added_channels(channels, config.alpha),
                kernel_size=lateral.kernel_size,
                alpha=config.alpha,
                norm=lateral.norm,
                relu=lateral.relu,
            )
            if lateral.kind == "time_strided_conv"
            else LateralRearrange(lateral, channels, config.alpha)
        )
    return laterals


def build_ways_back(config: ModelConfig, level_names: list[str]) -> nn.ModuleDict:
    """The connections to the Fast pathway, likewise; empty unless they are bidirectional."""
    ways_back = nn.ModuleDict()
    if config.lateral is not None and config.lateral.bidirectional:
        slow, fast = config.pathways
        for level, name in enumerate(level_names[:-1]):
            channels = slow.level_channels[level], fast.level_channels[level]
            ways_back[name] = SlowToFast(config.lateral, *channels, config.alpha)
    return ways_back
