"""What becomes of decoded frames: RGB, or the decoder's own YUV 4:2:0 planes, upright and in one array for a clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeAlias, TypeVar

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter

from slowfast_ops import YUVFrames

Frames: TypeAlias = npt.NDArray[np.uint8]
Pixels = TypeVar("Pixels")
Colours: TypeAlias = tuple[str, bool]  # matrix, full range

# FFmpeg's numbers of colour matrices (AVColorSpace). What is not here is taken for BT.601, which is swscale's default.
# SMPTE 240M has nearly BT.709's coefficients, and the older FCC's nearly BT.601's: within 5 grey levels.
_MATRICES = {1: "bt709", 7: "bt709", 9: "bt2020", 10: "bt2020"}
_KNOWN_TO_SWSCALE = {0, 1, 2, 4, 5, 6, 7, 9}  # it refuses frames of any other, since FFmpeg 8
_LIMITED, _FULL = 1, 2  # FFmpeg's numbers of value ranges (AVColorRange)
_RGB: Colours = "bt601", True  # what RGB counts as
# The numbers of a matrix as a conversion's source and as its destination. Before PyAV 17, which takes the colours that
# frames state, a conversion was set up only where the two differ, and 5 stood for what had been set up before. So
# BT.601, which any conversion within a matrix is made in, has two other numbers there.
_PYAV_VERSION = int(av.__version__.split(".")[0])
_IS_SET_BY_FRAMES = _PYAV_VERSION >= 17
_BT601_NUMBERS = (5, 5) if _IS_SET_BY_FRAMES else (6, 2)
_MATRIX_NUMBERS = {"bt601": _BT601_NUMBERS, "bt709": (1, 1), "bt2020": (9, 9)}
# PyAV 17 also began to start threads for every conversion, which costs small frames more than the conversion itself.
_CONVERSION: dict[str, Any] = {"threads": 1} if _IS_SET_BY_FRAMES else {}


class ClipBuffer(ABC, Generic[Pixels]):
    """The frames of one clip as they are decoded, each pixel copied once.

    All are turned as the first that is put in and, in YUV, take its colours.

    Args:
        capacity: frames to make room for; there may be more.
        stated_size: (width, height) that the file states, which all frames are scaled to; a zero: as the first one's.
        reformatter: to be used for all clips of a stream: it keeps what it has set up.
    """

    def __init__(self, capacity: int, stated_size: tuple[int, int], reformatter: VideoReformatter) -> None:
        self._capacity = capacity
        self._width, self._height = stated_size
        self._reformatter = reformatter
        self._matrix: npt.NDArray[np.int32] | None = None
        self._size = 0, 0
        self._rows: npt.NDArray[np.uint8] | None = None  # a frame in each, plane after plane

    def put(self, position: int, frame: av.VideoFrame) -> None:
        """Puts a frame in its place."""
        if self._rows is None:
            self._matrix = display_matrix(frame)
            self._width, self._height = self._width or frame.width, self._height or frame.height
        planes = [upright(plane, self._matrix) for plane in self._planes(frame)]
        if self._rows is None:
            self._size = planes[0].shape[0], planes[0].shape[1]
            self._rows = np.empty((self._capacity, sum(plane.size for plane in planes)), np.uint8)
        elif position >= len(self._rows):
            more = np.empty((len(self._rows), self._rows.shape[1]), np.uint8)
            self._rows = np.concatenate([self._rows, more])
        start = 0
        for plane in planes:
            self._rows[position, start : start + plane.size].reshape(plane.shape)[...] = plane
            start += plane.size

    def repeat(self, position: int, source: int) -> None:
        """Puts the frame at ``source`` in one more place."""
        assert self._rows is not None
        self._rows[position] = self._rows[source]

    def clip(self, count: int) -> Pixels:
        """The first ``count`` frames, of which there must be one."""
        assert self._rows is not None
        return self._clip(self._rows if count == len(self._rows) else self._rows[:count].copy())

    def _converted(self, frame: av.VideoFrame, pixel_format: str, *colours: Colours) -> av.VideoFrame:
        """The frame in another format; ``colours``: its own and those of the result, where the frame's do not serve."""
        details: dict[str, int] = {}
        stays = len({matrix for matrix, _ in colours}) == 1  # and does not matter
        for side, (matrix, full_range) in enumerate(colours):
            prefix = ("src", "dst")[side]
            details[f"{prefix}_colorspace"] = _MATRIX_NUMBERS["bt601" if stays else matrix][side]
            details[f"{prefix}_color_range"] = _FULL if full_range else _LIMITED
        return self._reformatter.reformat(frame, self._width, self._height, pixel_format, **details, **_CONVERSION)

    @abstractmethod
    def _planes(self, frame: av.VideoFrame) -> list[npt.NDArray[np.uint8]]:
        """The frame's pixels: views that live as long as they are held."""

    @abstractmethod
    def _clip(self, rows: npt.NDArray[np.uint8]) -> Pixels: ...


class RGBBuffer(ClipBuffer[Frames]):
    """Frames as RGB, uint8 [T, H, W, 3], by FFmpeg's swscale with its default settings."""

    def _planes(self, frame: av.VideoFrame) -> list[npt.NDArray[np.uint8]]:
        is_stated = _IS_SET_BY_FRAMES and int(frame.colorspace) in _KNOWN_TO_SWSCALE
        image = self._converted(frame, "rgb24", *(() if is_stated else (_colours(frame), _RGB)))
        return [_pixels(image.planes[0], 3 * image.width).reshape(image.height, image.width, 3)]

    def _clip(self, rows: npt.NDArray[np.uint8]) -> Frames:
        return rows.reshape(len(rows), *self._size, 3)


class YUVBuffer(ClipBuffer[YUVFrames]):
    """Frames as YUV 4:2:0 planes: the decoder's own, or else converted by FFmpeg's swscale.

    Where metadata mirror frames of an odd size, chroma lies a pixel off.
    """

    _colours: Colours | None = None

    def _planes(self, frame: av.VideoFrame) -> list[npt.NDArray[np.uint8]]:
        colours = _colours(frame)
        target = self._colours = self._colours or colours
        if frame.planes[0].line_size < 0 and _PYAV_VERSION < 18:  # planes began at the line that is stored last
            frame = self._converted(frame, "nv12", colours, colours)
        is_fitting = (frame.width, frame.height) == (self._width, self._height) and colours == target
        if frame.format.name not in ("yuv420p", "yuvj420p") or not is_fitting:
            frame = self._converted(frame, "yuv420p", colours, target)
        return [_pixels(plane, plane.width) for plane in frame.planes]

    def _clip(self, rows: npt.NDArray[np.uint8]) -> YUVFrames:
        (height, width), count = self._size, len(rows)
        luma, chroma = rows[:, : height * width], rows[:, height * width :]
        luma = luma.reshape(count, height, width)
        chroma = chroma.reshape(count, 2, (height + 1) // 2, (width + 1) // 2)
        assert self._colours is not None
        return YUVFrames(luma, chroma, *self._colours)


def _colours(frame: av.VideoFrame) -> Colours:
    """Those of a frame's luma and chroma, or of those that it is converted to."""
    if frame.format.is_rgb:
        return _RGB
    full_range = int(frame.color_range) == _FULL or frame.format.name.startswith("yuvj")
    is_gray = len(frame.format.components) < 3  # no matrix has a part in it
    return "bt601" if is_gray else _MATRICES.get(int(frame.colorspace), "bt601"), full_range


def _pixels(plane: Any, width: int) -> npt.NDArray[np.uint8]:
    """The first ``width`` bytes of each of a plane's lines: a view."""
    lines = np.frombuffer(plane, np.uint8).reshape(plane.height, abs(plane.line_size))[:, :width]
    return lines if plane.line_size > 0 else lines[::-1]


def display_matrix(frame: av.VideoFrame) -> npt.NDArray[np.int32] | None:
    """How the metadata ask for the frame to be turned; see `upright`."""
    # Not frame.side_data: that refers back to the frame, which would live on until Python collects such circles.
    side_data: Any = SideDataContainer  # whose annotations lack its constructor
    matrix = side_data(frame).get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(bytes(matrix), np.int32)


def upright(image: npt.NDArray[np.uint8], matrix: npt.NDArray[np.int32] | None) -> npt.NDArray[np.uint8]:
    """Applies a display matrix: x' = a x + c y, y' = b x + d y, where the two of a, d or the two of b, c are zero.

    The nine numbers are a, b, 0, c, d, 0, and an offset that shifts the frame back to where it was. Matrices that turn
    by anything but a multiple of 90 degrees are no case for pixels, and leave the frame as it is.

    Args:
        image: [H, W, ...].
        matrix: see `display_matrix`; None: the frame is upright.
    """
    if matrix is None:
        return image
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if a == d == 0:
        image, a, d = image.swapaxes(0, 1), c, b
    elif b != 0 or c != 0:
        return image
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
