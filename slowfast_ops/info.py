"""`python -m slowfast_ops.info [--json]`: versions, what was compiled, and which backend runs each op here and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from typing import Any

import torch

import slowfast_ops
from slowfast_ops import _native
from slowfast_ops.backends import OpBackends, requested_backend
from slowfast_ops.preferences import measured


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def collect() -> dict[str, Any]:
    """Everything that the command prints, as plain data."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    ops = {}
    for name, backends in sorted(OpBackends.registry.items()):
        ops[name] = {
            device: {
                "runs": runs,
                "problem": problem,
                "backends": dict(backends.explain(device)),
                "measured": [entry._asdict() for entry in measured(name, device)],
            }
            for device in ("cpu", "cuda")
            for runs, problem in [backends.choose(device, torch.float32)]
        }
    return {
        "versions": {
            "slowfast_ops": slowfast_ops.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version_of("triton"),
            "numpy": _version_of("numpy"),
        },
        "machine": {
            "platform": platform.platform(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cuda_devices": devices,
        },
        "build": _native.BUILD_INFO or None,
        "build_problem": _native.MISSING or _native.stale_sources(),
        "requested_backend": requested_backend(),
        "ops": ops,
    }


def render(info: dict[str, Any]) -> str:
    """The readable form of `collect()`."""
    versions, machine, build = info["versions"], info["machine"], info["build"]
    lines = [
        f"slowfast_ops {versions['slowfast_ops']}   python {versions['python']}   torch {versions['torch']}"
        f"   triton {versions['triton'] or 'not installed'}",
        f"machine        {machine['platform']}, {machine['cpu_capability']}, {machine['threads']} threads",
        f"CUDA devices   {', '.join(machine['cuda_devices']) or 'none found'}",
    ]
    if build:
        openmp = "OpenMP" if build["openmp"] else "no OpenMP: one thread"
        lines.append(f"CPU kernels    built, {openmp}, {build['compiler']}")
        if build["cuda"]:
            archs = " ".join(f"sm_{arch}" for arch in build["cuda_archs"])
            lines.append(f"CUDA kernels   built with CUDA {build['cuda']} for {archs}")
        else:
            lines.append(f"CUDA kernels   not built: {build['cuda_reason']}")
    else:
        lines.append("CPU kernels    not built")
    if info["build_problem"]:
        lines.append(f"warning        {info['build_problem']}")
    lines.append(f"backend        {info['requested_backend']} (SLOWFAST_OPS_BACKEND or slowfast_ops.use_backend)")
    for name, devices in info["ops"].items():
        lines += ["", name]
        for device, choice in devices.items():
            outcome = f"{choice['runs']} runs" if choice["runs"] else f"an error, since {choice['problem']}"
            absent = " (this machine has none)" if device == "cuda" and not machine["cuda_devices"] else ""
            lines.append(f"  tensors on {device}{absent}: {outcome}")
            lines += [f"    {backend:<10} {reason}" for backend, reason in choice["backends"].items()]
            for entry in choice["measured"]:
                order = ", then ".join(entry["backends"])
                lines.append(
                    f"    measured   auto prefers {order} for {entry['shape_class']} tensors ({entry['measurement']})"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m slowfast_ops.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    arguments = parser.parse_args()
    info = collect()
    print(json.dumps(info, indent=2) if arguments.json else render(info))


if __name__ == "__main__":
    main()
