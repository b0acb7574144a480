"""Collects the boxes that a detection model scored, and writes them as an AVA-format file."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import numpy.typing as npt

from slowfast_model.evaluation.ava_csv import LabelledBoxes
from slowfast_model.evaluation.frame_keys import FrameKey, FrameKeys, frame_key

_BOX_DECIMALS = 6  # undoes float32: 0.255 in a csv file is 0.255 again, and one megapixel is a thousand times coarser


class ScoredBoxes:
    """Boxes with a score per class on key frames, in any order.

    A key frame may be scored in several views (scales, mirrored): its scores are their mean. Each view counts once,
    with what came first: clips that a distributed sampler repeats to fill the last batch change nothing.
    """

    def __init__(self) -> None:
        self._boxes: dict[FrameKey, npt.NDArray[np.float64]] = {}
        self._views: dict[FrameKey, dict[int, npt.NDArray[np.float64]]] = {}

    def add(
        self,
        keys: Sequence[FrameKey],
        clip_indices: npt.ArrayLike,
        boxes: npt.ArrayLike,
        scores: npt.ArrayLike,
        views: Sequence[int] | None = None,
    ) -> None:
        """Adds a batch of N clips with R boxes altogether.

        Args:
            keys: [N], the (video id, timestamp) of each clip's key frame.
            clip_indices: [R], which clip a box belongs to.
            boxes: [R, 4], x1, y1, x2, y2 as fractions of the full frame.
            scores: [R, K], column k is the score of class id k + 1.
            views: [N], which view of its key frame a clip is; None: there is but one. All views have the same boxes.
        """
        clip = np.asarray(clip_indices).astype(np.int64).reshape(-1)
        box = np.asarray(boxes, np.float64).reshape(len(clip), 4).round(_BOX_DECIMALS)
        score = np.asarray(scores, np.float64)
        for index, (key, view) in enumerate(zip(keys, views or [0] * len(keys), strict=True)):
            self._add(frame_key(*key), view, box[clip == index], score[clip == index])

    def _add(self, key: FrameKey, view: int, boxes: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> None:
        self._boxes.setdefault(key, boxes)
        self._views.setdefault(key, {}).setdefault(view, scores)

    def merge(self, other: ScoredBoxes) -> None:
        """Adds what another process collected."""
        for key, views in other._views.items():
            for view, scores in views.items():
                self._add(key, view, other._boxes[key], scores)

    def boxes_of(self, key: FrameKey) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """The boxes [R, 4] and scores [R, K] of a key frame; None if it was not scored."""
        key = frame_key(*key)
        return (self._boxes[key], self._scores(key)) if key in self._boxes else None

    def _scores(self, key: FrameKey) -> npt.NDArray[np.float64]:
        views = self._views[key]
        return np.mean([views[view] for view in sorted(views)], axis=0)  # in one order: the same bits for any batching

    def to_table(self, class_ids: Sequence[int]) -> LabelledBoxes:
        """One row per box and class of ``class_ids``, key frames in ascending order, ready for `ava`."""
        keys = sorted(self._boxes)
        columns = np.asarray(class_ids, np.int64) - 1
        counts = [len(self._boxes[key]) for key in keys]
        boxes = np.concatenate([self._boxes[key] for key in keys] or [np.zeros((0, 4))])
        scores = np.concatenate([self._scores(key)[:, columns] for key in keys] or [np.zeros((0, len(columns)))])
        return LabelledBoxes(
            keys=FrameKeys.of(keys),
            frames=np.repeat(np.arange(len(keys)), counts).repeat(len(columns)),
            boxes=boxes.repeat(len(columns), axis=0),
            labels=np.tile(columns + 1, len(boxes)),
            scores=scores.reshape(-1),
        )


def write_detections(path: str | PathLike[str], table: LabelledBoxes) -> None:
    """Writes ``video_id,timestamp,x1,y1,x2,y2,action_id,score`` rows, as the AVA evaluation server takes them.

    Whole seconds are written with four digits (0902). Reading the file back evaluates to the same figures.
    """
    timestamps = [f"{time:04.0f}" if time == int(time) else f"{time:.6f}" for _, time in table.keys]
    prefixes = [f"{video},{time}" for (video, _), time in zip(table.keys, timestamps, strict=True)]
    rows = zip(table.frames.tolist(), table.boxes.tolist(), table.labels.tolist(), table.scores.tolist(), strict=True)
    with open(path, "w", encoding="utf-8") as file:
        for frame, box, label, score in rows:
            coordinates = ",".join(f"{value:.6g}" for value in box)
            file.write(f"{prefixes[frame]},{coordinates},{label},{score:.9g}\n")
