"""Evaluates a checkpoint: ``python -m slowfast_model.test --dataset {ava,kinetics} --weights FILE ...``"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slowfast_model.commands import option_value, parse_arguments, run_command
from slowfast_model.data.clips import DataConfig
from slowfast_model.errors import InputError
from slowfast_model.evaluation.ava import Protocol
from slowfast_model.training.callbacks import BadVideosFile, TestingProgress
from slowfast_model.training.config import DATA_CONFIGS, TOP_LEVEL_DATA_FIELDS, resolve_data
from slowfast_model.training.environment import (
    choose_folder,
    data_root,
    make_folder,
    make_trainer,
    quiet_lightning,
    write_json,
)
from slowfast_model.training.sources import load_any
from slowfast_model.training.tasks import TASKS


@dataclass
class TestConfig:
    """Fields of a test.

    Attributes:
        dataset: format of the data
        weights: model.safetensors, or a .ckpt of a training run; or a peer's weights, of the network named by model
        model: network of a peer's weights: a PySlowFast YAML file, or the name of a PyTorchVideo hub model, of one of
            mmaction2's configurations, or of a preset
        data_root: folder of the data set; without it the built-in sample set is generated and used
        output_dir: where the results go; default runs/<dataset>-<model>-test-<time>
        batch_size: clips per batch and process
        num_workers: processes that read videos ahead, per process; 0 reads in the testing process
        num_temporal_views: clips per video, spread evenly (kinetics)
        num_spatial_crops: crops per clip, along the longer side (kinetics)
        scales: lengths of the shorter side, each a view whose scores are averaged; default the data set's (ava)
        flip: average over mirrored views, too (ava)
        protocol: of frame-mAP (ava)
        accelerator: cpu, gpu or auto
        devices: how many, which ("0,1"), or auto
        precision: 32-true, bf16-mixed, 16-mixed ...
        data: fields of the data set
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    dataset: Literal["ava", "kinetics"]
    weights: Path
    model: str | None = None
    data_root: Path | None = None
    output_dir: Path | None = None
    batch_size: int = 8
    num_workers: int = 1
    num_temporal_views: int = 10
    num_spatial_crops: int = 3
    scales: list[int] | None = None
    flip: bool = False
    protocol: Protocol = "official"
    accelerator: str = "auto"
    devices: int | str = "auto"
    precision: str = "32-true"
    data: dict[str, Any] = field(default_factory=dict)


def test(config: TestConfig) -> dict[str, Any]:
    """Evaluates a checkpoint and writes metrics.json, the scores and the pictures.

    Returns:
        The figures of ``metrics.json``.

    Raises:
        InputError: something is wrong with the configuration, the weights, the data or the output folder.
    """
    quiet_lightning()
    task = TASKS[config.dataset]
    model, description = load_any(config.weights, config.model)
    if description.head != task.head:
        raise InputError(f"{config.weights} is a {description.head} model: {config.dataset} needs a {task.head} model")
    name = description.config.name
    folder = choose_folder(config.output_dir, f"{config.dataset}-{name}-test")
    root = data_root(config.dataset, config.data_root)
    options = resolve_data(config.dataset, config.data_root, config.data, description.data)
    if config.dataset == "kinetics":
        options |= {"temporal_views": config.num_temporal_views, "spatial_views": config.num_spatial_crops}
    else:
        options |= {"test_scales": config.scales and tuple(config.scales), "test_flip": config.flip}
    options["num_classes"] = description.num_classes
    data = task.data_module(
        DATA_CONFIGS[config.dataset](
            root=str(root), batch_size=config.batch_size, num_workers=config.num_workers, **options
        ),
        description.config,
    )
    data.setup("test")
    bad_videos = BadVideosFile(folder / "bad_videos.csv")
    trainer = make_trainer([bad_videos, TestingProgress()], config.accelerator, config.devices, config.precision)
    trainer.print(data.describe())
    module = task.module(model, description, data, **({"protocol": config.protocol} if config.dataset == "ava" else {}))
    make_folder(folder)
    trainer.test(module, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return {}
    figures = {
        "dataset": config.dataset,
        "model": name,
        "weights": str(config.weights),
        **task.write_results(folder, module, data, "test"),
        "bad_videos": bad_videos.num_videos,
    }
    write_json(folder / "metrics.json", figures)
    trainer.print(f"results in {folder}")
    return figures


def parse(argv: Sequence[str]) -> TestConfig:
    """Parses the command line; raises InputError for what is wrong with it."""
    data_class = DATA_CONFIGS.get(option_value(argv, "dataset") or "", DataConfig)
    left_out = TOP_LEVEL_DATA_FIELDS | {"temporal_views", "spatial_views", "test_scales", "test_flip", "num_classes"}
    return parse_arguments(
        TestConfig,
        "python -m slowfast_model.test",
        "Evaluates a checkpoint on AVA- or Kinetics-format videos.",
        argv,
        sections={"data": (data_class, left_out)},
    )


if __name__ == "__main__":
    run_command(lambda: test(parse(sys.argv[1:])))
