"""Orders of samples that depend on (seed, epoch) only, and a loader that continues in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from slowfast_model.data.clips import ClipDataset, DataConfig, Sample, require_clips
from slowfast_model.models import ModelConfig


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class EpochSampler(Sampler[tuple[int, int]]):
    """A random order for each epoch, a function of (seed, epoch): yields (epoch, index).

    Every process takes its share of the order; the first samples repeat where the shares would differ in length.
    Lightning calls `set_epoch`, and must be told ``use_distributed_sampler=False``.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = 0
        self.start = 0  # samples of this process that the next iteration leaves out

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_samples // _rank_and_world_size()[1])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rank, world_size = _rank_and_world_size()
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        share = np.resize(order, len(self) * world_size)[rank::world_size][self.start :]
        self.start = 0
        return iter([(self.epoch, index) for index in share.tolist()])


class EvaluationBatches(Sampler[list[int]]):
    """All samples in order, in batches. Every process takes every n-th batch, and so each sample is taken just once.

    A process for which no batch is left takes one without samples: Lightning wants one from every process.
    """

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self.batches = [
            list(range(start, min(start + batch_size, num_samples))) for start in range(0, num_samples, batch_size)
        ]

    def __len__(self) -> int:
        return len(self._share())

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._share())

    def _share(self) -> list[list[int]]:
        rank, world_size = _rank_and_world_size()
        return self.batches[rank::world_size] or [[]]


class TrainLoader(DataLoader):
    """Shuffled batches whose place in the epoch is part of Lightning's checkpoints (``state_dict``).

    The last, smaller batch of an epoch is dropped, unless it is the only one.
    """

    def __init__(
        self, dataset: ClipDataset, batch_size: int, num_workers: int, seed: int, collate: Callable[[list], dict]
    ) -> None:
        sampler = EpochSampler(len(dataset), seed)
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=len(sampler) >= batch_size,
            collate_fn=collate,
            **_worker_options(num_workers),
        )
        self._epoch_sampler = sampler
        self._batches_done = 0
        self._batches_to_skip = 0

    def __iter__(self) -> Iterator[dict]:
        # A generator starts at its first batch, when Lightning has set the epoch, and not when it is made.
        self._batches_done, self._batches_to_skip = self._batches_to_skip, 0
        self._epoch_sampler.start = self._batches_done * (self.batch_size or 1)
        for batch in super().__iter__():
            self._batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of the present epoch are done."""
        return {"batches_done": self._batches_done % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration continues after the batches that were done."""
        self._batches_to_skip = state["batches_done"]


def evaluation_loader(
    dataset: ClipDataset, batch_size: int, num_workers: int, collate: Callable[[list], dict]
) -> DataLoader:
    """All samples once and in order. A batch is a list of what ``collate`` makes: one for each size of its clips."""
    return DataLoader(
        dataset,
        batch_sampler=EvaluationBatches(len(dataset), batch_size),
        collate_fn=partial(_collate_by_size, collate=collate),
        **_worker_options(num_workers),
    )


def _collate_by_size(samples: list[Sample], collate: Callable[[list], dict]) -> list[dict]:
    """The clips of one size together, in their order. Samples without a clip are with the first."""
    missing = [sample for sample in samples if sample.clip is None]
    by_size: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        if sample.clip is not None:
            by_size.setdefault(sample.clip[1].output, []).append(sample)
    first, *others = by_size.values() or [[]]
    return [collate(group) for group in (first + missing, *others)]


def _worker_options(num_workers: int) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        # Its own generator: drawing the workers' seeds must not move the global one, on which dropout depends.
        "generator": torch.Generator(),
    }


class ClipDataModule(LightningDataModule):
    """What the data modules share: the training loader, and a stop when no video can be read.

    Attributes (after ``setup``):
        train_data: the training clips.
    """

    config: Any  # the DataConfig of the data set
    train_data: ClipDataset

    def __init__(self, config: DataConfig, model_config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model_config = model_config
        config.train_short_side(model_config.crop_size)  # to hear of a wrong one now and not from a worker
        config.eval_short_side(model_config.crop_size)

    def train_dataloader(self) -> TrainLoader:
        config = self.config
        return TrainLoader(self.train_data, config.batch_size, config.num_workers, config.seed, self.train_data.collate)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer and self.trainer.training:
            require_clips(batch)
        return batch
