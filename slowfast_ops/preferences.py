"""The order in which `auto` tries the backends on a GPU: by measurement where there is one, else the default."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

DEFAULT = ("cuda", "triton")  # the compiled kernels where they were built, else Triton


class Preference(NamedTuple):
    """A measured exception to the default."""

    op: str  # as in `OpBackends.registry`
    shape_class: str  # what the op passes to `OpBackends.select`; "any" for all
    device: str  # the beginning of torch.cuda.get_device_name(), e.g. "NVIDIA H100"; "" for all
    backends: tuple[str, ...]  # from the fastest to the slowest
    measurement: str  # the file under benchmarks/results/ that shows it


# From the particular to the general: the first that fits counts. Nothing is entered without its measurement.
MEASURED: tuple[Preference, ...] = (
    Preference(
        "lateral_conv_concat",
        "any",
        "NVIDIA H100",
        ("triton", "cuda"),
        "benchmarks/results/nvidia-h100-80gb-hbm3-2.11.0+cu130.md",
    ),
)


def gpu_backends(op: str, shape_class: str = "any") -> tuple[str, ...]:
    """The backends that `auto` tries for `op` on the current GPU, in order."""
    for entry in MEASURED:
        if entry.op == op and entry.shape_class in ("any", shape_class) and _device_name().startswith(entry.device):
            return entry.backends
    return DEFAULT


@torch.compiler.assume_constant_result  # torch.compile asks when it traces, and cannot trace the question itself
def _device_name() -> str:
    return _cached_device_name()


@lru_cache
def _cached_device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
