"""The pictures: what must be seen in them is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from slowfast_model.evaluation.report import KeyFrame, save_key_frames, save_per_class_bars, save_training_curves


def pixels_like(path: Path, color: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has a colour, bool [H, W]."""
    image = imread(path)[..., :3] * 255
    return np.abs(image - np.array(color)).max(axis=2) < 30


def key_frame(num_predicted: int = 1, num_true: int = 1) -> KeyFrame:
    return KeyFrame(
        image=np.full((90, 160, 3), 255, np.uint8),
        title="video, second 3",
        predicted=np.array([[0.1, 0.2, 0.4, 0.9]])[:num_predicted],
        predicted_scores=np.array([[0.95, 0.01]])[:num_predicted],
        true=np.array([[0.6, 0.2, 0.9, 0.9]])[:num_true],
        true_labels=[["walk", "talk to (e.g., self, a person, a group)"]][:num_true],
        class_names=["walk", "run"],
    )


def test_key_frames_show_predicted_boxes_green_and_true_ones_red(tmp_path: Path) -> None:
    path = tmp_path / "key_frame.png"
    save_key_frames(path, [key_frame()])
    green, red = pixels_like(path, (26, 150, 65)), pixels_like(path, (215, 25, 28))
    upper = slice(0, int(0.85 * green.shape[0]))  # without the legend
    assert green[upper].sum() > 300
    assert red[upper].sum() > 300
    width = green.shape[1]
    assert (
        np.nonzero(green[upper])[1].max() < 0.6 * width
    )  # the predicted box is on the left, the true one on the right
    assert np.nonzero(red[upper])[1].min() > 0.5 * width


def test_key_frames_without_boxes_and_several_of_them(tmp_path: Path) -> None:
    for count in (1, 2, 3, 4):
        path = tmp_path / f"{count}.png"
        save_key_frames(path, [key_frame(0, 0), *[key_frame()] * (count - 1)])
        assert imread(path).std() > 0


def test_curves_leave_out_empty_cells(tmp_path: Path) -> None:
    rows = [
        {"epoch": "0.5", "loss": "2.0", "lr": "0.1", "frame_map_50": ""},
        {"epoch": "1", "loss": "1.0", "lr": "0.05", "frame_map_50": "0.25"},
    ]
    save_training_curves(tmp_path / "curves.png", rows, {"frame_map_50": "frame-mAP@0.5"})
    save_training_curves(tmp_path / "one.png", rows[:1], {"frame_map_50": "frame-mAP@0.5"})
    save_training_curves(tmp_path / "none.png", [], {"frame_map_50": "frame-mAP@0.5"})
    curves, none = imread(tmp_path / "curves.png"), imread(tmp_path / "none.png")
    assert curves.shape == none.shape
    assert (curves != none).any()


def test_bars_leave_out_classes_without_examples(tmp_path: Path) -> None:
    figures = {"walk": 0.9, "run": 0.1, "swim": float("nan")}
    counts = {"walk": 12, "run": 3, "swim": 0}
    save_per_class_bars(tmp_path / "three.png", figures, counts, "AP", 0.5)
    save_per_class_bars(tmp_path / "none.png", {"swim": float("nan")}, counts, "AP", float("nan"))
    blue = pixels_like(tmp_path / "three.png", (43, 108, 176))
    rows_with_bars = blue.sum(axis=1)
    longest, shortest = rows_with_bars.max(), rows_with_bars[rows_with_bars > 20].min()
    assert 7 < longest / shortest < 11
    assert pixels_like(tmp_path / "none.png", (43, 108, 176)).sum() < 20
