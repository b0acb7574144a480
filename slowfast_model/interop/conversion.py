"""From another project's files to a network of ours with a report. Whose names the tensors have, the names tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from torch import Tensor

from slowfast_model.errors import InputError
from slowfast_model.interop import caffe2, mmaction2
from slowfast_model.interop.caffe2 import CAFFE2
from slowfast_model.interop.files import read_tensors
from slowfast_model.interop.fitting import LoadReport, load_tensors
from slowfast_model.interop.mmaction2 import from_mmaction2_key
from slowfast_model.interop.pyslowfast import from_pyslowfast_key
from slowfast_model.interop.pyslowfast_config import read_pyslowfast_config
from slowfast_model.interop.pytorchvideo import from_pytorchvideo_key
from slowfast_model.models import ModelConfig, VideoNetwork, build_model
from slowfast_model.models.network import HeadType

NEW_HEAD = ("head.projection.*",)
"""Pattern for `load_tensors`: the projection may be a new one, for other classes."""


@dataclass(frozen=True)
class ForeignTensors:
    """Another project's tensors.

    Attributes:
        project: "PySlowFast", "Caffe2", "PyTorchVideo" or "mmaction2".
        tensors: by that project's names, in our order of rows and columns.
        to_ours: gives our name for one of these, or raises InputError.
    """

    project: str
    tensors: Mapping[str, Tensor]
    to_ours: Callable[[str], str]

    @property
    def num_classes(self) -> int | None:
        """Outputs of the head; None if there is no head among the tensors."""
        for name, tensor in self.tensors.items():
            try:
                if self.to_ours(name) == "head.projection.bias":
                    return len(tensor)
            except InputError:
                continue
        return None


def identify(tensors: Mapping[str, Tensor], source: str = "the weights") -> ForeignTensors:
    """Finds out whose tensors these are, by their names.

    Raises:
        InputError: nobody's that we know.
    """
    if "s1.pathway0_stem.conv.weight" in tensors:
        return ForeignTensors("PySlowFast", tensors, from_pyslowfast_key)
    if "conv1_w" in tensors:
        blobs = {name: blob for name, blob in tensors.items() if not caffe2.is_solver_state(name)}
        return ForeignTensors("Caffe2", blobs, CAFFE2.to_ours)
    if any(name.removeprefix("model.").startswith("blocks.0.") for name in tensors):
        return ForeignTensors("PyTorchVideo", tensors, from_pytorchvideo_key)
    if any(name.startswith(("backbone.conv1.conv.", "backbone.slow_path.")) for name in tensors):
        return ForeignTensors("mmaction2", mmaction2.prepare(tensors), from_mmaction2_key)
    raise InputError(
        f"{source}: its tensors ({', '.join(list(tensors)[:3])}, ...) are not those of a SlowFast or Slow-only network "
        "of PySlowFast, PyTorchVideo or mmaction2"
    )


def build_and_load(
    config: ModelConfig,
    head: HeadType,
    num_classes: int,
    weights: ForeignTensors,
    *,
    allow_missing: Sequence[str] = (),
    source: str = "the weights",
) -> tuple[VideoNetwork, LoadReport]:
    """A network with another project's weights, in eval mode. For another number of classes, the head is a new one.

    Raises:
        InputError: see `load_tensors`.
    """
    model = build_model(config, num_classes=num_classes, head=head)
    if weights.num_classes not in (None, num_classes):
        allow_missing = (*allow_missing, *NEW_HEAD)
    report = load_tensors(model, weights.tensors, weights.to_ours, allow_missing=allow_missing, source=source)
    return model.eval(), report


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
    yaml = read_pyslowfast_config(yaml_path)
    config, classes = yaml.model_config(), num_classes or yaml.num_classes
    if checkpoint is None:
        return build_model(config, num_classes=classes, head=yaml.head).eval()
    source = "the state dict" if isinstance(checkpoint, Mapping) else str(checkpoint)
    tensors = checkpoint if isinstance(checkpoint, Mapping) else read_tensors(checkpoint)
    weights = identify(tensors, source)
    model, _ = build_and_load(config, yaml.head, classes, weights, allow_missing=allow_missing, source=source)
    return model
