"""The lateral connections, Fast to Slow (section 3.4), on the fused operator of slowfast_ops."""

from __future__ import annotations

from torch import nn

from slowfast_model.models.config import ModelConfig
from slowfast_ops import LateralConvConcat


def lateral_channels(config: ModelConfig, level: int) -> int:
    """Channels that the lateral connection after ``level`` (0: stem, 1: res2, ...) adds to the Slow pathway."""
    if config.lateral is None or level == len(config.pathways[0].stages):
        return 0
    return config.lateral.channel_ratio * config.pathways[1].level_channels[level]


def build_laterals(config: ModelConfig, level_names: list[str]) -> nn.ModuleDict:
    """One connection per level but the last, by the level's name; empty without lateral connections."""
    laterals = nn.ModuleDict()
    if config.lateral is None:
        return laterals
    for level, name in enumerate(level_names[:-1]):
        laterals[name] = LateralConvConcat(
            config.pathways[1].level_channels[level],
            lateral_channels(config, level),
            kernel_size=config.lateral.kernel_size,
            alpha=config.alpha,
            norm=config.lateral.norm,
            relu=config.lateral.relu,
        )
    return laterals
