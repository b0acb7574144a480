"""The benchmark behind benchmarks/gpu_check.sh, tried on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slowfast_ops import available_backends

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks" / "gpu").is_dir():
    pytest.skip("the benchmarks are not beside the installed package", allow_module_level=True)

from benchmarks.gpu import cases, measure, table  # noqa: E402
from benchmarks.gpu.__main__ import main, parse  # noqa: E402


@pytest.fixture(autouse=True)
def tf32_stays():
    """The benchmark switches TF32 off."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def two_cases(monkeypatch):
    """Two cases, the second with gradients, instead of all."""
    chosen = [case for case in cases.quick_cases() if case.op == "temporal_gather" and case.dtype == torch.float32][:2]
    monkeypatch.setattr("benchmarks.gpu.__main__.quick_cases", lambda: iter(chosen))


def run(folder: Path, *arguments: str) -> tuple[int, dict, str]:
    status = main(parse(["--device", "cpu", "--quick", "--no-compile", "--output", str(folder), *arguments]))
    (data,), (text,) = folder.glob("*.json"), folder.glob("*.md")
    assert data.stem == text.stem == f"cpu-{torch.__version__}"
    return status, json.loads(data.read_text()), text.read_text()


def test_every_op_is_measured_and_right(tmp_path):
    status, results, text = run(tmp_path, "--outcome", "GPU tests: passed")
    rows = results["rows"]
    assert status == 0, [row["problem"] for row in rows if row["problem"]]
    assert {row["op"] for row in rows} == set(available_backends())
    assert {row["implementation"] for row in rows} == {"cpu", "eager"}
    assert {row["memory_format"] for row in rows} == {"contiguous", "channels_last_3d"}
    for row in rows:
        if row["ours"]:
            assert row["seconds"] > 0
            assert row["bytes"] > 0
    assert results["measured"]["copy_bytes_per_second"] > 0
    assert "GPU tests: passed" in text
    assert "## lateral_conv_concat, forward and backward" in text


def test_a_wrong_result_gets_no_time(tmp_path, two_cases, monkeypatch):
    def flipped(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return x.flip(2)[:, :, indices]

    monkeypatch.setattr(
        "benchmarks.gpu.__main__._on_backend", lambda case, backend: flipped if backend == "cpu" else case.eager
    )
    status, results, text = run(tmp_path)
    wrong = [row for row in results["rows"] if row["ours"]]
    assert status == 1
    assert wrong
    assert all(row["seconds"] is None and "differs from the reference" in row["problem"] for row in wrong)
    assert "differs from the reference" in text


def test_what_comes_too_late_is_said(tmp_path, two_cases):
    status, results, _ = run(tmp_path, "--seconds", "0")
    assert status == 0
    assert {row["problem"] for row in results["rows"]} == {"not measured: the time was up"}


def test_bytes_and_flops_by_hand():
    (inference, training) = cases.lateral("x", (1, 2, 2, 1, 1), (1, 3, 8, 1, 1), 4, 5, torch.float32, "contiguous")
    # Outputs 0 and 1 reach frames -2..2 and 2..6: 0 to 6 exist, 3 + 5 taps; 6 output channels, 3 input channels.
    assert inference.flops == 2 * 6 * 3 * 8
    assert inference.bytes == 4 * (2 * 2 + 3 * 7 + 6 * 3 * 5 + 8 * 2)
    assert training.flops == 3 * inference.flops
    (forward, backward) = cases.gather_in_time((1, 3, 8, 2, 2), 4, torch.bfloat16, "contiguous")
    assert forward.bytes == 2 * 2 * (3 * 2 * 4)
    assert backward.bytes == forward.bytes + 2 * (3 * 2 * 4 + 3 * 8 * 4)


def test_shares_are_of_what_was_measured():
    names = {"op": "lateral_conv_concat", "shape": "s", "dtype": "bfloat16", "memory_format": "contiguous"}
    row = {**names, "direction": "forward", "bytes": 8e6, "flops": 3e9, "error": 1e-3, "problem": None}
    rows = [{**row, "implementation": name, "seconds": s} for name, s in (("cuda", 1e-5), ("eager", 4e-5))]
    measured = {"copy_bytes_per_second": 1e12, "matrix_flops_per_second": {"bfloat16": 6e14}}
    machine = {"device": "NVIDIA H100", "torch": "2.11"}
    text = table.markdown({"machine": machine, "measured": measured, "outcomes": [], "rows": rows})
    assert "| s | bfloat16, contiguous | cuda | 10.0 | 4.00 | 800 | 80% | 300.0 | 50% | 1.0e-03 |" in text
    assert "| s | bfloat16, contiguous | eager | 40.0 | 1.00 | 200 | 20% | 75.0 | 12% | 1.0e-03 |" in text


def test_the_median_and_the_rotation():
    order = []
    seconds = measure.median_seconds(order.append, [("a",), ("b",)], torch.device("cpu"), rounds=3)
    assert seconds >= 0
    assert order == ["a", "b", "a", "b", "a"]
