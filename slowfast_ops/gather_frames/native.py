"""gather_frames on the compiled kernels: outputs and workspaces are allocated here, the rest happens in csrc/."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from slowfast_ops._native import allocate, cuda_place, library, num_threads, view

MIN_PIXELS_PER_THREAD = 16384  # waking a thread costs about as much as this many pixels
_shares_memory: ContextVar[bool] = ContextVar("shares_memory", default=False)


@contextmanager
def outputs_in_shared_memory() -> Iterator[None]:
    """Within it, what `gather_frames` makes on the CPU is made in shared memory (but for the backend "reference").

    For a batch that is made in a DataLoader's worker: it reaches the training process without being copied once more.
    """
    token = _shares_memory.set(True)
    try:
        yield
    finally:
        _shares_memory.reset(token)


def _taps(source: int, resized: int, antialias: bool) -> int:
    """ResizeAxis::taps of csrc/include/slowfast/gather_frames_math.h; the kernel checks that the workspace suffices."""
    if source == resized:
        return 1
    return -(-2 * max(source if antialias else 0, resized) // resized)


def outputs(
    clips: Sequence[Tensor],
    indices: Tensor,
    size: Sequence[int],
    alpha: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """Memory for (slow, fast). slow has no frames for alpha = 1, where fast is both pathways."""
    n, frames, (h, w) = len(clips), indices.shape[1], size
    slow_frames = frames // alpha if alpha > 1 else 0
    slow = allocate((n, 3, slow_frames, h, w), like=indices, dtype=dtype, memory_format=memory_format)
    fast = allocate((n, 3, frames, h, w), like=indices, dtype=dtype, memory_format=memory_format)
    if _shares_memory.get() and type(indices) is Tensor and indices.device.type == "cpu":
        return _shared_like(slow), _shared_like(fast)
    return slow, fast


def _shared_like(tensor: Tensor) -> Tensor:
    """As torch.empty_like, in shared memory, where `Tensor.share_memory_` would copy what is not there yet."""
    storage = torch.UntypedStorage._new_shared(tensor.untyped_storage().nbytes())
    return tensor.new_empty(0).set_(storage, 0, tensor.shape, tensor.stride())


def colours_of(colour: Sequence[int]) -> list[tuple[int, ...]]:
    """The six integers of each clip."""
    return [tuple(colour[i : i + 6]) for i in range(0, len(colour), 6)]


def windows_of(geometry: Sequence[int]) -> list[tuple[int, ...]]:
    """(resized height, resized width, top, left) of each clip."""
    return [tuple(geometry[i : i + 4]) for i in range(0, len(geometry), 4)]


def forward_cpu(
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
    slow, fast = outputs(clips, indices, size, alpha, dtype, memory_format)
    n, frames, (h, w) = len(clips), indices.shape[1], size
    windows = windows_of(geometry)
    shapes = [
        (clip.shape[1], clip.shape[2], height, width)
        for clip, (height, width, _, _) in zip(clips, windows, strict=True)
    ]
    row_taps = max((_taps(h0, h1, antialias) for h0, _, h1, _ in shapes), default=0)
    column_taps = max((_taps(w0, w1, antialias) for _, w0, _, w1 in shapes), default=0)
    widest = max((w0 for _, w0, _, _ in shapes), default=0)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    firsts = allocate((n, h + w + 3), like=indices)
    weights = allocate((n, row_taps * h + column_taps * (w + 3)), like=indices, dtype=compute)
    threads = max(1, min(num_threads(), n * frames * h * w // MIN_PIXELS_PER_THREAD))
    rows = allocate((threads, 3 * (widest + column_taps + w) + 4), like=indices, dtype=compute)
    rgb_bytes = 3 * (row_taps + 2) * (widest + widest % 2) if chroma else 0
    rgb = allocate((threads, rgb_bytes), like=indices, dtype=torch.uint8)
    library().gather_frames_cpu(
        [view(clip) for clip in clips],
        [view(planes) for planes in chroma],
        colours_of(colour),
        windows,
        flip,
        view(indices),
        view(slow),
        view(fast),
        slow_sampling == "linspace",
        mean,
        std,
        antialias,
        view(firsts),
        view(weights),
        view(rows),
        view(rgb),
    )
    return slow, fast


def forward_cuda(
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
    slow, fast = outputs(clips, indices, size, alpha, dtype, memory_format)
    library().gather_frames_cuda(
        [view(clip) for clip in clips],
        [view(planes) for planes in chroma],
        colours_of(colour),
        windows_of(geometry),
        flip,
        view(indices),
        view(slow),
        view(fast),
        slow_sampling == "linspace",
        mean,
        std,
        antialias,
        *cuda_place(indices),
    )
    return slow, fast
