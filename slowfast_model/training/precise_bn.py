"""Precise batch norm: running statistics recomputed from training clips before an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def update_batch_norm(model: nn.Module, forward: Callable[[Any], Any], batches: Iterable[Any], num_batches: int) -> int:
    """Replaces running means and variances by their plain averages over some training batches.

    The exponential running averages lag behind weights that move fast; Kinetics recipes evaluate with statistics taken
    over 200 batches of the current weights instead. Layers in eval mode (frozen batch norm) are left alone, and so
    are all other layers: dropout is off, as it would not be at test time either.

    Args:
        model: its batch norm layers are updated.
        forward: runs the model on a batch.
        batches: training batches.
        num_batches: how many of them to use at most.

    Returns:
        How many batches were used. With none, nothing changes.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    training = {module: module.training for module in model.modules()}
    momentum = {layer: layer.momentum for layer in layers}
    used = 0
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.momentum = None  # a cumulative average
        for batch in islice(batches, num_batches):
            if used == 0:
                for layer in layers:
                    layer.reset_running_stats()
            forward(batch)
            used += 1
    finally:
        for layer in layers:
            layer.momentum = momentum[layer]
        for module, was_training in training.items():
            module.training = was_training
    return used


class PreciseBatchNorm(pl.Callback):
    """Runs `update_batch_norm` after the last training batch of an epoch, that is before validation and checkpoint.

    Args:
        num_batches: training batches to use, of those of the epoch that ends.
    """

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return

        def forward(batch: dict[str, Any]) -> None:
            batch = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.forward_context():
                pl_module.model(pl_module.clips(batch), batch.get("rois"))

        loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        update_batch_norm(pl_module.model, forward, loader, self.num_batches)
        if trainer.world_size > 1:
            for name, buffer in pl_module.model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.copy_(trainer.strategy.reduce(buffer, reduce_op="mean"))
