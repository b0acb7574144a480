"""Where a network comes from: a preset, a checkpoint of ours, or another project's files."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from slowfast_model.interop.conversion import ForeignTensors, build_and_load, identify, load_into, read_source
from slowfast_model.interop.files import read_tensors
from slowfast_model.interop.fitting import LoadReport
from slowfast_model.interop.pyslowfast_config import read_pyslowfast_config
from slowfast_model.models import ModelConfig, VideoNetwork, get_preset, list_presets
from slowfast_model.training.weights import ModelDescription, load_model, read_weights


def resolve_model(name: str) -> ModelConfig:
    """The configuration of a preset, of a PySlowFast YAML file, or of the network in a checkpoint of ours.

    Raises:
        InputError: none of the three, or a file that cannot be read.
    """
    if name.endswith((".yaml", ".yml")):
        return read_pyslowfast_config(name).model_config()
    if name not in list_presets() and Path(name).is_file():
        return read_weights(name)[1].config
    return get_preset(name)


def load_any(checkpoint: str | PathLike[str], model: str | None) -> tuple[VideoNetwork, ModelDescription]:
    """The network of a checkpoint, in eval mode, with its description.

    Args:
        checkpoint: of ours; or, together with ``model``, another project's.
        model: the configuration of another project's weights, see `read_source`.

    Raises:
        InputError: see `load_model`, `read_source` and `load_tensors`.
    """
    if model is None:
        return load_model(checkpoint)
    weights = identify(read_tensors(checkpoint), str(checkpoint))
    source = read_source(model, weights)
    network, _ = build_and_load(source, weights, path=str(checkpoint))
    return network, ModelDescription(source.config, source.head, source.num_classes, {}, dict(source.data))


@dataclass(frozen=True)
class InitialWeights:
    """What a training starts from. Read it with `read_initial_weights`.

    Attributes:
        path: the file.
        weights: its tensors.
        data: data settings that they were trained with, as far as they are known.
    """

    path: Path
    weights: ForeignTensors
    data: dict[str, Any]

    def load_into(self, model: VideoNetwork) -> LoadReport:
        """Copies them: everything must fit but the head's projection, which stays as it is for other classes.

        The usual cases are AVA detection from a Kinetics classifier of the same architecture, and other classes. Of a
        torchvision ResNet, the Slow pathway takes what it has.

        Returns:
            The report, whose ``missing`` are the tensors that keep their random initialisation.

        Raises:
            InputError: see `load_tensors`.
        """
        new_head = self.weights.num_classes != model.head.projection.out_features
        return load_into(model, self.weights, new_head=new_head, path=str(self.path))


def read_initial_weights(path: str | PathLike[str]) -> InitialWeights:
    """Reads a checkpoint of ours, or weights of PySlowFast, PyTorchVideo, mmaction2 or torchvision.

    Raises:
        InputError: see `read_tensors` and `identify`.
    """
    weights = identify(read_tensors(path), str(path))
    data = read_weights(path)[1].data if weights.project == "slowfast_model" else weights.data
    return InitialWeights(Path(path), weights, data)
