"""The named networks of the paper, and small ones that a CPU trains in minutes."""

from __future__ import annotations

import difflib

from slowfast_model.errors import InputError
from slowfast_model.models.config import HeadConfig, LateralConfig, ModelConfig, PathwayConfig, StageConfig, StemConfig

RESNET_DEPTHS = {50: (3, 4, 6, 3)}


def slow_pathway(depths: tuple[int, ...], width: int = 64, stem: StemConfig | None = None) -> PathwayConfig:
    """The Slow pathway of Table 1: temporal convolutions in the last two stages only, none in the stem."""
    strides = (1,) + (2,) * (len(depths) - 1)
    kernels = (1,) * (len(depths) - 2) + (3, 3)
    stages = tuple(StageConfig(d, (k,), stride=s) for d, k, s in zip(depths, kernels, strides, strict=True))
    return PathwayConfig(width, stages, stem or StemConfig())


def fast_pathway(depths: tuple[int, ...], width: int = 8, stem: StemConfig | None = None) -> PathwayConfig:
    """The Fast pathway of Table 1: temporal convolutions everywhere, beta = 1/8 of the Slow pathway's width."""
    strides = (1,) + (2,) * (len(depths) - 1)
    stages = tuple(StageConfig(d, (3,), stride=s) for d, s in zip(depths, strides, strict=True))
    return PathwayConfig(width, stages, stem or StemConfig(kernel=(5, 7, 7)))


def _slow_r50(num_frames: int, sampling_rate: int) -> ModelConfig:
    """Slow-only, T x tau = ``num_frames`` x ``sampling_rate``."""
    return ModelConfig(
        name=f"slow_r50_{num_frames}x{sampling_rate}",
        num_frames=num_frames,
        sampling_rate=sampling_rate,
        crop_size=224,
        pathways=(slow_pathway(RESNET_DEPTHS[50]),),
    )


def _slowfast_r50(slow_frames: int, slow_rate: int, alpha: int, fusion_kernel: int) -> ModelConfig:
    """SlowFast, T x tau = ``slow_frames`` x ``slow_rate`` for the Slow pathway."""
    return ModelConfig(
        name=f"slowfast_r50_{slow_frames}x{slow_rate}",
        num_frames=slow_frames * alpha,
        sampling_rate=slow_rate // alpha,
        crop_size=224,
        pathways=(slow_pathway(RESNET_DEPTHS[50]), fast_pathway(RESNET_DEPTHS[50])),
        alpha=alpha,
        lateral=LateralConfig(kernel_size=fusion_kernel),
    )


# A stem of stride 4 without temporal kernel or pooling: a temporal kernel in the Fast stem would be half of the cost on
# a CPU, and those of the Fast pathway's blocks see the motion well enough.
_TINY_DEPTHS = (1, 1, 1, 1)
_TINY_STEM = StemConfig(kernel=(1, 7, 7), stride=4, pool=False)
_TINY_HEAD = HeadConfig(dropout=0.2)


def _slow_tiny() -> ModelConfig:
    return ModelConfig(
        name="slow_tiny",
        num_frames=4,
        sampling_rate=8,
        crop_size=96,
        pathways=(slow_pathway(_TINY_DEPTHS, width=16, stem=_TINY_STEM),),
        head=_TINY_HEAD,
    )


def _slowfast_tiny() -> ModelConfig:
    return ModelConfig(
        name="slowfast_tiny",
        num_frames=32,
        sampling_rate=1,
        crop_size=96,
        pathways=(
            slow_pathway(_TINY_DEPTHS, width=16, stem=_TINY_STEM),
            fast_pathway(_TINY_DEPTHS, width=4, stem=_TINY_STEM),
        ),
        alpha=8,
        lateral=LateralConfig(),
        head=_TINY_HEAD,
    )


_PRESETS = {
    config.name: config
    for config in (
        _slow_r50(4, 16),
        _slow_r50(8, 8),
        _slowfast_r50(4, 16, alpha=8, fusion_kernel=5),
        _slowfast_r50(8, 8, alpha=4, fusion_kernel=7),
        _slow_tiny(),
        _slowfast_tiny(),
    )
}


def list_presets() -> list[str]:
    """The names that `get_preset` and `build_model` know."""
    return list(_PRESETS)


def get_preset(name: str) -> ModelConfig:
    """The configuration of a preset. Change a field with ``dataclasses.replace``.

    Raises:
        InputError: no preset has this name.
    """
    if name not in _PRESETS:
        similar = difflib.get_close_matches(name, _PRESETS, n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        raise InputError(f"model is {name!r}: expected one of {', '.join(_PRESETS)}{hint}")
    return _PRESETS[name]
