"""Choosing a backend, and what `python -m slowfast_ops.info` says about it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slowfast_ops import _native, available_backends, preferences, requested_backend, temporal_gather, use_backend
from slowfast_ops.backends import BACKENDS, OpBackends
from slowfast_ops.info import collect, render


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_named_backend_is_used_or_is_an_error():
    x = torch.randn(1, 1, 2, 1, 1)
    with use_backend("reference"):
        assert requested_backend() == "reference"
        temporal_gather(x, [0])
    assert requested_backend() == "auto"
    with use_backend("cuda"), pytest.raises(RuntimeError, match="backend 'cuda' was asked for, but"):
        temporal_gather(x, [0])
    with pytest.raises(ValueError, match="name='gpu' is not a backend; choose one of auto, reference"):
        use_backend("gpu")


def test_nested_choices_and_exceptions_restore_the_previous_one():
    with use_backend("cpu"):
        with pytest.raises(KeyError), use_backend("reference"):
            raise KeyError
        assert requested_backend() == "cpu"
    assert requested_backend() == "auto"


def test_a_dtype_without_kernel_runs_on_the_reference():
    x = torch.randn(1, 1, 2, 1, 1).half()
    assert temporal_gather(x, [1]).dtype == torch.float16
    with use_backend("cpu"), pytest.raises(RuntimeError, match=r"not torch\.float16"):
        temporal_gather(x, [1])


def test_missing_binary_is_explained(monkeypatch):
    monkeypatch.setattr(_native, "_C", None)
    monkeypatch.setattr(_native, "MISSING", "the compiled module could not be loaded; build it with: pip install -e .")
    x = torch.randn(1, 1, 2, 1, 1)
    assert torch.equal(temporal_gather(x, [1]), x[:, :, 1:])
    assert "cpu" not in available_backends("temporal_gather")
    with use_backend("cpu"), pytest.raises(RuntimeError, match=r"pip install -e \."):
        temporal_gather(x, [1])
    with pytest.raises(RuntimeError, match=r"pip install -e \."):
        torch.ops.slowfast.temporal_gather(x, torch.tensor([[1]]))


def test_every_op_is_listed_with_a_reason_for_every_backend():
    info = collect()
    assert set(info["ops"]) == set(OpBackends.registry)
    for devices in info["ops"].values():
        assert devices["cpu"]["runs"] == "cpu"
        for choice in devices.values():
            assert list(choice["backends"]) == list(BACKENDS)
            assert all(choice["backends"].values())
    text = render(info)
    assert all(name in text for name in OpBackends.registry)
    with pytest.raises(ValueError, match="op='roi' is not an op"):
        available_backends("roi")


def info_about(monkeypatch, *, nvcc: bool, triton: bool, gpu: bool) -> str:
    """What the command prints on a machine with and without these."""
    build = {"openmp": True, "compiler": "g++ 12", "cuda_archs": ["80", "90"]}
    found = {"cuda": "13.0", "cuda_reason": "nvcc at /usr/local/cuda/bin/nvcc"}
    missing = {"cuda": None, "cuda_reason": "nvcc not found (put it on PATH or set CUDA_HOME, then install again)"}
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_native, "MISSING", None)
    monkeypatch.setattr(_native, "BUILD_INFO", {**build, **(found if nvcc else missing)})
    monkeypatch.setattr("slowfast_ops.backends._HAS_TRITON", triton)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(gpu))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *index: "NVIDIA H100")
    return re.sub(r"\s+", " ", render(collect()))


@pytest.mark.parametrize(
    ("nvcc", "triton", "gpu", "runs", "said"),
    [
        (False, True, True, "triton", ["not built: nvcc not found", "cuda the CUDA kernels were not built"]),
        (True, False, True, "cuda", ["built with CUDA 13.0 for sm_80 sm_90", "triton is not installed (pip install"]),
        (False, False, True, "reference", ["CUDA kernels not built", "triton is not installed (pip install triton)"]),
        (True, True, False, "cuda", ["CUDA devices none found", "tensors on cuda (this machine has none)"]),
        (True, True, True, "cuda", ["CUDA devices NVIDIA H100", "triton can run"]),
    ],
    ids=["without nvcc", "without Triton", "without either", "without a GPU", "with all three"],
)
def test_info_explains_every_situation(monkeypatch, nvcc, triton, gpu, runs, said):
    text = info_about(monkeypatch, nvcc=nvcc, triton=triton, gpu=gpu)
    for words in said:
        assert words in text
    absent = "" if gpu else " (this machine has none)"
    (section,) = re.findall(r"temporal_gather tensors on cpu: cpu runs.*", text)
    assert f"tensors on cuda{absent}: {runs} runs" in section
    assert "cpu the tensors are on cuda" in section


def test_a_measured_preference_decides_what_auto_runs(monkeypatch):
    entries = (
        preferences.Preference("temporal_gather", "small", "NVIDIA H100", ("triton", "cuda"), "results/a.md"),
        preferences.Preference("temporal_gather", "any", "NVIDIA A100", ("triton",), "results/b.md"),
    )
    monkeypatch.setattr(preferences, "MEASURED", entries)
    monkeypatch.setattr(preferences, "_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(OpBackends, "why_not", lambda self, backend, device_type, dtype: None)
    backends = OpBackends.registry["temporal_gather"]
    assert backends.choose("cuda", torch.float32, "small") == ("triton", None)
    assert backends.choose("cuda", torch.float32) == ("cuda", None)
    assert OpBackends.registry["gather_frames"].choose("cuda", torch.float32, "small") == ("cuda", None)
    assert backends.choose("cpu", torch.float32, "small") == ("cpu", None)


def test_a_measured_preference_compiles(monkeypatch):
    entry = preferences.Preference("temporal_gather", "any", "NVIDIA H100", ("triton", "cuda"), "results/a.md")
    monkeypatch.setattr(preferences, "MEASURED", (entry,))
    monkeypatch.setattr(
        preferences, "_cached_device_name", lambda: subprocess.check_output(["echo", "NVIDIA H100"]).decode()
    )

    def sign(x: torch.Tensor) -> torch.Tensor:
        return x if preferences.preferred_backends("temporal_gather", "cuda")[0] == "triton" else -x

    torch._dynamo.reset()
    assert torch.compile(sign, fullgraph=True, backend="eager")(torch.ones(1)) == 1


def test_every_preference_cites_its_measurement():
    root = Path(_native.__file__).resolve().parent.parent
    for entry in preferences.MEASURED:
        assert entry.op in OpBackends.registry
        assert set(entry.backends) <= {"cuda", "triton", "reference"}
        assert (root / entry.measurement).is_file(), entry


def test_info_command():
    result = run("-m", "slowfast_ops.info", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["build"]["source_hash"]
    named = run("-m", "slowfast_ops.info", SLOWFAST_OPS_BACKEND="cuda")
    assert "tensors on cpu: an error, since" in named.stdout


def test_environment_variable_is_checked():
    result = run("-c", "import slowfast_ops", SLOWFAST_OPS_BACKEND="gpu")
    assert result.returncode != 0
    assert "SLOWFAST_OPS_BACKEND='gpu' is not a backend" in result.stderr
    code = "import slowfast_ops as s; assert s.requested_backend() == 'cpu'"
    assert run("-c", code, SLOWFAST_OPS_BACKEND="cpu").returncode == 0


def test_importing_does_not_touch_cuda():
    code = "import slowfast_ops, torch; assert not torch.cuda.is_initialized(); import os; os.fork() or os._exit(0)"
    result = run("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("package", ["slowfast_model", "torch._dynamo", "triton"])
def test_importing_does_not_import_what_is_large_or_not_needed(package):
    code = f"import sys, slowfast_ops; sys.exit(any(m.startswith('{package}') for m in sys.modules))"
    assert run("-c", code).returncode == 0


def test_binary_matches_the_sources():
    assert _native.stale_sources() is None


def test_no_torch_header_below_csrc():
    csrc = _native.Path(_native.__file__).resolve().parent.parent / "csrc"
    if not csrc.is_dir():
        pytest.skip("the sources are not beside the installed package")
    for path in csrc.rglob("*"):
        if path.suffix in {".h", ".cuh", ".cpp", ".cu"}:
            text = path.read_text()
            assert "#include <torch" not in text, path
            assert "#include <ATen" not in text, path
            if path.name != "bindings.cpp":
                assert "pybind11" not in text, path
