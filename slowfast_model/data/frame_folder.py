"""Videos that were extracted to folders of numbered images: read as if they were the video file.

`FrameFolder` answers as `VideoReader` does, so that AVA's ``frames/<video_id>/<video_id>_000001.jpg`` (PySlowFast's
layout) and rows of a list that name a folder work wherever a video file does.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter

from slowfast_model.data.pixels import YUVBuffer
from slowfast_model.data.video import Times, VideoError
from slowfast_ops import YUVFrames

_IMAGE = re.compile(r"(.*?)(\d+)(\.(?:jpg|jpeg|png))", flags=re.IGNORECASE)
_PNG_SIGNATURE = b"\x89PNG"


@dataclass(frozen=True)
class FrameNames:
    """The names of the images in a folder: ``prefix``, a number, ``suffix``. One of these stands for a whole folder.

    Attributes:
        prefix, suffix: what surrounds the number.
        width: digits of the number, with zeros ahead.
        first: the lowest number: the first frame, be it 0 or 1.
        count: frames from it to the highest number.
    """

    prefix: str
    suffix: str
    width: int
    first: int
    count: int

    def __getitem__(self, frame: int) -> str:
        return f"{self.prefix}{self.first + frame:0{self.width}d}{self.suffix}"


def list_frames(folder: Path) -> FrameNames:
    """Finds the images of a folder; the listing is kept until the folder changes.

    Raises:
        VideoError: it has no numbered images, or some of several names (``a_001.jpg`` and ``b_001.jpg``).
    """
    return _list_frames(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _list_frames(folder: Path, modified: int) -> FrameNames:
    with os.scandir(folder) as entries:
        images = [match for entry in entries if (match := _IMAGE.fullmatch(entry.name))]
    if not images:
        raise VideoError(folder, "the folder has no numbered images (such as img_000001.jpg)")
    names = Counter((image[1], image[3]) for image in images)
    if len(names) > 1:
        (prefix, suffix), (other, other_suffix) = [name for name, _ in names.most_common(2)]
        raise VideoError(folder, f"has images of two names, {prefix}*{suffix} and {other}*{other_suffix}")
    numbers = np.array([int(image[2]) for image in images])
    first = int(numbers.min())
    width = min(len(image[2]) for image in images)
    return FrameNames(images[0][1], images[0][3], width, first, int(numbers.max()) - first + 1)


class FrameFolder:
    """The frames of a video in a folder of numbered images (JPEG or PNG), by time or by number, as YUV planes.

    JPEGs in 4:2:0 keep their own planes, of full range; all else that images may be becomes that. Frame n, counted from
    the image with the lowest number, is on screen from n / fps on. A number without an image is a frame that cannot be
    read, not one that is left out.

    Args:
        path: the folder.
        fps: frames per second at which they were extracted.

    Raises:
        VideoError: see `list_frames`.
    """

    def __init__(self, path: str | PathLike[str], *, fps: float) -> None:
        self.path = Path(path)
        self.fps = fps
        try:
            self._names = list_frames(self.path)
        except OSError as error:
            raise VideoError(path, f"the folder cannot be read: {error.strerror}") from None
        self._reformatter = VideoReformatter()

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays open."""

    @property
    def num_frames(self) -> int:
        return self._names.count

    @property
    def duration(self) -> float:
        """Seconds, ``num_frames / fps``."""
        return self.num_frames / self.fps

    @property
    def tolerance(self) -> float:
        """Seconds ahead of its start from which a frame counts as on screen: times may have been rounded."""
        return min(1e-3, 0.25 / self.fps)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, of the first image and so of all."""
        frame = self._decode(0)
        return frame.height, frame.width

    def read(self, times: npt.ArrayLike) -> tuple[YUVFrames, Times]:
        """The frames on screen at the given times: see `VideoReader.read`.

        Raises:
            VideoError: an image is missing, damaged, or of another size than the first one; it is named.
            ValueError: no times, or one that is not finite.
        """
        wanted = np.asarray(times, np.float64).reshape(-1)
        if wanted.size == 0 or not np.isfinite(wanted).all():
            raise ValueError(f"times must be one or more finite numbers of seconds, got {wanted.tolist()}")
        numbers = np.floor((wanted + self.tolerance) * self.fps).clip(0, self.num_frames - 1).astype(np.int64)
        return self._read(numbers), numbers / self.fps

    def read_frames(self, start: int = 0, stop: int | None = None, step: int = 1) -> tuple[YUVFrames, Times]:
        """Frames ``range(start, stop, step)``: see `VideoReader.read_frames`. Errors as in `read`."""
        if start < 0 or step < 1 or (stop is not None and stop < 0):
            raise ValueError(f"start and stop must be 0 or more and step 1 or more, got {start}, {stop}, {step}")
        numbers = np.arange(start, self.num_frames if stop is None else min(stop, self.num_frames), step)
        return self._read(numbers), numbers / self.fps

    def _read(self, numbers: npt.NDArray[np.int64]) -> YUVFrames:
        clip = YUVBuffer(max(1, len(numbers)), (0, 0), self._reformatter)
        place_of: dict[int, int] = {}
        for place, number in enumerate(numbers.tolist()):
            if number in place_of:
                clip.repeat(place, place_of[number])
            else:
                clip.put(place, self._checked(number))
                place_of[number] = place
        if not len(numbers):
            clip.put(0, self._checked(0))  # for its size and colours
        return clip.clip(len(numbers))

    def _checked(self, number: int) -> av.VideoFrame:
        """Frame ``number``, of the first one's size."""
        size, frame = self.size, self._decode(number)
        if (frame.height, frame.width) != size:
            raise VideoError(
                self.path / self._names[number],
                f"is {frame.width} x {frame.height} pixels, and the first image of its folder {size[1]} x {size[0]}",
            )
        return frame

    def _decode(self, number: int) -> av.VideoFrame:
        path = self.path / self._names[number]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise VideoError(path, f"the image cannot be read: {error.strerror}") from None
        if not data:
            raise VideoError(path, "the image is empty")
        # A decoder for each image: FFmpeg's of PNG adds what it is given second to the first.
        decoder = av.CodecContext.create("png" if data.startswith(_PNG_SIGNATURE) else "mjpeg", "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.thread_count = 1
        decoder.options = {"err_detect": "explode"}  # a truncated image is an error, not a picture that ends in grey
        try:
            frames = decoder.decode(av.Packet(data))
        except (av.error.FFmpegError, ValueError):
            frames = []
        if not frames:
            raise VideoError(path, "the image is damaged")
        return frames[0]
