"""AVA and data sets in its form: clips centred on key frames, with the boxes and action labels of the people there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from slowfast_model.data.ava_annotations import NO_LABEL, AvaFiles, KeyFrames, check_boxes, select
from slowfast_model.data.boxes import is_visible, to_input_pixels
from slowfast_model.data.clips import ClipDataset, DataConfig, Sample, make_pathways
from slowfast_model.data.loaders import ClipDataModule, evaluation_loader
from slowfast_model.data.protocols import PROTOCOLS, ClipRules
from slowfast_model.data.sampling import ClipGeometry, full_frame_geometry, key_frame_times, random_geometry
from slowfast_model.data.video import Frames, VideoError
from slowfast_model.data.video_cache import Video, VideoCache
from slowfast_model.errors import InputError
from slowfast_model.evaluation.ava_csv import (
    LabelledBoxes,
    read_excluded_timestamps,
    read_groundtruth,
    read_label_map,
    read_predicted_boxes,
)
from slowfast_model.evaluation.frame_keys import FrameKey, FrameKeys
from slowfast_model.models import ModelConfig
from slowfast_ops import YUVFrames

AVA_FIRST_SECOND = 900.0
"""AVA annotates minutes 15 to 30 of films; the published clips are cut out at second 900."""

NO_VIDEO = "no file of this name, with any extension, and no folder of its frames"
_CROP_ATTEMPTS = 10  # random crops to try for one that shows a box
TIME_SLACK = 0.5
"""Seconds that a key frame may lie behind the end of its video."""


@dataclass
class AvaDataConfig(DataConfig):
    """An AVA-format data set: ``<root>/annotations/ava_{train,val}_v*.csv`` and so on, ``<root>/videos/<video_id>.*``.

    Videos may be folders of images, too: ``<root>/frames/<video_id>/*_000001.jpg`` and so on, `frames_fps` a second.

    Attributes:
        score_threshold: predicted boxes below it are left out.
        include_negatives: train on predicted boxes without a label, too, as examples of no action.
        test_scales: lengths of the shorter side in testing, each a view of every key frame; default test_short_side.
        test_flip: test every view mirrored, too.
        first_second: the timestamp at which the videos begin; default 0, or 900 for a video that ends before its
            annotations do.
        num_classes: outputs of the model; default the highest class id in the action list and the annotations.
        train_groundtruth, train_predicted_boxes, val_groundtruth, val_predicted_boxes, val_excluded, label_map: files
            that have other names than AVA's, relative to the root.
    """

    score_threshold: float = 0.8
    include_negatives: bool = False
    test_scales: tuple[int, ...] | None = None
    test_flip: bool = False
    first_second: float | None = None
    num_classes: int | None = None
    train_groundtruth: str | None = None
    train_predicted_boxes: str | None = None
    val_groundtruth: str | None = None
    val_predicted_boxes: str | None = None
    val_excluded: str | None = None
    label_map: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_scales is not None and not (self.test_scales and min(self.test_scales) >= 1):
            raise InputError(f"data.test_scales is {list(self.test_scales)}: expected lengths of 1 or more, or null")

    @property
    def rules(self) -> ClipRules:
        """See `DataConfig.rules`; PySlowFast draws the inverse of the short side for AVA."""
        rules = PROTOCOLS[self.protocol]
        if self.protocol == "pyslowfast":
            rules = replace(rules, short_side_jitter="inverse")
        return rules.overridden_by(self)

    def test_views(self, crop_size: int) -> list[tuple[int, bool]]:
        """(length of the shorter side, whether mirrored) of every view in testing, for a model of this crop."""
        sides = self.test_scales or (self.eval_short_side(crop_size),)
        return [(side, flip) for flip in ((False, True) if self.test_flip else (False,)) for side in sides]

    def files(self, split: str) -> AvaFiles:
        """The annotation files of "train" or "val".

        Raises:
            InputError: one that must be there is not.
        """
        given = {
            "groundtruth": getattr(self, f"{split}_groundtruth"),
            "predicted_boxes": getattr(self, f"{split}_predicted_boxes"),
            "excluded": self.val_excluded if split == "val" else None,
            "label_map": self.label_map,
        }
        root = Path(self.root)
        return AvaFiles.find(root / "annotations", split, **{name: root / path for name, path in given.items() if path})


@dataclass
class AvaTarget:
    """What belongs to one clip.

    Attributes:
        key: (video id, timestamp).
        boxes: float64 [R, 4], fractions of the full frame.
        rois: float64 [R, 4], the same boxes in pixels of the network's input.
        view: number of the view of the key frame.
        labels: float32 [R, num_classes], multi-hot.
    """

    key: FrameKey
    boxes: npt.NDArray[np.float64]
    rois: npt.NDArray[np.float64]
    labels: npt.NDArray[np.float32]
    view: int = 0


class AvaVideos:
    """The videos of a data set by video id, on the annotations' axis of time.

    Args:
        root: where they are: ``videos/<video_id>.<any extension>``, or else ``frames/<video_id>/``, its images.
        first_second: the timestamp at which the videos begin; None: see `AvaDataConfig`.
        key_frames: all annotated key frames.

    Raises:
        InputError: there is neither folder, or one cannot be read.

    Attributes:
        paths: video id -> file or folder.
        time_ranges: video id -> its first and last timestamp.
    """

    def __init__(self, root: Path, first_second: float | None, key_frames: FrameKeys) -> None:
        self.first_second = first_second
        first = np.full(len(key_frames.video_ids), np.inf)
        last = -first
        np.minimum.at(first, key_frames.videos, key_frames.timestamps)
        np.maximum.at(last, key_frames.videos, key_frames.timestamps)
        self.time_ranges = dict(zip(key_frames.video_ids, zip(first.tolist(), last.tolist(), strict=True), strict=True))
        videos, frames = root / "videos", root / "frames"
        self.folder = frames if frames.is_dir() and not videos.exists() else videos
        try:
            files = {path.stem: path for path in sorted(self.folder.iterdir(), reverse=True) if path.is_file()}
            folders = {path.name: path for path in frames.iterdir() if path.is_dir()} if frames.is_dir() else {}
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}; expected the folder of the videos") from None
        self.paths = folders | files

    @contextmanager
    def open(self, video_id: str, timestamp: float, cache: VideoCache) -> Iterator[tuple[Video, float]]:
        """The video, and the timestamp in seconds of the video.

        Raises:
            VideoError: there is no such video, it cannot be decoded, or it does not reach to the timestamp.
        """
        if video_id not in self.paths:
            raise VideoError(self.folder / video_id, NO_VIDEO)
        with cache.open(self.paths[video_id]) as video:
            time = timestamp - self.first_second_of(video_id, video.duration)
            if not 0 <= time <= video.duration + TIME_SLACK:
                raise VideoError(
                    video.path, f"the key frame at {timestamp:g} s lies outside the video of {video.duration:.2f} s"
                )
            yield video, time

    def first_second_of(self, video_id: str, duration: float) -> float:
        """The timestamp at which a video of this many seconds begins."""
        if self.first_second is not None:
            return self.first_second
        first, last = self.time_ranges.get(video_id, (0.0, 0.0))
        return AVA_FIRST_SECOND if first >= AVA_FIRST_SECOND and last > duration + TIME_SLACK else 0.0


class AvaDataset(ClipDataset[AvaTarget]):
    """A clip for every key frame that has boxes, or one for each of its views.

    In training: a random crop of the frame at a random size, perhaps mirrored. Boxes that it does not show are left
    out; a crop that shows none is drawn anew, in the end around one of them. In evaluation: the whole frame; index
    ``view * len(key_frames) + k`` is key frame k.

    Args:
        views: (length of the shorter side, whether mirrored) of each; None: training.
    """

    def __init__(
        self,
        key_frames: KeyFrames,
        videos: AvaVideos,
        config: AvaDataConfig,
        model: ModelConfig,
        num_classes: int,
        views: Sequence[tuple[int, bool]] | None,
    ) -> None:
        super().__init__(config.seed, training=views is None)
        self.key_frames = key_frames
        self.videos = videos
        self.config = config
        self.rules = config.rules
        self.model = model
        self.num_classes = num_classes
        self.views = views
        self.cache = VideoCache(config.cache_megabytes << 20, config.frames_fps)

    def __len__(self) -> int:
        return len(self.key_frames) * len(self.views or [None])

    def load(self, index: int, rng: np.random.Generator) -> tuple[YUVFrames, ClipGeometry, AvaTarget]:
        view, index = divmod(index, len(self.key_frames))
        frames = self.read(index)
        boxes = self.key_frames.boxes_of(index)
        if self.views is None:
            geometry = self._random_geometry(frames.size, boxes, rng)
        else:
            side, flip = self.views[view]
            geometry = full_frame_geometry(frames.size, side, flip=flip)
        rois = to_input_pixels(boxes, geometry)
        labels = self.key_frames.labels_of(index, self.num_classes)
        if self.training and is_visible(rois).any():
            shown = is_visible(rois)
            boxes, rois, labels = boxes[shown], rois[shown], labels[shown]
        return frames, geometry, AvaTarget(self.key_frames.key(index), boxes, rois, labels, view)

    def read(self, index: int) -> YUVFrames:
        """The decoded frames of the clip around a key frame."""
        with self.videos.open(*self.key_frames.key(index), self.cache) as (video, time):
            fps = self.rules.frame_rate(video.fps)
            return video.read(key_frame_times(time, self.model.num_frames, self.model.sampling_rate, fps))[0]

    def _random_geometry(
        self, size: tuple[int, int], boxes: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> ClipGeometry:
        crop_size = self.model.crop_size
        short_side, flip_probability = self.config.train_short_side(crop_size), self.config.flip_probability
        inverse = self.rules.short_side_jitter == "inverse"
        for _ in range(_CROP_ATTEMPTS):
            geometry = random_geometry(
                size, crop_size, short_side, rng, inverse=inverse, flip_probability=flip_probability
            )
            if is_visible(to_input_pixels(boxes, geometry)).any():
                return geometry
        x1, y1, x2, y2 = boxes[rng.integers(len(boxes))]
        (height, width), half = geometry.resize, crop_size / 2
        top = int(np.clip((y1 + y2) / 2 * height - half, 0, height - crop_size))
        left = int(np.clip((x1 + x2) / 2 * width - half, 0, width - crop_size))
        return replace(geometry, crop=(top, left, crop_size, crop_size))

    def collate(self, samples: list[Sample[AvaTarget]]) -> dict[str, Any]:
        """A batch of the data module; see `AvaDataModule`."""
        targets = [sample.target for sample in samples if sample.target is not None]
        counts = [len(target.boxes) for target in targets]
        none = [np.zeros((0, 4))]
        rois = np.concatenate([target.rois for target in targets] or none)
        batch_index = np.repeat(np.arange(len(targets)), counts)[:, None]
        no_labels = [np.zeros((0, self.num_classes), np.float32)]
        size = self.config.eval_short_side(self.model.crop_size)
        clips = [sample.clip for sample in samples if sample.clip is not None]
        return {
            "pathways": make_pathways(clips, self.model, self.config, size),
            "rois": torch.from_numpy(np.concatenate([batch_index, rois], axis=1)).float(),
            "labels": torch.from_numpy(np.concatenate([target.labels for target in targets] or no_labels)),
            "boxes": torch.from_numpy(np.concatenate([target.boxes for target in targets] or none)).float(),
            "keys": [target.key for target in targets],
            "views": torch.tensor([target.view for target in targets], dtype=torch.int64),
            "bad_videos": [bad for sample in samples for bad in sample.bad_videos],
        }


class AvaDataModule(ClipDataModule):
    """AVA-format training and validation data.

    Training takes the ground truth, and predicted boxes for the training videos where there are any. Validation takes
    predicted boxes where there are any, else those of the ground truth; excluded key frames are left out. Testing takes
    the same in all views.

    A batch is a dict: ``pathways``, float32 [N, 3, T, h, w] each; ``rois``, float32 [R, 5], clip in the batch and box
    in pixels of the input; ``labels``, float32 [R, num_classes], multi-hot, column k being class k + 1, zeros for
    predicted boxes without a label; ``boxes``, float32 [R, 4], fractions of the full frame; ``keys``, (video id,
    timestamp) of each clip; ``views``, int64 [N]; ``bad_videos``, (path, reason) of those that were replaced in
    training, or are missing from a validation batch.

    Validation and testing give lists of such batches, as clips of videos of several sizes make several of them: one for
    each size. A batch may lack all its clips there: N and R are 0 then.

    Attributes (after ``setup``):
        num_classes: outputs of the model.
        class_names: class id -> name, of all classes.
        evaluated_classes: ids of those in the action list, which alone count in evaluation.
    """

    config: AvaDataConfig
    num_classes: int
    class_names: dict[int, str]
    evaluated_classes: list[int]

    def setup(self, stage: str | None = None) -> None:
        """Reads the annotations, once.

        Raises:
            InputError: a file is missing or malformed, or no annotated video is there; the message names it.
        """
        if hasattr(self, "train_data"):
            return
        config = self.config
        self.files = {split: config.files(split) for split in ("train", "val")}
        names = read_label_map(self.files["val"].label_map)
        self.evaluated_classes = sorted(names)
        tables = {"train": self._training_tables(), "val": self._validation_tables()}
        keys = FrameKeys.concatenate([table.keys for split in tables.values() for table in split])
        self.videos = AvaVideos(Path(config.root), config.first_second, keys)
        labels = np.concatenate([table.labels for split in tables.values() for table in split])
        highest = max(int(labels.max(initial=1)), *self.evaluated_classes)
        self.num_classes = config.num_classes or highest
        if highest > self.num_classes:
            raise InputError(f"data.num_classes is {self.num_classes}, but there are class ids up to {highest}")
        if self.evaluated_classes[0] < 1:
            raise InputError(
                f"{self.files['val'].label_map}: class ids must be 1 or more, got {self.evaluated_classes[0]}"
            )
        files = self.files["val"]
        if not np.isin(self.groundtruth("val").labels, self.evaluated_classes).any():
            raise InputError(f"{files.groundtruth}: no box has a class of {files.label_map.name}: nothing to evaluate")
        self.class_names = {k: names.get(k, f"class {k}") for k in range(1, self.num_classes + 1)}
        crop_size = self.model_config.crop_size
        key_frames = {split: self._key_frames(tables[split], split) for split in tables}
        self.train_data = self._dataset(key_frames["train"], None)
        self.val_data = self._dataset(key_frames["val"], [(config.eval_short_side(crop_size), False)])
        self.test_data = self._dataset(key_frames["val"], config.test_views(crop_size))

    def _training_tables(self) -> list[LabelledBoxes]:
        tables = [self.groundtruth("train")]
        path = self.files["train"].predicted_boxes
        if path is not None:
            predicted = self._predicted_boxes(path)
            wanted = np.ones(len(predicted), bool) if self.config.include_negatives else predicted.labels != NO_LABEL
            tables.append(select(predicted, wanted))
        return tables

    def _validation_tables(self) -> list[LabelledBoxes]:
        path = self.files["val"].predicted_boxes
        table = self.groundtruth("val") if path is None else self._predicted_boxes(path)
        excluded = self.excluded("val")
        counts = FrameKeys.of(excluded).find(table.keys) < 0
        return [select(table, counts[table.frames])]

    def _predicted_boxes(self, path: Path) -> LabelledBoxes:
        table = read_predicted_boxes(path)
        check_boxes(table, path)
        table = select(table, table.scores >= self.config.score_threshold)
        if not len(table):
            raise InputError(
                f"{path}: no box has a score of data.score_threshold={self.config.score_threshold} or more"
            )
        return table

    def _key_frames(self, tables: list[LabelledBoxes], split: str) -> KeyFrames:
        key_frames = KeyFrames.from_tables(tables)
        if not len(key_frames):
            raise InputError(f"{self.files[split].groundtruth}: no boxes, but for those at excluded timestamps")
        if not any(video_id in self.videos.paths for video_id in key_frames.video_ids):
            raise InputError(
                f"{self.videos.folder}: none of the {len(key_frames.video_ids)} videos of "
                f"{self.files[split].groundtruth.name} is there, such as {key_frames.video_ids[0]}"
            )
        return key_frames

    def _dataset(self, key_frames: KeyFrames, views: Sequence[tuple[int, bool]] | None) -> AvaDataset:
        return AvaDataset(key_frames, self.videos, self.config, self.model_config, self.num_classes, views)

    @cached_property
    def _groundtruths(self) -> dict[str, LabelledBoxes]:
        tables = {}
        for split, files in self.files.items():
            tables[split] = read_groundtruth(files.groundtruth)
            check_boxes(tables[split], files.groundtruth)
        return tables

    def groundtruth(self, split: str) -> LabelledBoxes:
        """The ground truth of "train" or "val", as `slowfast_model.evaluation.ava.frame_average_precision` takes it."""
        return self._groundtruths[split]

    def excluded(self, split: str) -> set[FrameKey]:
        """The key frames of "train" or "val" that do not count in evaluation."""
        path = self.files[split].excluded
        return read_excluded_timestamps(path) if path is not None else set()

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.val_data)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.test_data)

    def _evaluation_loader(self, data: AvaDataset) -> DataLoader:
        return evaluation_loader(data, self.config.batch_size, self.config.num_workers, data.collate)

    def key_frame(self, video_id: str, timestamp: float) -> Frames:
        """The picture at a timestamp of the annotations, uint8 RGB [H, W, 3].

        Raises:
            VideoError: the video is missing or cannot give it.
        """
        with self.videos.open(video_id, timestamp, VideoCache(0, self.config.frames_fps)) as (video, time):
            return video.read([time])[0].rgb()[0].numpy()

    def describe(self) -> str:
        """One line on what there is."""
        parts = []
        for split, data in (("train", self.train_data), ("val", self.val_data)):
            key_frames = data.key_frames
            videos, boxes = len(key_frames.video_ids), len(key_frames.boxes)
            parts.append(f"{split} {videos} videos, {len(key_frames)} key frames, {boxes} boxes")
        source = "predicted boxes" if self.files["val"].predicted_boxes else "ground-truth boxes"
        return (
            f"AVA format, {'; '.join(parts)} ({source}); {self.num_classes} classes, "
            f"{len(self.evaluated_classes)} of them evaluated"
        )
