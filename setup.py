"""Builds `slowfast_ops._C` from csrc/ with ninja: C++ for the CPU, and the CUDA kernels where nvcc is found.

No torch is needed to build. Environment variables:
  SLOWFAST_CUDA        unset: CUDA kernels are built if nvcc is found; 1: its absence is an error; 0: they are skipped
  SLOWFAST_CUDA_ARCHS  compute capabilities, e.g. "80 90" (default: those of this machine's GPUs, or CUDA_ARCHS below
                       where there is none; PTX of the last one is embedded, which newer GPUs compile for themselves)
  CUDA_HOME, NVCC      where to look for nvcc before PATH
  CXX, CXXFLAGS        the C++ compiler and extra flags
  SLOWFAST_OPENMP=0    builds without OpenMP (single-threaded kernels)
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CUDA_ARCHS = ("75", "80", "90", "100", "120")


def find_nvcc() -> tuple[str | None, str]:
    """(path of nvcc or None, the reason in words)."""
    wish = os.environ.get("SLOWFAST_CUDA", "")
    if wish not in {"", "0", "1"}:
        raise SystemExit(f"SLOWFAST_CUDA={wish!r} is not understood: use 1 (required), 0 (skip) or leave it unset")
    if wish == "0":
        return None, "SLOWFAST_CUDA=0"
    candidates = [os.environ.get("NVCC")]
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            candidates.append(str(Path(os.environ[variable]) / "bin" / "nvcc"))
    candidates += [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        if candidate and shutil.which(candidate):
            return candidate, f"nvcc at {candidate}"
    if wish == "1":
        raise SystemExit("SLOWFAST_CUDA=1, but nvcc was not found: put it on PATH, or set CUDA_HOME or NVCC")
    return None, "nvcc not found (put it on PATH or set CUDA_HOME, then install again)"


def gpu_archs() -> list[str]:
    """The compute capabilities of this machine's GPUs, ascending; none where the driver names none."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = {match[1] + match[2] for match in re.finditer(r"^(\d+)\.(\d)$", text, re.MULTILINE)}
    return sorted(found, key=int)


def cuda_archs(nvcc: str) -> list[str]:
    """The compute capabilities to compile for, of those that this nvcc knows."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    known = re.findall(r"sm_(\w+)", listed)
    wanted = re.split(r"[\s,;]+", os.environ.get("SLOWFAST_CUDA_ARCHS", "").replace(".", "").strip())
    wanted = [arch for arch in wanted if arch]
    for choice in [wanted] if wanted else [gpu_archs(), CUDA_ARCHS]:
        if archs := [arch for arch in choice if arch in known]:
            return archs
    raise SystemExit(f"SLOWFAST_CUDA_ARCHS={' '.join(wanted)}: {nvcc} knows only {' '.join(known)}")


def works(command: list[str], source: str) -> bool:
    """Whether the compiler accepts these flags for a tiny program."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "probe.cpp")
        file.write_text(source)
        result = subprocess.run([*command, str(file), "-o", str(Path(folder, "probe"))], capture_output=True)
        return result.returncode == 0


class NinjaBuild(build_ext):
    """One build.ninja: g++ for every .cpp, nvcc for every .cu, and one link."""

    def build_extension(self, ext: Extension) -> None:
        compiler = os.environ.get("CXX", "g++" if shutil.which("g++") else "c++")
        flags = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-fno-math-errno", "-fno-trapping-math"]
        flags += ["-ffp-contract=fast"]
        openmp = os.environ.get("SLOWFAST_OPENMP", "1") != "0" and works(
            [compiler, "-fopenmp"], "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }"
        )
        openmp_flags = ["-fopenmp"] if openmp else []
        nvcc, cuda_reason = find_nvcc()
        archs = cuda_archs(nvcc) if nvcc else []

        import pybind11

        # pip's environment and temporary folders have new names each time. With the objects and pybind11's headers at a
        # place of their own, ninja compiles only what has changed.
        folder = ROOT / "build" / f"kernels-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(pybind11.get_include(), folder / "include", dirs_exist_ok=True)
        includes = [str(CSRC / "include"), str(folder / "include"), sysconfig.get_path("include")]
        include_flags = [flag for path in includes for flag in ("-I", path)]
        cuda_version = ""
        if nvcc:
            text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
            cuda_version = (re.search(r"release ([\d.]+)", text) or [None, "unknown"])[1]
        info = {
            "source_hash": runpy.run_path(str(CSRC / "source_hash.py"))["source_hash"](),
            "compiler": subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.split("\n")[0],
            "openmp": openmp,
            "cuda": cuda_version or None,
            "cuda_archs": archs,
            "cuda_reason": cuda_reason,
            "python": sysconfig.get_python_version(),
        }
        header = folder / "build_info.h"
        text = f'#define SLOWFAST_BUILD_INFO R"json({json.dumps(info)})json"\n'
        if not header.is_file() or header.read_text() != text:
            header.write_text(text)

        gencode = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        gencode += [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in archs[-1:]]
        defines = ["-DSLOWFAST_WITH_CUDA"] if nvcc else []
        cxx_flags = [*flags, *openmp_flags, *include_flags, *defines, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        nvcc_flags = ["-O3", "-std=c++17", "--threads=2", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v"]
        nvcc_flags += [*gencode, "-I", str(CSRC / "include"), "-I", str(CSRC / "cuda"), "--expt-relaxed-constexpr"]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if nvcc:
            link = [nvcc, "-shared", "-cudart", "static", *(["-Xcompiler", "-fopenmp"] if openmp else [])]
        else:
            link = [compiler, "-shared", *openmp_flags]
            if sys.platform == "darwin":
                link += ["-undefined", "dynamic_lookup"]

        def quoted(words: list[str]) -> str:
            return " ".join(shlex.quote(word) for word in words).replace("$", "$$")

        lines = [
            "ninja_required_version = 1.3",
            f"rule cxx\n  command = {quoted([compiler, *cxx_flags])} -MMD -MF $out.d $extra -c $in -o $out",
            "  depfile = $out.d\n  deps = gcc",
            f"rule nvcc\n  command = {quoted([nvcc or 'nvcc', *nvcc_flags])} -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d\n  deps = gcc",
            f"rule link\n  command = {quoted(link)} $in -o $out",
        ]
        objects = []
        for source in [CSRC / "bindings.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]:
            objects.append(folder / (source.stem + ".o"))
            lines.append(f"build {ninja_path(objects[-1])}: cxx {ninja_path(source)}")
            if source.name == "bindings.cpp":
                lines[-1] += f" | {ninja_path(header)}\n  extra = -include {shlex.quote(str(header))}"
        for source in sorted((CSRC / "cuda").glob("*.cu")) if nvcc else []:
            objects.append(folder / (source.stem + ".cu.o"))
            lines.append(f"build {ninja_path(objects[-1])}: nvcc {ninja_path(source)}")
        lines.append(f"build {ninja_path(target)}: link {' '.join(map(ninja_path, objects))}")
        lines.append(f"default {ninja_path(target)}\n")
        (folder / "build.ninja").write_text("\n".join(lines))

        import ninja

        subprocess.run([str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(folder), "-v"], check=True)
        report(info)


def ninja_path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def report(info: dict) -> None:
    """The last lines of the build: what was built, what was not, and why."""
    print("slowfast_ops: built")
    threads = "OpenMP threads" if info["openmp"] else "one thread (the compiler has no OpenMP)"
    print(f"  CPU kernels:  yes, {threads}, {info['compiler']}")
    if info["cuda"]:
        print(f"  CUDA kernels: yes, CUDA {info['cuda']}, sm_{' sm_'.join(info['cuda_archs'])} ({info['cuda_reason']})")
    else:
        print(f"  CUDA kernels: no, {info['cuda_reason']}")
    print("  Triton kernels need no build. `python -m slowfast_ops.info` shows what runs on this machine.", flush=True)


setup(ext_modules=[Extension("slowfast_ops._C", sources=[])], cmdclass={"build_ext": NinjaBuild})
