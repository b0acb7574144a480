"""Folders of JPEGs in the place of video files: the same frames, PySlowFast's layout, damaged and missing images."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from slowfast_model.data.frame_folder import FrameFolder
from slowfast_model.data.video import VideoError, VideoReader
from slowfast_model.data.video_cache import DecodedVideo, VideoCache
from slowfast_model.doctor import main as doctor
from slowfast_model.errors import InputError
from tests.data import test_ava, test_kinetics
from tests.data.conftest import HEIGHT, WIDTH, numbered_image, numbers_of, parts_of, write_numbered_video


def write_image(path: Path, image: np.ndarray, codec: str = "mjpeg", pixel_format: str = "yuvj420p") -> None:
    height, width, _ = image.shape
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, pixel_format
    context.time_base = Fraction(1, 30)
    context.options = {"qmin": "1", "qmax": "1"} if codec == "mjpeg" else {}
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format, dst_color_range=2)
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))


def write_folder(folder: Path, count: int, first: int = 1, name: str = "v_{:06d}.jpg") -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        write_image(folder / name.format(first + number), numbered_image(number))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 numbered images, in PySlowFast's layout."""
    return write_folder(tmp_path_factory.mktemp("frames") / "v", 40)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    copy = tmp_path / "v"
    copy.mkdir()
    for path in made.iterdir():
        os.link(path, copy / path.name)
    return copy


def replace_file(path: Path, data: bytes) -> None:
    path.unlink()  # it is shared with the other copies
    path.write_bytes(data)


def test_it_answers_as_the_video_that_it_was_extracted_from(made: Path, tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "v.mp4", 40, rate=10)
    times = [0.0, 3.9, -1.0, 99.0, 1.25, 1.2999999, 1.3, 0.1 + 0.2, 2.7, 2.7]
    with FrameFolder(made, fps=10) as ours, VideoReader(video, pixels="yuv") as theirs:
        assert (ours.fps, ours.duration, ours.num_frames, ours.size) == (10, 4.0, 40, (HEIGHT, WIDTH))
        assert (theirs.fps, theirs.duration, theirs.num_frames, theirs.size) == (10, 4.0, 40, (HEIGHT, WIDTH))
        frames, starts = ours.read(times)
        assert numbers_of(frames) == [0, 39, 0, 39, 12, 13, 13, 3, 27, 27] == numbers_of(theirs.read(times)[0])
        np.testing.assert_allclose(starts, theirs.read(times)[1], atol=1e-9)
        for arguments in ((), (5, 20, 3), (38, 99), (40,), (50, 60)):
            ours_read, theirs_read = ours.read_frames(*arguments), theirs.read_frames(*arguments)
            assert numbers_of(ours_read[0]) == numbers_of(theirs_read[0])
            assert ours_read[0].size == theirs_read[0].size
            np.testing.assert_allclose(ours_read[1], theirs_read[1], atol=1e-9)
        for wrong in ([], [float("nan")]):
            with pytest.raises(ValueError, match="times must be one or more finite numbers"):
                ours.read(wrong)
        with pytest.raises(ValueError, match="start and stop must be 0 or more"):
            ours.read_frames(-1)


@pytest.mark.parametrize(
    ("codec", "pixel_format", "tolerance"),
    [
        ("mjpeg", "yuvj420p", 2), ("mjpeg", "yuvj422p", 12), ("mjpeg", "yuvj444p", 12), ("png", "rgb24", 12),
        ("png", "gray", 3),
    ],
)  # fmt: skip
def test_pixels_of_every_kind_of_image(tmp_path: Path, codec: str, pixel_format: str, tolerance: int) -> None:
    """Against FFmpeg's own conversion; chroma of more than 4:2:0 is averaged over 2 x 2 pixels, smooth here."""
    rows, columns = np.mgrid[0:34, 0:48]
    image = np.stack([5 * columns, 7 * rows, 120 + 2 * columns - 3 * rows], axis=2).clip(0, 255).astype(np.uint8)
    (tmp_path / "v").mkdir()
    path = tmp_path / "v" / f"1.{'png' if codec == 'png' else 'jpg'}"
    write_image(path, image, codec, pixel_format)
    with av.open(str(path)) as container:
        expected = next(container.decode(video=0)).to_ndarray(format="rgb24")
    frames = FrameFolder(tmp_path / "v", fps=30).read([0.0])[0]
    assert (frames.size, frames.full_range) == ((34, 48), True)
    assert np.abs(frames.rgb()[0].numpy().astype(int) - expected).max() <= tolerance


NAMES = ["{:06d}.jpg", "img_{:05d}.JPG", "frame-{}.jpeg", "a.b c_{:03d}.jpg", "2011_{:04d}.jpg"]


@pytest.mark.parametrize("name", NAMES)
def test_names_and_first_numbers(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "v", 12, first=0 if "05d" in name else 1, name=name)
    (folder / "Thumbs.db").write_bytes(b"no image")
    assert numbers_of(FrameFolder(folder, fps=30).read_frames()[0]) == list(range(12))


def test_numbers_may_outgrow_their_zeros(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "v", 4, first=98, name="v_{:02d}.jpg")
    assert numbers_of(FrameFolder(folder, fps=30).read_frames()[0]) == [0, 1, 2, 3]


def test_damaged_images_are_named(folder: Path) -> None:
    data = (folder / "v_000010.jpg").read_bytes()
    damages = {
        "v_000011.jpg": (data[: len(data) // 2], "the image is damaged"),
        "v_000012.jpg": (b"", "the image is empty"),
        "v_000013.jpg": (b"not an image at all", "the image is damaged"),
        "v_000014.jpg": (bytes(2000), "the image is damaged"),
    }
    for name, (content, _) in damages.items():
        replace_file(folder / name, content)
    write_image(folder / "large.tmp", np.zeros((64, 64, 3), np.uint8))
    replace_file(folder / "v_000015.jpg", (folder / "large.tmp").read_bytes())
    damages["v_000015.jpg"] = b"", rf"is 64 x 64 pixels, and the first image of its folder {WIDTH} x {HEIGHT}"
    (folder / "v_000016.jpg").unlink()
    damages["v_000016.jpg"] = b"", "the image cannot be read: No such file or directory"
    (folder / "v_000017.jpg").unlink()
    (folder / "v_000017.jpg").mkdir()
    damages["v_000017.jpg"] = b"", "the image cannot be read: Is a directory"
    video = FrameFolder(folder, fps=1)
    for name, (_, reason) in damages.items():
        number = int(name[2:8]) - 1
        with pytest.raises(VideoError) as error:
            video.read([0, number])
        assert (error.value.path, error.value.reason) == (str(folder / name), reason)
    assert numbers_of(video.read([0, 9, 17, 39])[0]) == [0, 9, 17, 39]  # the others are as they were


def test_folders_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "cover.jpg").write_bytes(b"x")
    with pytest.raises(VideoError, match=r"has no numbered images \(such as img_000001\.jpg\)"):
        FrameFolder(tmp_path, fps=30)
    (tmp_path / "a_1.jpg").write_bytes(b"x")
    (tmp_path / "b_1.jpg").write_bytes(b"x")
    with pytest.raises(VideoError, match=r"has images of two names, [ab]_\*\.jpg and [ab]_\*\.jpg"):
        FrameFolder(tmp_path, fps=30)
    with pytest.raises(VideoError, match="the folder cannot be read: No such file"):
        FrameFolder(tmp_path / "gone", fps=30)


def test_the_listing_follows_the_folder(folder: Path) -> None:
    assert FrameFolder(folder, fps=30).num_frames == 40
    write_image(folder / "v_000041.jpg", numbered_image(40))
    assert FrameFolder(folder, fps=30).num_frames == 41


def test_the_cache_keeps_decoded_folders(made: Path) -> None:
    cache = VideoCache(10_000_000, frames_fps=10)
    video = cache.open(made)
    assert isinstance(video, DecodedVideo)
    ours, theirs = video.read([0.5, 2.0, 9.0]), FrameFolder(made, fps=10).read([0.5, 2.0, 9.0])
    assert torch.equal(ours[0].rgb(), theirs[0].rgb())
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.fixture
def ava_root(made: Path, tmp_path: Path) -> Path:
    """The AVA-format data of `test_ava`, one of its three videos a file and two of them folders."""
    root = tmp_path / "ava"
    (root / "videos").mkdir(parents=True)
    write_numbered_video(root / "videos" / "b.mkv", 40, rate=10)
    (root / "frames").mkdir()
    for name in ("a", "c"):
        (root / "frames" / name).symlink_to(made)
    return test_ava.write_annotations(root)


def test_ava_reads_folders_where_there_is_no_file(ava_root: Path) -> None:
    data = test_ava.module(ava_root, frames_fps=10.0)
    for dataset in (data.train_data, data.val_data):
        for index in range(len(dataset)):
            second = dataset.key_frames.key(index)[1]
            expected = np.clip(second * 10 + np.arange(-8, 8, 2), 0, 39).astype(int).tolist()
            assert numbers_of(dataset.read(index)) == expected
    assert numbers_of(test_ava.module(ava_root).val_data.read(0))[4] == 30  # 30 a second by default, as PySlowFast's
    assert data.key_frame("c", 2.0).shape == (HEIGHT, WIDTH, 3)
    for batch in [*data.train_dataloader(), *parts_of(data.val_dataloader())]:
        assert batch["bad_videos"] == []
    write_numbered_video(ava_root / "videos" / "a.mp4", 5, rate=10)
    assert test_ava.module(ava_root).videos.paths["a"] == ava_root / "videos" / "a.mp4"


def test_ava_of_folders_alone(ava_root: Path) -> None:
    (ava_root / "videos" / "b.mkv").unlink()
    (ava_root / "videos").rmdir()
    data = test_ava.module(ava_root, frames_fps=10.0)
    assert data.train_data[0].bad_videos == []
    assert {path for path, _ in data.train_data[2].bad_videos} == {str(ava_root / "frames" / "b")}
    (ava_root / "frames").rename(ava_root / "elsewhere")
    with pytest.raises(InputError, match="videos: No such file or directory; expected the folder of the videos"):
        test_ava.module(ava_root)


def test_kinetics_rows_may_name_folders(made: Path, tmp_path: Path) -> None:
    write_numbered_video(tmp_path / "a.mp4", 40)
    (tmp_path / "train.csv").write_text(f"{made} 1\na.mp4 0\n")
    (tmp_path / "val.csv").write_text(f"{made} 1\na.mp4 0\n")
    data = test_kinetics.module(tmp_path)
    folder, file = data.val_data[0], data.val_data[1]
    assert numbers_of(folder.clip[0]) == numbers_of(file.clip[0])
    assert folder.clip[1] == file.clip[1]


def test_the_doctor_knows_folders(ava_root: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (ava_root / "frames" / "c").unlink()
    (ava_root / "frames" / "c").symlink_to(folder)
    (folder / "v_000011.jpg").unlink()  # second 1.0, a key frame of val
    argv = ["doctor", "--dataset", "ava", "--data-root", str(ava_root), "--model", "slowfast_tiny"]
    argv += ["--output-dir", str(tmp_path / "report"), "--num-workers", "1", "--data.frames-fps", "10"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit):  # one of two val videos is more than data.max_bad_share
            doctor()
    output = " ".join(capsys.readouterr().out.split())
    assert "train: videos 2, readable 2" in output
    assert "1 val videos of 2 are missing or cannot be read" in output
    assert "c: the image cannot be read: No such file or directory" in output
