"""From video files to the inputs of both pathways: what one worker process of the data loader does for each clip.

Beside our data set, the same clips are loaded by the steps that PySlowFast's PyAV loader takes: decode the whole span,
convert all of it to RGB, then transform in float32. "decode-only" is what it takes just to decode every frame from the
key frame to the end of the clip.

Decoding starts at a key frame. libx264 puts them at cuts and, by default, at most 250 frames apart; these videos have
no cuts, so that most of a video is decoded up to the clip. The same ones are loaded with key frames 60 frames apart,
too.

`python benchmarks/bench_clip_loading.py IMPLEMENTATION` prints by how many bytes memory grows at most while clips are
loaded in this process (Linux).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from slowfast_model.data.kinetics import KineticsDataConfig, KineticsDataset
from slowfast_model.data.sampling import clip_frame_indices, clip_length, random_clip_start, random_geometry
from slowfast_model.data.video import VideoReader
from slowfast_model.data.video_list import VideoList
from slowfast_model.models import get_preset

MODEL = get_preset("slowfast_r50_8x8")  # 32 frames of 64, alpha 4, crop 224
FPS, SECONDS, HEIGHT, WIDTH = 30, 10, 256, 340  # of the copies of Kinetics that most people train on
NUM_VIDEOS, CLIPS_PER_ROUND = 4, 20
X264_KEY_FRAMES = 250  # frames from one to the next at most, by default
GREY_LEVEL = 1 / 255 / 0.225  # in the network's input
Clip = tuple[Tensor, Tensor]


# Videos: the statistics of natural images (power falls with the square of the frequency), a moving camera, moving
# objects and sensor noise. libx264's defaults then come out at some 550 kbit/s.


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random picture, float32 [height, width, 3] in [0, 255], of which 1 / frequency is the amplitude spectrum."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    phases = np.exp(2j * np.pi * rng.random((3, *frequency.shape)))
    waves = np.fft.irfft2(phases / np.maximum(frequency, 1 / max(height, width)), (height, width))
    colours = waves[:1] + 0.35 * waves
    return (118 + 45 * colours / colours.std()).clip(0, 255).astype(np.float32).transpose(1, 2, 0)


def moving_pictures(seed: int, height: int, width: int, count: int) -> Iterator[np.ndarray]:
    """``count`` frames uint8 [height, width, 3] of objects that circle before a background that sways."""
    rng = np.random.default_rng(seed)
    sway = height // 4, width // 4
    background = texture(rng, height + 2 * sway[0], width + 2 * sway[1])
    objects = [
        (texture(rng, height // 3, width // 5), rng.uniform(0.1, 0.25), rng.uniform(0.02, 0.12), rng.uniform(0, 6))
        for _ in range(3)
    ]
    for number in range(count):
        top = int(sway[0] * (1 + np.sin(number / 55)))
        left = int(sway[1] * (1 + np.sin(number / 70)))
        image = background[top : top + height, left : left + width].copy()
        for surface, radius, speed, start in objects:
            h, w, _ = surface.shape
            y = int((height - h) * (0.5 + 2 * radius * np.sin(speed * number + start)))
            x = int((width - w) * (0.5 + 2 * radius * np.cos(speed * number + start)))
            image[y : y + h, x : x + w] = surface
        image += rng.normal(0, 2, (height, width, 1)).astype(np.float32)
        yield image.clip(0, 255).astype(np.uint8)


def encode(path: Path, seed: int, height: int, width: int, count: int, options: dict[str, str]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in moving_pictures(seed, height, width, count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def repeat(source: Path, target: Path, times: int) -> None:
    """A video that shows another one many times over, not encoded again."""
    with av.open(str(target), "w") as container:
        stream = None
        for turn in range(times):
            with av.open(str(source)) as video:
                if stream is None:
                    stream = container.add_stream_from_template(video.streams.video[0])
                shift = int(turn * video.streams.video[0].duration)
                for packet in video.demux(video.streams.video[0]):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                        container.mux(packet)


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A video that is made when it is first needed, and kept beside the built-in sample sets."""
    folder = Path(os.environ.get("SLOWFAST_CACHE") or "~/.cache/slowfast").expanduser() / "benchmarks"
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            make(Path(temporary) / name)
            (Path(temporary) / name).rename(path)
    return path


def kinetics_video(seed: int, key_frames: int) -> Path:
    """With a key frame at least every ``key_frames`` frames."""
    options = {"x264-params": f"keyint={key_frames}"}
    return made_once(
        f"kinetics-2-{key_frames}-{seed}.mp4", lambda path: encode(path, seed, HEIGHT, WIDTH, SECONDS * FPS, options)
    )


def hour_long_video(container: str) -> Path:
    """A key frame every two seconds."""
    options = {"preset": "veryfast", "x264-params": "keyint=60:scenecut=0"}
    minute = made_once("minute-1.mp4", lambda path: encode(path, 0, 120, 160, 60 * FPS, options))
    return made_once(f"hour-1.{container}", lambda path: repeat(minute, path, 60))


# The implementations. Each gives what goes to the training process for clip number ``clip``: the batch of one clip.


@cache
def dataset(key_frames: int) -> KineticsDataset:
    paths = [kinetics_video(seed, key_frames) for seed in range(NUM_VIDEOS)]
    videos = VideoList([(str(path), 0) for path in paths], paths[0].parent)
    return KineticsDataset(videos, KineticsDataConfig(root=str(paths[0].parent)), MODEL, views=None)


def ours(data: KineticsDataset, clip: int) -> Clip:
    slow, fast = data.collate([data[divmod(clip, NUM_VIDEOS)]])["pathways"]
    return slow, fast


def pyslowfast_steps(data: KineticsDataset, clip: int) -> Clip:
    """PySlowFast's steps in their order, on the frames and crops that our data set draws for this clip."""
    epoch, row = divmod(clip, NUM_VIDEOS)
    rng = np.random.default_rng([data.seed, epoch, row])
    length = clip_length(MODEL.num_frames, MODEL.sampling_rate, FPS)
    start = random_clip_start(SECONDS * FPS, length, rng.random())
    geometry = random_geometry((HEIGHT, WIDTH), MODEL.crop_size, data.config.train_short_side(MODEL.crop_size), rng)

    first, last = int(start), int(start + length - 1)
    frames = torch.as_tensor(np.stack([_to_rgb(frame) for frame in decoded_span(data.locate(row), first, last)]))
    indices = clip_frame_indices(start, length, MODEL.num_frames, SECONDS * FPS) - first
    x = torch.index_select(frames, 0, indices)
    x = x.float() / 255
    x = x - torch.tensor([0.45, 0.45, 0.45])
    x = x / torch.tensor([0.225, 0.225, 0.225])
    x = x.permute(3, 0, 1, 2)
    x = F.interpolate(x, size=geometry.resize, mode="bilinear", align_corners=False)
    top, left, height, width = geometry.crop
    fast = x[:, :, top : top + height, left : left + width]
    if geometry.flip:
        fast = fast.flip(-1)
    slow = torch.index_select(fast, 1, torch.linspace(0, fast.shape[1] - 1, fast.shape[1] // MODEL.alpha).long())
    slow, fast = default_collate([[slow, fast]])
    return slow, fast


def decoded_span(path: Path, first: int, last: int) -> list[av.VideoFrame]:
    """The frames first..last, decoded from the key frame before them."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        ticks = 1 / (FPS * stream.time_base)  # of a frame
        container.seek(max(int(first * ticks) - 1024, 0), stream=stream)
        for frame in container.decode(stream):
            if frame.pts > last * ticks:
                break
            if frame.pts >= first * ticks:
                frames.append(frame)
    return frames


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    # PyAV 17 began to start threads for each conversion; frames of this size are converted faster by one.
    threads = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
    return frame.to_ndarray(format="rgb24", **threads)


def decode_only(data: KineticsDataset, clip: int) -> None:
    epoch, row = divmod(clip, NUM_VIDEOS)
    length = clip_length(MODEL.num_frames, MODEL.sampling_rate, FPS)
    start = random_clip_start(SECONDS * FPS, length, np.random.default_rng([data.seed, epoch, row]).random())
    decoded_span(data.locate(row), int(start), int(start + length - 1))


IMPLEMENTATIONS: dict[str, Callable[[KineticsDataset, int], object]] = {
    "ours": ours,
    "pyslowfast": pyslowfast_steps,
    "decode-only": decode_only,
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a worker of the data loader."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# One thread's processor time: what else the machine does counts for little.
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("key_frames", [X264_KEY_FRAMES, 60])
@pytest.mark.usefixtures("one_thread")
def test_clip_loading(benchmark, key_frames: int, name: str) -> None:
    data = dataset(key_frames)
    for ours_, theirs in zip(ours(data, 1), pyslowfast_steps(data, 1), strict=True):
        torch.testing.assert_close(ours_, theirs, atol=2 * GREY_LEVEL, rtol=0)
    implementation = IMPLEMENTATIONS[name]

    def load() -> None:
        for clip in range(CLIPS_PER_ROUND):
            implementation(data, clip)

    what = f"{CLIPS_PER_ROUND} clips, 32 of 64 frames of {WIDTH} x {HEIGHT}, crop 224"
    benchmark.group = f"loading {what}; key frames up to {key_frames} frames apart; 1 thread"
    benchmark.extra_info["kbit/s"] = data.locate(0).stat().st_size * 8 // SECONDS // 1000
    if platform.system() == "Linux" and key_frames == X264_KEY_FRAMES:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [sys.executable, __file__, name]
        # By how much malloc lets memory grow beyond what is in use differs from process to process.
        processes = [subprocess.run(command, capture_output=True, check=True, env=environment) for _ in range(7)]
        benchmark.extra_info["peak MiB"] = sorted(round(int(process.stdout) / 2**20, 1) for process in processes)
    benchmark.pedantic(load, rounds=5, warmup_rounds=1)
    benchmark.extra_info["clips/s"] = round(CLIPS_PER_ROUND / benchmark.stats.stats.median, 1)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("place", ["beginning", "middle"])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_seeking(benchmark, container: str, place: str) -> None:
    path = hour_long_video(container)
    # The first and the middle minute are the same pictures. Places between key frames and at one.
    begin = {"beginning": 0, "middle": 30 * 60}[place]
    starts = [0.0, 0.7, 1.4, 11.9, 25.3]

    def read() -> list[torch.Tensor]:
        clips = []
        for start in starts:
            with VideoReader(path, pixels="yuv") as video:
                clips.append(video.read(begin + start + (np.arange(32) * 2 + 0.5) / FPS)[0].luma)
        return clips

    with VideoReader(path, pixels="yuv") as video:
        assert video.duration == pytest.approx(3600, abs=0.1)
    begin, here = 0, begin
    expected = read()
    begin = here
    assert all(torch.equal(ours_, theirs) for ours_, theirs in zip(read(), expected, strict=True))
    benchmark.group = f"seeking: 5 clips of 64 frames from an hour-long {container}, a key frame every 2 s"
    benchmark.pedantic(read, rounds=9, warmup_rounds=1)


def peak_growth(load: Callable[[KineticsDataset, int], object]) -> int:
    """Bytes by which this process' resident memory grows at most while clips are loaded one after the other."""
    torch.set_num_threads(1)
    data = dataset(X264_KEY_FRAMES)
    decoded_span(data.locate(0), 0, 0)  # what opening any video takes is no part of it
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for clip in range(CLIPS_PER_ROUND):
        load(data, clip)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) << 10


if __name__ == "__main__":
    print(peak_growth(IMPLEMENTATIONS[sys.argv[1]]))
