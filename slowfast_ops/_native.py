"""The compiled module `_C`: loading it, and turning tensors into what it takes.

Kernels never allocate: every output and workspace comes from `allocate`.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_C: ModuleType | None
try:  # torch is imported first, so that both use its OpenMP runtime
    from slowfast_ops import _C  # type: ignore[attr-defined, no-redef]

    MISSING: str | None = None
except ImportError as error:
    _C = None
    MISSING = f"the compiled module slowfast_ops._C could not be loaded ({error}); build it with: pip install -e ."

BUILD_INFO: dict[str, Any] = json.loads(_C.build_info_json) if _C is not None else {}

# The numbers of slowfast::DType in csrc/include/slowfast/dtype.h.
DTYPE_CODES = {
    torch.uint8: 0,
    torch.int64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.float32: 4,
    torch.float64: 5,
}
CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def library() -> Any:
    """The compiled module, or a RuntimeError that says how to get it."""
    if _C is None:
        raise RuntimeError(f"slowfast_ops: {MISSING}")
    return _C


def view(tensor: torch.Tensor | None) -> tuple | None:
    """(address, dtype, sizes, strides in elements) of a tensor, for the compiled kernels."""
    if tensor is None:
        return None
    return tensor.data_ptr(), DTYPE_CODES[tensor.dtype], tensor.shape, tensor.stride()


_empty = torch.empty  # tests replace it by one that fills with NaN


def allocate(
    shape: Sequence[int],
    *,
    like: torch.Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """Uninitialised memory for an output or a workspace, on the device of `like` (fake and meta tensors, too)."""
    return _empty(tuple(shape), dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def num_threads() -> int:
    """The threads a CPU kernel may use: torch's own setting, so that DataLoader workers stay single-threaded."""
    return torch.get_num_threads()


def _raw_stream(device_index: int) -> int:
    """The handle of a device's current stream. Looked up when called: a CPU build of torch lacks the function."""
    return torch._C._cuda_getCurrentRawStream(device_index)  # type: ignore[attr-defined]


def cuda_place(tensor: torch.Tensor) -> tuple[int, int]:
    """(device index, current stream), which every CUDA launcher takes as its last arguments."""
    index = tensor.device.index or 0
    return index, _raw_stream(index)


def stale_sources() -> str | None:
    """A warning when csrc/ next to this (editable) install is newer than the binary, else None."""
    rule = Path(__file__).resolve().parent.parent / "csrc" / "source_hash.py"
    if _C is None or not rule.is_file() or runpy.run_path(str(rule))["source_hash"]() == BUILD_INFO.get("source_hash"):
        return None
    return "csrc/ has changed since the binary was built; run `pip install -e .` again"
