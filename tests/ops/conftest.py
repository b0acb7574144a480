"""Parametrises the checks of OpTester over samples, targets and memory layouts, and sets up the stand-ins for a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable

import pytest
import torch

from slowfast_ops import _library, _native
from slowfast_ops.backends import OpBackends
from tests.ops import cuda_on_cpu, op_tester

HAS_CUDA = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None


def _targets(op: str, test: Callable) -> list[op_tester.Target]:
    written = OpBackends.registry[op].written
    on_a_gpu = [op_tester.CUDA] * written["cuda"] + [op_tester.TRITON] * (written["triton"] and HAS_TRITON)
    if hasattr(test, "only_on_a_gpu"):
        return on_a_gpu
    targets = [op_tester.CPU, *(on_a_gpu if HAS_CUDA else [])]
    if not hasattr(test, "only_real_targets"):
        targets += [op_tester.CUDA_ON_CPU] * written["cuda"]
        targets += [op_tester.TRITON_INTERPRETER] * (written["triton"] and HAS_TRITON and not HAS_CUDA)
    return targets


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "sample" in metafunc.fixturenames:
        metafunc.parametrize("sample", metafunc.cls.samples, ids=str)
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", ["contiguous", "channels_last_3d", "sliced"])
    if "target" in metafunc.fixturenames:
        needs_cuda = [pytest.mark.needs_cuda] if hasattr(metafunc.function, "only_on_a_gpu") else []
        targets = _targets(metafunc.cls.op, metafunc.function)
        metafunc.parametrize(
            "target", [pytest.param(t, marks=needs_cuda) for t in targets], ids=[str(t) for t in targets], indirect=True
        )


@pytest.fixture(scope="session")
def compiled_for_the_cpu():
    """csrc/ with its CUDA kernels, compiled by g++; sanitized when the test session asks for it."""
    return cuda_on_cpu.load(sanitize=os.environ.get("SLOWFAST_SANITIZE") == "1")


@pytest.fixture
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """The Target; for CUDA_ON_CPU, with the CPU kernels of every op replaced by the CUDA ones."""
    if request.param is op_tester.TRITON_INTERPRETER:
        _spare_the_interpreter(monkeypatch)
    if request.param is not op_tester.CUDA_ON_CPU:
        yield request.param
        return
    monkeypatch.setattr(_native, "_C", request.getfixturevalue("compiled_for_the_cpu"))
    monkeypatch.setattr(_native, "_raw_stream", lambda device_index: 0)
    monkeypatch.setattr(_native, "CPU_DTYPES", (*_native.CPU_DTYPES, torch.float16))
    overrides = torch.library.Library(_library.NAMESPACE, "IMPL")
    for name, kernel in _library.CUDA_KERNELS.items():
        overrides.impl(name, kernel, "CPU", allow_override=True)
    yield request.param
    overrides._destroy()


def _spare_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import interpreter_builder

    from slowfast_ops.gather_frames import triton

    # A fifth of its time goes into looking for overflows of int32, of which samples so small have none.
    quick = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
    monkeypatch.setattr(interpreter_builder, "options", quick)
    # It takes its time for each step of a gather_frames program, however few lines of it there are.
    monkeypatch.setattr(triton, "LINES", 16)
    monkeypatch.setitem(triton.STEPS, False, 2)
