"""Top-1 and top-5 accuracy per view and per video (softmax averaged over a video's views)."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class KineticsResult:
    """Accuracies in [0, 1]; nan when nothing was evaluated.

    Attributes:
        top1, top5: per video, from the mean of its views' probabilities.
        view_top1, view_top5: per view.
        num_videos, num_views: what was counted.
    """

    top1: float
    top5: float
    view_top1: float
    view_top5: float
    num_videos: int
    num_views: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class MultiViewScores:
    """Collects the probabilities of views, in any order, and averages them per video.

    A view is identified by (video index, view number) and counts once: samples that a distributed sampler repeats to
    fill the last batch change nothing.
    """

    def __init__(self) -> None:
        self._views: dict[tuple[int, int], npt.NDArray[np.float64]] = {}
        self._labels: dict[int, int] = {}

    def add(
        self,
        video_indices: Sequence[int],
        views: Sequence[int],
        probabilities: npt.ArrayLike,
        labels: Sequence[int],
    ) -> None:
        """Adds N views.

        Args:
            video_indices: [N], which video (row of the list).
            views: [N], which of its views.
            probabilities: [N, K], rows sum to one.
            labels: [N], class indices from 0.
        """
        rows = np.asarray(probabilities, np.float64)
        for video, view, row, label in zip(video_indices, views, rows, labels, strict=True):
            self._views.setdefault((int(video), int(view)), row)
            self._labels.setdefault(int(video), int(label))

    def merge(self, other: MultiViewScores) -> None:
        """Adds what another process collected."""
        for key, row in other._views.items():
            self._views.setdefault(key, row)
        for video, label in other._labels.items():
            self._labels.setdefault(video, label)

    def video_scores(self) -> dict[int, npt.NDArray[np.float64]]:
        """Video index -> mean probabilities [K], by ascending index; the order of arrival does not matter."""
        rows: dict[int, list[npt.NDArray[np.float64]]] = {}
        for video, view in sorted(self._views):
            rows.setdefault(video, []).append(self._views[video, view])
        return {video: np.mean(views, axis=0) for video, views in rows.items()}

    def compute(self) -> KineticsResult:
        videos = self.video_scores()
        view_hits = _hits(list(self._views.values()), [self._labels[video] for video, _ in self._views])
        video_hits = _hits(list(videos.values()), [self._labels[video] for video in videos])
        return KineticsResult(
            top1=_mean(video_hits[0]),
            top5=_mean(video_hits[1]),
            view_top1=_mean(view_hits[0]),
            view_top5=_mean(view_hits[1]),
            num_videos=len(videos),
            num_views=len(self._views),
        )

    def per_class_top1(self) -> dict[int, tuple[float, int]]:
        """Label -> (top-1 accuracy of its videos, number of them), by ascending label."""
        videos = self.video_scores()
        labels = np.array([self._labels[video] for video in videos], np.int64)
        hits, _ = _hits(list(videos.values()), labels.tolist())
        return {k: (float(hits[labels == k].mean()), int((labels == k).sum())) for k in np.unique(labels).tolist()}

    def write_csv(
        self,
        path: str | PathLike[str],
        video_name: Callable[[int], str],
        class_names: Mapping[int, str],
        top: int = 5,
    ) -> None:
        """Writes a row per video: its name, true class, and the ``top`` classes with their scores."""
        videos = self.video_scores()
        num_views = Counter(video for video, _ in self._views)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            ranks = range(1, min([top, *map(len, videos.values())]) + 1)
            columns = [f"{kind}_{rank}" for rank in ranks for kind in ("class", "score")]
            writer.writerow(["video", "views", "label", *columns])
            for video, scores in videos.items():
                best = np.argsort(-scores, kind="stable")[: len(ranks)]
                label = self._labels[video]
                cells = [cell for k in best.tolist() for cell in (class_names.get(k, k), f"{scores[k]:.6f}")]
                writer.writerow([video_name(video), num_views[video], class_names.get(label, label), *cells])


def _hits(
    scores: Sequence[npt.NDArray[np.float64]], labels: Sequence[int]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether the true class is first, and among the first five; of equal scores the lower class index comes first."""
    if not len(scores):
        return np.zeros(0, bool), np.zeros(0, bool)
    table, truth = np.stack(scores), np.asarray(labels)
    true_score = np.take_along_axis(table, truth[:, None], axis=1)
    earlier_tie = (table == true_score) & (np.arange(table.shape[1]) < truth[:, None])
    rank = ((table > true_score) | earlier_tie).sum(axis=1)
    return rank < 1, rank < 5


def _mean(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
