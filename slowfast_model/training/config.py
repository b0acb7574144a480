"""The fields of a training, the recipes that fill in what is not given, and the parsing of both."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from slowfast_model.commands import option_value, parse_arguments
from slowfast_model.data.ava import AvaDataConfig
from slowfast_model.data.clips import FIELDS_OF_THE_WEIGHTS, DataConfig
from slowfast_model.data.kinetics import KineticsDataConfig
from slowfast_model.errors import InputError
from slowfast_model.training.environment import RUNS
from slowfast_model.training.optimizer import OptimizerName
from slowfast_model.training.schedules import Policy, Schedule

CONFIG_NAME = "config.yaml"
DATA_CONFIGS: dict[str, type[DataConfig]] = {"ava": AvaDataConfig, "kinetics": KineticsDataConfig}
_MAX_SEED = 2**63 - 1  # torch's generators take 64 bits
TOP_LEVEL_DATA_FIELDS = {"root", "batch_size", "num_workers", "seed"}  # fields of TrainConfig, not of its data section
_CHANGEABLE_ON_RESUME = {
    "output_dir", "resume", "max_epochs", "max_steps", "num_workers", "evaluate_every_epochs", "checkpoint_every_steps",
    "log_every_steps", "accelerator", "devices", "weights",
}  # fmt: skip


@dataclass
class TrainConfig:
    """Fields that are null take the value of the data set's recipe.

    Attributes:
        dataset: format of the data
        data_root: folder of the data set; without it the built-in sample set is generated and used
        model: name of a preset, a PySlowFast YAML file, or a checkpoint whose network to take
        output_dir: run folder; default runs/<dataset>-<model>-<time>
        resume: continue the run in output_dir (without output_dir the latest in runs/), with its settings
        weights: start from the weights of a file, ours or a peer's or torchvision's ResNet; the head may be a new one
        seed: of the initial weights, the order, the augmentation and the dropout
        max_epochs: length of the training
        max_steps: stop after this many iterations even if max_epochs are not over
        batch_size: clips per batch and process
        num_workers: processes that read videos ahead, per training process; 0 reads in the training process itself
        optimizer: sgd, or adamw
        lr: base learning rate; the recipes' grow with the total batch size
        lr_policy: half-period cosine or steps
        warmup_epochs: length of the linear warm-up
        warmup_start_lr: learning rate at its beginning
        lr_steps: epochs at which the relative_lrs begin (policy step)
        relative_lrs: factors of lr (policy step)
        momentum: of SGD
        nesterov: Nesterov momentum
        weight_decay: of everything but batch norm
        precise_bn_batches: take batch norm statistics from this many training batches; 0 for running averages
        gradient_clip: largest norm of the gradient; 0 for no limit
        evaluate_every_epochs: epochs from one evaluation to the next; the last epoch is always evaluated
        checkpoint_every_steps: also save last.ckpt within epochs, at this distance; 0 for epochs only
        log_every_steps: distance of the rows of metrics.csv within an epoch
        accelerator: cpu, gpu or auto
        devices: how many, which ("0,1"), or auto
        precision: 32-true, bf16-mixed, 16-mixed ...
        channels_last: memory format channels_last_3d, the faster one on a CPU, instead of contiguous
        data: fields of the data set
    """

    dataset: Literal["ava", "kinetics"]
    data_root: Path | None = None
    model: str = "slowfast_tiny"
    output_dir: Path | None = None
    resume: bool = False
    weights: Path | None = None
    seed: int = 0
    max_epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    optimizer: OptimizerName | None = None
    lr: float | None = None
    lr_policy: Policy | None = None
    warmup_epochs: float | None = None
    warmup_start_lr: float | None = None
    lr_steps: list[float] | None = None
    relative_lrs: list[float] | None = None
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float | None = None
    precise_bn_batches: int | None = None
    gradient_clip: float = 0.0
    evaluate_every_epochs: int = 1
    checkpoint_every_steps: int = 500
    log_every_steps: int = 10
    accelerator: str = "auto"
    devices: int | str = "auto"
    precision: str = "32-true"
    channels_last: bool = True
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {
            "seed": 0, "max_epochs": 1, "max_steps": 1, "batch_size": 1, "num_workers": 0, "lr": 0, "warmup_epochs": 0,
            "warmup_start_lr": 0, "momentum": 0, "weight_decay": 0, "precise_bn_batches": 0, "gradient_clip": 0,
            "evaluate_every_epochs": 1, "checkpoint_every_steps": 0, "log_every_steps": 1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise InputError(f"{name} is {value}: expected {bound} or more")
        if self.seed > _MAX_SEED:
            raise InputError(f"seed is {self.seed}: expected at most {_MAX_SEED}")

    def data_config(self, root: Path) -> DataConfig:
        """The data set's configuration for a folder."""
        assert self.batch_size is not None
        assert self.num_workers is not None
        return DATA_CONFIGS[self.dataset](
            root=str(root), batch_size=self.batch_size, num_workers=self.num_workers, seed=self.seed, **self.data
        )

    def schedule(self) -> Schedule:
        """The learning rates of a resolved configuration."""
        assert self.lr is not None
        assert self.max_epochs is not None
        assert self.lr_policy is not None
        return Schedule(
            base_lr=self.lr,
            max_epochs=self.max_epochs,
            policy=self.lr_policy,
            warmup_epochs=self.warmup_epochs or 0.0,
            warmup_start_lr=self.warmup_start_lr or 0.0,
            steps=tuple(self.lr_steps or (0.0,)),
            relative_lrs=tuple(self.relative_lrs or (1.0,)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for yaml."""
        values = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self).items()}
        values["data"] = {name: list(v) if isinstance(v, tuple) else v for name, v in self.data.items()}
        return values

    def save(self, path: Path) -> None:
        """Writes a yaml file that ``--config`` reads."""
        values = self.to_dict()
        del values["resume"]
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@dataclass(frozen=True)
class Recipe:
    """How a data set is trained unless the configuration says otherwise.

    Attributes:
        max_epochs, batch_size, num_workers, optimizer, lr_policy, lr_steps, relative_lrs, warmup_epochs, weight_decay,
            precise_bn_batches: see `TrainConfig`. Without num_workers there is one per free core, at most 8.
        lr: base learning rate of a total batch of ``lr_clips``; it is scaled linearly to the batch in use.
        warmup_start: where the warm-up begins, as a fraction of the base learning rate.
        data: values for fields of the data section that are left at their defaults.
    """

    max_epochs: int
    lr: float
    lr_clips: int
    batch_size: int = 8
    num_workers: int | None = None
    optimizer: OptimizerName = "sgd"
    lr_policy: Policy = "cosine"
    lr_steps: tuple[float, ...] = (0.0,)
    relative_lrs: tuple[float, ...] = (1.0,)
    warmup_epochs: float = 0.0
    warmup_start: float = 0.1
    weight_decay: float = 1e-4
    precise_bn_batches: int = 0
    data: dict[str, Any] = field(default_factory=dict)


# The built-in sample sets: minutes on two cores. They are small enough to be kept in memory, decoded.
_SAMPLE: dict[str, Any] = {
    "batch_size": 4,
    "num_workers": 0,
    "optimizer": "adamw",
    "lr": 0.01,
    "lr_clips": 4,
    "warmup_epochs": 0.5,
    "weight_decay": 1e-3,
    "data": {"short_side": (96, 112), "test_short_side": 96, "cache_megabytes": 512},
}

RECIPES = {
    # The published recipes (PySlowFast's: AVA/SLOWFAST_32x2_R50_SHORT, Kinetics/SLOWFAST_8x8_R50).
    "ava": Recipe(
        max_epochs=20,
        lr=0.1,
        lr_clips=64,
        lr_policy="step",
        lr_steps=(0, 10, 15),
        relative_lrs=(1, 0.1, 0.01),
        warmup_epochs=5,
        warmup_start=0.00125,
        weight_decay=1e-7,
    ),
    "kinetics": Recipe(max_epochs=196, lr=0.1, lr_clips=64, warmup_epochs=34, precise_bn_batches=200),
    "ava sample": Recipe(max_epochs=8, **_SAMPLE),
    "kinetics sample": Recipe(max_epochs=10, **_SAMPLE),
}


def resolve(config: TrainConfig, world_size: int, data_of_weights: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration with every field that is null filled in from the recipe of its data.

    ``data_of_weights`` are the data settings of the weights that the training starts from.
    """
    recipe = _recipe(config.dataset, config.data_root)
    batch_size = config.batch_size or recipe.batch_size
    lr = recipe.lr * batch_size * world_size / recipe.lr_clips if config.lr is None else config.lr
    values: dict[str, Any] = {
        "max_epochs": recipe.max_epochs,
        "batch_size": batch_size,
        "num_workers": min(8, max(1, (os.cpu_count() or 1) // world_size - 1)),
        "optimizer": recipe.optimizer,
        "lr": lr,
        "lr_policy": recipe.lr_policy,
        "lr_steps": list(recipe.lr_steps),
        "relative_lrs": list(recipe.relative_lrs),
        "warmup_epochs": recipe.warmup_epochs,
        "warmup_start_lr": lr * recipe.warmup_start,
        "weight_decay": recipe.weight_decay,
        "precise_bn_batches": recipe.precise_bn_batches,
    }
    if recipe.num_workers is not None:
        values["num_workers"] = recipe.num_workers
    missing = {name: value for name, value in values.items() if getattr(config, name) is None}
    data = resolve_data(config.dataset, config.data_root, config.data, data_of_weights)
    return dataclasses.replace(config, **missing, data=data)


def resolve_data(
    dataset: str, data_root: Path | None, data: dict[str, Any], data_of_weights: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The data section with the weights' and the recipe's values for the fields that are left at their defaults."""
    recipe = _recipe(dataset, data_root)
    defaults = {f.name: f.default for f in dataclasses.fields(DATA_CONFIGS[dataset])}
    resolved = {k: recipe.data[k] if k in recipe.data and v == defaults[k] else v for k, v in data.items()}
    needed = data_of_weights or {}
    return resolved | {k: v for k, v in needed.items() if data.get(k, defaults[k]) == defaults[k]}


def data_of_weights(dataset: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of weights says about the data section: slow_sampling always, the others where not the default."""
    config_class = DATA_CONFIGS[dataset]
    defaults = {f.name: f.default for f in dataclasses.fields(config_class)}
    values = {k: data[k] for k in FIELDS_OF_THE_WEIGHTS if k in data and data[k] != defaults[k]}
    values["slow_sampling"] = config_class(**{**data, "root": ""}).rules.slow_sampling
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _recipe(dataset: str, data_root: Path | None) -> Recipe:
    return RECIPES[dataset if data_root else f"{dataset} sample"]


def parse_train_config(prog: str, description: str, argv: Sequence[str]) -> TrainConfig:
    """Parses the command line. With ``--resume`` the run's own settings are the defaults.

    Raises:
        InputError: see `parse_arguments`; or there is nothing to resume, or a setting differs from the run's.
    """
    stored: dict[str, Any] = {}
    run = _run_to_resume(argv)
    if run:
        stored = _read_yaml(run / CONFIG_NAME)
    files = [stored, *(_read_yaml(Path(path)) for path in [option_value(argv, "config")] if path)]
    dataset = option_value(argv, "dataset") or next((f["dataset"] for f in reversed(files) if "dataset" in f), None)
    config = parse_arguments(
        TrainConfig,
        prog,
        description,
        argv,
        defaults_from=run / CONFIG_NAME if run else None,
        sections={"data": (DATA_CONFIGS.get(str(dataset), DataConfig), TOP_LEVEL_DATA_FIELDS)},
    )
    if run is None:
        return config
    for name, value in config.to_dict().items():
        if name not in _CHANGEABLE_ON_RESUME and value != stored.get(name):
            raise InputError(f"{name} is {value}: --resume continues {run} with its own, {stored.get(name)}")
    return dataclasses.replace(config, output_dir=run)


def _run_to_resume(argv: Sequence[str]) -> Path | None:
    if option_value(argv, "resume") not in ("", "true"):
        return None
    if output_dir := option_value(argv, "output_dir"):
        run = Path(output_dir)
    else:
        runs = sorted(
            RUNS.glob(f"{option_value(argv, 'dataset') or ''}*/{CONFIG_NAME}"), key=lambda p: p.stat().st_mtime
        )
        if not runs:
            raise InputError(f"--resume: there is no run in {RUNS}; name its folder with --output-dir")
        run = runs[-1].parent
    if not (run / CONFIG_NAME).is_file():
        raise InputError(f"--resume: {run} is not a run folder ({CONFIG_NAME} is missing)")
    return run


def _read_yaml(path: Path) -> dict[str, Any]:
    """A file of configuration fields; what is wrong with it is left for the parser to say."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
