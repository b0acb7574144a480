"""SlowFast and Slow-only networks: configurations, presets and `build_model`."""

from slowfast_model.models.config import (
    HeadConfig,
    LateralConfig,
    ModelConfig,
    NonLocalConfig,
    PathwayConfig,
    StageConfig,
    StemConfig,
)
from slowfast_model.models.network import VideoNetwork, build_model
from slowfast_model.models.presets import fast_config, get_preset, list_presets, slow_config, slowfast_config

__all__ = [
    "HeadConfig",
    "LateralConfig",
    "ModelConfig",
    "NonLocalConfig",
    "PathwayConfig",
    "StageConfig",
    "StemConfig",
    "VideoNetwork",
    "build_model",
    "fast_config",
    "get_preset",
    "list_presets",
    "slow_config",
    "slowfast_config",
]
