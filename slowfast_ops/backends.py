"""Which implementation of an op runs, and why.

Every op has up to four: `reference` (plain PyTorch, any device and dtype), `cpu` and `cuda` (the compiled kernels) and
`triton`. `auto`, the default, picks by device and by what was measured (preferences.py); a backend asked for by name is
used, or is an error that says why not.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager

import torch

from slowfast_ops import _native
from slowfast_ops.preferences import preferred_backends

BACKENDS = ("reference", "cpu", "cuda", "triton")
_ENVIRONMENT = "SLOWFAST_OPS_BACKEND"
_HAS_TRITON = importlib.util.find_spec("triton") is not None  # asked once: torch.compile cannot trace the question


def _checked(name: str, source: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"{source}={name!r} is not a backend; choose one of auto, {', '.join(BACKENDS)}")
    return name


_requested: str = _checked(os.environ.get(_ENVIRONMENT, "auto") or "auto", _ENVIRONMENT)


class _Restore(AbstractContextManager):
    """What use_backend returns: leaving the `with` block puts the previous choice back."""

    def __init__(self, previous: str) -> None:
        self._previous = previous

    def __exit__(self, *exc: object) -> None:
        global _requested
        _requested = self._previous


def use_backend(name: str) -> AbstractContextManager:
    """Chooses the backend of all ops in this process: "auto", "reference", "cpu", "cuda" or "triton".

    As a statement it holds until the next call; as `with use_backend("reference"):` until the block ends. The
    environment variable SLOWFAST_OPS_BACKEND sets the choice at start.

    Raises:
        ValueError: `name` is none of the five.
    """
    global _requested
    previous, _requested = _requested, _checked(name, "name")
    return _Restore(previous)


def requested_backend() -> str:
    """The current choice, "auto" or a backend's name."""
    return _requested


class OpBackends:
    """The implementations that one op has, and the reason why any of the four cannot run."""

    registry: dict[str, OpBackends] = {}  # filled by the ops as they are imported

    def __init__(self, op: str, *, cpu: bool = True, cuda: bool = False, triton: bool = False) -> None:
        self.op = op
        self.written = {"reference": True, "cpu": cpu, "cuda": cuda, "triton": triton}
        OpBackends.registry[op] = self

    def why_not(self, backend: str, device_type: str, dtype: torch.dtype) -> str | None:
        """None if `backend` can run tensors of this device and dtype, else the reason in words."""
        if not self.written[backend]:
            return f"{self.op} has no {backend} kernel"
        if backend == "reference":
            return None
        if backend == "cpu":
            if device_type != "cpu":
                return f"the tensors are on {device_type}"
            if _native.MISSING is not None:
                return _native.MISSING
            if dtype not in (*_native.CPU_DTYPES, torch.uint8):
                return f"the CPU kernels take float32, float64 and bfloat16, not {dtype}"
            return None
        interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        if device_type != "cuda" and not interpreted:
            return f"the tensors are on {device_type}, not on a CUDA device"
        if backend == "cuda":
            if _native.MISSING is not None:
                return _native.MISSING
            if not _native.BUILD_INFO.get("cuda"):
                return f"the CUDA kernels were not built: {_native.BUILD_INFO.get('cuda_reason')}"
            return None
        if not _HAS_TRITON:
            return "triton is not installed (pip install triton)"
        return None

    def choose(self, device_type: str, dtype: torch.dtype, shape_class: str = "any") -> tuple[str | None, str | None]:
        """(the backend that runs tensors of this device and dtype, None), or (None, why the requested one cannot)."""
        if _requested != "auto":
            reason = self.why_not(_requested, device_type, dtype)
            return (_requested, None) if reason is None else (None, reason)
        for backend in preferred_backends(self.op, device_type, shape_class):
            if self.why_not(backend, device_type, dtype) is None:
                return backend, None
        return "reference", None

    def select(self, tensor: torch.Tensor, shape_class: str = "any") -> str:
        """The backend that runs `tensor`; `shape_class` is a name that preferences.py has for its shape.

        Raises:
            RuntimeError: a backend was asked for by name and cannot run it.
        """
        backend, reason = self.choose(tensor.device.type, tensor.dtype, shape_class)
        if backend is None:
            raise RuntimeError(f"{self.op}: backend {_requested!r} was asked for, but {reason}")
        return backend

    def explain(self, device_type: str, dtype: torch.dtype = torch.float32) -> list[tuple[str, str]]:
        """(backend, "runs" or the reason why not) for every backend, for `python -m slowfast_ops.info`."""
        return [(backend, self.why_not(backend, device_type, dtype) or "can run") for backend in BACKENDS]


def available_backends(op: str | None = None, device: str | torch.device = "cpu") -> dict[str, list[str]] | list[str]:
    """The backends that can run float32 tensors on `device`: a list for one op, else a dict of lists by op name.

    Raises:
        ValueError: there is no op of that name.
    """
    device_type = torch.device(device).type
    names = {
        name: [b for b in BACKENDS if entry.why_not(b, device_type, torch.float32) is None]
        for name, entry in OpBackends.registry.items()
    }
    if op is None:
        return names
    if op not in names:
        raise ValueError(f"op={op!r} is not an op of slowfast_ops; there are {', '.join(names)}")
    return names[op]
