"""One training, from the configuration to the results in a run folder."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch

from slowfast_model.evaluation.report import save_training_curves
from slowfast_model.models import build_model
from slowfast_model.training.callbacks import (
    BadVideosFile,
    CheckpointFiles,
    MetricsFile,
    TrainingProgress,
    read_metrics,
)
from slowfast_model.training.config import CONFIG_NAME, TrainConfig, data_of_weights, resolve
from slowfast_model.training.environment import (
    choose_folder,
    data_root,
    make_folder,
    make_trainer,
    quiet_lightning,
    write_json,
)
from slowfast_model.training.optimizer import build_optimizer
from slowfast_model.training.precise_bn import PreciseBatchNorm
from slowfast_model.training.sources import read_initial_weights, resolve_model
from slowfast_model.training.tasks import TASKS
from slowfast_model.training.weights import ModelDescription, read_weights, save_weights


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, evaluates, and writes the run folder.

    Returns:
        The figures of ``metrics.json``.

    Raises:
        InputError: something is wrong with the configuration, the data or the run folder.
    """
    quiet_lightning()
    task = TASKS[config.dataset]
    model_config = resolve_model(config.model)
    name = model_config.name
    initial = read_initial_weights(config.weights) if config.weights and not config.resume else None
    folder = choose_folder(config.output_dir, f"{config.dataset}-{name}", may_hold_run=config.resume)
    checkpoints = folder / "checkpoints"
    metrics_file = MetricsFile(folder / "metrics.csv", config.log_every_steps, task.metric_columns)
    checkpoint_files = CheckpointFiles(checkpoints, config.checkpoint_every_steps)
    bad_videos = BadVideosFile(folder / "bad_videos.csv")
    # The order matters: a checkpoint is saved last, when the others have done their part of the step or epoch.
    callbacks: list[pl.Callback] = [bad_videos, metrics_file, TrainingProgress(metrics_file), checkpoint_files]
    resolved = resolve(config, world_size=1)
    if resolved.precise_bn_batches:
        callbacks.insert(0, PreciseBatchNorm(resolved.precise_bn_batches))
    trainer = make_trainer(
        callbacks,
        config.accelerator,
        config.devices,
        config.precision,
        max_epochs=resolved.max_epochs,
        max_steps=config.max_steps or -1,
        gradient_clip_val=config.gradient_clip or None,
        check_val_every_n_epoch=config.evaluate_every_epochs,
    )
    config = resolve(config, trainer.world_size, initial.data if initial else None)
    data = task.data_module(config.data_config(data_root(config.dataset, config.data_root)), model_config)
    data.setup("fit")
    trainer.print(data.describe())

    torch.manual_seed(config.seed)
    model = build_model(model_config, num_classes=data.num_classes, head=task.head)
    if initial:
        report = initial.load_into(model)
        fresh = f"; a new {', '.join(sorted({n.rsplit('.', 1)[0] for n in report.missing}))}" if report.missing else ""
        trainer.print(f"weights from {initial.path}: {len(report.loaded)} tensors{fresh}")
    description = ModelDescription(
        model_config, task.head, data.num_classes, data.class_names, data_of_weights(config.dataset, config.data)
    )
    make_optimizer = partial(
        build_optimizer,
        name=config.optimizer or "sgd",
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay or 0.0,
    )
    module = task.module(
        model,
        description,
        data,
        make_optimizer=make_optimizer,
        schedule=config.schedule(),
        seed=config.seed,
        channels_last=config.channels_last,
    )

    make_folder(checkpoints)
    last = checkpoints / "last.ckpt"
    resuming = config.resume and last.exists()
    if resuming:
        read_weights(last)  # says what is wrong with a damaged file, which Lightning does not
    if trainer.is_global_zero:
        config.save(folder / CONFIG_NAME)
    trainer.print(f"{'continuing' if resuming else 'training'} {name}; run folder {folder}")
    trainer.fit(module, datamodule=data, ckpt_path=last if resuming else None)
    if not module.metrics_at(trainer.global_step):
        trainer.validate(module, datamodule=data, verbose=False)
        metrics_file.after_final_evaluation(trainer, module)
        checkpoint_files.after_final_evaluation(trainer, module)
    if not trainer.is_global_zero:
        return {}

    save_weights(checkpoints / "model.safetensors", model, description)
    save_training_curves(
        folder / "training_curves.png", read_metrics(folder / "metrics.csv"), {module.metric_name: module.metric_title}
    )
    figures = {
        "dataset": config.dataset,
        "model": name,
        **task.write_results(folder, module, data, "val"),
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "train_seconds": metrics_file.total_seconds,
        "best_epoch": checkpoint_files.best_epoch,
        f"best_{module.metric_name}": checkpoint_files.best_metric,
        "bad_videos": bad_videos.num_videos,
    }
    write_json(folder / "metrics.json", figures)
    trainer.print(f"results in {folder}")
    return figures
