"""Pictures of a run: training curves, figures per class, and key frames with predicted and true boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

GREEN, RED, BLUE, GREY = "#1a9641", "#d7191c", "#2b6cb0", "#718096"
_DPI = 110


def save_training_curves(
    path: str | PathLike[str], rows: Sequence[Mapping[str, str]], metrics: Mapping[str, str]
) -> None:
    """Draws loss, learning rate and evaluation figures over epochs.

    Args:
        path: png file.
        rows: of metrics.csv; empty cells are left out.
        metrics: column -> title of the figures to draw, all in [0, 1].
    """
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = [("loss", {"loss": "training loss"}), ("learning rate", {"lr": "learning rate"}), ("validation", metrics)]
    for axis, (title, columns) in zip(axes, panels, strict=True):
        for column, label in columns.items():
            points = [(float(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
            if points:
                marker = "o" if title == "validation" or len(points) == 1 else None
                axis.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=label)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axis.set_ylim(bottom=0, top=1.02 if title == "validation" else None)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if axes[2].lines:
        axes[2].legend(loc="lower right")
    _save(figure, path)


def save_per_class_bars(
    path: str | PathLike[str], figures: Mapping[str, float], counts: Mapping[str, int], title: str, mean: float
) -> None:
    """Draws a horizontal bar per class, highest first, and a line at the mean.

    Args:
        path: png file.
        figures: class name -> figure in [0, 1]; nan (a class without examples) is left out.
        counts: class name -> number of examples, written beside the name.
        title: what the figures are.
        mean: where the line is drawn.
    """
    shown = sorted(((value, name) for name, value in figures.items() if np.isfinite(value)), key=lambda item: item[0])
    figure = Figure(figsize=(9, 1.4 + 0.3 * max(len(shown), 1)), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(range(len(shown)), [value for value, _ in shown], color=BLUE, height=0.7)
    axis.bar_label(bars, labels=[f"{value:.3f}" for value, _ in shown], padding=3, fontsize=8)
    axis.set_yticks(range(len(shown)), [f"{_short(name)} ({counts[name]})" for _, name in shown])
    axis.set_xlim(0, 1.08)
    axis.set_ylim(-0.6, max(len(shown), 1) - 0.4)
    if np.isfinite(mean):
        axis.axvline(mean, color=RED, linewidth=1.2, linestyle="--")
    axis.set_title(f"{title}, mean {mean:.3f}", loc="left")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


@dataclass(frozen=True)
class KeyFrame:
    """A key frame and its boxes.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        title: for example the video and the second.
        predicted: boxes [n, 4] as fractions of the frame.
        predicted_scores: [n, K], a score per class.
        true: boxes [m, 4] as fractions of the frame.
        true_labels: the class names of each true box.
        class_names: the names of the K columns.
    """

    image: npt.NDArray[np.uint8]
    title: str
    predicted: npt.NDArray[np.float64]
    predicted_scores: npt.NDArray[np.float64]
    true: npt.NDArray[np.float64]
    true_labels: Sequence[Sequence[str]]
    class_names: Sequence[str]


def save_key_frames(path: str | PathLike[str], frames: Sequence[KeyFrame], max_labels: int = 3) -> None:
    """Draws key frames side by side: true boxes in red, predicted ones in green, as opaque as they are confident.

    Args:
        path: png file.
        frames: what to draw.
        max_labels: this many of a predicted box's best classes are written out.
    """
    columns = min(len(frames), 2)
    rows = -(-len(frames) // columns)
    aspect = max(frame.image.shape[0] / frame.image.shape[1] for frame in frames)
    figure = Figure(figsize=(6 * columns, (6 * aspect + 0.3) * rows + 0.4), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis, frame in zip(axes, frames, strict=False):
        _draw_key_frame(axis, frame, max_labels)
    for axis in axes[len(frames) :]:
        axis.set_axis_off()
    figure.legend(
        handles=[
            Rectangle((0, 0), 1, 1, fill=False, edgecolor=GREEN, linewidth=2, label="predicted, with confidence"),
            Rectangle((0, 0), 1, 1, fill=False, edgecolor=RED, linewidth=2, linestyle="--", label="true"),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    _save(figure, path)


def _draw_key_frame(axis: Axes, frame: KeyFrame, max_labels: int) -> None:
    height, width = frame.image.shape[:2]
    axis.imshow(frame.image, interpolation="nearest")
    axis.set_title(frame.title, fontsize=10)
    axis.set_axis_off()
    scale = np.array([width, height, width, height])
    for box, labels in zip(frame.true * scale, frame.true_labels, strict=True):
        _draw_box(axis, box, RED, 1.0, "--")
        _write(axis, box[0], box[3], "\n".join(_short(label) for label in labels), RED, below=True)
    for box, scores in zip(frame.predicted * scale, frame.predicted_scores, strict=True):
        best = np.argsort(-scores, kind="stable")[:max_labels]
        shown = [k for k in best.tolist() if scores[k] >= 0.3] or best[:1].tolist()
        _draw_box(axis, box, GREEN, max(0.25, float(scores[best[0]])), "-")
        text = "\n".join(f"{_short(frame.class_names[k])} {scores[k]:.2f}" for k in shown)
        _write(axis, box[0], box[1], text, GREEN, below=False)


def _draw_box(axis: Axes, box: npt.NDArray[np.float64], color: str, alpha: float, style: str) -> None:
    x1, y1, x2, y2 = box - 0.5  # imshow puts the centre of the first pixel at 0
    axis.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, alpha=alpha, linewidth=2, linestyle=style)
    )


def _write(axis: Axes, x: float, y: float, text: str, color: str, below: bool) -> None:
    """Writes below or above the point, or on its other side where the picture ends."""
    bottom, top = axis.get_ylim()
    room = (bottom - y if below else y - top) / (bottom - top)
    needed = 0.04 * (text.count("\n") + 1)
    axis.text(
        x,
        min(max(y, top), bottom),
        text,
        fontsize=7,
        color="white",
        va="top" if below == (room >= needed) else "bottom",
        clip_on=True,
        bbox={"facecolor": color, "alpha": 0.75, "linewidth": 0, "pad": 1.5},
    )


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _save(figure: Figure, path: str | PathLike[str]) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI)
