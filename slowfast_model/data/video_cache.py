"""Keeps small videos decoded in memory, for data sets that are read over and over."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slowfast_model.data.video import Frames, Times, VideoError, VideoReader


@dataclass(frozen=True, eq=False)
class DecodedVideo:
    """All frames of a video; answers as a `VideoReader` of the file does, to the bit.

    Attributes:
        path, fps, duration, tolerance: the reader's.
        frames: uint8 [N, H, W, 3].
        starts: float64 [N], increasing: when each frame begins to be shown.
    """

    path: Path
    fps: float
    duration: float
    tolerance: float
    frames: Frames
    starts: Times

    def __enter__(self) -> DecodedVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        """Keeps the frames: leaving a ``with`` is no reason to forget them."""

    def read(self, times: npt.ArrayLike) -> tuple[Frames, Times]:
        """See `VideoReader.read`."""
        numbers = np.searchsorted(self.starts, np.asarray(times, np.float64) + self.tolerance, side="right") - 1
        numbers = np.maximum(numbers, 0)
        return self.frames[numbers], self.starts[numbers]


class VideoCache:
    """Opens videos, and keeps those decoded that fit into what is left of ``max_bytes``.

    A video is decoded as a whole when it is first opened. It is kept as RGB, 3 bytes a pixel, and never given up for
    another. Damaged files are not kept: they are read, and fail, as without a cache.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes_left = max_bytes
        self._videos: dict[Path, DecodedVideo] = {}

    def open(self, path: str | PathLike[str]) -> VideoReader | DecodedVideo:
        """Raises VideoError as `VideoReader` does."""
        path = Path(path)
        if path in self._videos:
            return self._videos[path]
        reader = VideoReader(path)
        if self.bytes_left <= 0:
            return reader
        height, width = reader.size
        if reader.num_frames * height * width * 3 > self.bytes_left:
            return reader
        frames, starts = reader.read_frames()
        try:
            reader.read([reader.duration + 3600])  # beyond the end: fails if that is not where the file says
        except VideoError:
            return reader
        reader.close()
        self._videos[path] = DecodedVideo(path, reader.fps, reader.duration, reader.tolerance, frames, starts)
        self.bytes_left -= frames.nbytes
        return self._videos[path]
