"""The order in which `auto` tries the backends: by measurement where there is one, else the default."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

DEFAULT = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "triton"),  # the compiled kernels where they were built, else Triton
}


class Preference(NamedTuple):
    """A measured exception to the default. What is named first and can run does; if none can, `reference` does."""

    op: str  # as in `OpBackends.registry`
    shape_class: str  # what the op passes to `OpBackends.select`; "any" for all
    device: str  # "cpu", or the beginning of torch.cuda.get_device_name(), e.g. "NVIDIA H100"
    backends: tuple[str, ...]  # from the fastest to the slowest
    measurement: str  # the file that shows it: results, or the benchmark of a CPU


# From the particular to the general: the first that fits counts. Nothing is entered without its measurement.
MEASURED: tuple[Preference, ...] = (
    # The same copy as torch's own, a call of which costs less than one of the op.
    Preference("temporal_gather", "contiguous", "cpu", ("reference",), "benchmarks/bench_temporal_gather.py"),
    Preference(
        "lateral_conv_concat",
        "any",
        "NVIDIA H100",
        ("triton", "cuda"),
        "benchmarks/results/nvidia-h100-80gb-hbm3-2.11.0+cu130.md",
    ),
)


def measured(op: str, device_type: str) -> list[Preference]:
    """The exceptions for `op` on a CPU, or on the current GPU."""
    return [entry for entry in MEASURED if entry.op == op and _is_on(device_type, entry.device)]


def preferred_backends(op: str, device_type: str, shape_class: str = "any") -> tuple[str, ...]:
    """The backends that `auto` tries for `op` on a CPU, or on the current GPU, in order."""
    for entry in MEASURED:  # no list of them is made: every call of an op comes this way
        if entry.op == op and entry.shape_class in ("any", shape_class) and _is_on(device_type, entry.device):
            return entry.backends
    return DEFAULT["cpu" if device_type == "cpu" else "cuda"]


def _is_on(device_type: str, device: str) -> bool:
    if device_type == "cpu" or device == "cpu":
        return device_type == device
    return _device_name().startswith(device)


def _device_name() -> str:
    return _cached_device_name()


# torch.compile asks when it traces, and cannot trace the question itself. This is all that
# torch.compiler.assume_constant_result sets; but it imports all that torch.compile needs, for everyone.
_device_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache
def _cached_device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
