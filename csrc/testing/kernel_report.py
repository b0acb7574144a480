"""Registers, shared memory and spills of every GPU kernel, without a GPU: `python csrc/testing/kernel_report.py`.

CUDA kernels are read out of the compiled slowfast_ops._C, for every architecture in it. Triton kernels are compiled to
cubins for sm_80 and sm_90 in the configurations that dispatch uses (`compile_configurations()` of each op's triton.py).
The exit status is 1 if a kernel of a forward pass spills registers to memory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import slowfast_ops
from slowfast_ops import _native

TRITON_ARCHS = (80, 90)


def cuobjdump() -> str:
    """NVIDIA's cuobjdump: on PATH with the CUDA toolkit, else the copy that Triton ships."""
    found = shutil.which("cuobjdump") or str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    if not Path(found).exists():
        raise SystemExit("cuobjdump was found neither on PATH nor in the Triton package")
    return found


def cuda_rows() -> list[dict[str, Any]]:
    """One row per CUDA kernel and architecture in the compiled module."""
    if not _native.BUILD_INFO.get("cuda"):
        raise SystemExit(f"no CUDA kernels to report on: {_native.MISSING or _native.BUILD_INFO['cuda_reason']}")
    text = subprocess.run(
        [cuobjdump(), "--dump-resource-usage", str(_native.library().__file__)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows, arch = [], ""
    lines = text.splitlines()
    for line, following in zip(lines, lines[1:] + [""], strict=True):
        if line.startswith("arch = "):
            arch = line.split("= ")[1]
        elif line.strip().startswith("Function "):
            usage = dict(re.findall(r"([A-Z]+)(?:\[0\])?:(\d+)", following))
            rows.append(
                {
                    "kind": "cuda",
                    "arch": arch,
                    "kernel": line.strip().removeprefix("Function ").rstrip(":"),
                    "registers": int(usage["REG"]),
                    "shared_bytes": int(usage["SHARED"]),
                    "spill_bytes": int(usage["STACK"]) + int(usage["LOCAL"]),
                }
            )
    return readable(rows)


def readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mangled C++ names in words, where c++filt is there to translate them."""
    if shutil.which("c++filt"):
        names = "\n".join(row["kernel"] for row in rows)
        text = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True).stdout
        for row, name in zip(rows, text.splitlines(), strict=True):
            name = re.sub(r"\(anonymous namespace\)::|slowfast::|^void ", "", name)
            row["kernel"] = re.sub(r"\(.*", "", name)
    return rows


def triton_rows() -> list[dict[str, Any]]:
    """One row per Triton kernel, configuration and architecture."""
    rows = []
    for module in pkgutil.iter_modules(slowfast_ops.__path__, "slowfast_ops."):
        if not module.ispkg or importlib.util.find_spec(f"{module.name}.triton") is None:
            continue
        for kernel, signature, constants, options in importlib.import_module(
            f"{module.name}.triton"
        ).compile_configurations():
            for arch in TRITON_ARCHS:
                # "i64:16" is an int64 that is a multiple of 16, a fact that Triton finds out at a launch; as it does
                # that torch's allocations are aligned.
                types = {
                    name: kind if isinstance(kind, tuple) else kind.split(":")[0] for name, kind in signature.items()
                }
                types |= {key: "constexpr" for key in constants if isinstance(key, str)}
                multiples = {
                    (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
                    for name, kind in signature.items()
                    if isinstance(kind, str) and (kind.startswith("*") or kind.endswith(":16"))
                }
                source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=multiples)
                compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
                rows.append(_triton_row(module.name, kernel, arch, compiled, signature, constants))
    return rows


def _triton_row(op: str, kernel: Any, arch: int, compiled: Any, signature: dict, constants: dict) -> dict[str, Any]:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [cuobjdump(), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(re.findall(r"([A-Z]+)(?:\[0\])?:(\d+)", text.split("Function ")[1]))
    element = next(kind.split(":")[0] for kind in signature.values() if str(kind).startswith("*"))
    # A constant is known by its name, or by the path of places that leads to it among the arguments.
    named = {kernel.arg_names[key[0]] if isinstance(key, tuple) else key: value for key, value in constants.items()}
    details = ",".join(f"{key}={value}" for key, value in named.items() if not key.endswith("strides"))
    return {
        "kind": "triton",
        "arch": f"sm_{arch}",
        "kernel": f"{op.split('.')[-1]}.{kernel.fn.__name__}<{element}{',' if details else ''}{details}>",
        "registers": int(usage["REG"]),
        "shared_bytes": int(compiled.metadata.shared),
        "spill_bytes": int(usage["STACK"]) + int(usage["LOCAL"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    rows = [*cuda_rows(), *triton_rows()]
    for row in rows:
        print(
            f"{row['kind']:<7}{row['arch']:<8}{row['registers']:>4} registers {row['shared_bytes']:>7} shared bytes "
            f"{row['spill_bytes']:>5} spilled  {row['kernel']}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    spilling = [row for row in rows if row["spill_bytes"] and "forward" in row["kernel"]]
    for row in spilling:
        print(f"spills in a forward kernel: {row['kernel']} on {row['arch']}", file=sys.stderr)
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    main()
