"""Kinetics-format data: lists, random clips, the middle clip, all views, damaged videos."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slowfast_model.data.kinetics import KineticsDataConfig, KineticsDataModule, VideoList
from slowfast_model.errors import InputError
from slowfast_model.models import get_preset
from tests.data.conftest import number_of, write_numbered_video

MODEL = replace(get_preset("slowfast_tiny"), num_frames=8, sampling_rate=2, alpha=4, crop_size=32)


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 2 seconds at 30 frames a second, and one of half a second, each frame showing its number."""
    root = tmp_path_factory.mktemp("kinetics")
    (root / "videos").mkdir()
    for name in ("a.mp4", "b c.mkv", "d.avi"):
        options = {"codec": "mpeg4"} if name.endswith("avi") else {}
        write_numbered_video(root / "videos" / name, 60, **options)
    write_numbered_video(root / "videos" / "short.mp4", 12)
    (root / "train.csv").write_text("videos/a.mp4 0\nvideos/b c.mkv 2\nd.avi 1\n")
    (root / "val.csv").write_text("videos/a.mp4 1\nvideos/short.mp4 0\n")
    return root


@pytest.fixture
def root(made_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made_root, tmp_path / "kinetics"))


def module(root: Path, **options: Any) -> KineticsDataModule:
    options = {"batch_size": 2, "num_workers": 0, **options}
    data = KineticsDataModule(KineticsDataConfig(root=str(root), **options), MODEL)
    data.setup()
    return data


def test_lists_take_spaces_commas_quotes_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('a.mp4 3\n\nsome folder/b c.mp4 4\r\nd,e.mp4,5\n"f g.mp4", 6\nümlaut.mp4\t7\n', encoding="utf-8")
    videos = VideoList(path)
    assert videos.labels.tolist() == [3, 4, 5, 6, 7]
    names = [videos.path(row) for row in range(len(videos))]
    assert names == ["a.mp4", "some folder/b c.mp4", "d,e.mp4", "f g.mp4", "ümlaut.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 1\nb.mp4\n", r"list\.csv:2: expected 'path label' .* got 'b\.mp4'"),
        ("a.mp4 1\nb.mp4 -1\n", r"list\.csv:2: "),
        ("a.mp4 one\n", r"list\.csv:1: .* got 'a\.mp4 one'"),
        ("12\n", r"list\.csv:1: "),
        ("\n \n", r"list\.csv: the list is empty"),
    ],
)
def test_malformed_lists_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        VideoList(tmp_path / "list.csv")


def test_a_large_list_takes_little_memory(tmp_path: Path) -> None:
    count = 100_000
    path = tmp_path / "list.csv"
    path.write_text("".join(f"videos/class_{n % 400}/video_{n:06d}.mp4 {n % 400}\n" for n in range(count)))
    videos = VideoList(path)
    assert videos.path(77_777) == "videos/class_177/video_077777.mp4"
    assert videos.labels[77_777] == 177
    assert len(videos._names) + videos._offsets.nbytes + videos.labels.nbytes < 100 * count


def test_random_clips_are_somewhere_in_the_video(root: Path) -> None:
    data = module(root).train_data
    starts = set()
    for epoch in range(60):
        sample = data[epoch, epoch % 3]
        numbers = [number_of(image) for image in sample.clip[0]]
        # 8 frames over 16 - 1: PySlowFast's spacing is a little more than the sampling rate.
        np.testing.assert_allclose(np.array(numbers) - numbers[0], np.linspace(0, 15, 8), atol=1)
        assert 0 <= numbers[0] <= numbers[-1] <= 59
        starts.add(numbers[0])
        assert sample.target.row == epoch % 3
    assert len(starts) > 20
    assert min(starts) < 8
    assert max(starts) > 36


def test_validation_takes_the_middle_clip_and_the_centre_crop(root: Path) -> None:
    data = module(root).val_data
    assert len(data) == 2
    frames, geometry = data[0].clip
    assert [number_of(image) for image in frames] == np.linspace(22, 37, 8).astype(int).tolist()
    assert geometry.resize == (37, 74)
    assert geometry.crop == (0, 19, 37, 37)
    assert [number_of(image) for image in data[1].clip[0]] == [0, 2, 4, 6, 8, 10, 11, 11]


def test_test_views_are_all_clips_times_all_crops(root: Path) -> None:
    data = module(root, temporal_views=4, spatial_views=3, batch_size=5)
    batches = list(data.test_dataloader())
    assert [len(batch["labels"]) for batch in batches] == [5, 5, 5, 5, 4]
    assert torch.cat([batch["indices"] for batch in batches]).tolist() == [0] * 12 + [1] * 12
    assert torch.cat([batch["views"] for batch in batches]).tolist() == list(range(12)) * 2
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [1] * 12 + [0] * 12
    first_frames = [number_of(data.test_data[view].clip[0][0]) for view in range(0, 12, 3)]
    assert first_frames == [0, 11, 22, 33]  # (60 - 16) * i / 4
    assert [data.test_data[view].clip[1].crop[1] for view in range(3)] == [0, 19, 37]
    to_end = module(root, temporal_views=3, spatial_views=1, views_to_end=True).test_data
    assert [number_of(to_end[view].clip[0][0]) for view in range(3)] == [0, 22, 44]


def test_the_target_rate_stretches_the_clip(root: Path) -> None:
    for target_fps, last in ((30.0, 15), (15.0, 31), (None, 15)):
        data = module(root, target_fps=target_fps, temporal_views=1, spatial_views=1).test_data
        assert number_of(data[0].clip[0][-1]) == last


def test_class_names_come_from_a_label_map_where_there_is_one(root: Path) -> None:
    data = module(root)
    assert (data.num_classes, data.class_names) == (3, {0: "class 0", 1: "class 1", 2: "class 2"})
    (root / "label_map.txt").write_text("run\nwalk\nsit\nstand\n")
    data = module(root)
    assert (data.num_classes, data.class_names) == (4, {0: "run", 1: "walk", 2: "sit", 3: "stand"})
    assert data.describe() == "Kinetics format, train 3 videos; val 2; test 2 x 30 views; 4 classes"
    (root / "label_map.txt").write_text("run\nwalk\n")
    with pytest.raises(InputError, match=r"train\.csv: has label 2, but there are 2 classes"):
        module(root)
    with pytest.raises(InputError, match=r"names\.txt: No such file or directory"):
        module(root, label_map="names.txt")


def test_a_bad_video_is_replaced_in_training_and_missing_in_validation(root: Path) -> None:
    (root / "videos" / "a.mp4").write_text("not a video")
    bad = (str(root / "videos" / "a.mp4"), "cannot be opened as a video: Invalid data found when processing input")
    data = module(root)
    sample = data.train_data[3, 0]
    assert sample.target.row in (1, 2)
    assert set(sample.bad_videos) == {bad}
    (batch,) = data.val_dataloader()
    assert batch["indices"].tolist() == [1]
    assert batch["bad_videos"] == [bad]
    assert len(batch["pathways"][0]) == 1


def test_a_video_that_is_not_there_is_a_bad_video(root: Path) -> None:
    (root / "val.csv").write_text("gone.mp4 0\nvideos/a.mp4 1\n")
    (batch,) = module(root).val_dataloader()
    assert batch["bad_videos"] == [(str(root / "videos" / "gone.mp4"), "no such file")]


def test_the_cache_changes_nothing(root: Path) -> None:
    plain, cached = module(root).train_data, module(root, cache_megabytes=20).train_data
    for epoch in range(3):
        for index in range(3):
            ours, expected = cached[epoch, index], plain[epoch, index]
            np.testing.assert_array_equal(ours.clip[0], expected.clip[0])
            assert ours.clip[1] == expected.clip[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal_views": 0}, r"data\.temporal_views is 0"),
        ({"spatial_views": 0}, r"data\.spatial_views is 0"),
        ({"target_fps": -1.0}, r"data\.target_fps is -1\.0"),
        ({"train_list": "nothing.csv"}, r"nothing\.csv: No such file or directory"),
        ({"num_classes": 1}, r"has label 2, but there are 1 classes"),
        ({"cache_megabytes": -1}, r"data\.cache_megabytes is -1"),
    ],
)
def test_wrong_options_are_named(root: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        module(root, **options)


def test_real_clips_give_batches(shared_data: Path) -> None:
    data = module(shared_data / "kinetics_mini", batch_size=7, label_map="../kinetics/label_map_k400.txt")
    assert data.num_classes == 400
    assert data.class_names[296] == "shooting basketball"
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert [len(batch["labels"]) for batch in batches] == [7, 3]
    assert sorted(batches[0]["indices"].tolist()) == list(range(7))
    for batch in batches:
        assert batch["bad_videos"] == []
        assert all(torch.isfinite(pathway).all() and pathway.std() > 0.1 for pathway in batch["pathways"])
