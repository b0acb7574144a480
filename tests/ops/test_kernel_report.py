"""Every GPU kernel compiles for every architecture, and no forward kernel spills: csrc/testing/kernel_report.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slowfast_ops import _native
from slowfast_ops.backends import OpBackends

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.xdist_group("kernel report")  # made once for all tests of it


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    pytest.importorskip("triton")
    if not _native.BUILD_INFO.get("cuda"):
        pytest.skip(f"the CUDA kernels were not built: {_native.BUILD_INFO.get('cuda_reason')}")
    path = tmp_path_factory.mktemp("report") / "kernels.json"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(ROOT / "csrc/testing/kernel_report.py"), "--json", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(path.read_text())


def test_every_kernel_is_there_for_every_architecture(rows):
    archs = {f"sm_{arch}" for arch in _native.BUILD_INFO["cuda_archs"]}
    kernels: dict[str, set] = {}
    for row in rows:
        if row["kind"] == "cuda":
            kernels.setdefault(row["kernel"], set()).add(row["arch"])
    assert kernels
    assert all(found == archs for found in kernels.values()), kernels
    for op, backends in OpBackends.registry.items():
        for kind in ("cuda", "triton"):
            family = op.removesuffix("_pool")  # the pooled op and the plain one are variants of the same kernels
            named = any(row["kind"] == kind and row["kernel"].startswith(family) for row in rows)
            assert named == backends.written[kind], f"{op}: {kind} kernels compiled: {named}"


def test_no_forward_kernel_spills(rows):
    assert not [row for row in rows if "forward" in row["kernel"] and row["spill_bytes"]]
