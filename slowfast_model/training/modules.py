"""The LightningModules: losses, validation and the optimiser, for classification and for AVA detection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from slowfast_model.evaluation.ava import AvaResult
from slowfast_model.evaluation.ava_csv import LabelledBoxes
from slowfast_model.evaluation.detections import ScoredBoxes
from slowfast_model.evaluation.kinetics import KineticsResult, MultiViewScores
from slowfast_model.models import VideoNetwork
from slowfast_model.training.schedules import Schedule, lr_scheduler
from slowfast_model.training.weights import CHECKPOINT_KEY, ModelDescription

Scores = TypeVar("Scores", ScoredBoxes, MultiViewScores)
Result = TypeVar("Result", AvaResult, KineticsResult)


class VideoModule(pl.LightningModule, Generic[Scores, Result]):
    """What classification and detection share.

    Random numbers (dropout) are a function of the seed, the process and the step alone, so that a training that was
    interrupted continues as if it had not been.

    Args:
        model: the network.
        description: written into checkpoints, so that they can be read without this module.
        make_optimizer: gives the optimiser for the network, with ``lr=1``; None for a module that only evaluates.
        schedule: the learning rates; None for a module that only evaluates.
        seed: of the dropout.
        channels_last: run the network in channels_last_3d memory format instead of contiguous NCTHW.

    Attributes:
        metric_name: the figure by which checkpoints are compared, a field of the result.
        metric_title: the same for people.
        metric_columns: the figures for metrics.csv.
        result: of the latest evaluation, or None.
        scores: what the latest evaluation collected, over all processes.
    """

    metric_name: str
    metric_title: str
    metric_columns: tuple[str, ...]

    def __init__(
        self,
        model: VideoNetwork,
        description: ModelDescription,
        *,
        make_optimizer: Callable[[VideoNetwork], Optimizer] | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last_3d) if channels_last else model
        self.channels_last = channels_last
        self.description = description
        self.make_optimizer = make_optimizer
        self.schedule = schedule
        self.seed = seed
        self.scores: Scores = self.new_scores()
        self.result: Result | None = None
        self._result_step = -1

    def new_scores(self) -> Scores:
        raise NotImplementedError

    def compute_result(self, scores: Scores) -> Result:
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        if self.make_optimizer is None or self.schedule is None:
            raise ValueError("make_optimizer or schedule is None: this module only evaluates")
        optimizer = self.make_optimizer(self.model)
        scheduler = lr_scheduler(optimizer, self.schedule, self.trainer.num_training_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def clips(self, batch: dict[str, Any]) -> list[Tensor]:
        """The pathways' clips of a batch in the memory format of the network's weights."""
        memory_format = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        return [clip.contiguous(memory_format=memory_format) for clip in batch["pathways"]]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Through a hash: torch's CPU generator takes no more than 32 bits of a seed.
        state = np.random.SeedSequence([self.seed, self.global_rank, self.global_step]).generate_state(1)
        torch.manual_seed(int(state[0]))

    def on_validation_epoch_start(self) -> None:
        self.scores = self.new_scores()

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, self.scores)
            for other in gathered:
                self.scores.merge(other)
        self.result = self.compute_result(self.scores)
        self._result_step = self.trainer.global_step

    def add_scores(self, batch: dict[str, Any]) -> None:
        """Scores the clips of a batch, which may have none: none of its videos could be read."""
        raise NotImplementedError

    def validation_step(self, batches: list[dict[str, Any]], batch_idx: int) -> None:
        for batch in batches:
            self.add_scores(batch)

    def test_step(self, batches: list[dict[str, Any]], batch_idx: int) -> None:
        self.validation_step(batches, batch_idx)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def metrics_at(self, step: int) -> dict[str, float]:
        """The figures of the latest evaluation if it was made at this step; else nothing."""
        if self._result_step != step:
            return {}
        return {name: getattr(self.result, name) for name in self.metric_columns}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = self.description.to_dict()


class ClassificationModule(VideoModule[MultiViewScores, KineticsResult]):
    """Softmax cross-entropy on clips; accuracy per view and per video.

    Batches are dicts: "pathways" (list of [N, 3, T, H, W]), "labels" [N], and for evaluation, which takes lists of
    batches, "indices" and "views" [N].

    Args:
        pool_size: see `VideoNetwork.predict`.
    """

    metric_name = "top1"
    metric_title = "top-1"
    metric_columns = ("top1", "top5")

    def __init__(
        self, model: VideoNetwork, description: ModelDescription, *, pool_size: int | None = None, **options: Any
    ) -> None:
        super().__init__(model, description, **options)
        self.pool_size = pool_size

    def new_scores(self) -> MultiViewScores:
        return MultiViewScores()

    def compute_result(self, scores: MultiViewScores) -> KineticsResult:
        return scores.compute()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(self.clips(batch)), batch["labels"])

    def add_scores(self, batch: dict[str, Any]) -> None:
        if not len(batch["labels"]):
            return
        probabilities = self.model.predict(self.clips(batch), pool_size=self.pool_size).float().cpu().numpy()
        self.scores.add(batch["indices"].tolist(), batch["views"].tolist(), probabilities, batch["labels"].tolist())


class DetectionModule(VideoModule[ScoredBoxes, AvaResult]):
    """Sigmoid cross-entropy on boxes, a mean over boxes and classes; AVA frame-mAP.

    The loss takes logits, so it is safe in half precision. Batches are dicts: "pathways" (list of [N, 3, T, H, W]),
    "rois" [R, 5] in input pixels, "labels" [R, K] multi-hot (column k is class id k + 1), and for evaluation, which
    takes lists of batches, "boxes" [R, 4] as fractions of the full frame, "keys", the N (video id, timestamp) of the
    key frames, and "views" [N].

    Args:
        evaluate: frame-mAP of a table of detections, against the ground truth of the split that is evaluated.
        class_ids: the classes that are evaluated.
    """

    metric_name = "frame_map_50"
    metric_title = "frame-mAP@0.5"
    metric_columns = ("frame_map_50",)

    def __init__(
        self,
        model: VideoNetwork,
        description: ModelDescription,
        *,
        evaluate: Callable[[LabelledBoxes], AvaResult],
        class_ids: list[int],
        **options: Any,
    ) -> None:
        super().__init__(model, description, **options)
        self.evaluate = evaluate
        self.class_ids = class_ids

    def new_scores(self) -> ScoredBoxes:
        return ScoredBoxes()

    def compute_result(self, scores: ScoredBoxes) -> AvaResult:
        return self.evaluate(scores.to_table(self.class_ids))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        logits = self.model(self.clips(batch), batch["rois"])
        if not len(logits):  # every box of the batch was dropped: no loss, and no gradient of 0 / 0
            return logits.sum()
        return F.binary_cross_entropy_with_logits(logits, batch["labels"])

    def add_scores(self, batch: dict[str, Any]) -> None:
        if not batch["keys"]:
            return
        probabilities = self.model.predict(self.clips(batch), batch["rois"]).float().cpu().numpy()
        clip_indices = batch["rois"][:, 0].long().cpu().numpy()
        boxes = batch["boxes"].cpu().numpy()
        self.scores.add(batch["keys"], clip_indices, boxes, probabilities, batch["views"].tolist())
