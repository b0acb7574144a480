"""The public form of gather_frames."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slowfast_ops._arguments import checked_indices, checked_integer, described
from slowfast_ops._transfer import to_device
from slowfast_ops.backends import OpBackends
from slowfast_ops.gather_frames import ops, reference
from slowfast_ops.gather_frames.yuv import YUVFrames, as_tensor, coefficients
from slowfast_ops.temporal_gather.api import check_slow_sampling

BACKENDS = OpBackends("gather_frames", cpu=True, cuda=True, triton=True)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8)
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last_3d)


def gather_frames(
    frames: Any,
    *,
    indices: Any,
    alpha: int,
    slow_sampling: str = "linspace",
    resize: Sequence | None = None,
    crop: Sequence | None = None,
    flip: bool | Sequence[bool] = False,
    mean: Sequence[float] = (0.45, 0.45, 0.45),
    std: Sequence[float] = (0.225, 0.225, 0.225),
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    antialias: bool = False,
) -> tuple[Tensor, Tensor]:
    """Makes the inputs of both pathways from decoded frames, in one pass over just the pixels that they need.

    The result is that of: pick the frames `indices`; resize each whole frame bilinearly in floating point; crop; flip
    left to right; divide by 255, subtract `mean`, divide by `std`; cast; and pick the Slow pathway's frames. Nothing
    is allocated but the two outputs (and a few kilobytes of interpolation weights).

    Args:
        frames: uint8, RGB, any strides (rows may be padded, channels may be planes seen through a permute). One clip
            [T, H, W, 3]; a batch [N, T, H, W, 3]; or a list of N clips [T_i, H_i, W_i, 3] of any sizes. NumPy arrays
            are taken as well, without a copy. Or YUV 4:2:0 planes: `YUVFrames` of one clip or of a batch, or a list
            of N of one clip each; the result is that of their `.rgb()`, for which no memory is needed.
        indices: the Fast pathway's frames, int64 [T'] in [0, T), any order, repeats allowed; or [N, T'] (or N
            sequences), a row for each clip. Sequences of ints will do.
        alpha: speed ratio: the Slow pathway gets T'/alpha of those frames. 1: both pathways are the same tensor,
            for models with one pathway.
        slow_sampling: "linspace" (PySlowFast) or "stride" (the paper), see `slow_frame_indices`.
        resize: (height, width) of the whole frame after resizing, in pixels; None keeps its size. Bilinear with
            half-pixel centres (align_corners=False). For several clips also a list of N, one for each (or None).
        crop: (top, left, height, width) in pixels of the resized frame, entirely inside it; None keeps all of it.
            For several clips also a list of N. All clips must come out at one size.
        flip: mirror left to right, after cropping; for several clips also a list of N.
        mean, std: per channel, for values in [0, 1].
        dtype: float32, float64, bfloat16 or float16. Or uint8: no normalisation, the resized value rounded to the
            nearest integer (to even on a tie) and clamped to [0, 255]; values within float32 error of a tie may go
            either way.
        memory_format: of the outputs: torch.contiguous_format or torch.channels_last_3d. For one clip
            [3, T', h, w] the latter means that `output.unsqueeze(0)` is channels_last_3d.
        antialias: shrink with a filter as wide as the reduction, as `torch.nn.functional.interpolate` does.

    Returns:
        (slow, fast): [3, T'/alpha, h, w] and [3, T', h, w] for one clip, [N, 3, ...] for a batch or a list. Slow
        frames have the same bits as the Fast frames that they are. Not differentiable (the input is uint8).

    Raises:
        ValueError: a wrong dtype or shape; no indices, an index outside its clip, or a number of them that `alpha`
            does not divide; a crop that is not inside the resized frame; clips that come out at different sizes.
            (Indices are checked for CPU tensors; on a GPU they are clamped into the clip, since looking would stall
            the stream. There, a CUDA graph can capture a call; at every replay it resizes, crops and flips the same
            way, and reads the frames that indices on the GPU then say, or those that indices given from the host
            said at the capture.)
    """
    clips, chroma, colour, single = _clips(frames)
    indices = _indices(indices, clips)
    if indices.shape[1] % checked_integer("alpha", alpha, 1):
        raise ValueError(f"indices picks {indices.shape[1]} frames, which alpha={alpha} does not divide")
    check_slow_sampling(indices.shape[1], alpha, slow_sampling)
    geometry, size = _geometry(clips, resize, crop)
    flips = _flips(flip, len(clips))
    mean, std = _channel_values("mean", mean), _channel_values("std", std)
    if not all(value > 0 for value in std):
        raise ValueError(f"std={std}: every channel's standard deviation must be positive")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: expected float32, float64, bfloat16, float16 or uint8")
    if memory_format not in MEMORY_FORMATS:
        raise ValueError(f"memory_format={memory_format}: expected contiguous_format or channels_last_3d")
    backend = BACKENDS.select(clips[0] if clips else indices.new_empty(0, dtype=torch.uint8))
    run = {"reference": reference.gather_frames, "triton": ops.gather_frames_triton}.get(backend, ops.gather_frames)
    slow, fast = run(
        clips,
        chroma,
        colour,
        indices,
        geometry,
        size,
        flips,
        alpha,
        slow_sampling,
        mean,
        std,
        dtype,
        memory_format,
        antialias,
    )
    if single:
        slow, fast = slow[0], fast[0]
    return (fast if alpha == 1 else slow), fast


class _Clips(NamedTuple):
    frames: list[Tensor]  # of each clip [T, H, W, 3], or the luma planes [T, H, W]
    chroma: list[Tensor]  # [T, 2, ceil(H/2), ceil(W/2)] of each clip; none for RGB
    colour: list[int]  # `coefficients` of each clip, flat; none for RGB
    single: bool  # whether there is one clip that is not in a list or batch


def _clips(frames: Any) -> _Clips:
    if isinstance(frames, (list, tuple)):
        if not frames:
            raise ValueError("frames is an empty list; expected at least one clip [T, H, W, 3]")
        names = [f"frames[{n}]" for n in range(len(frames))]
        kinds = [isinstance(clip, YUVFrames) for clip in frames]
        clips = _yuv_clips(frames, names) if all(kinds) else _rgb_clips(frames, names)
    elif isinstance(frames, YUVFrames):
        batched = frames.luma.dim() == 4
        planes = zip(frames.luma.unbind(0), frames.chroma.unbind(0), strict=True) if batched else []
        parts = [replace(frames, luma=luma, chroma=chroma) for luma, chroma in planes] if batched else [frames]
        clips = _yuv_clips(parts, ["frames"] * len(parts))._replace(single=not batched)
    else:
        frames = as_tensor("frames", frames)
        if frames.dim() not in (4, 5):
            raise ValueError(f"frames must be uint8 [T, H, W, 3] or [N, T, H, W, 3], got {described(frames)}")
        parts = list(frames.unbind(0)) if frames.dim() == 5 else [frames]
        clips = _rgb_clips(parts, ["frames"] * len(parts))._replace(single=frames.dim() == 4)
    return clips


def _rgb_clips(frames: Sequence[Any], names: Sequence[str]) -> _Clips:
    for name, clip in zip(names, frames, strict=True):
        if isinstance(clip, YUVFrames):
            raise ValueError(f"{name} is YUVFrames, others of the list are RGB; expected one kind")
    clips = [as_tensor(name, clip) for name, clip in zip(names, frames, strict=True)]
    for name, clip in zip(names, clips, strict=True):
        if clip.dtype != torch.uint8 or clip.dim() != 4 or clip.shape[3] != 3:
            raise ValueError(f"{name} must be uint8 [T, H, W, 3], got {described(clip)}")
    _check_places(clips, names)
    return _Clips(clips, [], [], single=False)


def _yuv_clips(frames: Sequence[YUVFrames], names: Sequence[str]) -> _Clips:
    for name, clip in zip(names, frames, strict=True):
        if clip.luma.dim() != 3:
            raise ValueError(f"{name} must be YUVFrames of one clip, luma [T, H, W], got {list(clip.luma.shape)}")
    luma, chroma = [clip.luma for clip in frames], [clip.chroma for clip in frames]
    _check_places(luma, names)
    colour = [value for clip in frames for value in coefficients(clip.matrix, clip.full_range)]
    return _Clips(luma, chroma, colour, single=False)


def _check_places(clips: Sequence[Tensor], names: Sequence[str]) -> None:
    for name, clip in zip(names, clips, strict=True):
        if clip.shape[1] == 0 or clip.shape[2] == 0:
            raise ValueError(f"{name} has no pixels: {described(clip)}")
        if clip.device != clips[0].device:
            raise ValueError(f"{name} is on {clip.device}, frames[0] on {clips[0].device}; expected one device")


def _indices(indices: Any, clips: list[Tensor]) -> Tensor:
    """int64 [N, T'], checked against the length of each clip."""
    indices = checked_indices(indices)
    if indices.numel() == 0 and len(clips) > 0:
        raise ValueError("indices is empty; the Fast pathway needs at least one frame")
    if indices.dim() == 1:
        indices = indices.expand(len(clips), indices.shape[0])
    if indices.shape[0] != len(clips):
        raise ValueError(f"indices has {indices.shape[0]} rows for {len(clips)} clips")
    if not clips:
        return indices
    if clips[0].device.type != "cpu":
        return to_device(indices, clips[0].device)
    indices = indices.to("cpu")
    if not torch.compiler.is_compiling():  # a compiler has no values: the kernel checks them as it runs
        lengths = torch.tensor([[clip.shape[0]] for clip in clips])
        outside = (indices < 0) | (indices >= lengths)
        if outside.any():
            n = int(outside.any(1).nonzero()[0])
            raise ValueError(
                f"indices must lie in [0, {int(lengths[n])}), the frames of clip {n}, "
                f"got values from {int(indices[n].min())} to {int(indices[n].max())}"
            )
    return indices


def _per_clip(name: str, value: Any, count: int, shared: bool) -> list:
    """One value for each clip."""
    if shared:
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} clips")
    return values


def _integers(name: str, value: Any, fields: str) -> list[int]:
    """`value` as ints, one for each of the comma-separated `fields`."""
    try:
        result = [operator.index(v) for v in value]
    except TypeError:
        result = []
    if len(result) != fields.count(",") + 1:
        raise ValueError(f"{name}={value!r}: expected ({fields}), integers in pixels")
    return result


def _is_shared(value: Any) -> bool:
    """Whether `value` is one tuple of numbers (or None) for all clips, not a list of such."""
    return not (
        isinstance(value, (list, tuple)) and value and (value[0] is None or isinstance(value[0], (list, tuple)))
    )


def _geometry(clips: list[Tensor], resize: Any, crop: Any) -> tuple[list[int], list[int]]:
    """[resized height, resized width, top, left] of every clip in one flat list, and the size of all outputs."""
    geometry: list[int] = []
    size: list[int] | None = None
    resizes = _per_clip("resize", resize, len(clips), _is_shared(resize))
    crops = _per_clip("crop", crop, len(clips), _is_shared(crop))
    for n, (clip, new_size, window) in enumerate(zip(clips, resizes, crops, strict=True)):
        height, width = clip.shape[1:3] if new_size is None else _integers("resize", new_size, "height, width")
        if height < 1 or width < 1:
            raise ValueError(f"resize={new_size!r}: height and width must be at least 1")
        top, left, h, w = (
            (0, 0, height, width) if window is None else _integers("crop", window, "top, left, height, width")
        )
        if top < 0 or left < 0 or h < 1 or w < 1 or top + h > height or left + w > width:
            raise ValueError(
                f"crop={(top, left, h, w)} (top, left, height, width) is not inside the resized frame of clip {n}, "
                f"{height} x {width} pixels"
            )
        if size is None:
            size = [h, w]
        elif size[0] != h or size[1] != w:
            raise ValueError(
                f"clip {n} comes out at {h} x {w} pixels and clip 0 at {size[0]} x {size[1]}; "
                "choose resize and crop such that all are of one size"
            )
        geometry += [height, width, top, left]
    return geometry, size or [0, 0]


def _flips(flip: Any, count: int) -> list[bool]:
    if isinstance(flip, Tensor):
        flip = flip.tolist()
    values = _per_clip("flip", flip, count, not hasattr(flip, "__len__"))
    for value in values:
        if value not in (False, True):
            raise ValueError(f"flip={flip!r}: expected True or False, or a list with one of them for each clip")
    return [bool(value) for value in values]


def _channel_values(name: str, values: Sequence[float]) -> list[float]:
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3 or not all(-math.inf < n < math.inf for n in numbers):  # torch.compile has no math.isfinite
        raise ValueError(f"{name}={values!r}: expected three numbers, one per channel")
    return numbers


class GatherFrames(nn.Module):
    """gather_frames with the options that a model fixes; what augmentation varies is given with each call.

    Args: see `gather_frames`.
    """

    def __init__(
        self,
        alpha: int,
        *,
        slow_sampling: str = "linspace",
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.225, 0.225, 0.225),
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.slow_sampling = slow_sampling
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.dtype = dtype
        self.memory_format = memory_format
        self.antialias = antialias

    def forward(
        self,
        frames: Any,
        indices: Any,
        *,
        resize: Sequence | None = None,
        crop: Sequence | None = None,
        flip: bool | Sequence[bool] = False,
    ) -> tuple[Tensor, Tensor]:
        """uint8 frames -> (slow, fast)."""
        return gather_frames(
            frames,
            indices=indices,
            alpha=self.alpha,
            slow_sampling=self.slow_sampling,
            resize=resize,
            crop=crop,
            flip=flip,
            mean=self.mean,
            std=self.std,
            dtype=self.dtype,
            memory_format=self.memory_format,
            antialias=self.antialias,
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, slow_sampling={self.slow_sampling!r}, dtype={self.dtype}"
