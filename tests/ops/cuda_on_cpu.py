"""Builds csrc/ with g++ and the header of csrc/testing/cuda_on_cpu, so that the CUDA kernels run on CPU tensors."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC = ROOT / "csrc"
SANITIZER_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def build(sanitize: bool = False) -> Path:
    """The path of the module in build/, of which ninja compiles only what has changed.

    Both modules share the objects of the CPU kernels and of the bindings, neither optimised nor sanitized: the first
    never run here, and the others compute nothing.
    """
    import ninja
    import pybind11

    folder = ROOT / "build" / f"cuda_on_cpu-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    includes = [CSRC / "testing" / "cuda_on_cpu", CSRC / "include", CSRC / "cuda"]
    includes += [Path(pybind11.get_include()), Path(sysconfig.get_path("include"))]
    flags = ["-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-DSLOWFAST_WITH_CUDA"]
    flags += ["-DSF_NO_MULTIVERSION", "-DSF_CUDA_ON_CPU=1", *(f"-I{path}" for path in includes)]
    compiler = os.environ.get("CXX", "g++")
    lines = [
        f"rule cxx\n  command = {compiler} {shlex.join(flags)} $extra -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {compiler} -shared -fopenmp $extra $in -o $out",
    ]

    def compiled(sources: list[Path], prefix: str, extra: str) -> list[str]:
        objects = [f"{prefix}{source.name}.o" for source in sources]
        lines.extend(
            f"build {name}: cxx {source}\n  extra = {extra}" for name, source in zip(objects, sources, strict=True)
        )
        return objects

    common = compiled([CSRC / "bindings.cpp", *sorted(CSRC.glob("cpu/*.cpp"))], "", "-O0")
    modules = {}
    for name, extra in (("plain", ""), ("sanitized", shlex.join(SANITIZER_FLAGS))):
        kernels = compiled(sorted(CSRC.glob("cuda/*.cu")), f"{name}/", f"-O1 {extra}")
        modules[name] = f"{name}/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        lines.append(f"build {modules[name]}: link {' '.join(common + kernels)}\n  extra = {extra}")

    module = modules["sanitized" if sanitize else "plain"]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of the sanitized run
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may get here at once
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(folder), module]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / module


def load(sanitize: bool = False) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_C", build(sanitize))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
