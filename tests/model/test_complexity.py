"""The cost counter against torch's own, and the command around it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slowfast_model.complexity import main, measure_complexity
from slowfast_model.errors import InputError
from slowfast_model.models import build_model, get_preset
from slowfast_ops import use_backend


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


def test_the_papers_figures() -> None:
    """Table 2 of the paper, one view of 256 x 256."""
    giga = {name: measure_complexity(name, crop_size=256).to_dict()["multiply_adds"] / 1e9 for name in PAPER}
    assert {name: round(value, 1) for name, value in giga.items()} == PAPER


PAPER = {"slow_r50_4x16": 27.3, "slowfast_r50_4x16": 36.1, "slowfast_r50_8x8": 65.7}


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
        (["--model", "slow_tiny", "--crop-size", "0"], "crop_size is 0"),
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
