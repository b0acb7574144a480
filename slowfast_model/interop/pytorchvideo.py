"""PyTorchVideo's hub models: their configurations and the names of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from slowfast_model.errors import InputError
from slowfast_model.interop.names import KeyTable
from slowfast_model.models import ModelConfig, slow_config, slowfast_config
from slowfast_model.models.network import HeadType

_UNITS = {
    **{f"{name}.conv": f"branch2.conv_{name}" for name in "abc"},
    **{f"{name}.bn": f"branch2.norm_{name}" for name in "abc"},
    "shortcut.conv": "branch1_conv",
    "shortcut.bn": "branch1_norm",
}
_SPELLINGS = {
    "pathway": {"slow": "0", "fast": "1"},
    "level": {"stem": "0", "res2": "1", "res3": "2", "res4": "3", "res5": "4"},
    "unit": _UNITS,
    "layer": {"conv": "conv", "bn": "norm"},
    "fusion": {"conv": "conv_fast_to_slow", "bn": "norm"},
}
# A detector is a network under "model." beside a "detection_head"; a classifier ends in its last block.
_SINGLE = (
    ("pathways.slow.{level}.{layer}.{leaf}", "blocks.{level}.{layer}.{leaf}"),
    ("pathways.slow.{level}.{block}.{unit}.{leaf}", "blocks.{level}.res_blocks.{block}.{unit}.{leaf}"),
)
_MULTI = "blocks.{level}.multipathway_blocks.{pathway}."
_BOTH = (
    ("pathways.{pathway}.{level}.{layer}.{leaf}", _MULTI + "{layer}.{leaf}"),
    ("pathways.{pathway}.{level}.{block}.{unit}.{leaf}", _MULTI + "res_blocks.{block}.{unit}.{leaf}"),
    ("lateral.{level}.{fusion}.{leaf}", "blocks.{level}.multipathway_fusion.{fusion}.{leaf}"),
)
_HEADS = (
    ("head.projection.{leaf}", "blocks.5.proj.{leaf}"),
    ("head.projection.{leaf}", "blocks.6.proj.{leaf}"),
    ("head.projection.{leaf}", "detection_head.proj.{leaf}"),
)
PYTORCHVIDEO = KeyTable("PyTorchVideo", (*_SINGLE, *_BOTH, *_HEADS), _SPELLINGS)

_BUILDERS: dict[str, tuple[Callable[[], ModelConfig], HeadType]] = {
    "slow_r50": (lambda: slow_config(8, 8), "classification"),
    "slowfast_r50": (lambda: slowfast_config(8, 8, alpha=4, fusion_kernel=7), "classification"),
    # All blocks of res4 are temporal here, unlike in the paper's R101.
    "slowfast_r101": (
        lambda: slowfast_config(8, 8, alpha=4, depth=101, all_temporal=("slow", "fast")),
        "classification",
    ),
    "slowfast_16x8_r101_50_50": (lambda: slowfast_config(16, 8, alpha=4, depth=101), "classification"),
    "slow_r50_detection": (lambda: slow_config(4, 16), "detection"),
    "slowfast_r50_detection": (lambda: slowfast_config(8, 8, alpha=4, fusion_kernel=7), "detection"),
}
HUB_MODELS = tuple(_BUILDERS)


def pytorchvideo_model(name: str) -> tuple[ModelConfig, HeadType, int]:
    """Configuration, head and number of classes of a hub model.

    Its detectors use torchvision's RoIAlign as it is by default, without the half-pixel shift.

    Raises:
        InputError: not a SlowFast or Slow-only model of the hub.
    """
    if name not in _BUILDERS:
        raise InputError(f"{name!r} is not a hub model of PyTorchVideo that we know: expected {', '.join(HUB_MODELS)}")
    make_config, head = _BUILDERS[name]
    config: Any = replace(make_config(), name=name)
    if head == "detection":
        config = replace(config, head=replace(config.head, roi_aligned=False))
    return config, head, 80 if head == "detection" else 400


def from_pytorchvideo_key(key: str) -> str:
    """Our name of a tensor of PyTorchVideo's; InputError if there is none."""
    return PYTORCHVIDEO.to_ours(key.removeprefix("model."))
