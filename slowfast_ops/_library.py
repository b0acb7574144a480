"""Registration of the operators with torch.library: one helper per thing that every op needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "slowfast"
# A module global on purpose: the ops vanish when the Library object is collected.
LIB = torch.library.Library(NAMESPACE, "DEF")
# The CUDA kernel of each op by name, so that tests can run it on CPU tensors (csrc/testing/cuda_on_cpu).
CUDA_KERNELS: dict[str, Callable] = {}


def define(schema: str, *, cpu: Callable | None = None, cuda: Callable | None = None, fake: Callable) -> Any:
    """Defines `slowfast::<schema>` with its kernels and its fake kernel; returns the overload to call."""
    name = schema.split("(")[0]
    LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for kernel, key in ((cpu, "CPU"), (cuda, "CUDA")):
        if kernel is not None:
            LIB.impl(name, kernel, key)
    if cuda is not None and cuda is not cpu:
        CUDA_KERNELS[name] = cuda
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIB)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def differentiable(op: Any, *, backward: Callable, setup_context: Callable) -> None:
    """Gives `op` a first derivative. `backward` must itself call ops that are registered here."""
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=LIB)


def blocks_double_backward(op: Any, public_name: str) -> None:
    """Makes the derivative of a backward op an error: without this, autograd would silently return no gradient."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{public_name}: second derivatives are not implemented; use the reference backend "
            "(slowfast_ops.use_backend('reference')) where a double backward is needed"
        )

    torch.library.register_autograd(op, backward, lib=LIB)


def autocasts(op: Any, policy: str) -> None:
    """Registers what autocast does to the floating-point tensors of `op`.

    policy: "lower" casts them to the autocast dtype, as convolutions do; "widest" casts them to the widest floating
    dtype among them, as `torch.cat` does. float64 tensors are left alone, as torch does.
    """
    if policy not in {"lower", "widest"}:
        raise ValueError(f"policy={policy!r}: expected 'lower' or 'widest'")
    for device_type in ("cpu", "cuda"):
        key = getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}")

        def kernel(*args: Any, _device_type: str = device_type, _key: Any = key) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_key)):
                return op(*_cast(args, _device_type, policy))

        LIB.impl(op, kernel, f"Autocast{device_type.upper()}")


def _cast(args: tuple, device_type: str, policy: str) -> list:
    floats = [a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
    if torch.float64 in floats:
        return list(args)
    target = torch.get_autocast_dtype(device_type) if policy == "lower" else None
    if policy == "widest":
        target = torch.float32 if torch.float32 in floats else (floats[0] if len(set(floats)) == 1 else torch.float32)
    return [a.to(target) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]


def output_memory_format(x: torch.Tensor) -> torch.memory_format:
    """The memory format that an op gives to its 5-D output: that of `x` (for a slice of a larger tensor, too)."""
    if x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous():
        return torch.channels_last_3d
    return torch.contiguous_format
