"""Registration of the operators with torch.library: one helper per thing that every op needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


CastRule = Callable[[Sequence[Any], torch.dtype], list]


def autocasts(op: Any, rule: str | CastRule) -> None:
    """Registers what autocast does to the floating-point tensors of `op`.

    rule: "lower" casts them to the autocast dtype, as convolutions do; "widest" casts them to the widest floating
    dtype among them, as `torch.cat` does; a function gets the arguments and the autocast dtype and returns the
    arguments to call `op` with. float64 tensors, and what is combined with them, are left alone, as torch does.
    """
    if rule not in {"lower", "widest"} and not callable(rule):
        raise ValueError(f"rule={rule!r}: expected 'lower', 'widest' or a function")
    for device_type in ("cpu", "cuda"):
        key = getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}")

        def kernel(*args: Any, _device_type: str = device_type, _key: Any = key) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_key)):
                return op(*_cast(args, torch.get_autocast_dtype(_device_type), rule))

        LIB.impl(op, kernel, f"Autocast{device_type.upper()}")


def _cast(args: Sequence[Any], lower: torch.dtype, rule: str | CastRule) -> list:
    if callable(rule):
        return rule(args, lower)
    floats = [a.dtype for a in args if _is_floating(a)]
    return cast_floating(args, lower if rule == "lower" else widest(floats), range(len(args)))


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The dtype that `torch.cat` gives under autocast: float32 unless all are the same narrower one."""
    return dtypes[0] if len(set(dtypes)) == 1 else torch.float32


def cast_floating(args: Sequence[Any], dtype: torch.dtype, positions: Sequence[int]) -> list:
    """The arguments, with the floating-point tensors at `positions` cast to `dtype`, unless one of them is float64."""
    chosen = {i for i in positions if _is_floating(args[i])}
    if any(args[i].dtype == torch.float64 for i in chosen):
        return list(args)
    return [a.to(dtype) if i in chosen else a for i, a in enumerate(args)]


def output_memory_format(x: torch.Tensor) -> torch.memory_format:
    """The memory format that an op gives to its 5-D output: that of `x` (for a slice of a larger tensor, too)."""
    if x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous():
        return torch.channels_last_3d
    return torch.contiguous_format
