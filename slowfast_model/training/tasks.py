"""What differs between the data sets: the module that is trained, and the results that it leaves in a run folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from slowfast_model.data.ava import AvaDataConfig, AvaDataModule
from slowfast_model.data.kinetics import KineticsDataConfig, KineticsDataModule
from slowfast_model.evaluation.ava import Protocol, frame_average_precision, print_result
from slowfast_model.evaluation.detections import write_detections
from slowfast_model.evaluation.report import KeyFrame, save_key_frames, save_per_class_bars
from slowfast_model.models import ModelConfig, VideoNetwork
from slowfast_model.models.network import HeadType
from slowfast_model.training.modules import ClassificationModule, DetectionModule, VideoModule
from slowfast_model.training.weights import ModelDescription

_MAX_KEY_FRAMES = 4


class Task(ABC):
    """How a data set is trained and evaluated."""

    head: HeadType
    metric_columns: tuple[str, ...]

    @abstractmethod
    def data_module(self, config: Any, model_config: ModelConfig) -> Any:
        """The data, not read yet."""

    @abstractmethod
    def module(self, model: VideoNetwork, description: ModelDescription, data: Any, **options: Any) -> VideoModule:
        """The module for a network and the data that it was set up with; ``options`` are those of the module."""

    @abstractmethod
    def write_results(self, folder: Path, module: Any, data: Any, split: str) -> dict[str, Any]:
        """Prints the module's latest result and writes its scores and pictures; returns the figures.

        ``split`` is what was evaluated: "val" or "test" (the same data, but other views, for Kinetics).
        """


class AvaTask(Task):
    """Action detection: frame-mAP, the detections as AVA-format csv, average precision per class, key frames."""

    head = "detection"
    metric_columns = DetectionModule.metric_columns

    def data_module(self, config: AvaDataConfig, model_config: ModelConfig) -> AvaDataModule:
        return AvaDataModule(config, model_config)

    def module(
        self,
        model: VideoNetwork,
        description: ModelDescription,
        data: AvaDataModule,
        protocol: Protocol = "official",
        **options: Any,
    ) -> DetectionModule:
        names = {class_id: data.class_names[class_id] for class_id in data.evaluated_classes}
        evaluate = partial(
            frame_average_precision,
            data.groundtruth("val"),
            class_names=names,
            excluded=data.excluded("val"),
            protocol=protocol,
        )
        return DetectionModule(model, description, evaluate=evaluate, class_ids=list(names), **options)

    def write_results(self, folder: Path, module: DetectionModule, data: AvaDataModule, split: str) -> dict[str, Any]:
        result = module.result
        assert result is not None
        print_result(result)
        write_detections(folder / "detections.csv", module.scores.to_table(module.class_ids))
        save_per_class_bars(
            folder / "per_class_ap.png",
            {result.class_names[k]: ap for k, ap in result.per_class_ap.items()},
            {result.class_names[k]: count for k, count in result.num_groundtruth.items()},
            "Average precision at IoU 0.5 (number of boxes)",
            result.frame_map_50,
        )
        frames = self._key_frames(module, data)
        if frames:
            save_key_frames(folder / "key_frame.png", frames)
        return result.to_json()

    def _key_frames(self, module: DetectionModule, data: AvaDataModule) -> list[KeyFrame]:
        """One key frame of each of the first videos, that with the most true labels."""
        truth = data.groundtruth("val")
        labels_of_frame = np.bincount(truth.frames, minlength=len(truth.keys))
        chosen: dict[str, int] = {}
        for frame in np.argsort(-labels_of_frame, kind="stable").tolist():
            if module.scores.boxes_of(truth.keys[frame]) is not None:
                chosen.setdefault(truth.keys[frame][0], frame)
        return [self._key_frame(chosen[video], module, data) for video in sorted(chosen)[:_MAX_KEY_FRAMES]]

    def _key_frame(self, frame: int, module: DetectionModule, data: AvaDataModule) -> KeyFrame:
        truth = data.groundtruth("val")
        key = truth.keys[frame]
        rows = truth.frames == frame
        labels: dict[tuple[float, ...], list[str]] = {}
        for box, label in zip(truth.boxes[rows].tolist(), truth.labels[rows].tolist(), strict=True):
            labels.setdefault(tuple(box), []).append(data.class_names.get(label, f"class {label}"))
        scored = module.scores.boxes_of(key)
        assert scored is not None
        return KeyFrame(
            image=data.key_frame(*key),
            title=f"{key[0]}, second {key[1]:g}",
            predicted=scored[0],
            predicted_scores=scored[1][:, np.asarray(module.class_ids) - 1],
            true=np.array(list(labels)).reshape(-1, 4),
            true_labels=list(labels.values()),
            class_names=[data.class_names[k] for k in module.class_ids],
        )


class KineticsTask(Task):
    """Classification: top-1 and top-5 per view and per video, the scores of every video, top-1 per class."""

    head = "classification"
    metric_columns = ClassificationModule.metric_columns

    def data_module(self, config: KineticsDataConfig, model_config: ModelConfig) -> KineticsDataModule:
        return KineticsDataModule(config, model_config)

    def module(
        self, model: VideoNetwork, description: ModelDescription, data: KineticsDataModule, **options: Any
    ) -> ClassificationModule:
        # A window that no map exceeds is the whole map.
        whole = data.config.eval_short_side(description.config.crop_size)
        pool_size = None if data.config.rules.score_positions else whole
        return ClassificationModule(model, description, pool_size=pool_size, **options)

    def write_results(
        self, folder: Path, module: ClassificationModule, data: KineticsDataModule, split: str
    ) -> dict[str, Any]:
        result = module.result
        assert result is not None
        Console().print(
            f"top-1 [bold]{result.top1:.4f}[/bold]  top-5 {result.top5:.4f}  ({result.num_videos} videos, "
            f"{result.num_views} views; per view top-1 {result.view_top1:.4f}, top-5 {result.view_top5:.4f})",
            highlight=False,
            soft_wrap=True,
        )
        videos = (data.test_data if split == "test" else data.val_data).videos
        module.scores.write_csv(folder / "video_scores.csv", videos.path, data.class_names)
        per_class = module.scores.per_class_top1()
        save_per_class_bars(
            folder / "per_class_top1.png",
            {data.class_names[k]: accuracy for k, (accuracy, _) in per_class.items()},
            {data.class_names[k]: count for k, (_, count) in per_class.items()},
            "Top-1 accuracy (number of videos)",
            result.top1,
        )
        accuracies = {data.class_names[k]: accuracy for k, (accuracy, _) in per_class.items()}
        return {**result.to_json(), "per_class_top1": accuracies}


TASKS: dict[str, Task] = {"ava": AvaTask(), "kinetics": KineticsTask()}
