"""Videos made for a test: every frame shows its own number, so that a wrong frame is caught like a missing one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from torch.utils.data import DataLoader

from slowfast_ops import YUVFrames

HEIGHT, WIDTH = 48, 96
_BITS = 8


def numbered_image(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A picture, uint8 [height, width, 3], with the number's bits as black and white blocks in its left two thirds."""
    image = np.full((height, width, 3), 96, np.uint8)
    for bit in range(_BITS):
        image[:, bit * width // 12 : (bit + 1) * width // 12] = 235 if number >> bit & 1 else 16
    return image


def number_of(image: np.ndarray) -> int:
    """The number that a picture shows, whatever its size and the codec's losses."""
    height, width, _ = image.shape
    columns = ((np.arange(_BITS) + 0.5) * 8 * width / WIDTH).astype(int)
    return sum(int(image[height // 2, column].mean() > 125) << bit for bit, column in enumerate(columns))


def numbers_of(frames: YUVFrames) -> list[int]:
    """The number that each frame shows."""
    return [number_of(image) for image in frames.rgb().numpy()]


def write_numbered_video(
    path: Path,
    num_frames: int = 60,
    *,
    codec: str = "libx264",
    rate: int = 30,
    timestamps: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    container_format: str | None = None,
    b_frames: int = 2,
    key_frame_every: int = 12,
    rotation: int | None = None,
    height: int = HEIGHT,
    width: int = WIDTH,
    pixel_format: str = "yuv420p",
) -> Path:
    """Writes a video of numbered frames; ``timestamps`` (in ``time_base``) make the rate variable."""
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.gop_size = key_frame_every
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "bf": str(b_frames), "x264-params": "scenecut=0"}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        time_base = time_base or Fraction(1, rate)
        stream.codec_context.time_base = time_base
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_image(number, height, width), format="rgb24")
            frame.pts = number if timestamps is None else timestamps[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def faststart(path: Path) -> Path:
    """The same video with its index ahead of the frames, so that a cut leaves a file that opens."""
    target = path.with_name("fast_" + path.name)
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return target


def cut_off(path: Path, share: float) -> Path:
    """The first part of a video's bytes, as a file that opens."""
    path = faststart(path) if path.suffix == ".mp4" else path
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.fixture
def numbered_video(tmp_path: Path) -> Callable[..., Path]:
    """Writes a video into the test's folder: ``numbered_video("name.mp4", ...)``."""
    return lambda name="video.mp4", *args, **options: write_numbered_video(tmp_path / name, *args, **options)


def parts_of(loader: DataLoader) -> list[dict[str, Any]]:
    """The batches of a validation or test loader, whatever lists they come in."""
    return [batch for batches in loader for batch in batches]
