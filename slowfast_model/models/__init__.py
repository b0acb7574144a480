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
from slowfast_model.models.presets import (
    c2d_config,
    fast_config,
    get_preset,
    i3d_config,
    list_presets,
    slow_config,
    slowfast_config,
)

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
    "c2d_config",
    "fast_config",
    "get_preset",
    "i3d_config",
    "list_presets",
    "slow_config",
    "slowfast_config",
]
