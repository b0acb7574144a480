"""Multi-view accuracy: averaging, repeated samples, top-5, the csv of scores."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slowfast_model.evaluation.kinetics import MultiViewScores


def test_views_are_averaged_per_video() -> None:
    scores = MultiViewScores()
    # Video 0: one view wrong by little, one right by much. Video 1: both views wrong.
    scores.add([0, 0], [0, 1], [[0.4, 0.6, 0.0], [0.9, 0.1, 0.0]], [0, 0])
    scores.add([1, 1], [0, 1], [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], [2, 2])
    result = scores.compute()
    assert (result.top1, result.view_top1) == (0.5, 0.25)
    assert (result.top5, result.view_top5) == (1.0, 1.0)  # there are only three classes
    assert (result.num_videos, result.num_views) == (2, 4)


def test_top5_counts_the_first_five() -> None:
    row = np.linspace(1, 0, 10)
    scores = MultiViewScores()
    scores.add(range(10), [0] * 10, [row] * 10, range(10))
    result = scores.compute()
    assert (result.top1, result.top5) == (0.1, 0.5)


def test_equal_scores_favour_the_lower_class() -> None:
    scores = MultiViewScores()
    scores.add([0, 1], [0, 0], [[0.5, 0.5], [0.5, 0.5]], [0, 1])
    assert scores.compute().top1 == 0.5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), videos=st.integers(1, 6), views=st.integers(1, 4), repeats=st.integers(0, 8))
def test_order_batches_processes_and_repeats_change_nothing(seed: int, videos: int, views: int, repeats: int) -> None:
    random = np.random.default_rng(seed)
    samples = [(video, view) for video in range(videos) for view in range(views)]
    rows = {sample: random.dirichlet(np.ones(7)) for sample in samples}
    labels = random.integers(0, 7, videos)
    padded = samples + [samples[i] for i in random.integers(0, len(samples), repeats)]

    def collect(order: list[tuple[int, int]]) -> MultiViewScores:
        scores = MultiViewScores()
        for video, view in order:
            scores.add([video], [view], rows[video, view][None], [labels[video]])
        return scores

    once = collect(samples)
    shuffled = [padded[i] for i in random.permutation(len(padded))]
    merged = collect(shuffled[::2])
    merged.merge(collect(shuffled[1::2]))
    assert merged.compute() == once.compute()
    for video, mean in merged.video_scores().items():
        np.testing.assert_array_equal(mean, np.mean([rows[video, view] for view in range(views)], axis=0))


def test_accuracy_per_class() -> None:
    scores = MultiViewScores()
    scores.add([0, 1, 2], [0, 0, 0], [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.1, 0.9, 0]], [0, 0, 1])
    assert scores.per_class_top1() == {0: (0.5, 2), 1: (1.0, 1)}


def test_nothing_evaluated_is_nan() -> None:
    result = MultiViewScores().compute()
    assert math.isnan(result.top1)
    assert result.num_videos == 0


def test_csv_lists_each_video_with_its_best_classes(tmp_path: Path) -> None:
    scores = MultiViewScores()
    scores.add([3, 3], [0, 1], [[0.2, 0.8], [0.4, 0.6]], [1, 1])
    scores.write_csv(tmp_path / "scores.csv", {3: "a, b.mp4"}.__getitem__, {0: "run", 1: "jump"})
    rows = list(csv.reader((tmp_path / "scores.csv").open()))
    assert rows == [
        ["video", "views", "label", "class_1", "score_1", "class_2", "score_2"],
        ["a, b.mp4", "2", "jump", "jump", "0.700000", "run", "0.300000"],
    ]


def test_rows_must_agree_in_number() -> None:
    with pytest.raises(ValueError):
        MultiViewScores().add([0, 1], [0], [[1.0]], [0])
