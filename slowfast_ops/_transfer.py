"""Small tensors from the host to the device that needs them."""

from __future__ import annotations

import torch
from torch import Tensor

_captured: list[Tensor] = []  # a CUDA graph reads the pinned memory again at every replay


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. From the host to a GPU it goes by pinned memory, which neither waits for the stream nor
    keeps a CUDA graph from capturing the copy; so the graph goes on reading the values of the time of its capture.
    """
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda" and not torch.compiler.is_compiling():
        tensor = tensor.contiguous().pin_memory()
        if torch.cuda.is_current_stream_capturing():
            _captured.append(tensor)
    return tensor.to(device, non_blocking=True)
