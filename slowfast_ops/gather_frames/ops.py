"""torch.ops.slowfast.gather_frames: schema and fake kernel; and the same op on Triton.

It has no gradient, since frames are uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slowfast_ops._library import define
from slowfast_ops.gather_frames import native


def _fake(
    clips: Sequence[Tensor],
    chroma: Sequence[Tensor],
    colour: Sequence[int],
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
    return native.outputs(clips, indices, size, alpha, dtype, memory_format)


def _triton_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from slowfast_ops.gather_frames import triton

    return triton.forward(*arguments)


# clips: uint8 [T_i, H_i, W_i, 3], with chroma and colour empty; or luma planes [T_i, H_i, W_i], with chroma [T_i, 2,
# ceil(H_i/2), ceil(W_i/2)] and the six integers of `coefficients` (yuv.py) for each clip, flat. indices: int64 [N, T'].
# geometry: (resized height, resized width, top, left) of each clip, flat; size: (h, w) of the outputs. slow is empty
# for alpha = 1, where fast is both pathways.
SCHEMA = (
    "(Tensor[] clips, Tensor[] chroma, int[] colour, Tensor indices, SymInt[] geometry, SymInt[] size, bool[] flip, "
    "SymInt alpha, str slow_sampling, float[] mean, float[] std, ScalarType dtype, MemoryFormat memory_format, "
    "bool antialias) -> (Tensor slow, Tensor fast)"
)
gather_frames = define(f"gather_frames{SCHEMA}", cpu=native.forward_cpu, cuda=native.forward_cuda, fake=_fake)
gather_frames_triton = define(f"gather_frames_triton{SCHEMA}", cpu=_triton_forward, cuda=_triton_forward, fake=_fake)
