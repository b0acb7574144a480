"""The two forms of frames: YUV planes are the same as RGB, whatever the decoder gives, its colours and its turn."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from slowfast_model.data.pixels import ClipBuffer, RGBBuffer, YUVBuffer, upright
from slowfast_model.data.video import VideoReader
from slowfast_ops import YUVFrames, gather_frames
from tests.data.test_video import REAL_FILES

HEIGHT, WIDTH = 96, 128
LIMITED, FULL = 1, 2
MATRICES = {"bt601": 5, "bt709": 1, "bt2020": 9}


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Soft colours, so that sharing chroma between neighbours loses little: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] * np.array([HEIGHT / height, WIDTH / width])[:, None, None]
    waves = [
        110 + 70 * np.sin(x / 25) + 20 * np.sin(y / 19),
        120 + 60 * np.cos(y / 30 + x / 40),
        100 + 80 * np.sin((x + y) / 37),
    ]
    return np.stack(waves, -1).round().astype(np.uint8)


def decoded(pixel_format: str, matrix: str, full_range: bool, size: tuple[int, int] = (HEIGHT, WIDTH)) -> av.VideoFrame:
    """A frame as a decoder would give it."""
    colour_range = FULL if full_range else LIMITED
    frame = av.VideoFrame.from_ndarray(picture(*size), format="rgb24").reformat(
        format=pixel_format, dst_colorspace=MATRICES[matrix], dst_color_range=colour_range
    )
    frame.colorspace, frame.color_range = MATRICES[matrix], colour_range
    return frame


def converted(
    kind: type[ClipBuffer], frames: list[av.VideoFrame], stated_size: tuple[int, int] = (WIDTH, HEIGHT)
) -> np.ndarray:
    """The frames as RGB, [T, H, W, 3], by way of one kind of buffer."""
    buffer = kind(len(frames), stated_size, VideoReformatter())
    for number, frame in enumerate(frames):
        buffer.put(number, frame)
    clip = buffer.clip(len(frames))
    return clip.rgb().numpy() if isinstance(clip, YUVFrames) else clip


def difference(ours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(ours.astype(int) - expected.astype(int))


@pytest.mark.parametrize("name", REAL_FILES)
def test_planes_of_real_files_are_rgb_to_a_grey_level(shared_data: Path, name: str) -> None:
    count, size, fps = REAL_FILES[name]
    times = np.array([0, count // 2, count - 1, count // 3]) / fps
    with VideoReader(shared_data / name) as rgb, VideoReader(shared_data / name, pixels="yuv") as yuv:
        assert yuv.size == size
        expected, starts = rgb.read(times)
        planes, same_starts = yuv.read(times)
    assert planes.size == size
    np.testing.assert_array_equal(same_starts, starts)
    assert difference(planes.rgb().numpy(), expected).max() <= 1
    options = {"indices": [0, 1, 2, 3], "alpha": 4, "resize": (72, 96), "crop": (4, 8, 64, 80), "flip": True}
    for ours, theirs in zip(gather_frames(planes, **options), gather_frames(expected, **options), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1 / 255 / 0.225, rtol=0)


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_8_bit_planes_are_the_decoders_own(matrix: str, full_range: bool) -> None:
    frame = decoded("yuv420p", matrix, full_range)
    buffer = YUVBuffer(1, (0, 0), VideoReformatter())
    buffer.put(0, frame)
    clip = buffer.clip(1)
    assert (clip.matrix, clip.full_range, clip.size) == (matrix, full_range, (HEIGHT, WIDTH))
    planes = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width] for plane in frame.planes]
    for ours, expected in zip([clip.luma[0], *clip.chroma[0]], planes, strict=True):
        np.testing.assert_array_equal(ours, expected)
    expected = converted(RGBBuffer, [frame])[0]
    assert difference(clip.rgb().numpy()[0], expected).max() <= 1
    if matrix != "bt2020":  # in which PyAV 17 makes no frames
        assert difference(expected, picture()).mean() < 2


# Unspecified, BT.470BG, SMPTE 170M; then matrices that we and swscale take for others: reserved, YCgCo, none.
@pytest.mark.parametrize("number", [2, 5, 6, 3, 8, 15])
def test_other_matrices_are_taken_for_bt601(number: int) -> None:
    frame = decoded("yuv420p", "bt601", full_range=False)
    expected = frame.to_ndarray(format="rgb24")
    frame.colorspace, frame.color_range = number, 0
    for kind in (RGBBuffer, YUVBuffer):
        assert difference(converted(kind, [frame])[0], expected).max() <= 1


OTHER_FORMATS = [
    "yuvj420p", "yuv420p10le", "yuv422p", "yuvj422p", "yuv422p10le", "yuv444p", "yuvj444p", "yuv444p12le",
    "nv12", "p010le", "yuv411p", "gray", "gray10le", "rgb24", "bgra", "gbrp", "gbrp10le",
]  # fmt: skip


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("pixel_format", OTHER_FORMATS)
def test_other_pixel_formats_become_planes_of_the_same_colours(pixel_format: str, matrix: str) -> None:
    # Before PyAV 17, swscale gave grey frames as RGB of the same numbers.
    ranges = (True,) if pixel_format == "gray" and int(av.__version__.split(".")[0]) < 17 else (False, True)
    for full_range in ranges:
        frame = decoded(pixel_format, matrix, full_range)
        error = difference(converted(YUVBuffer, [frame]), converted(RGBBuffer, [frame]))
        # swscale smoothes chroma between pixels where it scales it; a wrong matrix or range is off by 10 and more.
        assert error.mean() < 2.5
        assert error.max() <= 12


@pytest.mark.parametrize("kind", [RGBBuffer, YUVBuffer])
def test_frames_of_another_size_colour_and_format_join_a_clip(kind: type[ClipBuffer]) -> None:
    first = decoded("yuv420p", "bt709", full_range=False)
    others = [
        decoded("yuv420p", "bt601", full_range=False),
        decoded("yuvj420p", "bt709", full_range=True),
        decoded("yuv420p", "bt709", full_range=False, size=(2 * HEIGHT, 2 * WIDTH)),
        decoded("yuv444p10le", "bt2020", full_range=True, size=(HEIGHT, WIDTH + 20)),
    ]
    for stated_size in [(WIDTH, HEIGHT), (0, 0)]:
        for image in converted(kind, [first, *others], stated_size):
            assert image.shape == (HEIGHT, WIDTH, 3)
            assert difference(image, picture()).mean() < 5


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH + 1), (HEIGHT - 1, WIDTH), (HEIGHT - 1, WIDTH + 1), (1, 1), (2, 3)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    frame = decoded("yuv420p", "bt601", full_range=False, size=size)
    ours = converted(YUVBuffer, [frame], (0, 0))
    assert ours.shape == (1, *size, 3)
    # swscale smoothes chroma between the rows of frames with an odd number of them.
    assert difference(ours, converted(RGBBuffer, [frame], (0, 0))).max() <= (1 if size[0] % 2 == 0 else 9)


def test_frames_stored_bottom_up() -> None:
    graph = Graph()
    source = graph.add_buffer(width=WIDTH, height=HEIGHT, format="yuv420p", time_base=Fraction(1, 30))
    graph.link_nodes(source, graph.add("vflip"), graph.add("buffersink")).configure()
    frame = decoded("yuv420p", "bt601", full_range=False)
    graph.push(frame)
    flipped = graph.pull()
    assert flipped.planes[0].line_size < 0
    for kind in (RGBBuffer, YUVBuffer):
        np.testing.assert_array_equal(converted(kind, [flipped])[0], converted(kind, [frame])[0][::-1])


# The corners of the display: where the decoder's x and y go.
TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "as it is": ((1, 0, 0, 1), lambda image: image),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda image: image[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda image: image[::-1, ::-1]),
    "a quarter clockwise": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "a quarter anticlockwise": ((0, -1, 1, 0), lambda image: np.rot90(image)),
    "transposed": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    "transposed the other way": ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    "by an angle that pixels cannot be turned by": ((1, 1, -1, 1), lambda image: image),
}


@pytest.mark.parametrize("turn", TURNS)
def test_display_matrices(turn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (a, b, c, d), apply = TURNS[turn]
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1], np.int32) * 65536
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(upright(image, matrix), apply(image))
    # And so are planes, which the buffer turns alike.
    frame = decoded("yuv420p", "bt601", full_range=False)
    plain = converted(YUVBuffer, [frame])[0]
    monkeypatch.setattr("slowfast_model.data.pixels.display_matrix", lambda frame: matrix)
    np.testing.assert_array_equal(converted(YUVBuffer, [frame])[0], apply(plain))
    np.testing.assert_array_equal(converted(RGBBuffer, [frame])[0], apply(frame.to_ndarray(format="rgb24")))
