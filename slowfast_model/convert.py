"""Other projects' weights to ours: ``python -m slowfast_model.convert {pyslowfast,pytorchvideo,mmaction2,...} ...``

And back: ``python -m slowfast_model.convert slowfast_model --to pyslowfast ...``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console

from slowfast_model.commands import parse_arguments, run_command
from slowfast_model.errors import InputError
from slowfast_model.interop.conversion import ForeignTensors, build_and_load, identify, read_source
from slowfast_model.interop.files import read_tensors
from slowfast_model.interop.fitting import LoadReport
from slowfast_model.interop.pyslowfast import DATA_SETTINGS as PYSLOWFAST_DATA
from slowfast_model.interop.pyslowfast import to_pyslowfast_state
from slowfast_model.interop.pyslowfast_config import read_pyslowfast_config
from slowfast_model.models import VideoNetwork
from slowfast_model.models.network import HeadType
from slowfast_model.training.weights import ModelDescription, load_model, save_weights

# Whose names the tensors may have; PySlowFast loads PyTorchVideo's weights, too.
_NAMES_OF = {
    "pyslowfast": ("PySlowFast", "Caffe2", "PyTorchVideo"),
    "pytorchvideo": ("PyTorchVideo",),
    "mmaction2": ("mmaction2",),
    "torchvision": ("torchvision",),
}


@dataclass
class ConvertConfig:
    """Fields of a conversion.

    Attributes:
        project: whose weights they are; slowfast_model: ours, to be taken to another project
        checkpoint: the weights
        output: the file to write
        config: the network: a PySlowFast YAML file; a PyTorchVideo hub model (slowfast_r50); the name of an mmaction2
            configuration (slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb); a preset for torchvision's ResNet
        to: slowfast_model, a file that train and test read; or pyslowfast, a checkpoint for PySlowFast
        head: classification or detection, if it is to be another than the configuration's, with new weights
        num_classes: outputs of the head, if they are to be others than the configuration's, with new weights
        allow_missing: patterns (lateral.*) of tensors that may be missing, of another shape, or without a place
        train_config: also write the training settings of a PySlowFast YAML file, for train --config
        test_config: also write its testing settings, for test --config
        seed: of new weights
    """

    project: Literal["pyslowfast", "pytorchvideo", "mmaction2", "torchvision", "slowfast_model"]
    checkpoint: Path
    output: Path
    config: str | None = None
    to: Literal["slowfast_model", "pyslowfast"] = "slowfast_model"
    head: HeadType | None = None
    num_classes: int | None = None
    allow_missing: list[str] = field(default_factory=list)
    train_config: Path | None = None
    test_config: Path | None = None
    seed: int = 0


def convert(config: ConvertConfig) -> LoadReport:
    """Converts weights and writes the file.

    Returns:
        What became of every tensor.

    Raises:
        InputError: a file that cannot be read, expressed or written, or weights that do not fit.
    """
    outputs = [path for path in (config.output, config.train_config, config.test_config) if path]
    for path in outputs:
        if path.is_dir() or not path.parent.is_dir():
            raise InputError(f"{path}: expected a file to write, in a folder that exists")
    settings = _read_settings(config)
    torch.manual_seed(config.seed)
    model, description, report = _load(config)
    try:
        _write(config, model, description)
        for path, values in settings.items():
            path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename or config.output}: cannot be written ({error.strerror or error})") from None
    return report


def _load(config: ConvertConfig) -> tuple[VideoNetwork, ModelDescription, LoadReport]:
    if config.project == "slowfast_model":
        if config.config or config.head or config.num_classes or config.allow_missing:
            raise InputError("slowfast_model: our own checkpoints are taken as they are, with their own configuration")
        model, description = load_model(config.checkpoint)
        return model, description, LoadReport(loaded=list(model.state_dict()))
    if config.config is None:
        raise InputError(f"config is missing: {config.project}'s weights do not say what network they belong to")
    weights = identify(read_tensors(config.checkpoint), str(config.checkpoint))
    _require_project(config, weights)
    source = read_source(config.config, weights)
    model, report = build_and_load(
        source,
        weights,
        head=config.head,
        num_classes=config.num_classes,
        allow_missing=config.allow_missing,
        path=str(config.checkpoint),
    )
    num_classes = model.head.projection.out_features
    description = ModelDescription(source.config, model.head_type, num_classes, {}, dict(source.data))
    return model, description, report


def _require_project(config: ConvertConfig, weights: ForeignTensors) -> None:
    if weights.project not in _NAMES_OF[config.project]:
        likely = next((name for name, projects in _NAMES_OF.items() if weights.project in projects), "slowfast_model")
        raise InputError(f"{config.checkpoint}: these are weights of {weights.project}: try `convert {likely}`")


def _read_settings(config: ConvertConfig) -> dict[Path, dict[str, Any]]:
    """The settings files to write and what belongs into them."""
    if not (config.train_config or config.test_config):
        return {}
    if config.project != "pyslowfast" or config.config is None:
        raise InputError("train_config and test_config come from a PySlowFast YAML file, given as config")
    source = read_pyslowfast_config(config.config)
    settings = {}
    if config.train_config:
        settings[config.train_config] = {**source.train_settings(), "model": config.config}
    if config.test_config:
        settings[config.test_config] = {**source.test_settings(), "weights": str(config.output)}
    return settings


def _write(config: ConvertConfig, model: VideoNetwork, description: ModelDescription) -> None:
    if config.to == "slowfast_model":
        save_weights(config.output, model, description)
        return
    needed = {name: value for name, value in description.data.items() if value != PYSLOWFAST_DATA.get(name)}
    if needed:
        raise InputError(f"PySlowFast has one mean, std and slow_sampling, and these weights need {needed}")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # Without an epoch: PySlowFast would expect the optimizer's state beside it.
    torch.save({"model_state": to_pyslowfast_state(state, description.config)}, config.output)


def parse(argv: Sequence[str]) -> ConvertConfig:
    """Parses the command line; raises InputError for what is wrong with it."""
    return parse_arguments(
        ConvertConfig,
        "python -m slowfast_model.convert",
        "Converts the weights of other projects to ours, and ours to PySlowFast's.",
        argv,
        positional="project",
    )


def main() -> None:
    config = parse(sys.argv[1:])
    report = convert(config)
    Console().print("\n".join([*report.lines(), f"written: {config.output}"]), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
