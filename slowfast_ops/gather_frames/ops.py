"""torch.ops.slowfast.gather_frames: schema and fake kernel. It has no gradient, since frames are uint8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slowfast_ops._library import define
from slowfast_ops._native import allocate
from slowfast_ops.gather_frames import native


def _fake(
    clips: Sequence[Tensor],
    indices: Tensor,
    geometry: Sequence[int],
    size: Sequence[int],
    flip: Sequence[bool],
    alpha: int,
    slow_sampling: str,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    antialias: bool,
) -> tuple[Tensor, Tensor]:
    n, frames, (h, w) = len(clips), indices.shape[1], size
    slow_frames = frames // alpha if alpha > 1 else 0
    slow = allocate((n, 3, slow_frames, h, w), like=indices, dtype=dtype, memory_format=memory_format)
    fast = allocate((n, 3, frames, h, w), like=indices, dtype=dtype, memory_format=memory_format)
    return slow, fast


# clips: uint8 [T_i, H_i, W_i, 3]; indices: int64 [N, T']; geometry: (resized height, resized width, top, left) of each
# clip, flat; size: (h, w) of the outputs. slow is empty for alpha = 1, where fast is both pathways.
gather_frames = define(
    "gather_frames(Tensor[] clips, Tensor indices, SymInt[] geometry, SymInt[] size, bool[] flip, SymInt alpha, "
    "str slow_sampling, float[] mean, float[] std, ScalarType dtype, MemoryFormat memory_format, bool antialias) "
    "-> (Tensor slow, Tensor fast)",
    cpu=native.forward_cpu,
    fake=_fake,
)
