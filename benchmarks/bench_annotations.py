"""Annotation files of full size, generated: opening Kinetics' list and AVA's ground truth, and AVA's frame-mAP.

The peers do the same with Python's csv module and loops, the way the published code goes about it: a list entry for
each video, a dict of boxes by video and second, one class and one key frame after another. What both find is compared
before anything is timed. The memory that a loaded file keeps is in the benchmarks' ``extra_info``.
"""

from __future__ import annotations

import csv
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slowfast_model.data.ava_annotations import KeyFrames, check_boxes
from slowfast_model.data.video_list import VideoList
from slowfast_model.evaluation.ava import IOU_THRESHOLD, evaluate
from slowfast_model.evaluation.ava_csv import read_groundtruth

KINETICS_ROWS = 500_000
AVA_VIDEOS, AVA_ROWS = 235, 837_318  # the training half of AVA v2.1
DETECTIONS = 500_000
CLASSES = 60
SECONDS = range(902, 1799)


@pytest.fixture(scope="module")
def kinetics_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kinetics") / "train.csv"
    rows = range(KINETICS_ROWS)
    path.write_text("".join(f"train/class {k % 700:03d}/clip_{k:011d}_000010_000020.mp4 {k % 700}\n" for k in rows))
    return path


def boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 4], with three decimals as in AVA's files."""
    corner, size = rng.random((2, count, 2)) * [[[0.6]], [[0.35]]]
    return np.concatenate([corner, corner + size + 0.05], axis=1).round(3)


@pytest.fixture(scope="module")
def ava_groundtruth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every second of every video has some people, each with one to three actions."""
    rng = np.random.default_rng(0)
    frames = np.sort(rng.integers(0, AVA_VIDEOS * len(SECONDS), AVA_ROWS))
    is_new_person = (np.diff(frames, prepend=-1) != 0) | (rng.random(AVA_ROWS) < 0.5)
    box_of_row = boxes(int(is_new_person.sum()), rng)[np.cumsum(is_new_person) - 1].tolist()
    labels = rng.integers(1, 81, AVA_ROWS).tolist()
    path = tmp_path_factory.mktemp("ava") / "ava_train_v2.1.csv"
    with path.open("w") as file:
        for frame, box, label in zip(frames.tolist(), box_of_row, labels, strict=True):
            video, second = divmod(frame, len(SECONDS))
            file.write(f"video_{video:05d},{SECONDS[second]:04d},{','.join(map(str, box))},{label},0\n")
    return path


@pytest.fixture(scope="module")
def ava_results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Ground truth, detections and action list: three people on a key frame, each with a score for every class."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("results")
    groundtruth, detections, actions = (folder / name for name in ("gt.csv", "det.csv", "actions.pbtxt"))
    count = DETECTIONS // CLASSES
    true = boxes(count, rng)
    found = (true + rng.normal(0, 0.005, true.shape)).clip(0, 1).round(3)
    scores = rng.permutation(count * CLASSES).reshape(count, CLASSES) / (count * CLASSES)  # no two alike
    with groundtruth.open("w") as truth_file, detections.open("w") as found_file:
        for k in range(count):
            key = f"video_{k // 2000:05d},{902 + k % 2000 // 3:04d}"
            for label in rng.choice(CLASSES, 2, replace=False).tolist():
                truth_file.write(f"{key},{','.join(map(str, true[k].tolist()))},{label + 1},0\n")
            prefix = f"{key},{','.join(map(str, found[k].tolist()))}"
            found_file.writelines(f"{prefix},{c + 1},{score:.9g}\n" for c, score in enumerate(scores[k].tolist()))
    actions.write_text("".join(f'item {{\n  name: "action {c}"\n  id: {c}\n}}\n' for c in range(1, CLASSES + 1)))
    return groundtruth, detections, actions


def list_by_rows(path: Path) -> tuple[list[str], list[int]]:
    """The peer of `VideoList.from_file`: a string and a number for each row."""
    names, labels = [], []
    with path.open() as file:
        for line in file.read().splitlines():
            name, label = line.rsplit(" ", 1)
            names.append(str(path.parent / name))
            labels.append(int(label))
    return names, labels


def boxes_by_rows(path: Path) -> dict[str, dict[float, dict[str, tuple[list[float], list[int]]]]]:
    """The peer of reading and grouping: video -> second -> coordinates as text -> (box, labels)."""
    found: dict[str, dict[float, dict[str, tuple[list[float], list[int]]]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="") as file:
        for row in csv.reader(file):
            key = ",".join(row[2:6])
            people = found[row[0]][float(row[1])]
            if key not in people:
                people[key] = [float(x) for x in row[2:6]], []
            people[key][1].append(int(row[6]))
    return found


def frame_map_by_loops(groundtruth: Path, detections: Path) -> float:
    """The peer of `evaluate`, by PySlowFast's protocol: class by class, key frame by key frame, box by box."""
    tables: list[dict[int, dict[tuple[str, str], list[tuple[float, np.ndarray]]]]] = []
    for path in (groundtruth, detections):
        table: dict[int, dict[tuple[str, str], list[tuple[float, np.ndarray]]]] = {
            label: defaultdict(list) for label in range(1, CLASSES + 1)
        }
        with path.open(newline="") as file:
            for row in csv.reader(file):
                table[int(row[6])][row[0], row[1]].append((float(row[7]), np.array([float(x) for x in row[2:6]])))
        tables.append(table)
    truth, found = tables
    precisions = []
    for label in range(1, CLASSES + 1):
        outcomes = []
        for key, rows in found[label].items():
            candidates = [box for _, box in truth[label].get(key, [])]
            taken = [False] * len(candidates)
            for score, box in rows:
                overlaps = [overlap(box, other) for other in candidates]
                best = int(np.argmax(overlaps)) if overlaps else -1
                hit = best >= 0 and overlaps[best] >= IOU_THRESHOLD and not taken[best]
                if hit:
                    taken[best] = True
                outcomes.append((score, hit))
        outcomes.sort(key=lambda outcome: -outcome[0])
        hits = np.cumsum([hit for _, hit in outcomes])
        precision = hits / np.arange(1, len(hits) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        total = sum(len(rows) for rows in truth[label].values())
        precisions.append(envelope[[hit for _, hit in outcomes]].sum() / total)
    return float(np.mean(precisions))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def kept_megabytes(load: Callable[[], Any]) -> float:
    tracemalloc.start()
    result = load()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del result
    return round(size / 2**20, 1)


@pytest.mark.parametrize("implementation", ["VideoList", "a list of strings"])
def test_open_kinetics_list(benchmark, kinetics_list: Path, implementation: str) -> None:
    videos = VideoList.from_file(kinetics_list)
    names, labels = list_by_rows(kinetics_list)
    assert videos.labels.tolist() == labels
    assert all(str(kinetics_list.parent / videos.path(row)) == names[row] for row in range(0, KINETICS_ROWS, 999))
    del videos, names, labels
    load = VideoList.from_file if implementation == "VideoList" else list_by_rows
    benchmark.extra_info["megabytes"] = kept_megabytes(lambda: load(kinetics_list))
    benchmark.group = f"open a list of {KINETICS_ROWS} videos"
    benchmark.pedantic(load, (kinetics_list,), rounds=3)


def read_and_group(path: Path) -> KeyFrames:
    table = read_groundtruth(path)
    check_boxes(table, path)
    return KeyFrames.from_tables([table])


@pytest.mark.parametrize("implementation", ["KeyFrames", "csv module and dicts"])
def test_open_ava_groundtruth(benchmark, ava_groundtruth: Path, implementation: str) -> None:
    key_frames, expected = read_and_group(ava_groundtruth), boxes_by_rows(ava_groundtruth)
    assert len(key_frames) == sum(map(len, expected.values()))
    for frame in range(0, len(key_frames), 999):
        video, second = key_frames.key(frame)
        people = list(expected[video][second].values())
        assert key_frames.boxes_of(frame).tolist() == [box for box, _ in people]
        rows = key_frames.labels_of(frame, 80)
        assert [(np.flatnonzero(row) + 1).tolist() for row in rows] == [sorted(set(labels)) for _, labels in people]
    del key_frames, expected
    load: Callable[[Path], Any] = read_and_group if implementation == "KeyFrames" else boxes_by_rows
    benchmark.extra_info["megabytes"] = kept_megabytes(lambda: load(ava_groundtruth))
    benchmark.group = f"open ground truth of {AVA_ROWS} rows"
    benchmark.pedantic(load, (ava_groundtruth,), rounds=3)


@pytest.mark.parametrize("implementation", ["evaluate", "loops"])
def test_frame_map(benchmark, ava_results: tuple[Path, Path, Path], implementation: str) -> None:
    groundtruth, detections, actions = ava_results
    result = evaluate(groundtruth, detections, actions, protocol="pyslowfast")
    assert result.num_detections == DETECTIONS // CLASSES * CLASSES
    benchmark.group = f"frame-mAP of {DETECTIONS} detections, from the files"
    if implementation == "evaluate":
        run: Callable[[], Any] = lambda: evaluate(groundtruth, detections, actions, protocol="pyslowfast")  # noqa: E731
        benchmark.pedantic(run, rounds=3)
    else:
        found = benchmark.pedantic(frame_map_by_loops, (groundtruth, detections), rounds=1)
        assert found == pytest.approx(result.frame_map_50, abs=1e-12)
