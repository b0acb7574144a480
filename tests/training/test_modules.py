"""The LightningModules outside of a Trainer: losses, scores, dropout, checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from slowfast_model.evaluation.ava import frame_average_precision
from slowfast_model.evaluation.ava_csv import LabelledBoxes
from slowfast_model.models import build_model
from slowfast_model.training.modules import ClassificationModule, DetectionModule
from slowfast_model.training.weights import CHECKPOINT_KEY, ModelDescription


def describe(model, num_classes: int) -> ModelDescription:
    return ModelDescription(model.config, model.head_type, num_classes, {k: f"class {k}" for k in range(num_classes)})


def detection_module(**options) -> DetectionModule:
    model = build_model("slow_tiny", num_classes=3, head="detection")
    truth = LabelledBoxes.from_arrays([("v", 1.0)], [[0, 0, 0.5, 0.5]], [2])
    names = {1: "one", 2: "two"}
    return DetectionModule(
        model,
        describe(model, 3),
        evaluate=lambda table: frame_average_precision(truth, table, names),
        class_ids=[1, 2],
        **options,
    )


def detection_batch(num_boxes: int = 3) -> dict:
    return {
        "pathways": [torch.randn(2, 3, 4, 32, 32)],
        "rois": torch.tensor([[0, 0, 0, 16, 16], [1, 4, 4, 30, 30], [1, 0, 8, 16, 32]]).float()[:num_boxes],
        "labels": torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 0]]).float()[:num_boxes],
        "boxes": torch.tensor([[0, 0, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9], [0, 0.25, 0.5, 1]])[:num_boxes],
        "keys": [("v", 1.0), ("w", 2.0)],
        "views": torch.zeros(2, dtype=torch.int64),
        "bad_videos": [],
    }


def test_detection_loss_is_the_mean_over_boxes_and_classes() -> None:
    module = detection_module().eval()
    batch = detection_batch()
    probabilities = module.model.predict(batch["pathways"], batch["rois"])
    expected = F.binary_cross_entropy(probabilities, batch["labels"])
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_a_batch_without_boxes_has_no_loss_and_finite_gradients() -> None:
    module = detection_module()
    loss = module.training_step(detection_batch(num_boxes=0), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())


def test_extreme_logits_have_a_finite_loss_and_gradient() -> None:
    """A sigmoid followed by the logarithm would not."""
    module = detection_module()
    torch.nn.init.constant_(module.model.head.projection.bias, 500.0)
    loss = module.training_step(detection_batch(), 0)
    loss.backward()
    assert loss.item() == pytest.approx(500 * 6 / 9, rel=0.01)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_detection_scores_boxes_of_key_frames_once() -> None:
    module = detection_module().eval()
    batch = detection_batch()
    with torch.no_grad():
        module.validation_step([batch], 0)
        module.validation_step([{**batch, "boxes": batch["boxes"] * 0}], 1)  # padding repeats both key frames
        module.validation_step(
            [{**batch, "pathways": [torch.zeros(0, 3, 4, 32, 32)], "keys": []}], 2
        )  # nothing readable
        probabilities = module.model.predict(batch["pathways"], batch["rois"])
    table = module.scores.to_table([1, 2])
    assert table.keys == [("v", 1.0), ("w", 2.0)]
    assert table.frames.tolist() == [0, 0, 1, 1, 1, 1]
    assert table.labels.tolist() == [1, 2, 1, 2, 1, 2]
    assert table.boxes[0].tolist() == [0, 0, 0.5, 0.5]
    assert table.scores == pytest.approx(probabilities[:, :2].flatten().tolist())
    assert module.compute_result(module.scores).frame_map_50 == 1.0


def test_classification_loss_and_scores() -> None:
    model = build_model("slow_tiny", num_classes=3)
    module = ClassificationModule(model, describe(model, 3)).eval()
    batch = {
        "pathways": [torch.randn(2, 3, 4, 32, 32)],
        "labels": torch.tensor([2, 0]),
        "indices": torch.tensor([5, 6]),
        "views": torch.tensor([0, 0]),
    }
    with torch.no_grad():
        logits = model(batch["pathways"])
        torch.testing.assert_close(module.training_step(batch, 0), F.cross_entropy(logits, batch["labels"]))
        module.validation_step([batch], 0)
        module.validation_step([{key: value[:0] for key, value in batch.items()}], 1)  # nothing readable
    assert module.scores.compute().num_videos == 2
    assert module.scores.video_scores()[5] == pytest.approx(logits.softmax(1)[0].tolist(), rel=1e-5)


@pytest.mark.parametrize("channels_last", [True, False])
def test_clips_have_the_memory_format_of_the_weights(channels_last: bool) -> None:
    module = detection_module(channels_last=channels_last)
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    (clip,) = module.clips(detection_batch())
    assert clip.is_contiguous(memory_format=memory_format)
    weights = [p for p in module.parameters() if p.dim() == 5]
    assert all(weight.is_contiguous(memory_format=memory_format) for weight in weights)


def test_dropout_depends_on_seed_and_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def mask(seed: int, step: int) -> list[float]:
        module = detection_module(seed=seed)
        module._trainer = SimpleNamespace(global_step=step, global_rank=0, strategy=None)
        torch.rand(seed + step)  # other randomness in between
        module.on_train_batch_start(None, 0)
        return torch.rand(4).tolist()

    monkeypatch.setattr(DetectionModule, "global_rank", 0)
    monkeypatch.setattr(DetectionModule, "global_step", property(lambda self: self._trainer.global_step))
    assert mask(0, 3) == mask(0, 3)
    assert len({tuple(mask(seed, step)) for seed in (0, 1) for step in (3, 4)}) == 4


def test_checkpoints_describe_the_model() -> None:
    checkpoint: dict = {}
    module = detection_module()
    module.on_save_checkpoint(checkpoint)
    assert ModelDescription.from_dict(checkpoint[CHECKPOINT_KEY]) == module.description


def test_a_module_that_only_evaluates_says_so() -> None:
    with pytest.raises(ValueError, match="only evaluates"):
        detection_module().configure_optimizers()
