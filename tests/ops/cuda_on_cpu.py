"""Builds csrc/ with g++ and the header of csrc/testing/cuda_on_cpu, so that the CUDA kernels run on CPU tensors."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC = ROOT / "csrc"
SANITIZER_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def build(sanitize: bool = False) -> Path:
    """The path of the module, compiled once per state of the sources into build/."""
    import ninja
    import pybind11

    digest = hashlib.sha256(str(sanitize).encode())
    for path in sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"}):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / f"cuda_on_cpu-{'sanitized-' if sanitize else ''}{digest.hexdigest()[:12]}"
    module = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if module.is_file():
        return module
    folder.mkdir(parents=True, exist_ok=True)
    includes = [CSRC / "testing" / "cuda_on_cpu", CSRC / "include", CSRC / "cuda"]
    includes += [Path(pybind11.get_include()), Path(sysconfig.get_path("include"))]
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-DSLOWFAST_WITH_CUDA"]
    flags += ["-DSF_NO_MULTIVERSION", "-DSF_CUDA_ON_CPU=1", *(SANITIZER_FLAGS if sanitize else [])]
    flags += [f"-I{path}" for path in includes]
    compiler = os.environ.get("CXX", "g++")
    link_flags = ["-fopenmp", *(SANITIZER_FLAGS if sanitize else [])]
    lines = [
        f"rule cxx\n  command = {compiler} {shlex.join(flags)} -x c++ -c $in -o $out",
        f"rule link\n  command = {compiler} -shared {shlex.join(link_flags)} $in -o $out.tmp && mv $out.tmp $out",
    ]
    objects = []
    for source in [CSRC / "bindings.cpp", *sorted(CSRC.glob("cpu/*.cpp")), *sorted(CSRC.glob("cuda/*.cu"))]:
        objects.append(f"{source.name}.o")
        lines.append(f"build {objects[-1]}: cxx {source}")
    lines.append(f"build {module.name}: link {' '.join(objects)}\n")
    (folder / "build.ninja").write_text("\n".join(lines))
    result = subprocess.run(
        [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(folder)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return module


def load(sanitize: bool = False) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_C", build(sanitize))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
