"""Leaving packets out saves decoding and changes nothing: frames, times and errors are as without it."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slowfast_model.data.packets import Demand, needed_packets
from slowfast_model.data.video import VideoError, VideoReader
from tests.data.conftest import cut_off, faststart, numbers_of


def packet(pts: int | None, *, size: int = 1, is_discard: bool = False) -> SimpleNamespace:
    return SimpleNamespace(pts=pts, size=size, is_discard=is_discard)


def demand(*moments: float) -> Demand:
    wanted = Demand()
    wanted.is_open = True
    wanted.moments = sorted(moments)
    return wanted


def needed(packets: list[SimpleNamespace], wanted: Demand) -> list[bool]:
    decisions = list(needed_packets(packets, float, wanted))
    assert [each for each, _ in decisions] == packets, "all packets come out, in their order"
    return [is_needed for _, is_needed in decisions]


@settings(max_examples=300, deadline=None)
@given(
    stamps=st.lists(st.integers(0, 60), min_size=1, max_size=40, unique=True),
    moments=st.lists(st.floats(-5, 70), min_size=1, max_size=8),
)
def test_frames_on_screen_at_a_wanted_moment_are_needed(stamps: list[int], moments: list[float]) -> None:
    wanted = demand(*moments)
    by_stamp = dict(zip(stamps, needed([packet(stamp) for stamp in stamps], wanted), strict=True))
    in_order = sorted(stamps)
    for moment in moments:
        shown = in_order[max(bisect_right(in_order, moment) - 1, 0)]
        assert by_stamp[shown]
        assert not wanted.lacks(shown, moment)
    assert all(by_stamp[stamp] for stamp in stamps if stamp > max(moments)), "reading can go on from there"
    assert wanted.left_out == sorted(stamp for stamp in stamps if not by_stamp[stamp])


def test_frames_in_order_are_left_out_up_to_the_last_wanted_one() -> None:
    assert needed([packet(stamp) for stamp in range(10)], demand(4.5, 7)) == [
        True, False, False, False, True, False, False, True, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("odd_one", [packet(None), packet(3)], ids=["no timestamp", "a timestamp twice"])
def test_nothing_is_left_out_after_odd_timestamps(odd_one: SimpleNamespace) -> None:
    packets = [packet(stamp) for stamp in range(5)] + [odd_one] + [packet(stamp) for stamp in range(5, 40)]
    wanted = demand(30)
    assert all(needed(packets, wanted)[5:])
    assert not wanted.is_open


def test_everything_is_needed_where_nothing_is_asked_for() -> None:
    assert all(needed([packet(stamp) for stamp in range(20)], demand()))
    closed = demand(15)
    closed.is_open = False
    assert all(needed([packet(stamp) for stamp in range(20)], closed))


def test_the_packets_ahead_of_an_error_come_first() -> None:
    def breaking():
        yield from (packet(stamp) for stamp in range(5))
        raise OSError("gone")

    packets = needed_packets(breaking(), float, demand(3))
    assert [next(packets)[0].pts for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="gone"):
        next(packets)


def test_a_frame_that_was_left_out_is_missed() -> None:
    wanted = demand()
    wanted.left_out = [2.0, 5.0]
    assert wanted.lacks(4.0, 5.0)
    assert wanted.lacks(1.0, 9.0)
    assert not wanted.lacks(5.0, 9.0)
    assert not wanted.lacks(2.0, 4.9)


# With files.

STREAMS = {
    "P only": {"bf": "0"},
    "three B frames": {"bf": "3", "x264-params": "b-adapt=0"},
    "a pyramid": {"bf": "3", "x264-params": "b-pyramid=normal:b-adapt=0:ref=4"},
    "sixteen B frames": {"bf": "16", "x264-params": "b-pyramid=strict:b-adapt=0"},
    "open groups of pictures": {"bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"},
    "fields": {"bf": "2", "x264-params": "interlaced=1:b-adapt=0"},
    "no key frame after the first": {"bf": "3", "x264-params": "intra-refresh=1:keyint=infinite"},
}


def write_moving_video(path: Path, options: dict[str, str], num_frames: int = 72) -> Path:
    """Squares that move over noise: every frame depends on those that it refers to."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (96, 96, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "faster", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.gop_size = 24
        stream.codec_context.thread_count = 1
        for number in range(num_frames):
            image = ground[number % 32 : number % 32 + 64, number // 4 : number // 4 + 64].copy()
            image[number % 48 : number % 48 + 16, 10:26] = 255 - number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def assert_alike(path: Path, requests: list[np.ndarray]) -> int:
    """Compares a reader with one that decodes everything; returns how many frames were left out."""
    left_out = 0
    with VideoReader(path, pixels="yuv") as ours, VideoReader(path, pixels="yuv") as thorough:
        thorough._demand.is_open = False
        for times in requests:
            found = []
            for video in (ours, thorough):
                try:
                    found.append(video.read(times))
                except VideoError as error:
                    found.append(error.reason)
            left_out += len(ours._demand.left_out)
            if isinstance(found[1], str):
                assert found[0] == found[1]
            else:
                (frames, starts), (expected, expected_starts) = found
                np.testing.assert_array_equal(starts, expected_starts)
                assert torch.equal(frames.luma, expected.luma)
                assert torch.equal(frames.chroma, expected.chroma)
        assert not thorough._demand.left_out
    return left_out


def requests(duration: float, seed: int = 0) -> list[np.ndarray]:
    """Clips, single frames, frames from all over, and one step after the other."""
    rng = np.random.default_rng(seed)
    clips = [rng.uniform(0, duration / 2) + np.arange(8) / 15 for _ in range(4)]
    singles = [rng.uniform(-0.1, duration, 1) for _ in range(4)]
    scattered = [rng.uniform(0, duration, 6) for _ in range(3)]
    steps = [np.array([start, start + 0.1]) for start in np.arange(0, duration, 0.4)]
    return clips + singles + scattered + steps


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("stream", STREAMS)
def test_what_is_left_out_is_not_missed(tmp_path: Path, stream: str, container: str) -> None:
    path = write_moving_video(tmp_path / f"video.{container}", STREAMS[stream])
    assert assert_alike(path, requests(72 / 30)) > 0


def test_a_reader_that_left_out_too_much_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where packets announce frames that the decoder then does not give."""

    def careless(packets: Iterable[av.Packet], seconds: Callable[[int], float], wanted: Demand):
        for each in packets:
            leaves_out = wanted.is_open and each.pts is not None
            if leaves_out:
                insort(wanted.left_out, seconds(each.pts))
            yield each, not leaves_out

    path = write_moving_video(tmp_path / "video.mp4", STREAMS["three B frames"])
    times = np.arange(20) / 30 + 0.5
    with VideoReader(path, pixels="yuv") as video:
        expected, expected_starts = video.read(times)
    monkeypatch.setattr("slowfast_model.data.video.needed_packets", careless)
    with VideoReader(path, pixels="yuv") as video:
        frames, starts = video.read(times)
        assert not video._demand.is_open
    np.testing.assert_array_equal(starts, expected_starts)
    assert torch.equal(frames.luma, expected.luma)


def test_damaged_files_fail_alike(numbered_video: Callable[..., Path]) -> None:
    whole = numbered_video("whole.mp4", 200)
    assert_alike(cut_off(whole, 0.6), requests(200 / 30))
    hole = faststart(numbered_video("hole.mp4", 200))
    data = bytearray(hole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    hole.write_bytes(data)
    with VideoReader(hole, pixels="yuv") as video:
        frames, starts = video.read([0.5, 6.0])
    assert numbers_of(frames) == [15, 180]
    np.testing.assert_allclose(starts, [0.5, 6.0], atol=1e-3)
