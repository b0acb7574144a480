"""Scored boxes: order and repeats do not matter, and the csv evaluates like the arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from slowfast_model.evaluation.ava import evaluate, frame_average_precision
from slowfast_model.evaluation.ava_csv import LabelledBoxes, read_detections
from slowfast_model.evaluation.detections import ScoredBoxes, write_detections


def random_frames(seed: int, count: int) -> list[tuple]:
    random = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        boxes = np.sort(random.uniform(0, 1, (int(random.integers(0, 4)), 2, 2)), axis=1).reshape(-1, 4)
        boxes = boxes.round(3).astype(np.float32)
        frames.append((("v", float(number)), boxes, random.uniform(0, 1, (len(boxes), 4)).astype(np.float32)))
    return frames


def collect(frames: list[tuple]) -> ScoredBoxes:
    scored = ScoredBoxes()
    for key, boxes, scores in frames:
        scored.add([key], np.zeros(len(boxes)), boxes, scores)
    return scored


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6))
def test_order_repeats_and_processes_change_nothing(seed: int, count: int) -> None:
    frames = random_frames(seed, count)
    expected = collect(frames).to_table([1, 3])
    random = np.random.default_rng(seed)
    shuffled = [frames[i] for i in random.permutation(count)] + [frames[0]]
    scored = collect(shuffled[::2])
    scored.merge(collect(shuffled[1::2]))
    table = scored.to_table([1, 3])
    assert table.keys == expected.keys
    for name in ("frames", "boxes", "labels", "scores"):
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name))


def test_a_batch_is_split_by_clip() -> None:
    scored = ScoredBoxes()
    scored.add([("v", 1.0), ("v", 2.0), ("v", 3.0)], [2, 0, 2], np.eye(3, 4), np.arange(6).reshape(3, 2))
    assert scored.boxes_of(("v", 2.0))[0].shape == (0, 4)
    boxes, scores = scored.boxes_of(("v", 3.0))
    assert boxes.tolist() == np.eye(3, 4)[[0, 2]].tolist()
    assert scores.tolist() == [[0, 1], [4, 5]]
    assert scored.boxes_of(("v", 4.0)) is None


def test_views_of_a_key_frame_are_averaged_each_once() -> None:
    boxes, scores = np.array([[0.1, 0.1, 0.5, 0.5]]), np.array([[0.2, 0.4]])
    first, second = ScoredBoxes(), ScoredBoxes()
    first.add([("v", 1.0)], [0], boxes, scores, [0])
    second.add([("v", 1.0), ("v", 1.0)], [0, 1], boxes.repeat(2, axis=0), np.array([[0.4, 0.6], [0.9, 0.2]]), [1, 2])
    second.add([("v", 1.0)], [0], boxes, scores + 0.1, [1])  # a view that came before
    first.merge(second)
    found, mean = first.boxes_of(("v", 1.0))
    np.testing.assert_array_equal(found, boxes)
    np.testing.assert_allclose(mean, [[0.5, 0.4]])
    table = first.to_table([2])
    assert (len(table), table.scores.tolist()) == (1, mean[:, 1].tolist())


def test_nothing_scored_is_an_empty_table() -> None:
    assert len(ScoredBoxes().to_table([1, 2])) == 0


def test_the_file_evaluates_like_the_arrays(tmp_path: Path) -> None:
    table = collect(random_frames(3, 30)).to_table([1, 2, 4])
    truth_rows = [(key, box) for key, boxes, _ in random_frames(3, 30) for box in boxes[:1]]
    truth = LabelledBoxes.from_arrays(
        [key for key, _ in truth_rows], [box for _, box in truth_rows], [2] * len(truth_rows)
    )
    (tmp_path / "map.pbtxt").write_text("".join(f'item {{ name: "{k}" id: {k} }}\n' for k in (1, 2, 4)))
    (tmp_path / "gt.csv").write_text(
        "".join(f"v,{key[1]:.0f},{','.join(f'{x:.3f}' for x in box)},2,0\n" for key, box in truth_rows)
    )
    write_detections(tmp_path / "det.csv", table)
    names = {1: "1", 2: "2", 4: "4"}
    from_file = evaluate(tmp_path / "gt.csv", tmp_path / "det.csv", tmp_path / "map.pbtxt")
    from_arrays = frame_average_precision(truth, table, names)
    assert from_file.frame_map_50 == from_arrays.frame_map_50
    assert 0 < from_file.frame_map_50 < 1


def test_timestamps_and_boxes_are_written_as_ava_has_them(tmp_path: Path) -> None:
    scored = ScoredBoxes()
    scored.add([("v", 902.0)], [0], np.float32([[0.077, 0.151, 0.283, 0.811]]), [[0.25]])
    scored.add([("v", 3.5)], [0], np.float32([[0, 0, 1, 1]]), [[1.0]])
    write_detections(tmp_path / "det.csv", scored.to_table([1]))
    assert (tmp_path / "det.csv").read_text().splitlines() == [
        "v,3.500000,0,0,1,1,1,1",
        "v,0902,0.077,0.151,0.283,0.811,1,0.25",
    ]
    assert read_detections(tmp_path / "det.csv").keys == [("v", 3.5), ("v", 902.0)]
