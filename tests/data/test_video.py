"""VideoReader: the right frames at the right times from any container, and clear errors from damaged files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slowfast_model.data.video import VideoError, VideoReader
from slowfast_model.data.video_cache import DecodedVideo, VideoCache
from slowfast_model.errors import InputError
from tests.data.conftest import cut_off, faststart, number_of, write_numbered_video

CONTAINERS = {
    "video.mp4": {},
    "no_b_frames.mp4": {"b_frames": 0},
    "video.mkv": {},
    "video.ts": {},
    "video.avi": {"codec": "mpeg4", "b_frames": 0},
    "b_frames.avi": {"codec": "mpeg4"},
    "disordered.avi": {},  # H.264 with B-frames: its timestamps go back and forth
    "program_stream.mpg": {"codec": "mpeg2video"},
    "elementary_stream.mp4": {"codec": "mpeg4", "container_format": "m4v"},
    "elementary_stream.h264": {},
}


@pytest.fixture(scope="module", params=CONTAINERS)
def container(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("containers") / request.param
    return write_numbered_video(path, **CONTAINERS[request.param])


def numbers_at(path: Path, times: object) -> list[int]:
    with VideoReader(path) as video:
        return [number_of(image) for image in video.read(times)[0]]


def test_every_container_gives_all_frames_in_order(container: Path) -> None:
    with VideoReader(container) as video:
        frames, starts = video.read_frames()
        assert [number_of(image) for image in frames] == list(range(60))
        np.testing.assert_allclose(starts, np.arange(60) / 30, atol=0.6e-3)
        assert video.fps == pytest.approx(30, rel=1e-3)
        assert video.duration == pytest.approx(2, abs=0.25)
        assert video.num_frames == 60
        assert video.size == frames.shape[1:3]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 59), min_size=1, max_size=6))
def test_reading_by_time_gives_the_frame_on_screen_in_any_order(container: Path, numbers: list[int]) -> None:
    with VideoReader(container) as video:
        # Twice with one reader: what was read before must not matter.
        for places in (numbers, numbers[::-1]):
            frames, starts = video.read((np.array(places) + 0.5) / 30)
            assert [number_of(image) for image in frames] == places
            np.testing.assert_allclose(starts, np.array(places) / 30, atol=0.6e-3)


def test_times_outside_give_the_first_and_the_last_frame(container: Path) -> None:
    assert numbers_at(container, [-5.0, 1e6]) == [0, 59]


def test_times_computed_from_the_rate_meet_rounded_timestamps(numbered_video: Callable[..., Path]) -> None:
    path = numbered_video("milliseconds.mkv")  # its clock ticks in milliseconds: frame 2 starts at 0.067, not at 2/30
    assert numbers_at(path, np.arange(60) / 30) == list(range(60))


def test_variable_frame_rate(numbered_video: Callable[..., Path]) -> None:
    gaps = np.random.default_rng(0).integers(1, 12, 40)
    timestamps = np.concatenate([[0], np.cumsum(gaps)[:-1]]).tolist()
    path = numbered_video("variable.mp4", 40, timestamps=timestamps, time_base=Fraction(1, 100))
    middles = [(start + gap / 2) / 100 for start, gap in zip(timestamps, gaps, strict=True)]
    assert numbers_at(path, np.array(timestamps) / 100) == list(range(40))
    assert numbers_at(path, middles[::-1]) == list(range(40))[::-1]


@pytest.mark.parametrize("name", ["late.mkv", "late.mp4", "late.ts", "late.nut", "late.flv"])
def test_time_counts_from_the_first_frame(numbered_video: Callable[..., Path], name: str) -> None:
    path = numbered_video(name, 30, timestamps=range(250, 280))
    with VideoReader(path) as video:
        frames, starts = video.read([0, 0.5, 5])
        assert video.duration == pytest.approx(1, abs=0.1)  # Matroska and NUT state when the last frame ends
    assert [number_of(image) for image in frames] == [0, 15, 29]
    assert starts[0] == 0


def test_a_duration_that_mkvmerge_states_counts_from_the_first_frame(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "late.mkv", 30, timestamps=range(250, 280))
    with VideoReader(path) as video:
        stated = {"DURATION": "00:00:01.000000000", "_STATISTICS_TAGS": "BPS DURATION NUMBER_OF_FRAMES"}
        video._stream = SimpleNamespace(duration=None, metadata=stated)
        assert video.duration == 1


def test_read_frames_takes_a_range(numbered_video: Callable[..., Path]) -> None:
    with VideoReader(numbered_video()) as video:
        assert [number_of(image) for image in video.read_frames(10, 20, 3)[0]] == [10, 13, 16, 19]
        assert [number_of(image) for image in video.read_frames(57)[0]] == [57, 58, 59]
        frames, starts = video.read_frames(60, 70)
        assert frames.shape == (0, 48, 96, 3)
        assert starts.shape == (0,)
        for wrong in ((-1, 3, 1), (0, -3, 1), (0, 3, 0)):
            with pytest.raises(ValueError, match="0 or more"):
                video.read_frames(*wrong)


def test_times_must_be_finite_numbers(numbered_video: Callable[..., Path]) -> None:
    with VideoReader(numbered_video()) as video:
        for wrong in ([], [0.5, float("nan")], [float("inf")]):
            with pytest.raises(ValueError, match="finite"):
                video.read(wrong)


def test_only_the_group_of_pictures_of_a_clip_is_decoded(
    numbered_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    original = VideoReader._decode

    def counting(self: VideoReader, after_seek: bool):
        for shot in original(self, after_seek):
            decoded.append(shot)
            yield shot

    monkeypatch.setattr(VideoReader, "_decode", counting)
    path = numbered_video("long.mp4", 240, key_frame_every=10)
    with VideoReader(path) as video:
        frames, _ = video.read(np.arange(203, 207) / 30)
    assert [number_of(image) for image in frames] == [203, 204, 205, 206]
    assert len(decoded) <= 10  # from the key frame at 200 up to the one that follows 206


@pytest.mark.parametrize("name", ["across.mp4", "across.mkv"])
def test_a_clip_across_a_key_frame_is_decoded_once(
    numbered_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seeks = []
    monkeypatch.setattr(VideoReader, "_seek", lambda self, limit: seeks.append(limit))
    path = numbered_video(name, 90, key_frame_every=60)
    for step in (0.9 / 30, 1 / 30, 2 / 30):
        with VideoReader(path) as video:
            times = np.arange(40 / 30, 75 / 30, step)
            frames, _ = video.read(times)
        assert [number_of(image) for image in frames] == (times * 30 + 1e-6).astype(int).tolist()
    assert not seeks


# Codecs beside H.264, other sizes and other pixels than 8-bit 4:2:0. Not every FFmpeg has all of these encoders.
OTHER_VIDEOS = {
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp9_of_odd_size.webm": {"codec": "libvpx-vp9", "height": 51, "width": 97},
    "vp8.webm": {"codec": "libvpx"},
    "av1.mp4": {"codec": "libsvtav1", "height": 64, "width": 128},
    "av1_10_bits.mkv": {"codec": "libsvtav1", "height": 64, "width": 128, "pixel_format": "yuv420p10le"},
    "h265.mp4": {"codec": "libx265"},
    "h265_10_bits.mp4": {"codec": "libx265", "pixel_format": "yuv420p10le"},
    "h264_422_10_bits.mp4": {"pixel_format": "yuv422p10le"},
    "h264_444.mkv": {"pixel_format": "yuv444p"},
    "h264_full_range.mp4": {"pixel_format": "yuvj420p"},
    "mpeg2.ts": {"codec": "mpeg2video"},
    "mpeg2.mp4": {"codec": "mpeg2video"},
    "grey.mkv": {"codec": "ffv1", "pixel_format": "gray"},
    "rgb.mkv": {"codec": "ffv1", "pixel_format": "bgr0"},
    "motion_jpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj422p", "b_frames": 0},
    "raw.avi": {"codec": "rawvideo", "pixel_format": "bgr24", "b_frames": 0},
    "prores.mov": {"codec": "prores_ks", "pixel_format": "yuv422p10le", "b_frames": 0},
    "windows.wmv": {"codec": "wmv2", "b_frames": 0},
    "flash.flv": {"codec": "flv", "b_frames": 0},
}


@pytest.mark.parametrize("name", OTHER_VIDEOS)
def test_other_codecs_sizes_and_pixels(numbered_video: Callable[..., Path], name: str) -> None:
    options = OTHER_VIDEOS[name]
    try:
        path = numbered_video(name, 40, **options)
    except (av.codec.codec.UnknownCodecError, av.error.FFmpegError) as error:
        pytest.skip(f"this FFmpeg cannot write it: {error}")
    expected, times = decode_with_pyav(path)
    for pixels in ("rgb", "yuv"):
        with VideoReader(path, pixels=pixels) as video:
            assert video.size == expected[0].shape[:2] == (options.get("height", 48), options.get("width", 96))
            assert video.fps == pytest.approx(30, rel=1e-2)
            for frames, starts, places in [
                (*video.read_frames(), list(range(40))),
                (*video.read((np.array([30, 3, 17, 39]) + 0.5) / 30), [30, 3, 17, 39]),
            ]:
                np.testing.assert_allclose(starts, np.array(times)[places], atol=1e-3)
                images = frames.rgb().numpy() if pixels == "yuv" else frames
                assert [number_of(image) for image in images] == places
                if pixels == "rgb":
                    np.testing.assert_array_equal(images, np.stack(expected)[places])


def test_a_size_that_changes_midway_is_scaled(tmp_path: Path) -> None:
    parts = [
        write_numbered_video(tmp_path / "a.h264", 20, b_frames=0),
        write_numbered_video(tmp_path / "b.h264", 20, b_frames=0, height=96, width=144),
    ]
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for pixels in ("rgb", "yuv"):
        with VideoReader(path, pixels=pixels) as video:
            assert video.size == (48, 96)
            frames, _ = video.read_frames()
            images = frames.rgb().numpy() if pixels == "yuv" else frames
            assert images.shape == (40, 48, 96, 3)
            assert [number_of(image) for image in images] == [*range(20), *range(20)]
            assert len(video.read([0.1, 1.0, 0.3])[0]) == 3


def test_pixels_are_rgb_or_yuv(numbered_video: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="pixels='bgr': expected 'rgb' or 'yuv'"):
        VideoReader(numbered_video(), pixels="bgr")


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotation_in_the_metadata_is_applied(numbered_video: Callable[..., Path], rotation: int) -> None:
    upright, turned = numbered_video("plain.mp4", 3), numbered_video("turned.mp4", 3, rotation=rotation)
    with VideoReader(upright) as video:
        expected = np.rot90(video.read([0.05])[0][0], rotation // 90)
    with VideoReader(turned) as video:
        np.testing.assert_array_equal(video.read([0.05])[0][0], expected)
        assert video.size == expected.shape[:2]
    with VideoReader(turned, pixels="yuv") as video:
        planes = video.read([0.05])[0].rgb().numpy()[0].astype(int)
        assert np.abs(planes - expected).max() <= 1
        assert video.size == expected.shape[:2]


@pytest.mark.parametrize("container_name", ["video.mp4", "video.mkv"])
def test_a_colon_in_the_name_is_no_protocol(numbered_video: Callable[..., Path], container_name: str) -> None:
    assert numbers_at(numbered_video(f"http:{container_name}"), [1.0]) == [30]


def test_unusable_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video\n" * 200)
    (tmp_path / "notes.txt").write_text("FFmpeg would render this as a terminal session\n" * 200)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    reasons = {
        "text.mp4": "cannot be opened as a video: Invalid data",
        "notes.txt": "holds no video stream",
        "empty.mp4": "the file is empty",
        "noise.mp4": "cannot be opened as a video: Invalid data",
        "folder.mp4": "no such file",
        "sound.mp4": "holds no video stream",
        "missing.mp4": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(VideoError) as caught:
            VideoReader(tmp_path / name)
        assert caught.value.reason.startswith(reason), name
        assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"


def test_a_container_without_a_single_packet_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "nothing.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match="End of file"):
        VideoReader(path)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_cut_off_file_gives_what_is_whole(numbered_video: Callable[..., Path], name: str) -> None:
    path = numbered_video(name, 200)
    path = cut_off(path, 0.5)
    with VideoReader(path) as video:
        frames, starts = video.read_frames()
        numbers = [number_of(image) for image in frames]
        assert 20 < len(numbers) < 180
        assert numbers == list(range(len(numbers)))
        assert [number_of(image) for image in video.read(starts[5:20])[0]] == list(range(5, 20))
        with pytest.raises(VideoError, match=r"breaks at|is cut off"):
            video.read([0.5, 6.0])
        assert number_of(video.read([0.5])[0][0]) == 15  # and it can be read on after that


def test_a_file_of_broken_packets_is_an_error(numbered_video: Callable[..., Path]) -> None:
    path = faststart(numbered_video("broken.mp4"))
    data = path.read_bytes()
    frames = data.index(b"mdat") + 4
    path.write_bytes(data[:frames] + bytes(len(data) - frames))
    with VideoReader(path) as video:
        for read in (lambda: video.read([0.0]), video.read_frames, lambda: video.size):
            with pytest.raises(VideoError, match="cannot be decoded: Invalid data"):
                read()


def test_frames_behind_a_hole_are_readable(numbered_video: Callable[..., Path]) -> None:
    path = faststart(numbered_video("hole.mp4", 200))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    path.write_bytes(bytes(data))
    with VideoReader(path) as video:
        before = len(video.read_frames()[0])
        assert before < 180
        assert [number_of(image) for image in video.read([0.5, 6.0])[0]] == [15, 180]


def test_a_video_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "is broken")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is broken", "a.mp4: is broken")
    assert isinstance(error, InputError)


def test_cached_videos_answer_alike(container: Path) -> None:
    cache = VideoCache(max_bytes=2_000_000)
    times = np.random.default_rng(0).uniform(-0.2, 2.3, 40)
    with cache.open(container) as cached, VideoReader(container, pixels="yuv") as video:
        assert isinstance(cached, DecodedVideo)
        (ours, starts), (expected, expected_starts) = cached.read(times), video.read(times)
        assert torch.equal(ours.luma, expected.luma)
        assert torch.equal(ours.chroma, expected.chroma)
        np.testing.assert_array_equal(starts, expected_starts)
        assert (cached.fps, cached.duration) == (video.fps, video.duration)
    assert cache.open(container) is cached


def test_the_cache_keeps_to_its_size_and_to_whole_videos(numbered_video: Callable[..., Path]) -> None:
    paths = [numbered_video(f"{number}.mp4", 30) for number in range(3)]
    size = 30 * 48 * 96 * 3 // 2
    cache = VideoCache(2 * size + size // 2)
    assert [type(cache.open(path)) for path in paths] == [DecodedVideo, DecodedVideo, VideoReader]
    assert cache.bytes_left == size // 2
    damaged = cut_off(numbered_video("damaged.mp4", 200), 0.5)
    assert isinstance(VideoCache(1 << 30).open(damaged), VideoReader)


# Real files, against PyAV's own decoding from the beginning.


def decode_with_pyav(path: Path) -> tuple[list[np.ndarray], list[float]]:
    images, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        try:
            for frame in container.decode(stream):
                images.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
                times.append(frame.time)
        except av.error.InvalidDataError:
            pass
    return images, [time - times[0] for time in times]


REAL_FILES = {
    "edge_cases/decord_corrupted.mp4": (28, (720, 1280), 10.0),
    "edge_cases/decord_rot0.mov": (3, (320, 568), 30.0),
    "edge_cases/decord_rot90.mov": (3, (568, 320), 30.0),
    "edge_cases/torchcodec_h265_video.mp4": (10, (128, 128), 10.0),
    "edge_cases/torchcodec_nasa_13013.mp4": (390, (270, 480), 30000 / 1001),
    "edge_cases/torchcodec_test_non_zero_start.mp4": (12, (112, 200), 30.0),
    "kinetics_mini/videos/decord_flipping_a_pancake.mkv": (310, (240, 426), 30.0),
    "kinetics_mini/videos/intel_asl_eat.mkv": (47, (480, 640), 30.0),
    "kinetics_mini/videos/intel_asl_help.mkv": (58, (480, 640), 30.0),
    "kinetics_mini/videos/intel_asl_walk.mkv": (89, (480, 640), 30.0),
    "kinetics_mini/videos/k400_R6llTwEh07w.mp4": (303, (256, 340), 30.0),
    "kinetics_mini/videos/torchvision_basketball.mp4": (333, (360, 640), 30000 / 1001),
    "kinetics_mini/videos/ucf101_v_SoccerJuggling_g23_c01.avi": (240, (240, 320), 30000 / 1001),
    "kinetics_mini/videos/ucf101_v_SoccerJuggling_g24_c01.avi": (251, (240, 320), 30000 / 1001),
    "kinetics_mini/videos/ucf24_Basketball_g01_c02.mp4": (180, (256, 340), 30000 / 1001),
    "kinetics_mini/videos/ucf24_IceDancing_g02_c05.mp4": (244, (256, 340), 25.0),
}


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_read_as_pyav_decodes_them(shared_data: Path, name: str) -> None:
    count, size, fps = REAL_FILES[name]
    expected, times = decode_with_pyav(shared_data / name)
    assert len(expected) == count
    with VideoReader(shared_data / name) as video:
        assert video.size == size
        assert video.fps == pytest.approx(fps)
        # Clips from all over the file, the last first, each by seeking.
        places = np.linspace(0, count - 1, 5).astype(int)[::-1]
        for place in places:
            numbers = np.minimum(place + np.arange(0, 8, 3), count - 1)
            frames, starts = video.read(np.array(times)[numbers])
            np.testing.assert_allclose(starts, np.array(times)[numbers], atol=1e-6)
            for image, number in zip(frames, numbers, strict=True):
                np.testing.assert_array_equal(image, expected[number])
            by_rate, _ = video.read((numbers + 0.5) / video.fps)
            np.testing.assert_array_equal(by_rate, frames)


def test_the_real_file_that_breaks_says_where(shared_data: Path) -> None:
    with VideoReader(shared_data / "edge_cases/decord_corrupted.mp4") as video:
        assert len(video.read_frames()[0]) == 28
        with pytest.raises(VideoError, match=r"breaks at 2\.80 s: cannot be decoded: Invalid data"):
            video.read([1.0, 4.0])
