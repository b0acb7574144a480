"""AVA frame-mAP at IoU 0.5, in vectorised numpy.

`evaluate` reads files, as does the command ``python -m slowfast_model.evaluation.ava --groundtruth gt.csv
--detections det.csv --label-map list.pbtxt``; `frame_average_precision` works on arrays.

Two protocols, which share their core (PASCAL VOC 2010 average precision, one argmax match per detection):

- ``"official"``, the ActivityNet script: within a key frame detections are matched in order of descending score, at
  most 50 labelled boxes of a key frame count (those with the highest scores), and key frames that the ground-truth
  file does not list are ignored.
- ``"pyslowfast"``, PySlowFast's evaluator: detections are matched in the order in which they come, none is cut off,
  and detections on key frames without ground truth are false positives unless the key frame is excluded.

Detections of equal score keep the order in which they come.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from slowfast_model.commands import parse_arguments, run_command
from slowfast_model.errors import InputError
from slowfast_model.evaluation.ava_csv import (
    LabelledBoxes,
    read_detections,
    read_excluded_timestamps,
    read_groundtruth,
    read_label_map,
)
from slowfast_model.evaluation.frame_keys import FrameKey, FrameKeys

Protocol = Literal["official", "pyslowfast"]

IOU_THRESHOLD = 0.5
MAX_LABELLED_BOXES = 50
"""The official script's cap on the labelled boxes of one key frame."""


@dataclass(frozen=True)
class AvaResult:
    """What an evaluation found.

    Attributes:
        frame_map_50: mean over the classes that have ground truth; nan when none has.
        per_class_ap: class id -> average precision; nan for a class without ground truth.
        class_names: class id -> name, the evaluated classes.
        num_groundtruth: class id -> number of ground-truth boxes that counted.
        num_detections: number of labelled detections that counted.
        num_frames: number of key frames with ground truth that counted.
        protocol: "official" or "pyslowfast".
    """

    frame_map_50: float
    per_class_ap: dict[int, float]
    class_names: dict[int, str]
    num_groundtruth: dict[int, int]
    num_detections: int
    num_frames: int
    protocol: Protocol

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values: average precision by class name, null where it is undefined."""
        return {
            "frame_map_50": _finite_or_none(self.frame_map_50),
            "per_class_ap": {self.class_names[k]: _finite_or_none(ap) for k, ap in self.per_class_ap.items()},
            "protocol": self.protocol,
            "num_frames": self.num_frames,
            "num_detections": self.num_detections,
            "classes": [
                {"id": k, "name": name, "ap": _finite_or_none(self.per_class_ap[k]), "boxes": self.num_groundtruth[k]}
                for k, name in self.class_names.items()
            ],
        }


def evaluate(
    groundtruth_csv: str | PathLike[str],
    detections_csv: str | PathLike[str],
    label_map: str | PathLike[str],
    excluded: str | PathLike[str] | None = None,
    protocol: Protocol = "official",
) -> AvaResult:
    """Frame-mAP at IoU 0.5 of a detections file.

    Args:
        groundtruth_csv: ``video_id,timestamp,x1,y1,x2,y2,action_id[,person_id]`` rows, no header; boxes are fractions
            of the frame.
        detections_csv: the same columns with a score as the eighth.
        label_map: pbtxt action list; only its classes are evaluated.
        excluded: ``video_id,timestamp`` rows, key frames to leave out.
        protocol: "official" or "pyslowfast", see the module's docstring.

    Raises:
        InputError: a file is missing or malformed (file and line are named), the protocol is unknown, or the ground
            truth has no box of an evaluated class.
    """
    groundtruth = read_groundtruth(groundtruth_csv)
    class_names = read_label_map(label_map)
    if not np.isin(groundtruth.labels, list(class_names)).any():
        raise InputError(f"{groundtruth_csv}: no box has a class of {label_map}: there is nothing to evaluate")
    return frame_average_precision(
        groundtruth,
        read_detections(detections_csv),
        class_names,
        excluded=read_excluded_timestamps(excluded) if excluded else (),
        protocol=protocol,
    )


def frame_average_precision(
    groundtruth: LabelledBoxes,
    detections: LabelledBoxes,
    class_names: Mapping[int, str],
    *,
    excluded: Iterable[FrameKey] = (),
    protocol: Protocol = "official",
) -> AvaResult:
    """Frame-mAP at IoU 0.5 from arrays; `evaluate` reads files into them.

    A detection's match is the ground-truth box of its key frame and class with the highest IoU; it is a true positive
    when that IoU is at least 0.5 and no earlier detection took the box (there is no second choice). Detections whose
    box is empty or inverted are dropped. Average precision is the area under the interpolated precision-recall curve,
    at all points.
    """
    if protocol not in get_args(Protocol):
        raise InputError(f"protocol must be one of {', '.join(get_args(Protocol))}, got {protocol!r}")
    class_ids = np.array(sorted(class_names), np.int64)
    # Key frames by number: those of the ground truth first; -1 where they do not count.
    truth_frames = np.arange(len(groundtruth.keys))
    found_frames = groundtruth.keys.find(detections.keys)
    if protocol == "pyslowfast":
        others = found_frames < 0
        found_frames[others] = len(truth_frames) + np.flatnonzero(others)
    excluded_keys = FrameKeys.of(excluded)
    truth_frames[excluded_keys.find(groundtruth.keys) >= 0] = -1
    found_frames[excluded_keys.find(detections.keys) >= 0] = -1

    truth = _select(groundtruth, truth_frames, class_ids)
    found = _select(detections, found_frames, class_ids)
    if protocol == "official":
        # The script orders both files by the eighth column. For ground truth that is the person id, which decides
        # between two boxes of equal IoU.
        truth = truth.take(np.argsort(-truth.scores, kind="stable"))
        order = np.argsort(-found.scores, kind="stable")
        order = order[_rank_within(found.frames[order]) < MAX_LABELLED_BOXES]
    else:
        order = np.arange(len(found.scores))
    valid = (found.boxes[:, 0] < found.boxes[:, 2]) & (found.boxes[:, 1] < found.boxes[:, 3])
    found = found.take(order[valid[order]])

    true_positive = _match(truth, found)
    order = np.argsort(-found.scores, kind="stable")
    labels, true_positive = found.labels[order], true_positive[order]
    boxes_per_class = np.bincount(truth.labels, minlength=len(class_ids)).tolist()
    per_class_ap = [_average_precision(true_positive[labels == i], count) for i, count in enumerate(boxes_per_class)]
    defined = [ap for ap in per_class_ap if not math.isnan(ap)]
    return AvaResult(
        frame_map_50=float(np.mean(defined)) if defined else math.nan,
        per_class_ap=dict(zip(class_ids.tolist(), per_class_ap, strict=True)),
        class_names={k: class_names[k] for k in class_ids.tolist()},
        num_groundtruth=dict(zip(class_ids.tolist(), boxes_per_class, strict=True)),
        num_detections=len(found.labels),
        num_frames=len(np.unique(truth.frames)),
        protocol=protocol,
    )


@dataclass(frozen=True)
class _Rows:
    """The rows that count: key frames and classes numbered from 0, alike for ground truth and detections."""

    frames: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    def take(self, rows: npt.NDArray[np.int64]) -> _Rows:
        return _Rows(self.frames[rows], self.boxes[rows], self.labels[rows], self.scores[rows])


def _select(table: LabelledBoxes, frames: npt.NDArray[np.int64], class_ids: npt.NDArray[np.int64]) -> _Rows:
    """Rows of the evaluated classes on the key frames whose number in ``frames`` is not negative, in their order."""
    label = np.minimum(np.searchsorted(class_ids, table.labels), len(class_ids) - 1)
    rows = _Rows(frames[table.frames], table.boxes, label, table.scores)
    return rows.take(np.flatnonzero((rows.frames >= 0) & (class_ids[label] == table.labels)))


def _rank_within(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each element, how many earlier elements have the same value."""
    order = np.argsort(groups, kind="stable")
    sorted_groups = groups[order]
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.searchsorted(sorted_groups, sorted_groups)
    return rank


def _match(truth: _Rows, found: _Rows) -> npt.NDArray[np.bool_]:
    """Whether each detection, in the order given, is a true positive."""
    num_labels = 1 + int(max(truth.labels.max(initial=0), found.labels.max(initial=0)))
    num_groups = num_labels * (1 + int(max(truth.frames.max(initial=0), found.frames.max(initial=0))))
    truth_group = truth.frames * num_labels + truth.labels
    truth_boxes = truth.boxes[np.argsort(truth_group, kind="stable")]
    group_size = np.bincount(truth_group, minlength=num_groups)
    group_start = np.cumsum(group_size) - group_size
    found_group = found.frames * num_labels + found.labels
    first, candidates = group_start[found_group], group_size[found_group]

    best_iou = np.zeros(len(found.labels))
    best_truth = np.full(len(found.labels), -1, np.int64)
    for candidate in range(int(candidates.max(initial=0))):
        rows = np.flatnonzero(candidates > candidate)
        iou = _iou(found.boxes[rows], truth_boxes[first[rows] + candidate])
        better = iou > best_iou[rows]  # strictly: of equal ones the first is taken
        best_iou[rows[better]] = iou[better]
        best_truth[rows[better]] = first[rows[better]] + candidate

    hits = np.flatnonzero(best_iou >= IOU_THRESHOLD)
    _, first_hit = np.unique(best_truth[hits], return_index=True)
    true_positive = np.zeros(len(found.labels), bool)
    true_positive[hits[first_hit]] = True
    return true_positive


def _iou(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of boxes [n, 4], row by row."""
    width = np.maximum(np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]), 0)
    height = np.maximum(np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]), 0)
    intersection = height * width
    area_a = (a[:, 3] - a[:, 1]) * (a[:, 2] - a[:, 0])
    area_b = (b[:, 3] - b[:, 1]) * (b[:, 2] - b[:, 0])
    return intersection / (area_a + area_b - intersection)


def _average_precision(true_positive: npt.NDArray[np.bool_], num_groundtruth: int) -> float:
    """Area under the interpolated precision-recall curve of detections sorted by descending score."""
    if num_groundtruth == 0:
        return math.nan
    hits = np.cumsum(true_positive)
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall grows by 1 / num_groundtruth at each true positive and nowhere else.
    return float(envelope[true_positive].sum() / num_groundtruth)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def print_result(result: AvaResult) -> None:
    """Prints a table of the classes that have ground truth, and the mean."""
    table = Table(box=None, header_style="bold")
    table.add_column("id", justify="right")
    table.add_column("class")
    table.add_column("boxes", justify="right")
    table.add_column("AP", justify="right")
    for class_id, ap in result.per_class_ap.items():
        if not math.isnan(ap):
            table.add_row(
                str(class_id), result.class_names[class_id], str(result.num_groundtruth[class_id]), f"{ap:.4f}"
            )
    console = Console()
    console.print(table)
    console.print(
        f"frame-mAP@0.5 [bold]{result.frame_map_50:.4f}[/bold]  ({result.protocol} protocol, {result.num_frames} key "
        f"frames, {result.num_detections} labelled detections)",
        highlight=False,
        soft_wrap=True,
    )


@dataclass
class EvaluationConfig:
    """AVA frame-mAP@0.5 of a detections file.

    Attributes:
        groundtruth: csv of video_id,timestamp,x1,y1,x2,y2,action_id[,person_id]
        detections: csv of video_id,timestamp,x1,y1,x2,y2,action_id,score
        label_map: pbtxt action list; only its classes count
        excluded: csv of video_id,timestamp: key frames that do not count
        protocol: official (ActivityNet script) or pyslowfast
        json: print the figures as JSON
    """

    groundtruth: Path
    detections: Path
    label_map: Path
    excluded: Path | None = None
    protocol: Protocol = "official"
    json: bool = False


def main() -> None:
    config = parse_arguments(EvaluationConfig, "python -m slowfast_model.evaluation.ava", "AVA frame-mAP@0.5")
    result = evaluate(config.groundtruth, config.detections, config.label_map, config.excluded, config.protocol)
    if not result.num_detections:
        print("warning: no detection counts; do its video ids, timestamps and class ids match?", file=sys.stderr)
    if config.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        print_result(result)


if __name__ == "__main__":
    run_command(main)
