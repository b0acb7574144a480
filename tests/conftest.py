"""What all tests share: the shared data folder, NaN-filled fresh memory, and no leaked global state."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # here, because it must be set before any test imports triton

from slowfast_ops import _native, requested_backend, use_backend

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips and reference values, kept beside the repository and never inside it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder (../shared/data beside the repository) is not here")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and workspaces start as NaN (or 0xAB for integers): a kernel that forgets an element fails."""

    def poisoned(*args, **kwargs):
        tensor = torch.empty(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 0xAB)

    monkeypatch.setattr(_native, "_empty", poisoned)


@pytest.fixture(autouse=True)
def global_state_stays():
    """Each test leaves the thread count, the default dtype and the requested backend as they were."""
    threads, dtype, backend = torch.get_num_threads(), torch.get_default_dtype(), requested_backend()
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == dtype, "the test changed the default dtype"
    assert requested_backend() == backend, "the test left a backend requested"
    torch.set_num_threads(threads)
    use_backend(backend)
    if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > 2**30:
        torch.cuda.empty_cache()  # other processes test on this GPU, too


def pytest_configure() -> None:
    if os.environ.get("FAIL_WITHOUT_CUDA") == "1" and not torch.cuda.is_available():
        pytest.exit("FAIL_WITHOUT_CUDA=1, but torch finds no CUDA device", returncode=1)
    if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # of -n: all test processes together take the machine's cores
        threads = max(1, CORES // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # for the commands that tests run


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Of ``pytest -n auto``: a process takes up to 2.5 GB."""
    return min(CORES, 8)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadgroup"  # the marker xdist_group has no meaning without it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.get_closest_marker("starts_first"))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("needs_cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
