"""Which frames and which pixels a clip takes: pure functions of the video's length and size, and of a generator.

Time is Kinetics' (a clip spans ``num_frames * sampling_rate`` frames at a target rate, at a random place or in evenly
spread views; which of its frames are taken depends on the protocol, see `protocols`) and AVA's (a clip is centred on a
key frame). Space is a `ClipGeometry`: resize
the frame, crop, flip, in the terms of `slowfast_ops.gather_frames`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


def clip_length(num_frames: int, sampling_rate: int, fps: float, target_fps: float = 30.0) -> float:
    """Source frames that a clip spans: ``sampling_rate * num_frames`` frames at ``target_fps``; at least 1."""
    return max(1.0, sampling_rate * num_frames / target_fps * fps)


def random_clip_start(source_frames: float, length: float, position: float) -> float:
    """Start of a random clip, in source frames: ``position`` in [0, 1) along the places where the clip is inside."""
    return position * max(source_frames - length, 0)


def uniform_clip_start(
    source_frames: float, length: float, view: int, num_views: int, *, to_end: bool = False
) -> float:
    """Start of one of ``num_views`` evenly spread clips, in source frames.

    Args:
        source_frames: frames of the video, ``fps * duration``.
        length: see `clip_length`.
        view: from 0.
        num_views: 10 for Kinetics.
        to_end: False: PySlowFast's default, in which the first view starts with the video and the last one ends a
            step ahead of its end. True: whole-frame steps that reach both ends, and the middle for a single view
            (PySlowFast's ``USE_OFFSET_SAMPLING``).
    """
    room = max(source_frames - length, 0)
    if not to_end:
        return room * view / num_views
    if num_views == 1:
        return math.floor(room / 2)
    return view * math.floor(room / (num_views - 1))


def clip_frame_indices(start: float, length: float, num_frames: int, source_frames: int) -> torch.Tensor:
    """The clip's frames, as numbers of source frames spread evenly over ``[start, start + length - 1]``: int64 [T].

    The last frame of the video repeats where the clip is longer. Rounding is PySlowFast's: float32, towards zero.
    """
    return torch.linspace(start, start + length - 1, num_frames).clamp(0, source_frames - 1).long()


def strided_frame_indices(start: float, length: float, num_frames: int, source_frames: int) -> torch.Tensor:
    """The clip's frames at a constant stride, as numbers of source frames: int64 [T] (the paper).

    Frame k is ``floor(start) + k * length / num_frames``, rounded down: multiples of the sampling rate where that
    counts the video's own frames. The last frame of the video repeats where the clip is longer.
    """
    steps = torch.arange(num_frames, dtype=torch.float64) * (length / num_frames)
    return (math.floor(start) + steps + 1e-6).floor().long().clamp(0, source_frames - 1)


def key_frame_times(timestamp: float, num_frames: int, sampling_rate: int, fps: float) -> npt.NDArray[np.float64]:
    """When the frames of a clip around a key frame are shown: float64 [T], in seconds on the axis of ``timestamp``.

    The key frame is frame ``num_frames // 2`` (AVA; PySlowFast). Times may lie outside the video: the reader gives its
    first or last frame for them.
    """
    return timestamp + (np.arange(num_frames) - num_frames // 2) * (sampling_rate / fps)


@dataclass(frozen=True)
class ClipGeometry:
    """From the pixels of a decoded frame to those of the network's input: resize, crop, flip, in this order.

    Attributes:
        source: (height, width) of the decoded frame.
        resize: (height, width) of the whole frame after resizing.
        crop: (top, left, height, width) in pixels of the resized frame.
        flip: mirror left to right, after cropping.
    """

    source: tuple[int, int]
    resize: tuple[int, int]
    crop: tuple[int, int, int, int]
    flip: bool = False

    @property
    def output(self) -> tuple[int, int]:
        """(height, width) of the result."""
        return self.crop[2:]


def short_side_size(source: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(height, width) whose shorter side is ``short_side``, at the same aspect ratio (the longer side rounded down)."""
    height, width = source
    if height <= width:
        return short_side, max(short_side, math.floor(width / height * short_side))
    return max(short_side, math.floor(height / width * short_side)), short_side


def random_geometry(
    source: tuple[int, int],
    crop_size: int,
    short_side: tuple[int, int],
    rng: np.random.Generator,
    *,
    inverse: bool = False,
    flip_probability: float = 0.5,
) -> ClipGeometry:
    """A random square crop out of a frame of random size, perhaps mirrored.

    Args:
        source: (height, width) of the decoded frame.
        crop_size: side of the crop.
        short_side: smallest and largest length of the resized frame's shorter side; at least ``crop_size``.
        rng: where the randomness comes from.
        inverse: the inverse of the short side is uniform (AVA), not the short side itself (Kinetics).
        flip_probability: of mirroring.
    """
    low, high = short_side
    side = 1 / rng.uniform(1 / high, 1 / low) if inverse else rng.uniform(low, high)
    height, width = resize = short_side_size(source, round(side))
    top = int(rng.integers(0, height - crop_size, endpoint=True))
    left = int(rng.integers(0, width - crop_size, endpoint=True))
    return ClipGeometry(source, resize, (top, left, crop_size, crop_size), bool(rng.random() < flip_probability))


def view_geometry(source: tuple[int, int], short_side: int, crop_size: int, view: int, num_views: int) -> ClipGeometry:
    """One of ``num_views`` square crops along the longer side, spread from end to end; its centre for a single view.

    Three are the left, centre and right (top, centre, bottom) of Kinetics testing; the other axis is centred.
    """
    height, width = resize = short_side_size(source, short_side)
    top, left = math.ceil((height - crop_size) / 2), math.ceil((width - crop_size) / 2)
    if num_views > 1 and height > width:
        top = math.ceil((height - crop_size) * view / (num_views - 1))
    elif num_views > 1:
        left = math.ceil((width - crop_size) * view / (num_views - 1))
    return ClipGeometry(source, resize, (top, left, crop_size, crop_size))


def full_frame_geometry(source: tuple[int, int], short_side: int, *, flip: bool = False) -> ClipGeometry:
    """The whole frame with its shorter side resized to ``short_side`` (AVA testing)."""
    resize = short_side_size(source, short_side)
    return ClipGeometry(source, resize, (0, 0, *resize), flip)
