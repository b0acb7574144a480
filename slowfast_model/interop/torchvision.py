"""Starting from a torchvision ResNet trained on ImageNet: its 2D kernels, inflated, in the Slow pathway."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slowfast_model.errors import InputError
from slowfast_model.interop.names import KeyTable

TORCHVISION = KeyTable(
    "torchvision",
    (
        ("pathways.slow.stem.{stem}.{leaf}", "{stem}.{leaf}"),
        ("pathways.slow.{level}.{block}.{unit}.{leaf}", "{level}.{block}.{unit}.{leaf}"),
    ),
    {
        "stem": {"conv": "conv1", "bn": "bn1"},
        "level": {f"res{stage + 1}": f"layer{stage}" for stage in (1, 2, 3, 4)},
        "unit": {
            **{f"{name}.conv": f"conv{number}" for number, name in enumerate("abc", 1)},
            **{f"{name}.bn": f"bn{number}" for number, name in enumerate("abc", 1)},
            "shortcut.conv": "downsample.0",
            "shortcut.bn": "downsample.1",
        },
    },
)
NOT_IN_IMAGENET = ("pathways.fast.*", "lateral.*", "head.projection.*", "pathways.slow.*.non_local*")
"""Patterns for `load_tensors`: what a ResNet for images has no weights for."""


def inflate(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A ResNet's tensors, without its classifier, in the shapes of a network's Slow pathway.

    A 2D kernel is repeated along time and divided by its length, so that a still clip gives what the image gave
    (Carreira and Zisserman, "Quo vadis, action recognition?"). Channels that a lateral connection adds start at zero.
    """
    wanted = model.state_dict()
    inflated = {}
    for name, tensor in tensors.items():
        if name.startswith("fc."):
            continue
        inflated[name] = _inflate(tensor, _shape_of(name, wanted)) if tensor.dim() == 4 else tensor
    return inflated


def _shape_of(name: str, wanted: Mapping[str, Tensor]) -> torch.Size | None:
    try:
        ours = TORCHVISION.to_ours(name)
    except InputError:
        return None
    return wanted[ours].shape if ours in wanted else None


def _inflate(weight: Tensor, shape: torch.Size | None) -> Tensor:
    """[O, I, h, w] to ``shape`` = [O, I', T, h, w] with I' >= I; left as it is if it cannot be."""
    if shape is None or (weight.shape[0], *weight.shape[2:]) != (shape[0], *shape[3:]) or shape[1] < weight.shape[1]:
        return weight
    padding = weight.new_zeros(shape[0], shape[1] - weight.shape[1], *shape[3:])
    padded = torch.cat([weight, padding], dim=1)
    return padded.unsqueeze(2).expand(shape) / shape[2]
