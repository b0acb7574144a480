"""The rows of the paper's tables that state a cost, each as one of our configurations beside the paper's figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from slowfast_model.models import LateralConfig, ModelConfig, get_preset, slowfast_config
from slowfast_model.models.config import LateralKind

CROP_SIZE = 256  # pixels, of the views that all of the paper's figures are for


@dataclass(frozen=True)
class PaperRow:
    """One row.

    Attributes:
        table: number in the paper (ICCV version).
        name: of the row.
        config: our configuration.
        paper: the paper's figure, 1e9 multiply-adds for one view of 256 x 256.
        pyslowfast: PySlowFast's (convolutions, linear layers and attention); None where it has no such configuration.
        note: why our figure is not the paper's or PySlowFast's, if it is not.
    """

    table: str
    name: str
    config: ModelConfig
    paper: float
    pyslowfast: float | None = None
    note: str = ""


def _with_lateral(kind: LateralKind | None) -> ModelConfig:
    lateral = None if kind is None else LateralConfig(kind=kind, norm=False, relu=False)
    return replace(get_preset("slowfast_r50_4x16"), lateral=lateral)


def _of_width(fast_width: int) -> ModelConfig:
    return slowfast_config(4, 16, alpha=8, fast_width=fast_width)


_BASE = get_preset("slowfast_r50_4x16")
_POOL = "PySlowFast pools what is attended to by 1x2x2, the paper's figure comes from 2x2x2"
_ROUNDED = "64 times this beta is no whole number of channels; ours has {} in the Fast stem"
_HALF = "how the sizes are matched is not stated; ours enlarges the Fast features before the lateral connections"
_NO_CHANNELS = "a difference of RGB frames has three channels and costs what RGB does"

ROWS = (
    PaperRow("2", "SlowFast 4x16, R50", _BASE, 36.1, 36.102),
    PaperRow("2", "SlowFast 8x8, R50", get_preset("slowfast_r50_8x8"), 65.7, 65.7117),
    PaperRow("2", "SlowFast 8x8, R101", get_preset("slowfast_r101_8x8"), 106, 106.5138),
    PaperRow("2", "SlowFast 16x8, R101", get_preset("slowfast_r101_16x8"), 213, 213.024),
    PaperRow("2", "SlowFast 16x8, R101+NL", get_preset("slowfast_r101_nl_16x8"), 234, 242.015, _POOL),
    PaperRow("4", "Slow-only 16x8, R101", get_preset("slow_r101_16x8"), 187),
    PaperRow("4", "SlowFast 16x8, R101", get_preset("slowfast_r101_16x8"), 213, 213.024),
    PaperRow("4", "SlowFast 16x8, R101+NL", get_preset("slowfast_r101_nl_16x8"), 234, 242.015, _POOL),
    PaperRow("5a", "Slow-only", get_preset("slow_r50_4x16"), 27.3, 27.2621),
    PaperRow("5a", "Fast-only", get_preset("fast_r50_32x2"), 6.4),
    PaperRow("5a", "SlowFast, no lateral", _with_lateral(None), 34.2),
    PaperRow("5a", "SlowFast, TtoC, sum", _with_lateral("time_to_channel_sum"), 34.2),
    PaperRow("5a", "SlowFast, TtoC, concat", _with_lateral("time_to_channel_concat"), 39.8),
    PaperRow("5a", "SlowFast, T-sample", _with_lateral("time_strided_sample"), 34.9),
    PaperRow("5a", "SlowFast, T-conv", _BASE, 36.1, 36.102),
    PaperRow(
        "5b", "beta = 1/4", _of_width(16), 54.5, note="no width of the Fast stem gives the paper's figure; ours is 16"
    ),
    PaperRow("5b", "beta = 1/6", _of_width(11), 41.8, note=_ROUNDED.format(11)),
    PaperRow("5b", "beta = 1/8", _BASE, 36.1, 36.102),
    PaperRow("5b", "beta = 1/12", _of_width(6), 32.8, note=_ROUNDED.format(6)),
    PaperRow("5b", "beta = 1/16", _of_width(4), 30.6),
    PaperRow("5b", "beta = 1/32", _of_width(2), 28.6),
    PaperRow("5c", "RGB", _BASE, 36.1, 36.102),
    PaperRow(
        "5c",
        "RGB, half resolution, beta = 1/4",
        slowfast_config(4, 16, alpha=8, fast_width=16, fast_input="half_resolution"),
        34.4,
        note=_HALF,
    ),
    PaperRow("5c", "grey-scale", slowfast_config(4, 16, alpha=8, fast_input="grey"), 34.1),
    PaperRow(
        "5c",
        "time difference",
        slowfast_config(4, 16, alpha=8, fast_input="time_difference"),
        34.2,
        note=_NO_CHANNELS,
    ),
    PaperRow("5c", "optical flow", slowfast_config(4, 16, alpha=8, fast_input="optical_flow"), 35.1),
    PaperRow("6", "3D R50", get_preset("i3d_r50_8x8"), 36.7, note="its kernels are not in the text; ours are I3D's"),
)


def measured_rows(measure: Callable[[ModelConfig], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every row with our figures beside it, as plain data.

    Args:
        measure: gives the "multiply_adds" and "parameters" of a configuration and of its "stages"; called once each.
    """
    costs = {config: measure(config) for config in dict.fromkeys(row.config for row in ROWS)}
    for row in ROWS:
        cost = costs[row.config]
        yield {
            "table": row.table,
            "name": row.name,
            "paper": row.paper,
            "pyslowfast": row.pyslowfast,
            "note": row.note,
            **{key: cost[key] for key in ("multiply_adds", "parameters", "stages")},
        }
