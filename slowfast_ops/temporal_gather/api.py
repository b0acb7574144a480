"""The public form of temporal_gather."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slowfast_ops._arguments import check_floating, checked_indices, checked_integer
from slowfast_ops._transfer import to_device
from slowfast_ops.backends import OpBackends
from slowfast_ops.temporal_gather import ops, reference

BACKENDS = OpBackends("temporal_gather", cpu=True, cuda=True, triton=True)

SLOW_SAMPLINGS = ("linspace", "stride")


def check_slow_sampling(num_frames: int, alpha: int, slow_sampling: str) -> None:
    """The ValueErrors of `slow_frame_indices`."""
    alpha, num_frames = checked_integer("alpha", alpha, 1), checked_integer("num_frames", num_frames, 1)
    if num_frames % alpha:
        raise ValueError(f"num_frames={num_frames} must be a positive multiple of alpha={alpha}")
    if slow_sampling not in SLOW_SAMPLINGS:
        raise ValueError(f"slow_sampling={slow_sampling!r}: expected 'linspace' or 'stride'")


def slow_frame_indices(num_frames: int, alpha: int, slow_sampling: str = "linspace") -> Tensor:
    """Which of the Fast pathway's frames the Slow pathway sees.

    Args:
        num_frames: frames of the Fast pathway, a multiple of `alpha`.
        alpha: speed ratio of the pathways (paper section 3.2).
        slow_sampling: "linspace" is PySlowFast's rule, floor(i (T - 1) / (T/alpha - 1)), from the first frame to the
            last; published checkpoints expect it. "stride" is the paper's rule: frames 0, alpha, 2 alpha, ...

    Returns:
        int64 [num_frames / alpha], ascending.

    Raises:
        ValueError: `alpha` is not positive or does not divide `num_frames`, or `slow_sampling` is neither rule.
    """
    check_slow_sampling(num_frames, alpha, slow_sampling)
    count = num_frames // alpha
    if slow_sampling == "stride" or count == 1:
        return torch.arange(count) * alpha
    # Integer arithmetic: exact where a float32 linspace would need luck in its rounding.
    return torch.arange(count) * (num_frames - 1) // (count - 1)


def temporal_gather(x: Tensor, indices: Tensor | Sequence[int]) -> Tensor:
    """Picks frames along time: `out[n, c, i] = x[n, c, indices[n, i]]`.

    Where the backend is not asked for by name, contiguous CPU tensors go to `torch.index_select` (with one set of
    indices): the same copy, and a call of it costs less than one of the op.

    Args:
        x: floating point [N, C, T, H, W], any strides.
        indices: int64 [T'] for all clips, or [N, T'], values in [0, T), any order, repeats allowed; a sequence of
            ints is taken as [T'].

    Returns:
        [N, C, T', H, W] with the dtype of `x`, contiguous or channels_last_3d like `x`. Differentiable in `x`: the
        gradient of a frame that is picked twice is the sum (float32 or wider, fixed order, so the same bits each
        time); of one that is never picked, zero.

    Raises:
        ValueError: a wrong shape or dtype, or an index outside [0, T) (checked for CPU tensors; on a GPU the check
            would stall the stream, and an index outside is clamped into the clip instead).
    """
    check_floating("x", x, "[N, C, T, H, W]")
    indices = checked_indices(indices)
    if indices.dim() == 2 and indices.shape[0] != x.shape[0]:
        raise ValueError(f"indices has {indices.shape[0]} rows for the {x.shape[0]} clips of x")
    indices = to_device(indices, x.device)
    values = _checked_values(indices, x.shape[2]) if x.device.type == "cpu" else None
    backend = BACKENDS.select(x, _shape_class(x, indices, values))
    if backend == "reference":
        return reference.temporal_gather(x, indices if x.device.type == "cpu" else indices.clamp(0, x.shape[2] - 1))
    if indices.dim() == 1:
        indices = indices.expand(x.shape[0], indices.shape[0])
    if backend == "triton":
        return ops.temporal_gather_triton(x, indices)
    return ops.temporal_gather(x, indices)


def _shape_class(x: Tensor, indices: Tensor, values: list[int] | None) -> str:
    """Of preferences.py. The op sums 16-bit gradients wider than torch does, and stays one node for a compiler."""
    if values is None or indices.dim() != 1 or not x.is_contiguous():
        return "any"
    sums = x.requires_grad and len(set(values)) < len(values)  # gradients of a frame that is picked twice
    return "any" if sums and x.element_size() == 2 else "contiguous"


def _checked_values(indices: Tensor, frames: int) -> list[int] | None:
    """The indices, on the CPU; None while a compiler traces: they are not known then, and the kernel checks them."""
    if torch.compiler.is_compiling():
        return None
    values = indices.flatten().tolist()  # for so few, much faster than tensor operations
    if values and not (min(values) >= 0 and max(values) < frames):
        raise ValueError(f"indices must lie in [0, {frames}), got values from {min(values)} to {max(values)}")
    return values


class TemporalGather(nn.Module):
    """temporal_gather with fixed indices; `indices` is a buffer that follows the module's device.

    Args:
        indices: as for `temporal_gather`.

    Raises:
        ValueError: `indices` is of another dtype or shape.
    """

    def __init__(self, indices: Tensor | Sequence[int]) -> None:
        super().__init__()
        self.indices: Tensor
        self.register_buffer("indices", checked_indices(indices), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, T, H, W] -> [N, C, T', H, W]."""
        return temporal_gather(x, self.indices)

    def extra_repr(self) -> str:
        return f"indices={self.indices.tolist()}"
