"""temporal_gather in plain PyTorch: the definition that every kernel is tested against."""

from __future__ import annotations

from torch import Tensor

from slowfast_ops._library import output_memory_format


def temporal_gather(x: Tensor, indices: Tensor) -> Tensor:
    """x [N, C, T, H, W], indices int64 [T'] for all clips or [N, T'] -> [N, C, T', H, W]."""
    memory_format = output_memory_format(x)
    if indices.dim() == 1:
        return x.index_select(2, indices).contiguous(memory_format=memory_format)
    n, c, _, h, w = x.shape
    index = indices[:, None, :, None, None].expand(n, c, indices.shape[1], h, w)
    return x.gather(2, index).contiguous(memory_format=memory_format)
