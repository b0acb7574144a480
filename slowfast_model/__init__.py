"""SlowFast networks for video recognition: models, data, training and evaluation, on the operators of slowfast_ops."""

from slowfast_model.models import ModelConfig, build_model, get_preset, list_presets, slow_config, slowfast_config

__all__ = ["ModelConfig", "build_model", "get_preset", "list_presets", "slow_config", "slowfast_config"]
