"""The memory of a process that reads clips stays where it is, damaged files included.

`python -m tests.data.test_worker_memory 10000` reads that many clips in each way and prints how memory went.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from slowfast_model.data.clips import Sample
from slowfast_model.data.kinetics import KineticsDataConfig, KineticsDataset
from slowfast_model.data.video import VideoError, VideoReader
from slowfast_model.data.video_list import VideoList
from slowfast_model.models import get_preset
from tests.data.conftest import cut_off, write_numbered_video

WARM_UP = 60  # clips until the allocator has what it needs
NUM_CLIPS = 300
LARGEST_GROWTH = 2 << 20  # bytes; of one frame per clip, a leak would have 34 MB


class _MallInfo(ctypes.Structure):
    """glibc's mallinfo2: of its ten fields, those that count."""

    _fields_ = [
        ("_first", ctypes.c_size_t * 4),
        ("mapped", ctypes.c_size_t),
        ("_second", ctypes.c_size_t * 2),
        ("in_heap", ctypes.c_size_t),
        ("_third", ctypes.c_size_t * 2),
    ]


class Memory(NamedTuple):
    """Of this process, in bytes: what is allocated, and what the system holds for it, free blocks included."""

    allocated: int
    resident: int

    @classmethod
    def now(cls) -> Memory:
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = _MallInfo
        info = mallinfo()
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
        return cls(info.in_heap + info.mapped, kilobytes << 10)


def videos(folder: Path) -> list[Path]:
    """Large enough for a leak to show: whole, of another codec, cut off, broken inside, and no video at all."""
    size = {"height": 240, "width": 320}
    whole = write_numbered_video(folder / "whole.mp4", 40, **size)
    other = write_numbered_video(folder / "other.mkv", 40, codec="mpeg4", **size)
    cut = cut_off(write_numbered_video(folder / "cut.mp4", 120, **size), 0.5)
    broken = folder / "broken.mp4"
    data = bytearray(cut.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    broken.write_bytes(data)
    nothing = folder / "nothing.mp4"
    nothing.write_bytes(np.random.default_rng(0).bytes(20_000))
    return [whole, other, cut, broken, nothing]


def read_directly(paths: list[Path], count: int) -> Iterator[Memory]:
    """Memory after each clip."""
    rng = np.random.default_rng(0)
    failed = 0
    for number in range(count):
        try:
            with VideoReader(paths[number % len(paths)], pixels="yuv" if number % 3 else "rgb") as video:
                video.read(rng.uniform(0, 1.2 * video.duration) + np.arange(8) / 15)
        except VideoError:
            failed += 1
        yield Memory.now()
    assert 0.2 * count < failed < 0.8 * count, "the damaged files were to fail"


class _Measured:
    """Batches that carry the memory of the worker process that made them."""

    def __init__(self, data: KineticsDataset) -> None:
        self.data = data

    def __call__(self, samples: list[Sample]) -> tuple[Memory, int]:
        batch = self.data.collate(samples)
        return Memory.now(), len(batch["bad_videos"])


def read_in_a_worker(paths: list[Path], count: int) -> Iterator[Memory]:
    """Memory of a worker process of the data loader after each clip."""
    config = KineticsDataConfig(root=str(paths[0].parent), num_workers=1)
    rows = [(str(paths[number % len(paths)]), 0) for number in range(count)]
    data = KineticsDataset(VideoList(rows, paths[0].parent), config, get_preset("slowfast_tiny"), views=None)
    loader = DataLoader(data, num_workers=1, collate_fn=_Measured(data))
    failed = 0
    for memory, bad_videos in loader:
        failed += bad_videos
        yield memory
    assert failed > 0.2 * count, "the damaged files were to fail"


WAYS: dict[str, Callable[[list[Path], int], Iterator[Memory]]] = {"reader": read_directly, "worker": read_in_a_worker}


def course(way: str, count: int) -> list[Memory]:
    """Memory after the warm-up, and after each of ``count`` more clips."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return list(WAYS[way](videos(Path(folder)), WARM_UP + count))[WARM_UP - 1 :]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc's allocator for what it gave out")
@pytest.mark.parametrize("way", WAYS)
def test_memory_stays_flat(way: str) -> None:
    code = (
        "from tests.data.test_worker_memory import course\n"
        f"allocated = [memory.allocated for memory in course({way!r}, {NUM_CLIPS})]\n"
        "print(min(allocated[-10:]) - min(allocated[:10]))"  # the least of some: what is in use is no growth
    )
    root = Path(__file__).parent.parent.parent
    # A process of its own: what the other tests have freed would hide a leak.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < LARGEST_GROWTH


if __name__ == "__main__":
    count = int(sys.argv[1])
    for name in WAYS:
        memories = course(name, count)
        for part in range(11):
            first = min(part * count // 10, count - 9)
            allocated, resident = (min(m[field] for m in memories[first : first + 10]) / 2**20 for field in range(2))
            print(
                f"{name}, clip {part * count // 10}: {allocated:.1f} MiB allocated, {resident:.1f} resident", flush=True
            )
