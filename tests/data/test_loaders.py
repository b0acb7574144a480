"""Orders and resuming: what a training sees depends on (seed, epoch) only, however often it is interrupted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from slowfast_model.data.clips import ClipDataset, Sample
from slowfast_model.data.loaders import EpochSampler, EvaluationBatches, TrainLoader
from slowfast_model.data.sampling import ClipGeometry
from slowfast_ops import YUVFrames


class Numbers(ClipDataset[tuple[int, float]]):
    """Samples without pixels: (index, a random number)."""

    def __init__(self, length: int = 11) -> None:
        super().__init__(seed=3, training=True)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def load(self, index: int, rng: np.random.Generator) -> tuple[YUVFrames, ClipGeometry, tuple[int, float]]:
        geometry = ClipGeometry((1, 1), (1, 1), (0, 0, 1, 1))
        return (
            YUVFrames(np.zeros((1, 1, 1), np.uint8), np.zeros((1, 2, 1, 1), np.uint8)),
            geometry,
            (index, float(rng.random())),
        )


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    return {"values": torch.tensor([sample.target for sample in samples], dtype=torch.float64)}


def loader(num_workers: int = 0, length: int = 11, batch_size: int = 2) -> TrainLoader:
    return TrainLoader(Numbers(length), batch_size, num_workers, seed=7, collate=collate)


def epoch_of(loader: TrainLoader, epoch: int) -> list[list]:
    loader.sampler.set_epoch(epoch)
    return [batch["values"].tolist() for batch in loader]


def test_every_epoch_has_an_order_of_its_own() -> None:
    sampler = EpochSampler(50, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert {key[0] for key in orders[-1]} == {epoch}
        assert sorted(key[1] for key in orders[-1]) == list(range(50))
    assert orders[0] == orders[2]
    assert [i for _, i in orders[0]] != [i for _, i in orders[1]]
    assert list(EpochSampler(50, seed=2)) != orders[0]


@pytest.mark.parametrize(("length", "world_size"), [(10, 3), (9, 3), (2, 5)])
def test_processes_share_an_epoch_in_equal_parts(monkeypatch: pytest.MonkeyPatch, length: int, world_size: int) -> None:
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr("slowfast_model.data.loaders._rank_and_world_size", lambda rank=rank: (rank, world_size))
        sampler = EpochSampler(length, seed=0)
        parts.append([index for _, index in sampler])
        assert len(parts[-1]) == len(sampler) == -(-length // world_size)
    counts = Counter(index for part in parts for index in part)
    assert set(counts) == set(range(length))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_processes_share_the_evaluation_and_each_sample_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(EvaluationBatches(8, 3)) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert list(EvaluationBatches(0, 3)) == [[]]
    shares = []
    for rank in range(5):
        monkeypatch.setattr("slowfast_model.data.loaders._rank_and_world_size", lambda rank=rank: (rank, 5))
        batches = EvaluationBatches(8, 3)
        shares += list(batches)
        assert len(list(batches)) == len(batches) == 1
    assert sorted(index for batch in shares for index in batch) == list(range(8))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_continues_where_it_was_left(num_workers: int) -> None:
    whole = epoch_of(loader(), epoch=2)
    assert len(whole) == 5
    interrupted = loader(num_workers)
    interrupted.sampler.set_epoch(2)
    batches = iter(interrupted)
    first = [next(batches)["values"].tolist() for _ in range(3)]
    state = interrupted.state_dict()

    resumed = loader(num_workers)
    resumed.load_state_dict(state)
    batches = iter(resumed)  # Lightning makes the iterator first and sets the epoch then
    resumed.sampler.set_epoch(2)
    assert first + [batch["values"].tolist() for batch in batches] == whole
    assert epoch_of(resumed, 3) == epoch_of(loader(), 3)
    assert resumed.state_dict() == loader().state_dict()


def test_the_last_smaller_batch_is_dropped_unless_it_is_the_only_one() -> None:
    assert [len(batch) for batch in epoch_of(loader(length=11, batch_size=4), 0)] == [4, 4]
    assert [len(batch) for batch in epoch_of(loader(length=3, batch_size=4), 0)] == [3]


def test_loading_does_not_move_the_global_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    epoch_of(loader(num_workers=1), 0)
    assert torch.equal(torch.rand(3), expected)


class Recorder(pl.LightningModule):
    """A training that depends on every value it has seen, in their order."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.stop_after = stop_after

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        if self.stop_after is not None and self.global_step >= self.stop_after:
            raise KeyboardInterrupt
        return (self.weight.sin() - batch["values"].prod(dim=1).sum()) ** 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("stop_after", [3, 5, 7, 10, 13])
def test_a_killed_lightning_training_ends_like_an_unbroken_one(tmp_path: Path, stop_after: int) -> None:
    def fit(model: Recorder, resume: Path | None = None) -> float:
        checkpoints = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[checkpoints],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(model, loader(), ckpt_path=resume)
        return model.weight.item()

    unbroken = fit(Recorder())
    with pytest.raises(SystemExit):
        fit(Recorder(stop_after))
    checkpoint = tmp_path / "last.ckpt"
    assert torch.load(checkpoint, weights_only=False)["global_step"] == stop_after
    assert fit(Recorder(), checkpoint) == unbroken
