"""Kinetics-format data: lists and folders, random clips, the middle clip, all views, damaged videos."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slowfast_model.data.kinetics import KineticsDataConfig, KineticsDataModule
from slowfast_model.errors import InputError
from slowfast_model.models import get_preset
from tests.data.conftest import numbers_of, parts_of, write_numbered_video

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


def test_a_folder_per_class_takes_the_place_of_a_list(made_root: Path, tmp_path: Path) -> None:
    for place in ("train/walk/a.mp4", "train/run/deep/b.MKV", "train/run/c.mp4", "val/walk/d.mp4"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made_root / "videos" / "a.mp4", tmp_path / place)
    (tmp_path / "train" / "run" / "notes.txt").write_text("no video")
    (tmp_path / "train" / ".cache").mkdir()
    data = module(tmp_path)
    assert data.class_names == {0: "run", 1: "walk"}
    assert [data.train_data.videos.path(row) for row in range(3)] == ["run/c.mp4", "run/deep/b.MKV", "walk/a.mp4"]
    assert data.train_data.videos.labels.tolist() == [0, 0, 1]
    assert data.train_data.locate(2) == tmp_path / "train" / "walk" / "a.mp4"
    assert data.val_data[0].target.label == 1
    assert numbers_of(data.val_data[0].clip[0])[0] == 22
    (tmp_path / "val" / "swim").mkdir()
    with pytest.raises(InputError, match=r"val/swim: no class has the name of this folder"):
        module(tmp_path)
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val" / "run").mkdir(parents=True)
    with pytest.raises(InputError, match=r"val: no folder in it has a video \(a file in \.3gp, "):
        module(tmp_path)


def test_paths_may_be_relative_to_the_list(made_root: Path) -> None:
    (made_root / "lists").mkdir()
    (made_root / "lists" / "some.csv").write_text("../videos/a.mp4 1\nb c.mkv 0\nnowhere.mp4 0\n")
    data = module(made_root, train_list="lists/some.csv").train_data
    assert [data.locate(row).exists() for row in range(3)] == [True, True, False]


def test_random_clips_are_somewhere_in_the_video(root: Path) -> None:
    data = module(root).train_data
    starts = set()
    for epoch in range(60):
        sample = data[epoch, epoch % 3]
        numbers = numbers_of(sample.clip[0])
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
    assert numbers_of(frames) == np.linspace(22, 37, 8).astype(int).tolist()
    assert geometry.resize == (37, 74)
    assert geometry.crop == (0, 19, 37, 37)
    assert numbers_of(data[1].clip[0]) == [0, 2, 4, 6, 8, 10, 11, 11]


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_worker_makes_its_batches_in_shared_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch, in_worker: bool
) -> None:
    data = module(root).val_data
    samples = [data[0], data[1]]
    monkeypatch.setattr("slowfast_model.data.clips.get_worker_info", lambda: object() if in_worker else None)
    assert {pathway.is_shared() for pathway in data.collate(samples)["pathways"]} == {in_worker}


def test_test_views_are_all_clips_times_all_crops(root: Path) -> None:
    data = module(root, temporal_views=4, spatial_views=3, batch_size=5)
    batches = parts_of(data.test_dataloader())
    assert [len(batch["labels"]) for batch in batches] == [5, 5, 5, 5, 4]
    assert torch.cat([batch["indices"] for batch in batches]).tolist() == [0] * 12 + [1] * 12
    assert torch.cat([batch["views"] for batch in batches]).tolist() == list(range(12)) * 2
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [1] * 12 + [0] * 12
    first_frames = [numbers_of(data.test_data[view].clip[0])[0] for view in range(0, 12, 3)]
    assert first_frames == [0, 11, 22, 33]  # (60 - 16) * i / 4
    assert [data.test_data[view].clip[1].crop[1] for view in range(3)] == [0, 19, 37]
    to_end = module(root, temporal_views=3, spatial_views=1, views_to_end=True).test_data
    assert [numbers_of(to_end[view].clip[0])[0] for view in range(3)] == [0, 22, 44]


def test_the_target_rate_stretches_the_clip(root: Path) -> None:
    for target_fps, last in ((30.0, 15), (15.0, 31), ("video", 15)):
        data = module(root, target_fps=target_fps, temporal_views=1, spatial_views=1).test_data
        assert numbers_of(data[0].clip[0])[-1] == last


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
    (batch,) = parts_of(data.val_dataloader())
    assert batch["indices"].tolist() == [1]
    assert batch["bad_videos"] == [bad]
    assert len(batch["pathways"][0]) == 1


def test_a_video_that_is_not_there_is_a_bad_video(root: Path) -> None:
    (root / "val.csv").write_text("gone.mp4 0\nvideos/a.mp4 1\n")
    (batch,) = parts_of(module(root).val_dataloader())
    assert batch["bad_videos"] == [(str(root / "gone.mp4"), "no such file")]  # beside the list, the first place


def test_the_cache_changes_nothing(root: Path) -> None:
    plain, cached = module(root).train_data, module(root, cache_megabytes=20).train_data
    for epoch in range(3):
        for index in range(3):
            ours, expected = cached[epoch, index], plain[epoch, index]
            assert torch.equal(ours.clip[0].luma, expected.clip[0].luma)
            assert torch.equal(ours.clip[0].chroma, expected.clip[0].chroma)
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
    batches = [*data.train_dataloader(), *parts_of(data.val_dataloader())]
    assert [len(batch["labels"]) for batch in batches] == [7, 3]
    assert sorted(batches[0]["indices"].tolist()) == list(range(7))
    for batch in batches:
        assert batch["bad_videos"] == []
        assert all(torch.isfinite(pathway).all() and pathway.std() > 0.1 for pathway in batch["pathways"])
