"""What a training writes as it runs: metrics.csv, checkpoints, bad_videos.csv, a progress bar, a line per epoch."""

from __future__ import annotations

import csv
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from slowfast_model.errors import InputError
from slowfast_model.training.modules import VideoModule

Row = dict[str, str]


def is_epoch_end(trainer: pl.Trainer) -> bool:
    """In ``on_train_batch_end``: whether the batch was the last of its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


class MetricsFile(pl.Callback):
    """Writes metrics.csv: a row every some steps and one at the end of each epoch, that one with the evaluation.

    "loss" is the mean over the steps since the row before, "lr" the rate of the last of them, "clips_per_second" counts
    loading and training but no evaluation. A run that is resumed first drops the rows after its checkpoint, and the
    running sums are part of the checkpoint: no row is lost, repeated or different, apart from the timings.

    Args:
        path: the file.
        every_n_steps: distance of the rows within an epoch.
        metric_columns: the figures of an evaluation.
    """

    def __init__(self, path: Path, every_n_steps: int, metric_columns: Sequence[str]) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self._columns = ["epoch", "step", "loss", "lr", "clips_per_second", "seconds", *metric_columns]
        self.last_row: dict[str, float] = {}
        self.total_seconds = 0.0
        self._loss_sum = torch.zeros(())
        self._steps = 0
        self._clips = 0
        self._seconds = 0.0
        self._clock = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "loss_sum": self._loss_sum.item(),
            "steps": self._steps,
            "clips": self._clips,
            "seconds": self._seconds,
            "total_seconds": self.total_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loss_sum = torch.tensor(state_dict["loss_sum"])
        self._steps, self._clips = state_dict["steps"], state_dict["clips"]
        self._seconds, self.total_seconds = state_dict["seconds"], state_dict["total_seconds"]

    @property
    def running_loss(self) -> float:
        """Mean loss since the last row."""
        return self._loss_sum.item() / max(self._steps, 1)

    @property
    def clips_per_second(self) -> float:
        """Since the last row."""
        return self._clips / self._seconds if self._seconds else 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._rewrite([row for row in read_metrics(self.path) if int(row["step"]) <= trainer.global_step])
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self._seconds += now - self._clock
        self.total_seconds += now - self._clock
        self._clock = now
        self._loss_sum = self._loss_sum.to(outputs["loss"].device) + outputs["loss"].detach()
        self._steps += 1
        self._clips += batch["pathways"][0].shape[0] * trainer.world_size
        if trainer.global_step % self.every_n_steps == 0 and not is_epoch_end(trainer):
            self._write_row(trainer, {})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, VideoModule)
        self._write_row(trainer, pl_module.metrics_at(trainer.global_step))

    def after_final_evaluation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """To be called when the last weights were evaluated after the training: completes the last row."""
        assert isinstance(pl_module, VideoModule)
        rows = read_metrics(self.path)
        if trainer.is_global_zero and rows:
            metrics = pl_module.metrics_at(trainer.global_step)
            self._rewrite([*rows[:-1], {**rows[-1], **{name: str(value) for name, value in metrics.items()}}])

    def _rewrite(self, rows: list[Row]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)

    def _write_row(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        loss = trainer.strategy.reduce(self._loss_sum / max(self._steps, 1), reduce_op="mean").item()
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {trainer.global_step}: the training diverged; "
                "try a lower --lr or more --warmup-epochs"
            )
        row = {
            "epoch": round(trainer.global_step / trainer.num_training_batches, 6),
            "step": trainer.global_step,
            "loss": loss,
            "lr": used_lr(trainer),
            "clips_per_second": round(self.clips_per_second, 3),
            "seconds": round(self.total_seconds, 3),
            **metrics,
        }
        self.last_row = row
        if trainer.is_global_zero:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        self._loss_sum, self._steps, self._clips, self._seconds = torch.zeros_like(self._loss_sum), 0, 0, 0.0


def used_lr(trainer: pl.Trainer) -> float:
    """The learning rate of the latest step; the scheduler has moved on to the next one's already."""
    module = trainer.lightning_module
    assert isinstance(module, VideoModule)
    assert module.schedule is not None
    return module.schedule.at(max(trainer.global_step - 1, 0) / trainer.num_training_batches)


def read_metrics(path: Path) -> list[Row]:
    """The complete rows of a metrics.csv; an interrupted run may have left half a row at the end."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]


class CheckpointFiles(pl.Callback):
    """Keeps ``last.ckpt`` (every epoch, and every some steps) and ``best.ckpt``.

    A file appears under its name only when it is complete, so a process killed at any time leaves the one before. The
    best epoch is the first with the highest figure.

    Args:
        folder: where the files go.
        every_n_steps: also save within epochs, at this distance; 0 for epochs only.
    """

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.best_metric = -math.inf
        self.best_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_epoch = state_dict["best_metric"], state_dict["best_epoch"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The end of an epoch has a checkpoint of its own, after the evaluation.
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not is_epoch_end(trainer):
            self._save(trainer, best=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, best=self._is_best(trainer, pl_module, trainer.current_epoch + 1))

    def after_final_evaluation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """To be called when the last weights, which are in last.ckpt, were evaluated after the training."""
        if self._is_best(trainer, pl_module, trainer.current_epoch) and trainer.is_global_zero:
            self._copy_to_best(self.folder / "last.ckpt")

    def _is_best(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> bool:
        assert isinstance(pl_module, VideoModule)
        metric = pl_module.metrics_at(trainer.global_step).get(pl_module.metric_name, math.nan)
        if not metric > self.best_metric and (self.folder / "best.ckpt").exists():
            return False
        self.best_metric = -math.inf if math.isnan(metric) else metric
        self.best_epoch = epoch
        return True

    def _save(self, trainer: pl.Trainer, best: bool) -> None:
        temporary = self.folder / "saving.tmp"
        trainer.save_checkpoint(temporary)  # on every process
        if trainer.is_global_zero:
            if best:
                self._copy_to_best(temporary)
            os.replace(temporary, self.folder / "last.ckpt")
        trainer.strategy.barrier()

    def _copy_to_best(self, path: Path) -> None:
        copy = self.folder / "copying.tmp"
        shutil.copyfile(path, copy)
        os.replace(copy, self.folder / "best.ckpt")


_ENOUGH_CLIPS = 50


class BadVideosFile(pl.Callback):
    """Lists the videos that could not be read in bad_videos.csv: path, reason and how many clips were replaced.

    Stops the run when they are too large a share (``data.max_bad_share``) of all clips. The share is looked at once
    `_ENOUGH_CLIPS` were tried: a few bad videos at the start say little.

    Args:
        path: the file; it appears with the first bad video.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._max_share = 1.0  # of clips that cannot be read; the data set's own from `setup` on
        self._counts: dict[tuple[str, str], int] = {}
        self._written: dict[tuple[str, str], int] = {}
        self._clips_read = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._max_share = trainer.datamodule.config.max_bad_share  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        counts = [[path, reason, count] for (path, reason), count in self._counts.items()]
        return {"counts": counts, "clips_read": self._clips_read}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._counts = {(path, reason): count for path, reason, count in state_dict["counts"]}
        self._clips_read = state_dict["clips_read"]

    def add(self, batch: dict[str, Any]) -> None:
        """Counts the clips of a batch.

        Raises:
            InputError: too large a share of all clips could not be read.
        """
        self._clips_read += len(batch["pathways"][0])
        for path, reason in batch["bad_videos"]:
            key = str(path), " ".join(str(reason).split())
            self._counts[key] = self._counts.get(key, 0) + 1
        bad = sum(self._counts.values())
        tried = bad + self._clips_read
        if tried >= _ENOUGH_CLIPS and bad > self._max_share * tried:
            self.write()
            path, reason = next(reversed(self._counts))
            raise InputError(
                f"{bad} of {tried} clips could not be read, more than data.max_bad_share={self._max_share}; all are in "
                f"{self.path}, the last is {path}: {reason}"
            )

    @property
    def num_videos(self) -> int:
        return len({path for path, _ in self._counts})

    def write(self) -> None:
        if not self._counts:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "reason", "clips"])
            writer.writerows([path, reason, count] for (path, reason), count in sorted(self._counts.items()))
        os.replace(temporary, self.path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.add(batch)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batches: Any, *indices: Any
    ) -> None:
        for batch in batches:
            self.add(batch)

    on_test_batch_end = on_validation_batch_end

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer)

    on_validation_end = on_train_epoch_end

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer)
        clips_read = trainer.strategy.reduce(torch.tensor(self._clips_read, device=pl_module.device), reduce_op="sum")
        if self._counts and not clips_read:
            path, reason = next(reversed(self._counts))
            raise InputError(f"no video can be read: all are in {self.path}, the last is {path}: {reason}")

    def _report(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or self._counts == self._written:
            return
        self.write()
        if self._counts.keys() != self._written.keys():
            trainer.print(f"warning: {self.num_videos} videos could not be read, see {self.path}")
        self._written = dict(self._counts)


class TestingProgress(pl.callbacks.ProgressBar):
    """On a terminal, a bar with the time left."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(file=sys.stdout, highlight=False)
        self.bar: Progress | None = None

    def disable(self) -> None:
        """Lightning calls this on processes other than the first."""
        self.console = Console(quiet=True)

    def print(self, *args: Any, **kwargs: Any) -> None:
        self.console.print(*args, soft_wrap=True, **kwargs)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.console.is_terminal:
            columns = TextColumn("testing"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn()
            self.bar = Progress(*columns, console=self.console, transient=True)
            self._task = self.bar.add_task("test", total=sum(trainer.num_test_batches))
            self.bar.start()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self.bar:
            self.bar.advance(self._task)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


class TrainingProgress(pl.callbacks.ProgressBar):
    """A progress bar with loss, learning rate, clips/s and time left on a terminal; a line per epoch everywhere."""

    def __init__(self, metrics_file: MetricsFile) -> None:
        super().__init__()
        self.metrics_file = metrics_file
        self.console = Console(file=sys.stdout, highlight=False)
        self.bar: Progress | None = None
        self._started = 0.0
        self._first_step = 0

    def disable(self) -> None:
        """Lightning calls this on processes other than the first."""
        self.console = Console(quiet=True)

    def print(self, *args: Any, **kwargs: Any) -> None:
        self.console.print(*args, soft_wrap=True, **kwargs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started, self._first_step = time.perf_counter(), trainer.global_step
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
        )
        self._task = self.bar.add_task("train", total=self._total_steps(trainer), epoch="", figures="")
        self.bar.start()
        self._update(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._update(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar:
            self.bar.update(self._task, figures="evaluating")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, VideoModule)
        row = self.metrics_file.last_row
        metric = row.get(pl_module.metric_name)
        figures = [f"epoch {self._epoch(trainer)}", *_figures(row["loss"], row["lr"], row["clips_per_second"])]
        if metric is not None:
            figures.append(f"{pl_module.metric_title} {metric:.4f}")
        self.print("  ".join([*figures, f"{_clock(self._elapsed())} elapsed", f"{self._left(trainer)} left"]))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.stop()
        if isinstance(exception, KeyboardInterrupt):
            self.print(f"interrupted; --resume --output-dir {self.metrics_file.path.parent} continues")

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _update(self, trainer: pl.Trainer) -> None:
        if not self.bar:
            return
        figures = _figures(self.metrics_file.running_loss, used_lr(trainer), self.metrics_file.clips_per_second)
        self.bar.update(
            self._task,
            completed=trainer.global_step,
            epoch=self._epoch(trainer),
            figures="  ".join([*figures, f"{self._left(trainer)} left"]),
        )

    def _elapsed(self) -> float:
        return time.perf_counter() - self._started

    def _left(self, trainer: pl.Trainer) -> str:
        done = trainer.global_step - self._first_step
        return _clock(self._elapsed() / done * (self._total_steps(trainer) - trainer.global_step)) if done else "?"

    @staticmethod
    def _total_steps(trainer: pl.Trainer) -> int:
        return int(trainer.estimated_stepping_batches)

    @staticmethod
    def _epoch(trainer: pl.Trainer) -> str:
        width = len(str(trainer.max_epochs))
        return f"{trainer.current_epoch + 1:{width}d}/{trainer.max_epochs}"


def _figures(loss: float, lr: float, clips_per_second: float) -> list[str]:
    return [f"loss {loss:.4f}", f"lr {lr:.3g}", f"{clips_per_second:.1f} clips/s"]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
