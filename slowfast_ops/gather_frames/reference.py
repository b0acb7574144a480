"""gather_frames in plain PyTorch: the definition that every kernel is tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from slowfast_ops.gather_frames.yuv import to_rgb
from slowfast_ops.temporal_gather.api import slow_frame_indices


def gather_frames(
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
    """Takes what torch.ops.slowfast.gather_frames takes. The arithmetic is float64 for dtype float64, else float32.

    Returns (slow [N, 3, T'/alpha, h, w], fast [N, 3, T', h, w]); for alpha = 1 they are one tensor.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    height, width = size
    fast = torch.empty((len(clips), 3, indices.shape[1], height, width), dtype=dtype, device=indices.device)
    for n, frames in enumerate(clips):
        resized_height, resized_width, top, left = geometry[4 * n : 4 * n + 4]
        picked = indices[n] if indices.device.type == "cpu" else indices[n].clamp(0, frames.shape[0] - 1)
        rgb = frames.index_select(0, picked)
        if chroma:
            rgb = to_rgb(rgb, chroma[n].index_select(0, picked), colour[6 * n : 6 * n + 6])
        x = rgb.permute(0, 3, 1, 2).to(compute)  # [T', 3, H, W]
        x = F.interpolate(
            x, size=(resized_height, resized_width), mode="bilinear", align_corners=False, antialias=antialias
        )
        x = x[:, :, top : top + height, left : left + width]
        if flip[n]:
            x = x.flip(3)
        if dtype == torch.uint8:
            x = x.round().clamp(0, 255)
        else:
            x = (x / 255 - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)
        fast[n] = x.transpose(0, 1).to(dtype)
    fast = fast.contiguous(memory_format=memory_format)
    if alpha == 1:
        return fast, fast
    positions = slow_frame_indices(indices.shape[1], alpha, slow_sampling).to(fast.device)
    return fast.index_select(2, positions).contiguous(memory_format=memory_format), fast
