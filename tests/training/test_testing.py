"""The test command: a checkpoint gives the figures that its training ended with; views; wrong checkpoints."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slowfast_model.errors import InputError
from slowfast_model.evaluation.ava_csv import read_detections
from slowfast_model.test import parse
from slowfast_model.test import test as evaluate
from tests.training.conftest import run_train


@pytest.fixture(scope="module")
def detector(ava_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("detector") / "run"
    run_train("--dataset", "ava", "--data-root", ava_root, "--max-epochs", 1, "--output-dir", run)
    return run


def run_test(dataset: str, root: Path, checkpoint: Path, output: Path, *arguments: object) -> dict[str, Any]:
    common = ["--dataset", dataset, "--data-root", root, "--weights", checkpoint, "--output-dir", output]
    common += ["--num-workers", 0, "--accelerator", "cpu", "--batch-size", 2]
    return evaluate(parse([str(argument) for argument in (*common, *arguments)]))


def test_a_checkpoint_gives_the_figures_of_its_training(detector: Path, ava_root: Path, tmp_path: Path) -> None:
    trained = json.loads((detector / "metrics.json").read_text())
    for name in ("model.safetensors", "last.ckpt"):
        output = tmp_path / name
        figures = run_test("ava", ava_root, detector / "checkpoints" / name, output)
        assert (figures["frame_map_50"], figures["per_class_ap"]) == (trained["frame_map_50"], trained["per_class_ap"])
        assert (output / "detections.csv").read_text() == (detector / "detections.csv").read_text()
        assert json.loads((output / "metrics.json").read_text()) == figures


def test_scores_of_scales_and_mirror_images_are_averaged(detector: Path, ava_root: Path, tmp_path: Path) -> None:
    weights = detector / "checkpoints" / "model.safetensors"

    def scores(name: str, *arguments: object) -> np.ndarray:
        run_test("ava", ava_root, weights, tmp_path / name, *arguments)
        return read_detections(tmp_path / name / "detections.csv").scores

    alone = [scores(str(scale), "--scales", scale) for scale in (96, 128)]
    np.testing.assert_allclose(scores("both", "--scales", 96, 128), np.mean(alone, axis=0), rtol=1e-6)
    flipped = scores("flipped", "--scales", "[96]", "--flip")
    assert np.abs(flipped - alone[0]).max() > 1e-6
    assert len(flipped) == len(alone[0])


def test_every_video_has_all_its_views(kinetics_root: Path, tmp_path: Path) -> None:
    run_train(
        "--dataset", "kinetics", "--data-root", kinetics_root, "--max-epochs", 1, "--output-dir", tmp_path / "run"
    )
    weights = tmp_path / "run" / "checkpoints" / "model.safetensors"
    views = ["--num-temporal-views", 2, "--num-spatial-crops", 3]
    figures = run_test("kinetics", kinetics_root, weights, tmp_path / "test", *views)
    assert (figures["num_videos"], figures["num_views"]) == (2, 12)
    with (tmp_path / "test" / "video_scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == ["4.mp4", "5.mp4"]
    with pytest.raises(InputError, match="is a classification model: ava needs a detection model"):
        run_test("ava", kinetics_root, weights, tmp_path / "wrong")


def test_wrong_arguments_are_named(detector: Path, ava_root: Path, tmp_path: Path) -> None:
    weights = detector / "checkpoints" / "model.safetensors"
    with pytest.raises(InputError, match=r"data\.test_scales is \[0\]: expected lengths of 1 or more"):
        run_test("ava", ava_root, weights, tmp_path / "a", "--scales", "[0]")
    with pytest.raises(InputError, match="no such file"):
        run_test("ava", ava_root, tmp_path / "nothing.ckpt", tmp_path / "b")
    with pytest.raises(InputError, match="not empty"):
        run_test("ava", ava_root, weights, detector)
