"""What the data sets share: configuration, samples that survive bad videos, and how batches are made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from slowfast_model.data.protocols import OWN_RATE, PROTOCOLS, ClipRules, Jitter, ProtocolName, SlowSampling
from slowfast_model.data.sampling import ClipGeometry
from slowfast_model.data.video import VideoError
from slowfast_model.errors import InputError
from slowfast_model.models import ModelConfig
from slowfast_ops import YUVFrames, gather_frames, outputs_in_shared_memory

BadVideo = tuple[str, str]
"""(path, reason) of a video that could not give a clip."""

FIELDS_OF_THE_WEIGHTS = ("slow_sampling", "mean", "std")
"""Fields of `DataConfig` that weights are trained for and that their files therefore carry."""

_MAX_REPLACEMENTS = 10  # videos that may fail in a row before a training sample is given up


@dataclass
class DataConfig:
    """How clips are read and made into batches, whatever the data set.

    Attributes:
        root: folder of the data set.
        batch_size: clips per batch and process.
        num_workers: processes that read ahead; 0 reads in the training process.
        seed: of the order and the augmentation, both functions of (seed, epoch, sample).
        protocol: "pyslowfast" or "paper", see `slowfast_model.data.protocols`: gives slow_sampling, target_fps,
            short_side_jitter (and views_to_end, for Kinetics) their values where they are null. What is set wins, and
            slow_sampling, mean and std are those that the weights were trained with, unless set.
        short_side: training frames are resized so that their shorter side is between these two lengths; default 8/7
            and 10/7 of the model's crop (256 and 320 for 224).
        short_side_jitter: what is uniform between them, the length ("uniform") or its inverse ("inverse").
        flip_probability: of mirroring a training clip.
        test_short_side: length of the shorter side in validation and testing; default 8/7 of the model's crop.
        slow_sampling: the Slow pathway's share of the frames: spread evenly from the first to the last ("linspace") or
            every alpha-th ("stride").
        target_fps: frames per second that the model's sampling rate counts, whatever the video's own; "video": each
            video's own.
        frames_fps: frames per second of videos that are folders of images (see `FrameFolder`).
        mean: of the network's input, per channel (R, G, B), for values in [0, 1].
        std: its standard deviation, likewise.
        cache_megabytes: memory for whole decoded videos, per process that reads and per data set (training,
            validation), at 1.5 bytes a pixel. Videos that fit are decoded once: worth it for sets of a few short videos
            that are read many times, and only for them. 0: none.
        max_bad_share: the run stops when more than this share of the clips that were tried could not be read.
    """

    root: str
    batch_size: int = 8
    num_workers: int = 1
    seed: int = 0
    protocol: ProtocolName = "pyslowfast"
    short_side: tuple[int, int] | None = None
    short_side_jitter: Jitter | None = None
    flip_probability: float = 0.5
    test_short_side: int | None = None
    slow_sampling: SlowSampling | None = None
    target_fps: float | Literal["video"] | None = None
    frames_fps: float = 30.0
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    cache_megabytes: int = 0
    max_bad_share: float = 0.25

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0), ("seed", 0), ("cache_megabytes", 0)):
            if getattr(self, name) < least:
                raise InputError(f"data.{name} is {getattr(self, name)}: expected {least} or more")
        for name in ("flip_probability", "max_bad_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.{name} is {getattr(self, name)}: expected a number from 0 to 1")
        for name, kind in (
            ("protocol", ProtocolName), ("slow_sampling", SlowSampling), ("short_side_jitter", Jitter),
        ):  # fmt: skip
            value, choices = getattr(self, name), get_args(kind)
            if value not in choices and (value is not None or name == "protocol"):
                raise InputError(f"data.{name} is {value!r}: expected {choices[0]!r} or {choices[1]!r}")
        rate = self.target_fps
        if rate is not None and rate != OWN_RATE and not (isinstance(rate, (int, float)) and 0 < rate < math.inf):
            raise InputError(f"data.target_fps is {rate!r}: expected frames per second, or {OWN_RATE!r} for its own")
        if not 0 < self.frames_fps < math.inf:
            raise InputError(f"data.frames_fps is {self.frames_fps}: expected frames per second")
        if len(self.mean) != 3:
            raise InputError(f"data.mean is {list(self.mean)}: expected 3 numbers")
        if len(self.std) != 3 or not min(self.std) > 0:
            raise InputError(f"data.std is {list(self.std)}: expected 3 numbers above 0")

    @property
    def rules(self) -> ClipRules:
        """How clips are taken: the fields that are set, and the protocol's values for the others."""
        return PROTOCOLS[self.protocol].overridden_by(self)

    def train_short_side(self, crop_size: int) -> tuple[int, int]:
        """The range of `short_side` for a model that is trained on crops of this size.

        Raises:
            InputError: the range is empty, or smaller than the crop.
        """
        low, high = self.short_side or (round(crop_size * 8 / 7), round(crop_size * 10 / 7))
        if not crop_size <= low <= high:
            raise InputError(
                f"data.short_side is {[low, high]}: expected two lengths, the smaller first, and neither below the "
                f"model's crop of {crop_size}"
            )
        return low, high

    def eval_short_side(self, crop_size: int) -> int:
        """The length of `test_short_side` for a model that is trained on crops of this size.

        Raises:
            InputError: it is not positive.
        """
        side = round(crop_size * 8 / 7) if self.test_short_side is None else self.test_short_side
        if side < 1:
            raise InputError(f"data.test_short_side is {side}: expected 1 or more")
        return side


Target = TypeVar("Target")


@dataclass
class Sample(Generic[Target]):
    """One clip before its pixels are resampled, or what is left where no video could give it.

    Attributes:
        clip: decoded frames and the geometry that makes them the network's input; None: missing.
        target: what the data set's batches carry beside the pixels; None for a missing clip.
        bad_videos: the videos that failed on the way.
    """

    clip: tuple[YUVFrames, ClipGeometry] | None = None
    target: Target | None = None
    bad_videos: list[BadVideo] = field(default_factory=list)


class ClipDataset(Dataset, ABC, Generic[Target]):
    """A data set whose item (epoch, index) is a function of (seed, epoch, index) and the files, and of nothing else.

    A plain index is taken for epoch 0. A video that fails in training is replaced by a random other one; in evaluation
    the sample is missing. Either way the sample reports it.
    """

    def __init__(self, seed: int, training: bool) -> None:
        self.seed = seed
        self.training = training

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int, rng: np.random.Generator) -> tuple[YUVFrames, ClipGeometry, Target]:
        """Reads a sample; randomness comes from ``rng`` only. Raises VideoError if the video cannot give it."""

    def __getitem__(self, key: int | tuple[int, int]) -> Sample[Target]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch, index])
        bad_videos: list[BadVideo] = []
        for _ in range(1 + (_MAX_REPLACEMENTS if self.training else 0)):
            try:
                frames, geometry, target = self.load(index, rng)
            except VideoError as error:
                bad_videos.append((error.path, error.reason))
                index = int(rng.integers(len(self)))
            else:
                return Sample((frames, geometry), target, bad_videos)
        return Sample(bad_videos=bad_videos)


def make_pathways(
    clips: Sequence[tuple[YUVFrames, ClipGeometry]], model: ModelConfig, config: DataConfig, empty_size: int
) -> list[Tensor]:
    """The network's inputs, a float32 tensor [N, 3, T, h, w] per pathway, from decoded clips of any sizes.

    Clips stay YUV planes until here, where only the pixels that a crop shows become RGB. All geometries must come out
    at one size. Without clips the tensors have N = 0 and the side ``empty_size``.
    """
    if not clips:
        return [torch.zeros(0, 3, frames, empty_size, empty_size) for frames in model.pathway_frames]
    in_worker = get_worker_info() is not None
    with outputs_in_shared_memory() if in_worker else nullcontext():
        slow, fast = gather_frames(
            [frames for frames, _ in clips],
            indices=torch.arange(model.num_frames).expand(len(clips), -1),
            alpha=model.alpha,
            slow_sampling=config.rules.slow_sampling,
            mean=config.mean,
            std=config.std,
            resize=[geometry.resize for _, geometry in clips],
            crop=[geometry.crop for _, geometry in clips],
            flip=[geometry.flip for _, geometry in clips],
        )
    return [slow, fast][-model.num_pathways :]


def require_clips(batch: dict[str, Any]) -> None:
    """Stops a training whose videos fail one after the other.

    Raises:
        InputError: a training batch came out without any clip.
    """
    if not len(batch["pathways"][0]):
        path, reason = batch["bad_videos"][-1]
        raise InputError(f"no video can be read: {len(batch['bad_videos'])} tried in a row, the last {path}: {reason}")
