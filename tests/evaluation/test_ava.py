"""AVA frame-mAP: the shared reference values, a plain re-implementation on random data, and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slowfast_model.errors import InputError
from slowfast_model.evaluation import ava
from slowfast_model.evaluation.ava import evaluate, frame_average_precision
from slowfast_model.evaluation.ava_csv import (
    LabelledBoxes,
    read_detections,
    read_excluded_timestamps,
    read_groundtruth,
    read_label_map,
)

CLASSES = {1: "one", 2: "two", 5: "five"}


@pytest.mark.parametrize("protocol", ["official", "pyslowfast"])
@pytest.mark.parametrize("name", ["tiny", "ties", "excluded"])
def test_equals_the_reference_evaluators(shared_data: Path, name: str, protocol: str) -> None:
    folder = shared_data / "reference" / "ava_eval"
    expected = json.loads((folder / "results.json").read_text())["sets"][name]
    excluded = folder / name / "excluded.csv"
    result = evaluate(
        folder / name / "gt.csv",
        folder / name / "det.csv",
        folder / "labelmap.pbtxt",
        excluded if excluded.exists() else None,
        protocol,
    )
    tie_range = expected["tie_range"][protocol]
    assert {str(k) for k in result.per_class_ap} == set(expected[protocol]["AP"])
    for class_id, ap in expected[protocol]["AP"].items():
        ours = result.per_class_ap[int(class_id)]
        if ap is None:
            assert math.isnan(ours)
        elif class_id in tie_range:
            assert tie_range[class_id][0] - 1e-12 <= ours <= tie_range[class_id][1] + 1e-12
        else:
            assert ours == pytest.approx(ap, abs=1e-12)
    if not tie_range:
        assert result.frame_map_50 == pytest.approx(expected[protocol]["mAP"], abs=1e-12)


def _slow_frame_map(groundtruth: list[tuple], detections: list[tuple], protocol: str) -> dict[int, float]:
    """The protocols written down one detection at a time; rows are (key, box, label, score)."""
    frames = {row[0] for row in groundtruth}
    groundtruth = [row for row in groundtruth if row[2] in CLASSES]
    detections = [row for row in detections if row[2] in CLASSES]
    if protocol == "official":
        groundtruth = sorted(groundtruth, key=lambda row: -row[3])
        kept: list[tuple] = []
        for row in sorted(detections, key=lambda row: -row[3]):
            if row[0] in frames and sum(other[0] == row[0] for other in kept) < ava.MAX_LABELLED_BOXES:
                kept.append(row)
        detections = kept

    def iou(a: tuple, b: tuple) -> float:
        width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
        height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
        areas = (a[3] - a[1]) * (a[2] - a[0]) + (b[3] - b[1]) * (b[2] - b[0])
        return height * width / (areas - height * width)

    results = {}
    for label in CLASSES:
        truth = [row for row in groundtruth if row[2] == label]
        taken = [False] * len(truth)
        outcomes = []
        for key, box, detected, score in detections:
            if detected != label or box[0] >= box[2] or box[1] >= box[3]:
                continue
            best, best_iou = None, -1.0
            for i, row in enumerate(truth):
                if row[0] == key and iou(box, row[1]) > best_iou:
                    best, best_iou = i, iou(box, row[1])
            hit = best is not None and best_iou >= 0.5 and not taken[best]
            if hit:
                taken[best] = True
            outcomes.append((score, hit))
        outcomes.sort(key=lambda pair: -pair[0])
        precision, recall, hits = [], [], 0
        for rank, (_, hit) in enumerate(outcomes, start=1):
            hits += hit
            precision.append(hits / rank)
            recall.append(hits / max(len(truth), 1))
        area, previous = 0.0, 0.0
        for i, value in enumerate(recall):
            area += (value - previous) * max(precision[i:])
            previous = value
        results[label] = area if truth else math.nan
    return results


def _table(rows: list[tuple]) -> LabelledBoxes:
    keys, boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    return LabelledBoxes.from_arrays(keys, boxes, labels, scores)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_truth=st.integers(0, 12),
    num_found=st.integers(0, 90),
    protocol=st.sampled_from(["official", "pyslowfast"]),
)
def test_equals_a_plain_implementation(seed: int, num_truth: int, num_found: int, protocol: str) -> None:
    random = np.random.default_rng(seed)

    def rows(count: int, scored: bool) -> list[tuple]:
        table = []
        for i in range(count):
            # Corners on a coarse grid: equal IoUs, IoUs of exactly 0.5 and inverted boxes are common.
            x1, y1, x2, y2 = random.integers(0, 5, 4) / 4
            if not scored and (x1 >= x2 or y1 >= y2):
                x1, y1, x2, y2 = 0.0, 0.0, 0.5, 0.5
            key = ("v", float(random.integers(0, 2)))
            score = random.choice([0.1, 0.5, 0.9]) if scored else float(count - i)
            table.append((key, (x1, y1, x2, y2), int(random.choice([1, 2, 3, 5])), float(score)))
        return table

    truth, found = rows(num_truth, scored=False), rows(num_found, scored=True)
    result = frame_average_precision(_table(truth), _table(found), CLASSES, protocol=protocol)
    expected = _slow_frame_map(truth, found, protocol)
    for label, ap in expected.items():
        assert result.per_class_ap[label] == pytest.approx(ap, abs=1e-12, nan_ok=True)
    defined = [ap for ap in expected.values() if not math.isnan(ap)]
    assert result.frame_map_50 == pytest.approx(np.mean(defined) if defined else math.nan, abs=1e-12, nan_ok=True)


BOX = (0.1, 0.1, 0.5, 0.5)
ELSEWHERE = (0.6, 0.6, 0.9, 0.9)


def test_the_protocols_differ_where_they_should() -> None:
    truth = [(("v", 1.0), BOX, 1, 0.0)]
    # In file order the weak detection takes the box; by score the strong one does.
    found = [(("v", 1.0), BOX, 1, 0.2), (("v", 1.0), BOX, 1, 0.9)]
    assert frame_average_precision(_table(truth), _table(found), CLASSES, protocol="official").frame_map_50 == 1.0
    assert frame_average_precision(_table(truth), _table(found), CLASSES, protocol="pyslowfast").frame_map_50 == 0.5
    # A key frame that the ground truth does not list.
    found = [(("v", 1.0), BOX, 1, 0.5), (("v", 2.0), BOX, 1, 0.9)]
    assert frame_average_precision(_table(truth), _table(found), CLASSES, protocol="official").frame_map_50 == 1.0
    result = frame_average_precision(_table(truth), _table(found), CLASSES, protocol="pyslowfast")
    assert result.frame_map_50 == 0.5
    result = frame_average_precision(
        _table(truth), _table(found), CLASSES, protocol="pyslowfast", excluded=[("v", 2.0)]
    )
    assert result.frame_map_50 == 1.0


def test_official_counts_fifty_labelled_boxes_of_a_key_frame() -> None:
    truth = [(("v", 1.0), BOX, 1, 0.0)]
    found = [(("v", 1.0), ELSEWHERE, 2, 0.9)] * 50 + [(("v", 1.0), BOX, 1, 0.1)]
    assert frame_average_precision(_table(truth), _table(found), CLASSES).per_class_ap[1] == 0.0
    assert frame_average_precision(_table(truth), _table(found[1:]), CLASSES).per_class_ap[1] == 1.0
    # Detections of classes that are not evaluated do not count towards the fifty.
    unlisted = [(key, box, 3, score) for key, box, _, score in found[:50]] + found[50:]
    assert frame_average_precision(_table(truth), _table(unlisted), CLASSES).per_class_ap[1] == 1.0


def test_a_listed_key_frame_without_boxes_counts_detections_as_wrong(tmp_path: Path) -> None:
    (tmp_path / "map.pbtxt").write_text('item { name: "one" id: 1 }')
    (tmp_path / "det.csv").write_text("v,1,0.1,0.1,0.5,0.5,1,0.5\nv,2,0.1,0.1,0.5,0.5,1,0.9\n")
    paths = tmp_path / "gt.csv", tmp_path / "det.csv", tmp_path / "map.pbtxt"
    paths[0].write_text("v,0001,0.1,0.1,0.5,0.5,1,0\nv,0002\n")
    assert evaluate(*paths).frame_map_50 == 0.5
    paths[0].write_text("v,0001,0.1,0.1,0.5,0.5,1,0\n")
    assert evaluate(*paths).frame_map_50 == 1.0


def test_csv_numbers_equal_float(tmp_path: Path) -> None:
    spellings = [
        "0.297",
        "1",
        "1.",
        ".5",
        "0.1234567890123456789",
        "1e-3",
        " 0.25 ",
        "-0.5",
        "123456789012345.5",
        "+0.1",
    ]
    path = tmp_path / "det.csv"
    path.write_text("".join(f"v,{i},{text},0,1,1,1,{text}\n" for i, text in enumerate(spellings)))
    table = read_detections(path)
    assert table.boxes[:, 0].tolist() == [float(text) for text in spellings]
    assert table.scores.tolist() == [float(text) for text in spellings]


def test_csv_accepts_what_csv_files_come_with(tmp_path: Path) -> None:
    path = tmp_path / "gt.csv"
    path.write_bytes(b'\xef\xbb\xbf"v-1",0902,0,0,1,1,12,0\r\n\r\nv-1,902,0,0,1,1,3\r\nv-1,902.5,0,0,1,1,3,person_7')
    table = read_groundtruth(path)
    assert table.keys == [("v-1", 902.0), ("v-1", 902.5)]
    assert table.frames.tolist() == [0, 0, 1]
    assert table.labels.tolist() == [12, 3, 3]
    (tmp_path / "empty.csv").write_text("")
    assert len(read_detections(tmp_path / "empty.csv")) == 0


def test_csv_is_read_the_same_in_any_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "det.csv"
    path.write_text("".join(f"video{i % 3},{i // 2},0.{i},0,1,1,{i % 4},0.{i * 7}\n" for i in range(50)))
    whole = read_detections(path)
    monkeypatch.setattr("slowfast_model.evaluation.ava_csv._BLOCK_BYTES", 100)
    blocks = read_detections(path)
    assert blocks.keys == whole.keys
    for name in ("frames", "boxes", "labels", "scores"):
        np.testing.assert_array_equal(getattr(blocks, name), getattr(whole, name))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("v,1,0,0,1,1", r"det\.csv:3: expected 7 or 8 columns .* got 6"),
        ("v,1,0,0,1,1,2,0.5,9", r"det\.csv:3: expected 7 or 8 columns .* got 9"),
        ("v,one,0,0,1,1,2,0.5", r"det\.csv:3: timestamp must be a number of seconds, got 'one'"),
        ("v,nan,0,0,1,1,2,0.5", r"det\.csv:3: timestamp"),
        (",1,0,0,1,1,2,0.5", r"det\.csv:3: the video_id is empty"),
        ("v,1,0,0,right,1,2,0.5", r"det\.csv:3: x2 must be a number, got 'right'"),
        ("v,1,0,inf,1,1,2,0.5", r"det\.csv:3: y1 must be a number, got 'inf'"),
        ("v,1,0,1.2.3,1,1,2,0.5", r"det\.csv:3: y1 must be a number, got '1\.2\.3'"),
        ("v,1,0,0,1,1,,0.5", r"det\.csv:3: action_id must be a number, got ''"),
        ("v,1,0,0,1,1,2.5,0.5", r"det\.csv:3: action_id must be a whole number, got 2\.5"),
        ("v,1,0,0,1,1,2,high", r"det\.csv:3: score must be a number, got 'high'"),
    ],
)
@pytest.mark.parametrize("block_bytes", [20, 1 << 20])
def test_a_bad_row_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str, block_bytes: int
) -> None:
    monkeypatch.setattr("slowfast_model.evaluation.ava_csv._BLOCK_BYTES", block_bytes)
    path = tmp_path / "det.csv"
    path.write_text(f"v,1,0,0,1,1,2,0.5\n\n{line}\nv,1,0,0,1,1,2,0.5\n")
    with pytest.raises(InputError, match=message):
        read_detections(path)


def test_other_files_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.csv: No such file"):
        read_groundtruth(tmp_path / "missing.csv")
    path = tmp_path / "file"
    path.write_text("v,1\nv\n")
    with pytest.raises(InputError, match=r"file:2: expected 2 columns"):
        read_excluded_timestamps(path)
    path.write_text("v,1\nv,x\n")
    with pytest.raises(InputError, match=r"file:2: timestamp"):
        read_excluded_timestamps(path)
    path.write_text("stand\nsit\n")
    with pytest.raises(InputError, match=r"file: no classes found"):
        read_label_map(path)
    path.write_text('item {\n name: "stand"\n id: 1\n}\nitem {\n name: "sit"\n}\n')
    with pytest.raises(InputError, match=r"file:5: an item needs"):
        read_label_map(path)
    path.write_text('item { name: "stand" id: 1 }\nitem { name: "sit" id: 1 }')
    with pytest.raises(InputError, match=r"file:2: class id 1 is listed twice"):
        read_label_map(path)
    with pytest.raises(InputError, match="protocol must be one of official, pyslowfast"):
        frame_average_precision(_table([]), _table([]), CLASSES, protocol="voc")  # type: ignore[arg-type]


def test_label_map_spellings(tmp_path: Path) -> None:
    path = tmp_path / "list.pbtxt"
    path.write_text("item {\n  name: \"bend/bow (at the waist)\"\n  label_id: 1\n}\nitem { id: 3 name: 'crouch' }\n")
    assert read_label_map(path) == {1: "bend/bow (at the waist)", 3: "crouch"}


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "map.pbtxt").write_text('item { name: "one" id: 1 }\nitem { name: "two" id: 2 }')
    (tmp_path / "gt.csv").write_text("v,1,0.1,0.1,0.5,0.5,1,0\n")
    (tmp_path / "det.csv").write_text("v,1,0.1,0.1,0.5,0.5,1,0.5\n")
    arguments = ["--groundtruth", "gt.csv", "--detections", "det.csv", "--label-map", "map.pbtxt"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ava", *arguments, "--json"])
    ava.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["frame_map_50"] == 1.0
    assert figures["per_class_ap"] == {"one": 1.0, "two": None}
    monkeypatch.setattr("sys.argv", ["ava", *arguments])
    ava.main()
    assert "frame-mAP@0.5 1.0000" in capsys.readouterr().out
    (tmp_path / "gt.csv").write_text("v,1,0.1,0.1,0.5,0.5,7,0\n")
    with pytest.raises(InputError, match=r"gt\.csv: no box has a class of map\.pbtxt"):
        ava.main()
