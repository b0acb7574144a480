"""From another project's files to a network of ours with a report. Whose names the tensors have, the names tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from torch import Tensor

from slowfast_model.errors import InputError
from slowfast_model.interop import caffe2, mmaction2
from slowfast_model.interop.caffe2 import CAFFE2
from slowfast_model.interop.files import read_tensors
from slowfast_model.interop.fitting import LoadReport, load_tensors
from slowfast_model.interop.mmaction2 import from_mmaction2_key
from slowfast_model.interop.pyslowfast import DATA_SETTINGS as PYSLOWFAST_DATA
from slowfast_model.interop.pyslowfast import from_pyslowfast_key
from slowfast_model.interop.pyslowfast_config import read_pyslowfast_config
from slowfast_model.interop.pytorchvideo import HUB_MODELS, from_pytorchvideo_key, pytorchvideo_model
from slowfast_model.interop.torchvision import NOT_IN_IMAGENET, TORCHVISION, inflate
from slowfast_model.models import ModelConfig, VideoNetwork, build_model, get_preset
from slowfast_model.models.network import HeadType

NEW_HEAD = ("head.projection.*",)
"""Pattern for `load_tensors`: the projection may be a new one, for other classes."""


_DATA_SETTINGS: dict[str, Mapping[str, Any]] = {
    "PySlowFast": PYSLOWFAST_DATA,
    "Caffe2": PYSLOWFAST_DATA,
    "PyTorchVideo": PYSLOWFAST_DATA,  # trained in PySlowFast
    "mmaction2": mmaction2.DATA_SETTINGS,
}


@dataclass(frozen=True)
class ForeignTensors:
    """Another project's tensors.

    Attributes:
        project: "PySlowFast", "Caffe2", "PyTorchVideo", "mmaction2", "torchvision", or "slowfast_model": our own.
        tensors: by that project's names, in our order of rows and columns.
        to_ours: gives our name for one of these, or raises InputError.
    """

    project: str
    tensors: Mapping[str, Tensor]
    to_ours: Callable[[str], str]

    @property
    def data(self) -> dict[str, Any]:
        """Data settings that the project trains with, where they matter to its weights (`FIELDS_OF_THE_WEIGHTS`)."""
        return dict(_DATA_SETTINGS.get(self.project, {}))

    @property
    def num_classes(self) -> int | None:
        """Outputs of the head; None if there is no head among the tensors."""
        biases = (t for name, t in self.tensors.items() if _is_head(name, self) and t.dim() == 1)
        return next((len(bias) for bias in biases), None)


def identify(tensors: Mapping[str, Tensor], source: str = "the weights") -> ForeignTensors:
    """Finds out whose tensors these are, by their names.

    Raises:
        InputError: nobody's that we know.
    """
    if any(name.removeprefix("model.").startswith("pathways.slow.") for name in tensors):
        return ForeignTensors("slowfast_model", tensors, lambda name: name.removeprefix("model."))
    if "s1.pathway0_stem.conv.weight" in tensors:
        return ForeignTensors("PySlowFast", tensors, from_pyslowfast_key)
    if "conv1_w" in tensors:
        blobs = {name: blob for name, blob in tensors.items() if not caffe2.is_solver_state(name)}
        return ForeignTensors("Caffe2", blobs, CAFFE2.to_ours)
    if any(name.removeprefix("model.").startswith("blocks.0.") for name in tensors):
        return ForeignTensors("PyTorchVideo", tensors, from_pytorchvideo_key)
    if any(name.startswith(("backbone.conv1.conv.", "backbone.slow_path.")) for name in tensors):
        return ForeignTensors("mmaction2", mmaction2.prepare(tensors), from_mmaction2_key)
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        return ForeignTensors("torchvision", tensors, TORCHVISION.to_ours)
    raise InputError(
        f"{source}: its tensors ({', '.join(list(tensors)[:3])}, ...) are not those of a SlowFast or Slow-only network "
        "of PySlowFast, PyTorchVideo or mmaction2, nor of torchvision's ResNet"
    )


@dataclass(frozen=True)
class Source:
    """What another project's configuration says about a network.

    Attributes:
        config, head, num_classes: of the network.
        data: data settings that its weights were trained with.
        notes: for the report: what of the configuration is without effect here.
    """

    config: ModelConfig
    head: HeadType
    num_classes: int
    data: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def read_source(name: str, weights: ForeignTensors) -> Source:
    """The network that weights belong to.

    Args:
        name: a PySlowFast YAML file, or the name of a PyTorchVideo hub model, of one of mmaction2's configurations or
            checkpoints, or of a preset of ours; the weights tell which.
        weights: they also tell the number of classes, where the configuration does not.

    Raises:
        InputError: see `read_pyslowfast_config`, `mmaction2_model` and `get_preset`.
    """
    if name.endswith((".yaml", ".yml")):
        yaml = read_pyslowfast_config(name)
        unused = yaml.keys_without_effect
        notes = (f"keys without effect: {', '.join(unused)}",) if unused else ()
        return Source(yaml.model_config(), yaml.head, yaml.num_classes, data=weights.data, notes=notes)
    if weights.project == "mmaction2":
        settings = ", ".join(f"data.{k} {v}" for k, v in weights.data.items())
        notes = (f"its clips differ, the file says how: {settings}",)
        return Source(*mmaction2.mmaction2_model(name, weights.tensors), data=weights.data, notes=notes)
    if name in HUB_MODELS:
        return Source(*pytorchvideo_model(name), data=weights.data)
    return Source(get_preset(name), "classification", weights.num_classes or 400, data=weights.data)


def build_and_load(
    source: Source,
    weights: ForeignTensors,
    *,
    head: HeadType | None = None,
    num_classes: int | None = None,
    allow_missing: Sequence[str] = (),
    path: str = "the weights",
) -> tuple[VideoNetwork, LoadReport]:
    """A network with another project's weights, in eval mode.

    Args:
        head, num_classes: for others than the weights'; the head's projection is a new one then.
        allow_missing: see `load_tensors`.
        path: what error messages call the weights.

    Raises:
        InputError: see `load_tensors`.
    """
    new_head = head not in (None, source.head) or num_classes not in (None, weights.num_classes)
    model = build_model(source.config, num_classes=num_classes or source.num_classes, head=head or source.head)
    report = load_into(model, weights, new_head=new_head, allow_missing=allow_missing, path=path)
    report.notes += source.notes
    return model.eval(), report


def load_into(
    model: VideoNetwork,
    weights: ForeignTensors,
    *,
    new_head: bool,
    allow_missing: Sequence[str] = (),
    path: str = "the weights",
) -> LoadReport:
    """Copies the tensors that `identify` found into a network of ours; those of an ImageNet ResNet inflated.

    Args:
        new_head: leave the head's projection as it is.

    Raises:
        InputError: see `load_tensors`.
    """
    tensors = weights.tensors
    if weights.project == "torchvision":
        tensors = inflate(tensors, model)
        allow_missing = (*allow_missing, *NOT_IN_IMAGENET)
    if new_head:
        tensors = {name: tensor for name, tensor in tensors.items() if not _is_head(name, weights)}
        allow_missing = (*allow_missing, *NEW_HEAD)
    return load_tensors(model, tensors, weights.to_ours, allow_missing=allow_missing, source=path)


def _is_head(name: str, weights: ForeignTensors) -> bool:
    try:
        return weights.to_ours(name).startswith("head.projection.")
    except InputError:
        return False


def from_pyslowfast(
    yaml_path: str | PathLike[str],
    checkpoint: str | PathLike[str] | Mapping[str, Tensor] | None = None,
    *,
    num_classes: int | None = None,
    allow_missing: Sequence[str] = (),
) -> VideoNetwork:
    """The network of a PySlowFast configuration, in eval mode.

    Args:
        yaml_path: the YAML file.
        checkpoint: a .pyth checkpoint, a Caffe2 .pkl file, or a state dict under PySlowFast's names; None: weights of
            a training from scratch.
        num_classes: for another number than the file's, with a new head.
        allow_missing: see `load_tensors`.

    Raises:
        InputError: a file that cannot be read or expressed, or weights that do not fit; the message names the key.
    """
    if checkpoint is None:
        yaml = read_pyslowfast_config(yaml_path)
        return build_model(yaml.model_config(), num_classes=num_classes or yaml.num_classes, head=yaml.head).eval()
    path = "the state dict" if isinstance(checkpoint, Mapping) else str(checkpoint)
    tensors = checkpoint if isinstance(checkpoint, Mapping) else read_tensors(checkpoint)
    weights = identify(tensors, path)
    source = read_source(str(yaml_path), weights)
    model, _ = build_and_load(source, weights, num_classes=num_classes, allow_missing=allow_missing, path=path)
    return model
