"""The cost counter against torch's own, and the command around it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slowfast_model.complexity import main, measure_complexity
from slowfast_model.errors import InputError
from slowfast_model.models import build_model, get_preset
from slowfast_model.paper_tables import measured_rows
from slowfast_ops import use_backend
from tests.model.reference import Reference

pytestmark = pytest.mark.xdist_group("complexity")  # for the rows of the paper's table, which take a while


@pytest.mark.parametrize(("name", "crop_size"), [("slow_tiny", 150), ("slowfast_tiny", 64), ("slowfast_r50_4x16", 64)])
def test_counts_equal_torchs_flop_counter(name: str, crop_size: int) -> None:
    config = get_preset(name)
    model = build_model(name, num_classes=7).eval()
    clips = [torch.randn(1, 3, frames, crop_size, crop_size) for frames in config.pathway_frames]
    with use_backend("reference"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.predict(clips)
    measured = measure_complexity(name, num_classes=7, crop_size=crop_size).to_dict()
    assert counter.get_total_flops() == 2 * measured["multiply_adds"]  # torch counts a multiply-add as two


def test_the_sums_agree() -> None:
    costs = measure_complexity("slowfast_r50_8x8", crop_size=256).to_dict()
    for key in ("parameters", "multiply_adds", "activations"):
        assert sum(stage[key] for stage in costs["stages"].values()) == costs[key]
    assert sum(costs["multiply_adds_by_operator"].values()) == costs["multiply_adds"]
    assert list(costs["stages"])[:3] == ["slow.stem", "fast.stem", "lateral.stem"]


@pytest.fixture(scope="module")
def paper_rows() -> list[dict[str, Any]]:
    return list(measured_rows(lambda config: measure_complexity(config, crop_size=256).to_dict()))


def giga(row: dict[str, Any]) -> float:
    return row["multiply_adds"] / 1e9


def test_the_papers_figures(paper_rows: list[dict[str, Any]]) -> None:
    """Ours are the paper's, which scales rounded figures, or a note says why not; every such figure is stated here."""
    others = {}
    for row in paper_rows:
        tolerance = 0.1 if row["paper"] < 100 else 0.55
        if abs(giga(row) - row["paper"]) > tolerance:
            assert row["note"], row
            others[row["name"]] = round(giga(row), 2)
    assert others == {
        "beta = 1/4": 53.60,
        "beta = 1/6": 41.65,
        "beta = 1/12": 33.08,
        "RGB, half resolution, beta = 1/4": 37.53,
        "time difference": 36.10,
        "3D R50": 37.11,
    }


def test_the_papers_parameters(paper_rows: list[dict[str, Any]]) -> None:
    """In millions, batch norm included; the paper's 32.4 for Slow-only and 0.53 for Fast-only leave it out."""
    parameters = {row["name"]: round(row["parameters"] / 1e6, 3) for row in paper_rows if row["table"] in ("2", "5a")}
    assert parameters == {
        "SlowFast 4x16, R50": 34.480,
        "SlowFast 8x8, R50": 34.566,
        "SlowFast 8x8, R101": 53.775,
        "SlowFast 16x8, R101": 53.775,
        "SlowFast 16x8, R101+NL": 60.080,
        "Slow-only": 32.454,
        "Fast-only": 0.539,
        "SlowFast, no lateral": 33.071,
        "SlowFast, TtoC, sum": 33.071,
        "SlowFast, TtoC, concat": 37.842,
        "SlowFast, T-sample": 33.667,
        "SlowFast, T-conv": 34.480,
    }


def test_pyslowfasts_figures_in_the_table(paper_rows: list[dict[str, Any]], reference: Reference) -> None:
    names = {
        "SlowFast 4x16, R50": "Kinetics/SLOWFAST_4x16_R50",
        "SlowFast 8x8, R50": "Kinetics/SLOWFAST_8x8_R50",
        "SlowFast 8x8, R101": "Kinetics/c2/SLOWFAST_8x8_R101_50_50",
        "SlowFast 16x8, R101": "Kinetics/c2/SLOWFAST_16x8_R101_50_50",
        "SlowFast 16x8, R101+NL": "Kinetics/c2/SLOWFAST_NLN_16x8_R101_50_50",
        "Slow-only": "Kinetics/SLOW_4x16_R50",
        **dict.fromkeys(("SlowFast, T-conv", "beta = 1/8", "RGB"), "Kinetics/SLOWFAST_4x16_R50"),
    }
    assert names.keys() == {row["name"] for row in paper_rows if row["pyslowfast"] is not None}
    for row in paper_rows:
        if row["name"] in names:
            operators = reference.index[names[row["name"]]]["flops"]["256"]["by_operator_G"]
            theirs = sum(operators.get(operator, 0) for operator in ("conv", "linear", "einsum"))
            assert row["pyslowfast"] == pytest.approx(theirs, abs=1e-4)
            if row["name"] != "SlowFast 16x8, R101+NL":
                assert giga(row) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_table_is_printed(
    paper_rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:
    monkeypatch.setattr("slowfast_model.paper_tables.measured_rows", lambda _measure: paper_rows)
    main(["--table", "paper", *(["--json"] if as_json else [])])
    printed = capsys.readouterr().out
    if as_json:
        assert json.loads(printed) == paper_rows
        return
    main(["--table", "paper", "--per-stage"])
    stages = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" ")]
    assert len(stages) == sum(len(row["stages"]) for row in paper_rows)
    assert stages[0] == ["slow.stem", "0.617", "0.010", "M"]
    lines = printed.splitlines()[2:]
    assert len(lines) == len(paper_rows)
    assert lines[0].split() == ["2", "SlowFast", "4x16,", "R50", "36.1", "36.102", "36.102", "34.480", "M"]
    assert all(row["note"] in line and f"{giga(row):.3f}" in line for row, line in zip(paper_rows, lines, strict=True))


def test_boxes_cost_one_fully_connected_layer_each() -> None:
    one, five = (
        measure_complexity("slow_tiny", head="detection", num_classes=80, num_boxes=boxes).to_dict() for boxes in (1, 5)
    )
    assert five["multiply_adds_by_operator"]["linear"] == 5 * one["multiply_adds_by_operator"]["linear"]
    assert five["multiply_adds_by_operator"]["conv"] == one["multiply_adds_by_operator"]["conv"]


def test_json_output(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", "slowfast_r50_8x8", "--crop-size", "256", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["parameters"] == 34566488
    assert printed["multiply_adds"] == 65711652864
    assert (printed["frames"], printed["crop_size"], printed["classes"]) == (32, 256, 400)


def test_text_output(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", "slow_r50_8x8", "--head", "detection", "--per-stage"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "slow_r50_8x8, detection, 80 classes, one clip of 8 frames at 224 px"
    assert [line.split()[0] for line in lines[2:]] == [
        *(f"slow.{level}" for level in ("stem", "res2", "res3", "res4", "res5")),
        "head",
        "total",
    ]
    assert "31.798 M" in lines[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "slowfast"], "'slowfast': expected one of"),
        ([], "model is missing: expected one of slow_r50_4x16"),
        (["--table", "paper", "--crop-size", "0"], "crop_size is 0"),
        (["--table", "paper", "--model", "slow_tiny"], "table is 'paper': expected no other options than crop_size"),
        (["--model", "slow_tiny", "--crop-size", "0"], "crop_size is 0"),
        (
            ["--model", "slow_tiny", "--crop-size", "99999999999"],
            "crop_size is 99999999999: expected a number of pixels",
        ),
        (["--model", "slow_tiny", "--num-classes", "0"], "num_classes is 0"),
        (["--model", "slowfast_tiny", "--num-frames", "12"], "num_frames is 12: expected a multiple of alpha"),
        (["--model", "slow_tiny", "--head", "detection", "--num-boxes", "-1"], "num_boxes is -1"),
        (["--model", "slow_tiny", "--crop-sise", "64"], "crop"),
    ],
)
def test_wrong_options_are_named(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(options)


def test_the_command_ends_wrong_input_with_one_line_and_status_2() -> None:
    command = [sys.executable, "-m", "slowfast_model.complexity", "--model", "slowfast_r50"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: model is 'slowfast_r50': expected one of")
    assert done.stderr.count("\n") == 1
