"""What training and testing share around the network: folders, data, processes, and Lightning's Trainer."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from slowfast_model.data.sample_set import ensure_sample_set
from slowfast_model.errors import InputError

RUNS = Path("runs")
_FOLDER_VARIABLE = "SLOWFAST_RUN_FOLDER"  # tells the processes that Lightning starts which folder the first one chose


def is_first_process() -> bool:
    """Whether this is the process that prints and writes; known before torch.distributed is."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def choose_folder(given: Path | None, name: str, may_hold_run: bool = False) -> Path:
    """The run folder: the one given, or ``runs/<name>-<time>``. It is not made yet.

    Raises:
        InputError: there is something in it, unless it ``may_hold_run``.
    """
    if given is None:
        if not is_first_process():
            if _FOLDER_VARIABLE not in os.environ:
                raise InputError("output_dir is null: processes that were started by hand need one to agree on")
            return Path(os.environ[_FOLDER_VARIABLE])
        given = RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if is_first_process():
        if not may_hold_run and given.exists() and (not given.is_dir() or any(given.iterdir())):
            raise InputError(
                f"output_dir is {given}, which is not empty: choose another (or continue it with --resume)"
            )
        os.environ[_FOLDER_VARIABLE] = str(given)
    return given


def make_folder(path: Path) -> None:
    """Makes a folder for output, and those that it is in; there may be one already.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir: {path} cannot be made ({error.strerror})") from None


def data_root(dataset: str, given: Path | None) -> Path:
    """The folder of the data: the one given, or the built-in sample set's."""
    if given is not None:
        return given
    root = ensure_sample_set(dataset)
    if is_first_process():
        print(f"no --data-root: using the built-in sample set in {root}")
    return root


def quiet_lightning() -> None:
    """Silences Lightning where it speaks to its developers: hardware, tips, and choices that are made on purpose."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", module="pytorch_lightning.*", message=".*is deprecated.*")


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures, numbers that are not finite as null; the file appears when it is complete."""
    values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def make_trainer(
    callbacks: list[pl.Callback], accelerator: str, devices: int | str, precision: str, **options: Any
) -> pl.Trainer:
    """A Trainer without Lightning's own loggers, checkpoints and summaries.

    Raises:
        InputError: the accelerator, the devices or the precision do not exist here.
    """
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            precision=precision,  # type: ignore[arg-type]
            callbacks=callbacks,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the loaders share the samples out themselves
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            **options,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"accelerator, devices or precision cannot be used here: {message}") from None
