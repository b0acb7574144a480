"""Weights in files: safetensors with the model's configuration inside, and our own Lightning checkpoints."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slowfast_model.errors import InputError
from slowfast_model.models import ModelConfig, VideoNetwork, build_model
from slowfast_model.models.network import HeadType

CHECKPOINT_KEY = "slowfast"
_MODULE_PREFIX = "model."


@dataclass(frozen=True)
class ModelDescription:
    """What it takes to rebuild a network around its weights.

    Attributes:
        config: the network's configuration.
        head: "classification" or "detection".
        num_classes: outputs of the head.
        class_names: class id -> name; detection ids start at 1, classification ids at 0.
        data: data settings that the weights were trained with (`FIELDS_OF_THE_WEIGHTS`).
    """

    config: ModelConfig
    head: HeadType
    num_classes: int
    class_names: dict[int, str]
    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "config": self.config.to_dict(),
            "head": self.head,
            "num_classes": self.num_classes,
            "class_names": {str(k): name for k, name in self.class_names.items()},
            "data": self.data,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelDescription:
        return cls(
            config=ModelConfig.from_dict(values["config"]),
            head=values["head"],
            num_classes=values["num_classes"],
            class_names={int(k): name for k, name in values["class_names"].items()},
            data=values.get("data", {}),
        )

    def build(self) -> VideoNetwork:
        return build_model(self.config, num_classes=self.num_classes, head=self.head)


def save_weights(path: str | PathLike[str], model: nn.Module, description: ModelDescription) -> None:
    """Writes a safetensors file; its metadata holds the description as JSON."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, str(path), metadata={"format": "pt", CHECKPOINT_KEY: json.dumps(description.to_dict())})


def read_weights(path: str | PathLike[str]) -> tuple[dict[str, Tensor], ModelDescription]:
    """Reads a ``.safetensors`` file of `save_weights`, or a ``.ckpt`` of a training run (nothing in it is executed).

    Raises:
        InputError: the file is missing, damaged, or neither of the two.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        if Path(path).suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                described = json.loads((file.metadata() or {}).get(CHECKPOINT_KEY, "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        else:
            with warnings.catch_warnings():  # about other pickle protocols: an error will follow
                warnings.simplefilter("ignore")
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            described = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
            tensors = checkpoint.get("state_dict", {}) if described else {}
            tensors = {name.removeprefix(_MODULE_PREFIX): tensor for name, tensor in tensors.items()}
    except Exception as error:  # of any kind, where a damaged pickle happens to go wrong
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a readable checkpoint ({reason})") from None
    if not described:
        raise InputError(
            f"{path}: expected model.safetensors or a checkpoint of a training run, which describe the model"
        )
    return tensors, ModelDescription.from_dict(described)


def load_model(path: str | PathLike[str]) -> tuple[VideoNetwork, ModelDescription]:
    """Rebuilds the network of a checkpoint, with its weights, in eval mode.

    Raises:
        InputError: as `read_weights`, or the weights do not fit the described network.
    """
    tensors, description = read_weights(path)
    model = description.build()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit the network: {' '.join(str(error).split())[:300]}") from None
    return model.eval(), description
