"""mmaction2's SlowFast and SlowOnly: their configurations by name, and the names and the order of their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePath

import torch
from torch import Tensor

from slowfast_model.errors import InputError
from slowfast_model.interop.names import KeyTable
from slowfast_model.models import ModelConfig, StageConfig, slow_config, slowfast_config
from slowfast_model.models.network import HeadType

Stages = tuple[StageConfig, ...]

_UNITS = {
    **{f"{name}.{layer}": f"conv{number}.{layer}" for number, name in enumerate("abc", 1) for layer in ("conv", "bn")},
    **{f"shortcut.{layer}": f"downsample.{layer}" for layer in ("conv", "bn")},
}
_PATHWAY = "backbone.{pathway}"
MMACTION2 = KeyTable(
    "mmaction2",
    (
        ("pathways.{pathway}.stem.{layer}.{leaf}", _PATHWAY + "conv1.{layer}.{leaf}"),
        ("pathways.{pathway}.{level}.{block}.{unit}.{leaf}", _PATHWAY + "{level}.{block}.{unit}.{leaf}"),
        ("lateral.{level}.{layer}.{leaf}", "backbone.slow_path.{level}_lateral.{layer}.{leaf}"),
        ("head.projection.{leaf}", "cls_head.fc_cls.{leaf}"),
        ("head.projection.{leaf}", "roi_head.bbox_head.fc_cls.{leaf}"),
    ),
    {
        "pathway": {"slow": "slow_path.", "fast": "fast_path."},
        "level": {"stem": "conv1", **{f"res{stage + 1}": f"layer{stage}" for stage in (1, 2, 3, 4)}},
        "unit": _UNITS,
    },
)
_NAME = re.compile(r"(slowfast|slowonly)_.*?r(\d+)(?:-r(\d+)|_r(\d+))?[_-].*?(\d+)x(\d+)x1[_-].*")
_DETECTION_HEAD = "roi_head.bbox_head.fc_cls."
_CLASSIFICATION_HEAD = "cls_head.fc_cls."
# What its clips are like: ImageNet's mean and standard deviation, and every alpha-th frame for the Slow pathway.
DATA_SETTINGS = {
    "mean": [123.675 / 255, 116.28 / 255, 103.53 / 255],
    "std": [58.395 / 255, 57.12 / 255, 57.375 / 255],
    "slow_sampling": "stride",
}


def mmaction2_model(name: str, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, HeadType, int]:
    """Configuration, head and number of classes of a model, from its name and what its tensors, as `prepare`d, say.

    Depth and clip come from the name of its configuration or checkpoint, as in
    ``slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb.py``, of which nothing is executed; the kernel of the lateral
    connections, the head and the number of classes from the tensors.

    Raises:
        InputError: a name that does not say what is needed.
    """
    match = _NAME.fullmatch(PurePath(name).name)
    if not match:
        raise InputError(
            f"{name!r}: expected the name of a configuration or checkpoint of mmaction2's SlowFast or SlowOnly, as in "
            "slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb"
        )
    family, depth, _, _, frames, interval = match.groups()
    fast_depth = match[3] or match[4]
    if family == "slowonly":
        config = slow_config(int(frames), int(interval), depth=int(depth))
    else:
        fusion = tensors.get("backbone.slow_path.conv1_lateral.conv.weight")
        config = slowfast_config(
            int(frames),
            int(interval),
            alpha=int(interval) // 2,  # the Fast pathway takes every other frame
            depth=int(depth),
            fast_depth=int(fast_depth) if fast_depth else None,
            fusion_kernel=5 if fusion is None else fusion.shape[2],
        )
        assert config.lateral is not None
        config = replace(config, lateral=replace(config.lateral, norm=False, relu=False))
    config = replace(_all_temporal(config), name=re.sub(r"\.(pth|py)$", "", PurePath(name).name))
    if f"{_DETECTION_HEAD}bias" in tensors:
        return _detector(config), "detection", len(tensors[f"{_DETECTION_HEAD}bias"])
    bias = tensors.get(f"{_CLASSIFICATION_HEAD}bias")
    return config, "classification", 400 if bias is None else len(bias)


def _all_temporal(config: ModelConfig) -> ModelConfig:
    """All blocks of a stage have its temporal kernel, in R101 as well."""
    return _with_stages(config, lambda stages: tuple(replace(stage, temporal_blocks=None) for stage in stages))


def _detector(config: ModelConfig) -> ModelConfig:
    """Stride 1 in res5, not made up for by dilation, and RoIs of 8 x 8 bins."""
    config = _with_stages(config, lambda stages: (*stages[:-1], replace(stages[-1], stride=1)))
    return replace(config, head=replace(config.head, roi_size=8))


def _with_stages(config: ModelConfig, change: Callable[[Stages], Stages]) -> ModelConfig:
    return replace(config, pathways=tuple(replace(p, stages=change(p.stages)) for p in config.pathways))


def prepare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with the heads' rows and columns in our order.

    The classifier's inputs are the Fast pathway's features and then the Slow one's; the detector's first class stands
    for "no person" and is never used.
    """
    prepared = dict(tensors)
    classifier = prepared.get(f"{_CLASSIFICATION_HEAD}weight")
    fast = _fast_channels(tensors)
    if classifier is not None and fast:
        prepared[f"{_CLASSIFICATION_HEAD}weight"] = torch.cat([classifier[:, fast:], classifier[:, :fast]], dim=1)
    for leaf in ("weight", "bias"):
        name = f"{_DETECTION_HEAD}{leaf}"
        if name in prepared:
            prepared[name] = prepared[name][1:]
    return prepared


def _fast_channels(tensors: Mapping[str, Tensor]) -> int:
    """Channels at the end of the Fast pathway; 0 without one."""
    last = tensors.get("backbone.fast_path.layer4.0.conv3.conv.weight")
    return 0 if last is None else last.shape[0]


def from_mmaction2_key(key: str) -> str:
    """Our name of a tensor of mmaction2's; InputError if there is none."""
    single = re.sub(r"^backbone\.(?=conv1\.|layer\d\.\d)", "backbone.slow_path.", key)  # SlowOnly has no pathways
    return MMACTION2.to_ours(single)
