"""What a network costs: ``python -m slowfast_model.complexity --model slowfast_r50_8x8``, or ``--table paper``.

The network runs once on fake tensors, which have shapes and no memory, so that any size takes no time.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from slowfast_model import paper_tables
from slowfast_model.commands import parse_arguments, run_command
from slowfast_model.errors import InputError
from slowfast_model.models import ModelConfig, VideoNetwork, build_model, get_preset, list_presets
from slowfast_model.models.network import HeadType
from slowfast_model.models.non_local import Attention
from slowfast_ops import LateralConvConcat

MAX_CROP_SIZE = 2**14  # 16K; the activations of much larger clips could not be numbered with 64 bits


@dataclass(frozen=True)
class LayerCost:
    """What one convolution, fully connected layer or attention costs for one clip.

    Attributes:
        name: of the module.
        operator: "conv", "linear", or "attention" (the two matrix products of a non-local block).
        multiply_adds: what the paper and PySlowFast call FLOPs; padding counts as any other input.
        activations: elements that the layer writes.
    """

    name: str
    operator: str
    multiply_adds: int
    activations: int

    @property
    def stage(self) -> str:
        """Part of the network that the layer is in, see `stage_of`."""
        return stage_of(self.name)


def stage_of(name: str) -> str:
    """Part of the network that a module or parameter is in: "slow.res2", "fast.stem", "lateral.res3", "head"."""
    first, *rest = name.split(".")
    if first == "pathways":
        return ".".join(rest[:2])
    return ".".join([first, rest[0]]) if first in ("lateral", "slow_to_fast") else first


@dataclass(frozen=True)
class Complexity:
    """What a network costs: its layers, and the parameters (batch norms' included) of each stage, in running order."""

    layers: tuple[LayerCost, ...]
    stage_parameters: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Totals, of the network and of each stage, as plain data."""
        operators = dict.fromkeys(layer.operator for layer in self.layers)
        return {
            "parameters": sum(self.stage_parameters.values()),
            **_totals(self.layers),
            "multiply_adds_by_operator": {
                operator: sum(layer.multiply_adds for layer in self.layers if layer.operator == operator)
                for operator in operators
            },
            "stages": {
                stage: {"parameters": count, **_totals([layer for layer in self.layers if layer.stage == stage])}
                for stage, count in self.stage_parameters.items()
            },
        }


def _totals(layers: Iterable[LayerCost]) -> dict[str, int]:
    costs = [(layer.multiply_adds, layer.activations) for layer in layers]
    return {"multiply_adds": sum(c[0] for c in costs), "activations": sum(c[1] for c in costs)}


def measure_complexity(
    model: str | ModelConfig,
    *,
    num_classes: int = 400,
    head: HeadType = "classification",
    crop_size: int | None = None,
    num_frames: int | None = None,
    num_boxes: int = 1,
) -> Complexity:
    """Parameters, and the cost of one clip in testing (`VideoNetwork.predict`), without memory or computation.

    Args:
        model, num_classes, head: as for `build_model`.
        crop_size: side of the square clip in pixels; None: the training crop. A classifier is fully convolutional: a
            clip larger than its training crop has several positions, each through the fully connected layer.
        num_frames: frames of the clip as the sampler takes it, a multiple of alpha; None: the configuration's.
        num_boxes: boxes in the clip, for a detection head.

    Raises:
        InputError: as `build_model`, or a size that no clip has.
    """
    config = get_preset(model) if isinstance(model, str) else model
    if num_frames is not None:
        config = replace(config, num_frames=num_frames)
    side = config.crop_size if crop_size is None else crop_size
    if not 1 <= side <= MAX_CROP_SIZE:
        raise InputError(f"crop_size is {side}: expected a number of pixels from 1 to {MAX_CROP_SIZE}")
    if num_boxes < 0:
        raise InputError(f"num_boxes is {num_boxes}: expected 0 or more")
    mode, network, layers = _watched_network(config, num_classes, head)
    layers.clear()
    with torch.no_grad(), mode:
        clips = [
            torch.empty(1, pathway.in_channels, frames, side, side)
            for pathway, frames in zip(config.pathways, config.pathway_frames, strict=True)
        ]
        if head == "classification":
            network.predict(clips)
        else:
            network.predict(clips, torch.empty(num_boxes, 5))
    stages = dict.fromkeys((layer.stage for layer in layers), 0)
    for name, parameter in network.named_parameters():
        stages[stage_of(name)] = stages.get(stage_of(name), 0) + parameter.numel()
    return Complexity(tuple(layers), stages)


@functools.lru_cache(maxsize=1)  # for another size of the same network: building takes longer than running
def _watched_network(
    config: ModelConfig, num_classes: int, head: HeadType
) -> tuple[FakeTensorMode, VideoNetwork, list[LayerCost]]:
    """A network of fake tensors, and the list to which its layers append their costs when it runs."""
    layers: list[LayerCost] = []
    mode = FakeTensorMode()
    with torch.no_grad(), mode:
        network = build_model(config, num_classes=num_classes, head=head).eval()
        _watch(network, "", layers)
    return mode, network, layers


def _watch(module: nn.Module, name: str, layers: list[LayerCost]) -> None:
    """Has every layer under ``module`` append its cost to ``layers`` when it runs."""
    if isinstance(module, LateralConvConcat):  # one fused operator: the convolution in it isn't called
        module.register_forward_hook(_recorder(name, "conv", module.conv, layers))
    elif isinstance(module, nn.Conv3d):
        module.register_forward_hook(_recorder(name, "conv", module, layers))
    elif isinstance(module, nn.Linear):
        module.register_forward_hook(_recorder(name, "linear", module, layers))
    elif isinstance(module, Attention):
        module.register_forward_hook(_attention_recorder(name, layers))
    else:
        for child_name, child in module.named_children():
            _watch(child, f"{name}.{child_name}" if name else child_name, layers)


def _recorder(
    name: str, operator: str, layer: nn.Conv3d | nn.Linear, layers: list[LayerCost]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    out_features, *per_output = layer.weight.shape

    def record(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        channels = output.shape[1 if operator == "conv" else -1]
        activations = output.numel() // channels * out_features  # a lateral connection's output has other channels too
        layers.append(LayerCost(name, operator, activations * torch.Size(per_output).numel(), activations))

    return record


def _attention_recorder(name: str, layers: list[LayerCost]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        num_keys = inputs[1].shape[1]
        affinities = output.shape[0] * output.shape[1] * num_keys
        layers.append(LayerCost(name, "attention", 2 * output.numel() * num_keys, affinities + output.numel()))

    return record


@dataclass
class ComplexityConfig:
    """Options of the command.

    Attributes:
        model: name of a preset
        table: instead of a model, "paper": every row of the paper's tables, with the paper's and PySlowFast's figures
        head: classification or detection
        num_classes: outputs of the head; by default Kinetics' 400 for classification and AVA's 80 for detection
        crop_size: side of the square clip in pixels; by default the training crop
        num_frames: frames of the clip as the sampler takes it; by default the preset's
        num_boxes: boxes in the clip (detection)
        per_stage: also print a line per stage
        json: print JSON, stages included
    """

    model: str | None = None
    table: Literal["paper"] | None = None
    head: HeadType = "classification"
    num_classes: int | None = None
    crop_size: int | None = None
    num_frames: int | None = None
    num_boxes: int = 1
    per_stage: bool = False
    json: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the complexity of a preset, or the paper's tables."""
    options = parse_arguments(
        ComplexityConfig,
        prog="python -m slowfast_model.complexity",
        description="What a network, or every one in the paper's tables, costs for one clip in testing.",
        argv=argv,
    )
    if options.table is not None:
        _print_paper_tables(options)
        return
    if options.model is None:
        raise InputError(f"model is missing: expected one of {', '.join(list_presets())}, or table")
    config = get_preset(options.model)
    crop_size = config.crop_size if options.crop_size is None else options.crop_size
    num_frames = config.num_frames if options.num_frames is None else options.num_frames
    default_classes = {"classification": 400, "detection": 80}[options.head]
    num_classes = default_classes if options.num_classes is None else options.num_classes
    costs = measure_complexity(
        config,
        num_classes=num_classes,
        head=options.head,
        crop_size=crop_size,
        num_frames=num_frames,
        num_boxes=options.num_boxes,
    ).to_dict()
    clip = {"frames": num_frames, "crop_size": crop_size}
    if options.json:
        print(json.dumps({"model": options.model, "head": options.head, "classes": num_classes, **clip, **costs}))
        return
    print(f"{options.model}, {options.head}, {num_classes} classes, one clip of {num_frames} frames at {crop_size} px")
    print(_table(costs, per_stage=options.per_stage))


def _print_paper_tables(options: ComplexityConfig) -> None:
    crop_size = paper_tables.CROP_SIZE if options.crop_size is None else options.crop_size
    allowed = ComplexityConfig(
        table="paper", crop_size=options.crop_size, per_stage=options.per_stage, json=options.json
    )
    if options != allowed:  # the rows themselves say all else
        raise InputError("table is 'paper': expected no other options than crop_size, per_stage and json")
    rows = list(paper_tables.measured_rows(lambda config: measure_complexity(config, crop_size=crop_size).to_dict()))
    if options.json:
        print(json.dumps(rows))
        return
    print(f"1e9 multiply-adds of one view, theirs at 256 and ours at {crop_size} px, and parameters with 400 classes")
    line = "{:7}{:34}{:>8}{:>12}{:>10}{:>14}  {}"
    print(line.format("table", "network", "paper", "PySlowFast", "ours", "parameters", "").rstrip())
    for row in rows:
        theirs = "-" if row["pyslowfast"] is None else f"{row['pyslowfast']:.3f}"
        ours = _giga(row), f"{row['parameters'] / 1e6:.3f} M"
        print(line.format(row["table"], row["name"], row["paper"], theirs, *ours, row["note"]).rstrip())
        for stage, cost in row["stages"].items() if options.per_stage else ():
            print(line.format("", f"  {stage}", "", "", _giga(cost), f"{cost['parameters'] / 1e6:.3f} M", "").rstrip())


def _giga(cost: dict[str, Any]) -> str:
    return f"{cost['multiply_adds'] / 1e9:.3f}"


def _table(costs: dict[str, Any], *, per_stage: bool) -> str:
    rows = [("", "parameters", "multiply-adds", "activations")]
    parts = [*(costs["stages"].items() if per_stage else ()), ("total", costs)]
    for name, cost in parts:
        millions = f"{cost['parameters'] / 1e6:.3f} M", f"{cost['activations'] / 1e6:.2f} M"
        rows.append((name, millions[0], f"{cost['multiply_adds'] / 1e9:.4f} G", millions[1]))
    return "\n".join(f"{row[0]:13}" + "".join(f"{cell:>16}" for cell in row[1:]) for row in rows)


if __name__ == "__main__":
    run_command(main)
