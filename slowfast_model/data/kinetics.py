"""Kinetics and data sets in its form: videos with one action each, in a list or in a folder per class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from slowfast_model.data.clips import ClipDataset, DataConfig, Sample, make_pathways
from slowfast_model.data.loaders import ClipDataModule, evaluation_loader
from slowfast_model.data.sampling import (
    ClipGeometry,
    clip_frame_indices,
    clip_length,
    random_clip_start,
    random_geometry,
    strided_frame_indices,
    uniform_clip_start,
    view_geometry,
)
from slowfast_model.data.video_cache import VideoCache
from slowfast_model.data.video_list import VideoList, class_folders
from slowfast_model.errors import InputError
from slowfast_model.models import ModelConfig
from slowfast_ops import YUVFrames


@dataclass
class KineticsDataConfig(DataConfig):
    """A data set of ``<root>/train.csv`` and ``val.csv`` (see `VideoList.from_file`), or ``<root>/train/<class>/*``.

    Paths in a list are relative to the list, to the root, or to its ``videos``. They name files, or folders of images.

    Attributes:
        temporal_views: clips per video in testing, spread evenly over it.
        spatial_views: square crops per clip in testing, along the longer side.
        views_to_end: False: test clip i starts at i / temporal_views of the way, so that the last one ends a step
            ahead of the video's end. True: they reach from its beginning to its end (PySlowFast's USE_OFFSET_SAMPLING).
            Default the protocol's.
        num_classes: outputs of the model; default the number of class names, else the highest label plus one.
        train_list, val_list, test_list, label_map: files that have other names than ``train.csv``, ``val.csv``,
            ``test.csv`` (else the validation list) and ``*label_map*.txt`` (class names, a line each; not needed),
            relative to the root. Where a list is not there, a folder of its name without the extension takes its place:
            videos in one folder per class, labelled in the order of the training folder's (or the label map's) names.
    """

    temporal_views: int = 10
    spatial_views: int = 3
    views_to_end: bool | None = None
    num_classes: int | None = None
    train_list: str = "train.csv"
    val_list: str = "val.csv"
    test_list: str | None = None
    label_map: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temporal_views", "spatial_views"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name} is {getattr(self, name)}: expected 1 or more")


@dataclass
class KineticsTarget:
    """What belongs to one clip: its label, its row in the list, and which view of the video it is."""

    label: int
    row: int
    view: int


class KineticsDataset(ClipDataset[KineticsTarget]):
    """Clips of the videos in a list.

    In training one clip per video, at a random time, and a random crop at a random size, perhaps mirrored. Else
    ``temporal_views * spatial_views`` clips per video, one after the other; view j is crop ``j % spatial_views`` of
    clip ``j // spatial_views``.

    Args:
        videos: the list.
        views: (temporal, spatial); None: training.
        views_to_end: the views reach from the video's beginning to its end; None: as `KineticsDataConfig` says.
    """

    def __init__(
        self,
        videos: VideoList,
        config: KineticsDataConfig,
        model: ModelConfig,
        views: tuple[int, int] | None,
        views_to_end: bool | None = None,
    ) -> None:
        super().__init__(config.seed, training=views is None)
        self.videos = videos
        self.config = config
        self.model = model
        self.views = views or (1, 1)
        self.rules = config.rules
        self.views_to_end = self.rules.views_to_end if views_to_end is None else views_to_end
        self.cache = VideoCache(config.cache_megabytes << 20, config.frames_fps)

    def __len__(self) -> int:
        return len(self.videos) * self.views[0] * self.views[1]

    def load(self, index: int, rng: np.random.Generator) -> tuple[YUVFrames, ClipGeometry, KineticsTarget]:
        row, view = divmod(index, self.views[0] * self.views[1])
        clip, crop = divmod(view, self.views[1])
        frames = self.read(row, clip, position=rng.random() if self.training else None)
        size, crop_size = frames.size, self.model.crop_size
        if self.training:
            short_side = self.config.train_short_side(crop_size)
            geometry = random_geometry(
                size,
                crop_size,
                short_side,
                rng,
                inverse=self.rules.short_side_jitter == "inverse",
                flip_probability=self.config.flip_probability,
            )
        else:
            side = self.config.eval_short_side(crop_size)
            geometry = view_geometry(size, side, side, crop, self.views[1])
        return frames, geometry, KineticsTarget(int(self.videos.labels[row]), row, view)

    def read(self, row: int, clip: int, position: float | None = None) -> YUVFrames:
        """The decoded frames of clip number ``clip``, or of a random one at ``position`` in [0, 1)."""
        with self.cache.open(self.locate(row)) as video:
            source_frames = max(1, round(video.fps * video.duration))  # files state durations to a millisecond, say
            rate = self.rules.frame_rate(video.fps)
            length = clip_length(self.model.num_frames, self.model.sampling_rate, video.fps, rate)
            if position is not None:
                start = random_clip_start(source_frames, length, position)
            else:
                start = uniform_clip_start(source_frames, length, clip, self.views[0], to_end=self.views_to_end)
            frame_indices = strided_frame_indices if self.rules.whole_strides else clip_frame_indices
            numbers = frame_indices(start, length, self.model.num_frames, source_frames)
            # A frame is on screen from number / fps on: its middle is the safe time to ask for.
            return video.read((numbers.numpy() + 0.5) / video.fps)[0]

    def locate(self, row: int) -> Path:
        """The video file of a row, or its folder of images."""
        root, name = Path(self.config.root), self.videos.path(row)
        places = [folder / name for folder in (self.videos.folder, root, root / "videos")]  # `name` if it is absolute
        return next((path for path in places if os.path.exists(path)), places[0])

    def collate(self, samples: list[Sample[KineticsTarget]]) -> dict[str, Any]:
        """A batch of the data module; see `KineticsDataModule`."""
        targets = [sample.target for sample in samples if sample.target is not None]
        clips = [sample.clip for sample in samples if sample.clip is not None]
        size = self.config.eval_short_side(self.model.crop_size)
        return {
            "pathways": make_pathways(clips, self.model, self.config, size),
            "labels": torch.tensor([target.label for target in targets], dtype=torch.int64),
            "indices": torch.tensor([target.row for target in targets], dtype=torch.int64),
            "views": torch.tensor([target.view for target in targets], dtype=torch.int64),
            "bad_videos": [bad for sample in samples for bad in sample.bad_videos],
        }


class KineticsDataModule(ClipDataModule):
    """Kinetics-format training, validation and test data.

    Training: one random clip and crop per video. Validation: the middle of every video, centre crop. Testing: all
    views of every video.

    A batch is a dict: ``pathways``, float32 [N, 3, T, h, w] each; ``labels``, int64 [N]; ``indices``, int64 [N], the
    video's row in its list (blank lines not counted); ``views``, int64 [N]; ``bad_videos``, (path, reason) of those
    that were replaced in training, or are missing from a validation or test batch.

    Validation and testing give lists of such batches (of one, as all crops have one size). A batch may lack all its
    clips there: N is 0 then.

    Attributes (after ``setup``):
        num_classes: outputs of the model.
        class_names: label -> name, for all labels.
    """

    config: KineticsDataConfig
    num_classes: int
    class_names: dict[int, str]

    def setup(self, stage: str | None = None) -> None:
        """Reads the lists, once.

        Raises:
            InputError: a list is missing or malformed, or a label has no name; the message names it.
        """
        if hasattr(self, "train_data"):
            return
        config, root = self.config, Path(self.config.root)
        train, val = _list_or_folder(root / config.train_list), _list_or_folder(root / config.val_list)
        test = _list_or_folder(root / (config.test_list or "test.csv"))
        if config.test_list is None and not test.exists():
            test = val
        names = self._read_class_names()
        if not names and train.is_dir():
            names = dict(enumerate(class_folders(train)))
        lists = {path: _read_videos(path, list(names.values())) for path in dict.fromkeys((train, val, test))}
        highest = {path: int(videos.labels.max()) for path, videos in lists.items()}
        self.num_classes = config.num_classes or len(names) or max(highest.values()) + 1
        for path, label in highest.items():
            if label >= self.num_classes:
                raise InputError(f"{path}: has label {label}, but there are {self.num_classes} classes, 0 the first")
        self.class_names = {k: names.get(k, f"class {k}") for k in range(self.num_classes)}

        def dataset(path: Path, views: tuple[int, int] | None, to_end: bool | None = None) -> KineticsDataset:
            return KineticsDataset(lists[path], config, self.model_config, views, to_end)

        self.train_data = dataset(train, None)
        self.val_data = dataset(val, (1, 1), to_end=True)
        self.test_data = dataset(test, (config.temporal_views, config.spatial_views))

    def _read_class_names(self) -> dict[int, str]:
        root = Path(self.config.root)
        if self.config.label_map is not None:
            path = root / self.config.label_map
        else:
            paths = sorted(root.glob("*label_map*.txt"))
            if not paths:
                return {}
            path = paths[0]
        try:
            names = [name.strip() for name in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: {getattr(error, 'strerror', None) or 'not a text file in UTF-8'}") from None
        if not names:
            raise InputError(f"{path}: the file is empty: expected the name of a class in each line")
        line_of: dict[str, int] = {"": 0}
        for number, name in enumerate(names, start=1):
            if name in line_of:
                what = f"the class {name!r} is in line {line_of[name]} already" if name else "the name is empty"
                raise InputError(f"{path}:{number}: {what}")
            line_of[name] = number
        return dict(enumerate(names))

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.val_data)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.test_data)

    def _evaluation_loader(self, data: KineticsDataset) -> DataLoader:
        return evaluation_loader(data, self.config.batch_size, self.config.num_workers, data.collate)

    def describe(self) -> str:
        """One line on what there is."""
        views = self.config.temporal_views * self.config.spatial_views
        return (
            f"Kinetics format, train {len(self.train_data.videos)} videos; val {len(self.val_data.videos)}; "
            f"test {len(self.test_data.videos)} x {views} views; {self.num_classes} classes"
        )


def _list_or_folder(path: Path) -> Path:
    folder = path.with_suffix("")
    return folder if folder.is_dir() and not path.exists() else path


def _read_videos(path: Path, class_names: list[str]) -> VideoList:
    if not path.is_dir():
        return VideoList.from_file(path)
    if not class_names:
        raise InputError(f"{path}: a folder per class needs the classes' names, of the training folder or a label map")
    return VideoList.from_folders(path, class_names)
