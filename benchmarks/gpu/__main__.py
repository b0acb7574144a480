"""Measures every op on one device: each backend that runs there, eager PyTorch, and torch.compile of the same.

The exit status is 1 if a backend of this project fails or gives a result that differs from the reference.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import measure, table
from benchmarks.gpu.cases import Case, full_cases, quick_cases
from slowfast_ops import _native, available_backends, use_backend

RESULTS = Path(__file__).resolve().parent.parent / "results"
# Relative errors by the norm that are let pass: of outputs, and of gradients, where a ReLU or a maximum that rounds to
# the other side of a tie moves a whole element. The peers round more often, and are only checked for being the same.
ALLOWED = {torch.float32: (1e-4, 1e-2), torch.float16: (5e-3, 3e-2), torch.bfloat16: (2e-2, 5e-2)}
PEERS_MAY = 5


def implementations(case: Case, device: torch.device, peers: bool, compiled: bool) -> Iterator[tuple[str, Callable]]:
    """(name, function) of our backends on this device, and of the peers."""
    for backend in available_backends(case.op, device):
        if backend != "reference" and (device.type == "cuda" or backend == "cpu"):  # no interpreters
            yield backend, _on_backend(case, backend)
    if peers:
        yield "eager", case.eager or _absent
        if compiled:
            torch._dynamo.reset()
            yield "torch.compile", torch.compile(case.eager) if case.eager else _absent


def _on_backend(case: Case, backend: str) -> Callable:
    def call(*inputs: Any) -> Any:
        with use_backend(backend):
            return case.ours(*inputs)

    return call


def _exact(x: Tensor, device: torch.device) -> Tensor:
    return x.detach().to(device, torch.float32 if x.is_floating_point() else x.dtype)


def _absent(*inputs: Any) -> Any:
    raise ImportError("torchvision is not installed")


def largest_errors(actual: tuple, expected: tuple, outputs: int) -> tuple[float, float]:
    """The largest relative error, by the norm, of the outputs and of the gradients."""
    errors = []
    for a, e in zip(actual, expected, strict=True):
        if a.shape != e.shape:
            raise ValueError(f"shape {list(a.shape)} instead of {list(e.shape)}")
        error = (a.double() - e.double()).norm() / e.double().norm().clamp(min=1e-30)
        errors.append(float(error) if bool(torch.isfinite(a).all()) else float("inf"))
    return max(errors[:outputs]), max(errors[outputs:], default=0.0)


def measure_case(case: Case, device: torch.device, arguments: argparse.Namespace, deadline: float) -> list[dict]:
    """One row for each implementation; a row without a time says why."""
    generator = torch.Generator(device).manual_seed(0)
    first = case.inputs(generator)
    outputs = 1 if case.gradients else 2
    # The reference has the same values, without rounding afterwards. Tiny ones are left to the CPU: that keeps
    # cuDNN's kernels out of what a sanitizer has to watch.
    where = torch.device("cpu") if arguments.quick else device
    exact_inputs = [_exact(x, where) if isinstance(x, Tensor) else x for x in first]
    expected = tuple(x.to(device) for x in case.run(_on_backend(case, "reference"), *exact_inputs))
    count = 2 if arguments.quick else measure.sets_past_the_cache(first, device)
    sets = [first] + [case.inputs(generator) for _ in range(count - 1)]
    rows = []
    for name, function in implementations(case, device, arguments.peers, arguments.compile):
        row: dict[str, Any] = {
            "op": case.op,
            "shape": case.shape,
            "dtype": str(case.dtype).removeprefix("torch."),
            "memory_format": case.memory_format,
            "direction": case.direction,
            "implementation": name,
            "ours": name in ("cpu", "cuda", "triton"),
            "bytes": case.bytes,
            "flops": case.flops,
            "seconds": None,
            "error": None,
            "problem": None,
        }
        rows.append(row)
        # What must be compiled first takes long, and leaves time for the rest.
        if time.monotonic() > deadline - (45 if name == "torch.compile" else 0):
            row["problem"] = "not measured: the time was up"
            continue
        try:
            errors = largest_errors(case.run(function, *first), expected, outputs)
            row["error"] = max(errors)
            factor = 1 if row["ours"] else PEERS_MAY
            if any(e > factor * bound for e, bound in zip(errors, ALLOWED[case.dtype], strict=True)):
                row["problem"] = f"differs from the reference by {errors[0]:.1e} (gradients {errors[1]:.1e})"
                continue
            rounds = 3 if arguments.quick else 15
            row["seconds"] = measure.median_seconds(lambda *x, f=function: case.run(f, *x), sets, device, rounds)
        except Exception as error:  # whatever one implementation raises, the others are measured
            row["problem"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda (default), or cpu to try the benchmark itself")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, a few rounds: the figures mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the two files (benchmarks/results)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="only this project's backends")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile of the peers")
    parser.add_argument("--seconds", type=float, default=600, help="measure nothing after so many seconds (600)")
    parser.add_argument("--outcome", action="append", default=[], help="a line for the report, such as 'tests: passed'")
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> int:
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device; `--device cpu --quick` tries the benchmark itself", file=sys.stderr)
        return 1
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    deadline = time.monotonic() + arguments.seconds
    results: dict[str, Any] = {
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "source hash of csrc": _native.BUILD_INFO.get("source_hash"),
            "quick": arguments.quick,
        },
        "measured": {
            "copy_bytes_per_second": measure.copy_bytes_per_second(device, arguments.quick),
            "matrix_flops_per_second": measure.matrix_flops_per_second(device, arguments.quick),
        },
        "outcomes": arguments.outcome,
        "rows": [],
    }
    for case in quick_cases() if arguments.quick else full_cases():
        rows = measure_case(case, device, arguments, deadline)
        results["rows"] += rows
        for row in rows:
            outcome = f"{row['seconds'] * 1e6:10.1f} µs" if row["seconds"] else row["problem"]
            print(f"{row['op']}, {row['shape']}, {row['direction']}: {row['implementation']:<14} {outcome}", flush=True)
    for path in table.write(results, arguments.output):
        print(f"wrote {path}")
    failed = [row for row in results["rows"] if row["ours"] and row["problem"] and "time was up" not in row["problem"]]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(parse()))
