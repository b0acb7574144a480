"""The CUDA kernels, run on the CPU under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops import cuda_on_cpu


def runtime(name: str) -> str:
    compiler = os.environ.get("CXX", "g++")
    path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"{compiler} has no {name}")
    return path


@pytest.mark.starts_first
@pytest.mark.skipif(os.environ.get("SLOWFAST_SANITIZE") == "1", reason="this is the inner run")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_cuda_kernels_are_clean():
    preload = f"{runtime('libasan.so')} {runtime('libubsan.so')} {runtime('libstdc++.so')}"
    cuda_on_cpu.build(sanitize=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        # Python and torch keep memory until the end on purpose, and the interpreter's fibers are ours.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:verify_asan_link_order=0",
        "SLOWFAST_SANITIZE": "1",
        "OMP_NUM_THREADS": "1",
    }
    selected = "cuda-on-cpu and test_matches_reference and not with_many_channels"  # which takes minutes
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops", "-k", selected],
        capture_output=True,
        text=True,
        cwd=cuda_on_cpu.ROOT,
        env=environment,
    )
    report = (result.stdout + result.stderr)[-6000:]
    assert result.returncode == 0, report
    assert " passed" in result.stdout, report
