"""Opens videos for the data sets, and keeps small ones decoded in memory where they are read over and over."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from slowfast_model.data.frame_folder import FrameFolder
from slowfast_model.data.video import Times, VideoError, VideoReader
from slowfast_ops import YUVFrames


@dataclass(frozen=True, eq=False)
class DecodedVideo:
    """All frames of a video; answers as a `VideoReader` of the file's planes does, to the bit.

    Attributes:
        path, fps, duration, tolerance: the reader's.
        frames: all N frames.
        starts: float64 [N], increasing: when each frame begins to be shown.
    """

    path: Path
    fps: float
    duration: float
    tolerance: float
    frames: YUVFrames
    starts: Times

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.frames.size

    def __enter__(self) -> DecodedVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        """Keeps the frames: leaving a ``with`` is no reason to forget them."""

    def read(self, times: npt.ArrayLike) -> tuple[YUVFrames, Times]:
        """See `VideoReader.read`."""
        numbers = np.searchsorted(self.starts, np.asarray(times, np.float64) + self.tolerance, side="right") - 1
        numbers = np.maximum(numbers, 0)
        wanted = torch.from_numpy(numbers)
        frames = replace(self.frames, luma=self.frames.luma[wanted], chroma=self.frames.chroma[wanted])
        return frames, self.starts[numbers]


Video: TypeAlias = VideoReader[YUVFrames] | FrameFolder | DecodedVideo


class VideoCache:
    """Opens videos, files and folders of images, and keeps those decoded that fit into what is left of ``max_bytes``.

    A video is decoded as a whole when it is first opened. It is kept as YUV planes, 1.5 bytes a pixel, and never given
    up for another. Damaged files are not kept: they are read, and fail, as without a cache.
    """

    def __init__(self, max_bytes: int, frames_fps: float = 30.0) -> None:
        """
        Args:
            max_bytes: 0 keeps nothing.
            frames_fps: frames per second of folders of images.
        """
        self.bytes_left = max_bytes
        self.frames_fps = frames_fps
        self._videos: dict[Path, DecodedVideo] = {}

    def open(self, path: str | PathLike[str]) -> Video:
        """Raises VideoError as `VideoReader` and `FrameFolder` do."""
        path = Path(path)
        if path in self._videos:
            return self._videos[path]
        reader = FrameFolder(path, fps=self.frames_fps) if os.path.isdir(path) else VideoReader(path, pixels="yuv")
        if self.bytes_left <= 0:
            return reader
        height, width = reader.size
        chroma = 2 * ((height + 1) // 2) * ((width + 1) // 2)
        if reader.num_frames * (height * width + chroma) > self.bytes_left:
            return reader
        frames, starts = reader.read_frames()
        try:
            reader.read([reader.duration + 3600])  # beyond the end: fails if that is not where the file says
        except VideoError:
            return reader
        reader.close()
        self._videos[path] = DecodedVideo(path, reader.fps, reader.duration, reader.tolerance, frames, starts)
        self.bytes_left -= frames.luma.nbytes + frames.chroma.nbytes
        return self._videos[path]
