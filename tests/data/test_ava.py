"""AVA-format data: annotations, key-frame clips, boxes and labels in batches, damaged videos, determinism."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slowfast_model.data.ava import NO_VIDEO, AvaDataConfig, AvaDataModule
from slowfast_model.data.ava_annotations import AvaFiles, KeyFrames, check_boxes
from slowfast_model.data.video import VideoError
from slowfast_model.errors import InputError
from slowfast_model.evaluation.ava_csv import LabelledBoxes, read_groundtruth, read_predicted_boxes
from slowfast_model.models import get_preset
from tests.data.conftest import HEIGHT, WIDTH, number_of, numbers_of, parts_of, write_numbered_video

MODEL = replace(get_preset("slowfast_tiny"), num_frames=8, sampling_rate=2, alpha=4, crop_size=32)
ACTIONS = 'item {\n  name: "stand"\n  id: 1\n}\nitem {\n  name: "walk"\n  label_id: 3\n}\n'
TRAIN = """a,1,0.1,0.2,0.5,0.8,1,0
a,1,0.1,0.2,0.5,0.8,3,0
a,1,0.6,0.2,0.9,0.8,,1
a,2,0.1,0.2,0.5,0.8,1,0
b,0003,0.3,0.3,0.6,0.9,2,0
"""
VAL = """c,1,0.1,0.2,0.5,0.8,1,0
c,2,0.1,0.2,0.5,0.8,3,0
a,3,0.1,0.2,0.5,0.8,3,0
"""


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 4 seconds at 10 frames a second, each frame showing its number."""
    root = tmp_path_factory.mktemp("ava")
    (root / "videos").mkdir()
    for name in ("a.mp4", "b.mkv", "c.mp4"):
        write_numbered_video(root / "videos" / name, 40, rate=10)
    write_annotations(root)
    return root


def write_annotations(root: Path, train: str = TRAIN, val: str = VAL, **more: str) -> Path:
    folder = root / "annotations"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = {"ava_train_v2.2.csv": train, "ava_val_v2.2.csv": val, "ava_action_list_v2.2.pbtxt": ACTIONS, **more}
    for name, text in files.items():
        (folder / name).write_text(text)
    return root


@pytest.fixture
def root(made_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made_root, tmp_path / "ava"))


def module(root: Path, **options: Any) -> AvaDataModule:
    options = {"batch_size": 2, "num_workers": 0, "target_fps": "video", **options}
    data = AvaDataModule(AvaDataConfig(root=str(root), **options), MODEL)
    data.setup()
    return data


def table(rows: Sequence[tuple[str, float, Sequence[float], int]]) -> LabelledBoxes:
    keys, boxes, labels = [row[:2] for row in rows], [row[2] for row in rows], [row[3] for row in rows]
    return LabelledBoxes.from_arrays(keys, boxes, labels)


def test_rows_with_the_same_box_become_one_with_all_labels() -> None:
    left, right = (0.1, 0.2, 0.5, 0.8), (0.6, 0.2, 0.9, 0.8)
    truth = table([("b", 5, left, 2), ("a", 7, right, -1), ("a", 2, right, 1), ("a", 2, left, 3), ("a", 2, left, 1)])
    predicted = table([("a", 2, left, 3), ("c", 1, left, -1), ("a", 2, right, 2), ("b", 5, left, -1)])
    key_frames = KeyFrames.from_tables([truth, predicted])
    assert [key_frames.key(i) for i in range(len(key_frames))] == [("b", 5), ("a", 2), ("a", 7), ("c", 1)]
    boxes = [key_frames.boxes_of(i).tolist() for i in range(4)]
    assert boxes == [[list(left)], [list(right), list(left)], [list(right)], [list(left)]]
    labels = [key_frames.labels_of(i, 3).tolist() for i in range(4)]
    assert labels == [[[0, 1, 0]], [[1, 1, 0], [1, 0, 1]], [[0, 0, 0]], [[0, 0, 0]]]


def test_random_tables_merge_as_a_dictionary_does() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f"v{rng.integers(4)}", float(rng.integers(3)), tuple(rng.integers(0, 3, 4) / 4), int(rng.integers(1, 6)))
        for _ in range(400)
    ]
    expected: dict[tuple, dict[tuple, set[int]]] = {}
    for video, timestamp, box, label in rows:
        expected.setdefault((video, timestamp), {}).setdefault(box, set()).add(label)
    key_frames = KeyFrames.from_tables([table(rows[:150]), table(rows[150:])])
    assert len(key_frames) == len(expected)
    for index in range(len(key_frames)):
        labels = key_frames.labels_of(index, 5)
        found = {
            tuple(box): set((np.flatnonzero(row) + 1).tolist())
            for box, row in zip(key_frames.boxes_of(index).tolist(), labels, strict=True)
        }
        assert found == expected[key_frames.key(index)]


def test_boxes_of_equal_hash_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows = [("v", 1.0, tuple(rng.integers(0, 2, 4) / 2), int(rng.integers(1, 6))) for _ in range(60)]
    expected = KeyFrames.from_tables([table(rows)])
    monkeypatch.setattr("slowfast_model.data.ava_annotations._hash", lambda boxes: np.zeros(len(boxes), np.uint64))
    for name in ("boxes", "first_boxes", "labels", "first_labels"):
        np.testing.assert_array_equal(getattr(KeyFrames.from_tables([table(rows)]), name), getattr(expected, name))


def test_files_are_found_by_their_published_names(tmp_path: Path) -> None:
    for name in (
        "ava_train_v2.1.csv", "ava_train_v2.2.csv", "ava_val_v2.2.csv", "ava_val_excluded_timestamps_v2.2.csv",
        "ava_val_predicted_boxes.csv", "ava_action_list_v2.2.pbtxt", "ava_action_list_v2.1_for_activitynet_2018.pbtxt",
        "ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    ):  # fmt: skip
        (tmp_path / name).touch()
    train, val = AvaFiles.find(tmp_path, "train"), AvaFiles.find(tmp_path, "val")
    assert train.groundtruth.name == "ava_train_v2.2.csv"
    assert train.predicted_boxes is None
    assert train.excluded is None
    assert (val.predicted_boxes, val.excluded) == (
        tmp_path / "ava_val_predicted_boxes.csv",
        tmp_path / "ava_val_excluded_timestamps_v2.2.csv",
    )
    assert val.label_map.name == "ava_action_list_v2.2_for_activitynet_2019.pbtxt"
    assert AvaFiles.find(tmp_path, "val", label_map=tmp_path / "mine.pbtxt").label_map.name == "mine.pbtxt"
    (tmp_path / "ava_val_v2.2.csv").unlink()
    with pytest.raises(InputError, match=r"no groundtruth file there; it is usually called ava_val_v2\.2\.csv"):
        AvaFiles.find(tmp_path, "val")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,30,20,200,180,1,0", "fractions of the frame"),
        ("a,1,0.5,0.2,0.1,0.8,1,0", "x1 <= x2"),
        ("a,1,0.1,0.2,0.5,0.8,0,0", "action_id must be 1 or more"),
        ("a,1,0.1,0.2,0.5,0.8,-3,0", "action_id must be 1 or more"),
    ],
)
def test_rows_that_cannot_be_meant_are_named(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(f"a,0\n\na,1,0.1,0.2,0.5,0.8,1,0\n{row}\n")
    with pytest.raises(InputError, match=rf"boxes\.csv:4: .*{message}"):
        check_boxes(read_groundtruth(path), path)


def test_boxes_without_a_label_are_read(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text("a,0902,0.1,0.2,0.5,0.8,,0.99\na,0902,0.2,0.2,0.5,0.8,-1,0.5\na,0902,0.2,0.2,0.5,0.8,12,0.25\n")
    boxes = read_predicted_boxes(path)
    assert boxes.labels.tolist() == [-1, -1, 12]
    assert boxes.scores.tolist() == [0.99, 0.5, 0.25]
    assert read_groundtruth(path).labels.tolist() == [-1, -1, 12]


def test_clips_are_centred_on_the_key_frame(root: Path) -> None:
    data = module(root).train_data
    # 8 frames, 2 apart, at 10 a second: key frames at seconds 1, 2 and 3 are frames 10, 20 and 30.
    clips = [numbers_of(data.read(index)) for index in range(3)]
    assert clips == [list(range(2, 18, 2)), list(range(12, 28, 2)), list(range(22, 38, 2))]


def test_clips_at_the_ends_repeat_the_first_and_last_frame(root: Path) -> None:
    write_annotations(root, train="a,0,0.1,0.2,0.5,0.8,1,0\na,4,0.1,0.2,0.5,0.8,1,0\n")
    data = module(root).train_data
    assert numbers_of(data.read(0)) == [0, 0, 0, 0, 0, 2, 4, 6]
    assert numbers_of(data.read(1)) == [32, 34, 36, 38, 39, 39, 39, 39]


def test_a_given_rate_counts_time_and_not_frames(root: Path) -> None:
    data = module(root, target_fps=5.0).train_data  # 2 / 5 s from frame to frame
    assert numbers_of(data.read(1)) == [4, 8, 12, 16, 20, 24, 28, 32]


def test_the_first_second_is_found_from_the_data(root: Path) -> None:
    row = "{video},{second},0.1,0.2,0.5,0.8,1,0\n"
    write_numbered_video(root / "videos" / "film.mp4", 907, rate=1, codec="mpeg4", key_frame_every=250)
    cut = "".join(row.format(video="a", second=second) for second in ("0901", "0902", "0903"))
    film = "".join(row.format(video="film", second=second) for second in ("0902", "0903"))
    write_annotations(root, train=cut + film, val="c,1,0.1,0.2,0.5,0.8,1,0\n")
    data = module(root)
    assert [numbers_of(data.train_data.read(index))[4] for index in range(3)] == [10, 20, 30]
    assert [numbers_of(data.train_data.read(index))[4] for index in (3, 4)] == [902 % 256, 903 % 256]
    assert number_of(data.key_frame("a", 902)) == 20
    explicit = module(root, first_second=899.0)
    assert number_of(explicit.key_frame("a", 902)) == 30


def test_training_batches_carry_boxes_labels_and_pathways(root: Path) -> None:
    data = module(root, flip_probability=0.0)
    assert data.num_classes == 3
    assert data.class_names == {1: "stand", 2: "class 2", 3: "walk"}
    assert data.evaluated_classes == [1, 3]
    samples = [data.train_data[index] for index in (0, 2)]
    batch = data.train_data.collate(samples)
    slow, fast = batch["pathways"]
    assert slow.shape == (2, 3, 2, 32, 32)
    assert fast.shape == (2, 3, 8, 32, 32)
    assert torch.equal(slow, fast[:, :, [0, 7]])
    assert batch["keys"] == [("a", 1.0), ("b", 3.0)]
    assert batch["bad_videos"] == []
    assert batch["rois"].dtype == batch["labels"].dtype == batch["boxes"].dtype == torch.float32
    assert set(batch["rois"][:, 0].tolist()) == {0.0, 1.0}
    rois = batch["rois"][:, 1:]
    assert ((rois >= 0) & (rois <= 32)).all()
    assert (rois[:, 2:] - rois[:, :2] >= 1).all()
    labels = {
        tuple(np.round(box, 3)): label.tolist()
        for box, label in zip(batch["boxes"].tolist(), batch["labels"], strict=True)
    }
    possible = {(0.1, 0.2, 0.5, 0.8): [1, 0, 1], (0.6, 0.2, 0.9, 0.8): [0, 0, 0], (0.3, 0.3, 0.6, 0.9): [0, 1, 0]}
    assert labels.items() <= possible.items()


def test_a_crop_shows_at_least_one_box(root: Path) -> None:
    write_annotations(root, train="a,2,0.0,0.0,0.05,0.1,1,0\n")  # a corner that few crops contain
    data = module(root, short_side=(60, 64)).train_data
    for epoch in range(40):
        target = data[epoch, 0].target
        assert target is not None
        assert len(target.rois) == 1
        assert (target.rois[0, 2:] - target.rois[0, :2] >= 1).all()


@pytest.mark.parametrize(
    ("options", "inverse"),
    [
        ({}, True), ({"protocol": "paper"}, False), ({"short_side_jitter": "uniform"}, False),
        ({"protocol": "paper", "short_side_jitter": "inverse"}, True),
    ],
)  # fmt: skip
def test_the_short_side_or_its_inverse_is_uniform(root: Path, options: dict[str, str], inverse: bool) -> None:
    data = module(root, short_side=(32, 200), flip_probability=0.0, **options).train_data
    sides = [min(data.load(0, np.random.default_rng(seed))[1].resize) for seed in range(60)]
    expected = []
    for seed in range(60):
        uniform = np.random.default_rng(seed).uniform(*((1 / 200, 1 / 32) if inverse else (32, 200)))
        expected.append(round(1 / uniform if inverse else uniform))
    # Where a crop shows no box, another is drawn: of most seeds the first one stands.
    assert np.mean(np.array(sides) == expected) > 0.8


def test_validation_shows_the_whole_frame(root: Path) -> None:
    batches = parts_of(module(root).val_dataloader())
    assert [batch["keys"] for batch in batches] == [[("c", 1.0), ("c", 2.0)], [("a", 3.0)]]
    size = (37, int(37 * WIDTH / HEIGHT))  # short side 8/7 of the crop
    for batch in batches:
        assert batch["pathways"][1].shape[-2:] == size
        scale = torch.tensor([size[1], size[0]] * 2)
        torch.testing.assert_close(batch["rois"][:, 1:], batch["boxes"] * scale)
    assert batches[0]["labels"].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_a_batch_holds_clips_of_different_sizes(root: Path) -> None:
    write_numbered_video(root / "videos" / "b.mkv", 120, height=40, width=52)
    rows = [f"{video},{second},0.1,0.2,0.5,0.8,1,0" for second in (1, 2) for video in "bc"]
    write_annotations(root, val="\n".join(rows) + "\n")
    (batches,) = module(root, batch_size=4).val_dataloader()
    assert [len(batch["keys"]) for batch in batches] == [2, 2]
    assert len({batch["pathways"][0].shape for batch in batches}) == 2
    alone = {batch["keys"][0]: batch for batch in parts_of(module(root, batch_size=1).val_dataloader())}
    assert len(alone) == 4
    for batch in batches:
        for n, key in enumerate(batch["keys"]):
            for ours, expected in zip(batch["pathways"], alone[key]["pathways"], strict=True):
                assert torch.equal(ours[n], expected[0])
            assert torch.equal(batch["rois"][n, 1:], alone[key]["rois"][0, 1:])
            assert batch["rois"][n, 0] == n


def test_testing_takes_every_scale_and_its_mirror_image(root: Path) -> None:
    data = module(root, test_scales=(32, 48), test_flip=True)
    batches = parts_of(data.test_dataloader())
    views = [(view, key) for batch in batches for view, key in zip(batch["views"].tolist(), batch["keys"], strict=True)]
    assert sorted(views) == [(view, key) for view in range(4) for key in [("a", 3.0), ("c", 1.0), ("c", 2.0)]]
    for batch in batches:
        (view,) = set(batch["views"].tolist())
        side, flip = [(32, False), (48, False), (32, True), (48, True)][view]
        width = int(side * WIDTH / HEIGHT)
        assert batch["pathways"][1].shape[-2:] == (side, width)
        boxes = batch["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([1, 0, 1, 0])
        expected = (boxes if flip else batch["boxes"]) * torch.tensor([width, side] * 2)
        torch.testing.assert_close(batch["rois"][:, 1:], expected)
        if flip:
            plain = next(b for b in batches if b["views"][0] == view - 2 and b["keys"] == batch["keys"])
            torch.testing.assert_close(batch["pathways"][1].flip(-1), plain["pathways"][1], rtol=0, atol=1e-5)
    assert len(module(root).test_data) == 3


def test_validation_takes_predicted_boxes_and_leaves_out_excluded_key_frames(root: Path) -> None:
    predicted = "c,1,0.1,0.2,0.5,0.7,,0.95\nc,1,0.1,0.2,0.4,0.7,,0.5\nc,2,0,0,1,1,,0.9\nb,1,0.2,0.2,0.5,0.5,,0.8\n"
    write_annotations(
        root,
        **{"ava_val_predicted_boxes.csv": predicted, "ava_val_excluded_timestamps_v2.2.csv": "c,0002\n"},
    )
    data = module(root, batch_size=4)
    batches = parts_of(data.val_dataloader())
    assert [batch["keys"] for batch in batches] == [[("c", 1.0), ("b", 1.0)]]
    torch.testing.assert_close(batches[0]["boxes"], torch.tensor([[0.1, 0.2, 0.5, 0.7], [0.2, 0.2, 0.5, 0.5]]))
    assert (batches[0]["labels"] == 0).all()
    assert data.excluded("val") == {("c", 2.0)}
    assert len(data.groundtruth("val")) == 3
    assert "2 boxes (predicted boxes)" in data.describe()
    with pytest.raises(InputError, match=r"score_threshold=0\.96"):
        module(root, score_threshold=0.96)


def test_labelled_predictions_join_the_training(root: Path) -> None:
    predicted = "a,1,0.1,0.2,0.5,0.8,2,0.95\na,2,0.5,0.5,0.9,0.9,3,0.9\na,2,0.0,0.5,0.2,0.9,-1,0.9\nb,1,0,0,1,1,1,0.3\n"
    write_annotations(root, **{"ava_train_predicted_boxes.csv": predicted})
    key_frames = module(root).train_data.key_frames
    assert len(key_frames) == 3
    assert key_frames.labels_of(0, 3).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert key_frames.boxes_of(1).tolist() == [[0.1, 0.2, 0.5, 0.8], [0.5, 0.5, 0.9, 0.9]]
    with_negatives = module(root, include_negatives=True).train_data.key_frames
    assert with_negatives.labels_of(1, 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_a_bad_video_is_replaced_in_training_and_missing_in_validation(root: Path) -> None:
    (root / "videos" / "a.mp4").write_bytes(b"")
    data = module(root)
    first = data.train_data[5, 0]
    assert first.target is not None
    assert first.target.key == ("b", 3.0)
    assert set(first.bad_videos) == {(str(root / "videos" / "a.mp4"), "the file is empty")}
    again = data.train_data[5, 0]
    assert again.bad_videos == first.bad_videos
    assert torch.equal(again.clip[0].luma, first.clip[0].luma)
    assert torch.equal(again.clip[0].chroma, first.clip[0].chroma)

    batches = parts_of(data.val_dataloader())
    assert [batch["keys"] for batch in batches] == [[("c", 1.0), ("c", 2.0)], []]
    empty = batches[1]
    assert empty["bad_videos"] == [(str(root / "videos" / "a.mp4"), "the file is empty")]
    assert [len(pathway) for pathway in empty["pathways"]] == [0, 0]
    assert empty["rois"].shape == (0, 5)
    assert empty["labels"].shape == (0, 3)
    (batch,) = parts_of(module(root, batch_size=3).val_dataloader())
    assert batch["keys"] == [("c", 1.0), ("c", 2.0)]
    assert batch["bad_videos"] == empty["bad_videos"]


def test_key_frames_outside_the_video_and_missing_videos_are_bad_videos(root: Path) -> None:
    write_annotations(root, val="c,1,0.1,0.2,0.5,0.8,1,0\nc,50,0.1,0.2,0.5,0.8,1,0\ngone,1,0.1,0.2,0.5,0.8,1,0\n")
    data = module(root)
    bad = [bad for batch in parts_of(data.val_dataloader()) for bad in batch["bad_videos"]]
    assert bad == [
        (str(root / "videos" / "c.mp4"), "the key frame at 50 s lies outside the video of 4.00 s"),
        (str(root / "videos" / "gone"), NO_VIDEO),
    ]
    with pytest.raises(VideoError, match="no file of this name"):
        data.key_frame("gone", 1)


def test_a_training_without_a_readable_video_stops(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (root / "videos").iterdir():
        path.write_bytes(b"")
    data = module(root)
    batch = next(iter(data.train_dataloader()))
    assert len(batch["pathways"][0]) == 0
    monkeypatch.setattr(data, "trainer", type("Trainer", (), {"training": True}))
    with pytest.raises(InputError, match=r"no video can be read: 22 tried in a row, the last .*: the file is empty"):
        data.on_before_batch_transfer(batch, 0)


def test_samples_are_a_function_of_seed_epoch_and_index(root: Path) -> None:
    def crops(seed: int, epochs: Sequence[int]) -> list[Any]:
        data = module(root, seed=seed).train_data
        return [data[epoch, index].clip[1] for epoch in epochs for index in range(3)]

    assert crops(0, [4, 2]) == crops(0, [4, 2])
    assert crops(0, [4, 2])[3:] == crops(0, [2])
    assert crops(0, [4]) != crops(0, [5])
    assert crops(0, [4]) != crops(1, [4])


def test_workers_and_the_cache_change_nothing(root: Path) -> None:
    def batches(**options: Any) -> list[dict]:
        data = module(root, batch_size=1, **options)
        loader = data.train_dataloader()
        found = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            found += list(loader)
        return found

    expected = batches()
    for options in ({"num_workers": 2}, {"cache_megabytes": 50}):
        for ours, theirs in zip(batches(**options), expected, strict=True):
            assert ours["keys"] == theirs["keys"]
            for name in ("rois", "labels", "boxes"):
                assert torch.equal(ours[name], theirs[name])
            for pathway, other in zip(ours["pathways"], theirs["pathways"], strict=True):
                assert torch.equal(pathway, other)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "annotations"), r"annotations: No such file or directory"),
        (lambda root: shutil.rmtree(root / "videos"), r"videos: No such file or directory"),
        (lambda root: (root / "annotations/ava_train_v2.2.csv").unlink(), r"no groundtruth file there"),
        (lambda root: (root / "annotations/ava_action_list_v2.2.pbtxt").unlink(), r"no label map file there"),
        (lambda root: (root / "annotations/ava_val_v2.2.csv").write_text("a;1;2\n"), r"ava_val_v2\.2\.csv:1: "),
        (lambda root: (root / "annotations/ava_train_v2.2.csv").write_text(""), r"no boxes, but for those"),
        (lambda root: write_annotations(root, train="x,1,0.1,0.2,0.5,0.8,1,0\n"), r"none of the 1 videos .* such as x"),
    ],
)
def test_what_is_missing_or_malformed_is_named(root: Path, damage: Any, message: str) -> None:
    damage(root)
    with pytest.raises(InputError, match=message):
        module(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"short_side": (20, 40)}, r"data\.short_side is \[20, 40\].*crop of 32"),
        ({"short_side": (64, 40)}, r"data\.short_side is \[64, 40\]"),
        ({"flip_probability": 1.5}, r"data\.flip_probability is 1\.5"),
        ({"slow_sampling": "random"}, r"data\.slow_sampling is 'random'"),
        ({"test_short_side": 0}, r"data\.test_short_side is 0"),
        ({"test_scales": (0, 5)}, r"data\.test_scales is \[0, 5\]"),
        ({"target_fps": 0.0}, r"data\.target_fps is 0\.0"),
        ({"target_fps": "25"}, r"data\.target_fps is '25'"),
        ({"protocol": None}, r"data\.protocol is None: expected 'pyslowfast' or 'paper'"),
        ({"short_side_jitter": "no"}, r"data\.short_side_jitter is 'no': expected 'uniform' or 'inverse'"),
        ({"num_classes": 2}, r"data\.num_classes is 2, but there are class ids up to 3"),
    ],
)
def test_wrong_options_are_named(root: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        module(root, **options)


def test_real_clips_give_batches(shared_data: Path) -> None:
    data = module(shared_data / "ava_mini", batch_size=3)
    assert data.num_classes == 80
    assert len(data.evaluated_classes) == 60
    assert data.class_names[12] == "stand"
    assert data.describe() == (
        "AVA format, train 2 videos, 33 key frames, 40 boxes; val 3 videos, 24 key frames, 27 boxes (predicted boxes); "
        "80 classes, 60 of them evaluated"
    )
    batches = [next(iter(data.train_dataloader())), *parts_of(data.val_dataloader())]
    assert sum(len(batch["keys"]) for batch in batches[1:]) == 24
    for batch in batches:
        assert batch["bad_videos"] == []
        assert len(batch["keys"]) == len(batch["pathways"][0]) == len(set(batch["rois"][:, 0].tolist()))
        assert all(torch.isfinite(pathway).all() for pathway in batch["pathways"])
    assert data.key_frame("torchvision_basketball", 3).shape == (360, 640, 3)
