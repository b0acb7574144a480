"""The annotations of an AVA-format data set: which files they are, and the boxes and labels of every key frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slowfast_model.errors import MAX_CLASSES, InputError
from slowfast_model.evaluation.ava_csv import LabelledBoxes
from slowfast_model.evaluation.frame_keys import FrameKey, FrameKeys

NO_LABEL = -1


@dataclass(frozen=True)
class AvaFiles:
    """The annotation files of one split; those that are None do not exist.

    Attributes:
        groundtruth: ``video_id,timestamp,x1,y1,x2,y2,action_id,person_id`` rows.
        predicted_boxes: a person detector's boxes, ``video_id,timestamp,x1,y1,x2,y2,action_id or empty,score`` rows.
        excluded: ``video_id,timestamp`` rows, key frames that do not count in evaluation.
        label_map: the action list (pbtxt) of the classes that are evaluated.
    """

    groundtruth: Path
    predicted_boxes: Path | None
    excluded: Path | None
    label_map: Path

    @classmethod
    def find(cls, folder: Path, split: str, **given: Path | None) -> AvaFiles:
        """The files of a split in ``<root>/annotations`` by their published names, the newest version of each.

        Args:
            folder: the folder of annotations.
            split: "train" or "val".
            given: files that go by other names, by attribute; None ones are looked for.

        Raises:
            InputError: a file that must be there is not.
        """
        found = {
            "groundtruth": _newest(folder, rf"ava_{split}_v[\d.]+\.csv"),
            "predicted_boxes": _newest(folder, rf"ava_{split}_predicted_boxes.*\.csv"),
            "excluded": _newest(folder, rf"ava_{split}_excluded_timestamps.*\.csv"),
            # AVA comes with a list of all 80 classes, too; the one of the challenge has the 60 that are evaluated.
            "label_map": _newest(folder, r".*action_list.*activitynet.*\.pbtxt")
            or _newest(folder, r".*action_list.*\.pbtxt"),
        }
        found |= {name: path for name, path in given.items() if path is not None}
        for name, usual in (("groundtruth", f"ava_{split}_v2.2.csv"), ("label_map", "ava_action_list_v2.2.pbtxt")):
            if found[name] is None:
                raise InputError(f"{folder}: no {name.replace('_', ' ')} file there; it is usually called {usual}")
        return cls(**found)  # type: ignore[arg-type]


def _newest(folder: Path, pattern: str) -> Path | None:
    """The file whose name matches, the one with the highest version number if there are several."""
    try:
        names = [path.name for path in folder.iterdir() if re.fullmatch(pattern, path.name)]
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; expected the folder of AVA's annotation files") from None
    return folder / max(names, key=lambda name: ([int(n) for n in re.findall(r"\d+", name)], name)) if names else None


@dataclass(frozen=True)
class KeyFrames:
    """Key frames with their boxes, in flat arrays: millions of rows cost no Python objects in the workers.

    Attributes:
        video_ids: every video once.
        videos: int64 [K], each key frame's video as an index into ``video_ids``; equal ones follow one another.
        timestamps: float64 [K], in seconds as the annotations count them.
        first_boxes: int64 [K + 1]: the boxes of key frame k are ``first_boxes[k]`` up to ``first_boxes[k + 1]``.
        boxes: float64 [B, 4], x1, y1, x2, y2 as fractions of the full frame, each box of a key frame once.
        first_labels: int64 [B + 1]: the labels of box b are ``first_labels[b]`` up to ``first_labels[b + 1]``; none is
            fine.
        labels: int64 [L], class ids from 1.
    """

    video_ids: list[str]
    videos: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.float64]
    first_boxes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    first_labels: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    @classmethod
    def from_tables(cls, tables: Sequence[LabelledBoxes]) -> KeyFrames:
        """Merges tables: rows of a key frame with the same coordinates are one box that has all their labels.

        Videos are in order of their first box, key frames of a video in time, boxes of a key frame as they come.
        """
        used = [table.keys.take(np.flatnonzero(np.bincount(table.frames))) for table in tables]
        merged = FrameKeys.concatenate(used)
        by_first_box = list(dict.fromkeys(merged.videos.tolist()))
        video_ids = [merged.video_ids[video] for video in by_first_box]
        # Prepended, the videos alone set the order in which `unique` has them.
        keys, _, _ = FrameKeys.concatenate([FrameKeys(video_ids, *np.zeros((2, 0), np.int64)), merged]).unique()
        frames = np.concatenate([keys.find(table.keys)[table.frames] for table in tables])
        boxes = np.concatenate([table.boxes for table in tables])
        labels = np.concatenate([table.labels for table in tables])

        box_of_row, first_rows = _number_boxes(frames, boxes)
        order = np.lexsort((labels, box_of_row))
        box_of_row, labels = box_of_row[order], labels[order]
        is_label = labels != NO_LABEL
        is_label[1:] &= (box_of_row[1:] != box_of_row[:-1]) | (labels[1:] != labels[:-1])
        return cls(
            video_ids=video_ids,
            videos=keys.videos,
            timestamps=keys.timestamps,
            first_boxes=_offsets(frames[first_rows], len(keys)),
            boxes=boxes[first_rows],
            first_labels=_offsets(box_of_row[is_label], len(first_rows)),
            labels=labels[is_label],
        )

    def __len__(self) -> int:
        return len(self.timestamps)

    def key(self, index: int) -> FrameKey:
        """(video id, timestamp) of a key frame."""
        return self.video_ids[self.videos[index]], float(self.timestamps[index])

    def boxes_of(self, index: int) -> npt.NDArray[np.float64]:
        """The boxes of a key frame, [R, 4]."""
        return self.boxes[self.first_boxes[index] : self.first_boxes[index + 1]]

    def labels_of(self, index: int, num_classes: int) -> npt.NDArray[np.float32]:
        """The labels of its boxes, multi-hot [R, num_classes]; column k is class k + 1."""
        first, stop = self.first_boxes[index], self.first_boxes[index + 1]
        starts = self.first_labels[first : stop + 1]
        targets = np.zeros((stop - first, num_classes), np.float32)
        rows = np.repeat(np.arange(stop - first), np.diff(starts))
        targets[rows, self.labels[starts[0] : starts[-1]] - 1] = 1
        return targets


def _number_boxes(
    frames: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers the different boxes, by frame and first appearance.

    Args:
        frames: int64 [n], sorted or nearly: that is fast.
        boxes: float64 [n, 4].

    Returns:
        The box of each row, int64 [n], and the first row of each box.
    """
    # The number of the frame in the highest bits and a hash of the box in the others: one key, whose order is close to
    # that of the rows.
    bits = np.uint64(int(frames.max(initial=0)).bit_length())
    keys = (frames.astype(np.uint64) << (np.uint64(64) - bits)) | (_hash(boxes) >> bits)
    order = np.argsort(keys, kind="stable")
    is_new = np.ones(len(order), bool)
    is_new[1:] = np.diff(keys[order]) != 0
    differs = (boxes[order[1:]] != boxes[order[:-1]]).any(axis=1)
    if (differs & ~is_new[1:]).any():  # two boxes of a frame have one hash: the slow way is safe
        order = np.lexsort((*boxes.T, frames))
        is_new[1:] = (np.diff(frames[order]) != 0) | (boxes[order[1:]] != boxes[order[:-1]]).any(axis=1)
    first_rows = order[is_new]  # the sort is stable
    by_appearance = np.lexsort((first_rows, frames[first_rows]))
    rank = np.empty(len(first_rows), np.int64)
    rank[by_appearance] = np.arange(len(first_rows))
    box_of_row = np.empty(len(order), np.int64)
    box_of_row[order] = rank[np.cumsum(is_new) - 1]
    return box_of_row, first_rows[by_appearance]


def _hash(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """A number for each row, equal for equal rows and most likely different for others."""
    bits = np.ascontiguousarray(rows + 0.0).view(np.uint64)  # -0.0 equals 0.0, and becomes it
    hashes = np.zeros(len(rows), np.uint64)
    for column in bits.T:
        hashes = (hashes ^ (hashes >> np.uint64(29)) ^ column) * np.uint64(0x9E3779B97F4A7C15)
    return hashes


def _offsets(groups: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Where each of ``count`` groups begins in sorted group numbers, and where the last one ends: [count + 1]."""
    return np.searchsorted(groups, np.arange(count + 1))


def select(table: LabelledBoxes, rows: npt.NDArray[np.bool_]) -> LabelledBoxes:
    """The table with just these rows."""
    return LabelledBoxes(table.keys, table.frames[rows], table.boxes[rows], table.labels[rows], table.scores[rows])


def check_boxes(table: LabelledBoxes, path: Path) -> None:
    """Looks for rows that parse and still cannot be meant.

    Raises:
        InputError: a box in pixels or with its corners in the wrong order, or an impossible class id; file and line are
            named.
    """
    boxes = table.boxes
    problems = (
        ((boxes < -0.1).any(axis=1) | (boxes > 1.1).any(axis=1), "the box must be in fractions of the frame, 0 to 1"),
        ((boxes[:, :2] > boxes[:, 2:]).any(axis=1), "the box must have x1 <= x2 and y1 <= y2"),
        ((table.labels < 1) & (table.labels != NO_LABEL), "action_id must be 1 or more, or empty"),
        (table.labels > MAX_CLASSES, f"action_id must be at most {MAX_CLASSES}"),
    )
    for wrong, rule in problems:
        if wrong.any():
            row = int(wrong.argmax())
            line = _line_of_row(path, row)
            raise InputError(f"{path}:{line}: {rule}, got {boxes[row].tolist()} with action_id {table.labels[row]}")


def _line_of_row(path: Path, row: int) -> int:
    """The line, from 1, of a row of `LabelledBoxes`: blank lines and key frames without boxes are no rows."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        numbers = [number for number, line in enumerate(lines, start=1) if line.count(",") > 1]
    return numbers[row]
