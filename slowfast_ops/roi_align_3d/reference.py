"""roi_align_3d in plain PyTorch: the definition that every kernel is tested against.

RoIAlign is separable: the average over a bin's grid of (tri)linear samples is a product of one small matrix per axis,
`out = Wt Wy Wx features`. `axis_weights` makes such a matrix; the rest is einsum.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from slowfast_ops._library import output_memory_format

# Scaled coordinates are clamped to +-COORDINATE_LIMIT feature pixels, so that an infinite box is merely a huge one.
COORDINATE_LIMIT = float(2**20)


def axis_weights(
    low: Tensor, high: Tensor, bins: int, size: int, *, scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """How much each of `size` pixels weighs in each of `bins` bins between `low` and `high` [K] -> [K, bins, size].

    A bin is the mean of its samples, a sample the linear interpolation of its two neighbours; a sample further than
    one pixel outside [0, size - 1] is zero, one closer takes the border pixel.
    """
    known = ~(low.isnan() | high.isnan())
    offset = 0.5 if aligned else 0.0
    low, high = (
        torch.where(known, x * scale, 0).clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT) - offset for x in (low, high)
    )
    length = high - low if aligned else (high - low).clamp(min=1)
    bin_length = (length / bins)[:, None]  # [K, 1]
    bin_start = low[:, None] + torch.arange(bins, device=low.device) * bin_length  # [K, bins]
    if sampling_ratio > 0:
        count = torch.full_like(bin_length, sampling_ratio)
        sample = torch.arange(sampling_ratio, device=low.device).expand(1, 1, -1)
    else:
        # One sample per pixel that the bin is long, rounded up. They are more than half a pixel apart (if there are
        # two), so that at most 2 size + 4 are near the image however large the box is: only those are looked at.
        count = bin_length.ceil().clamp(min=0)
        spacing = torch.where(count > 0, bin_length / count.clamp(min=1), 1)
        first = ((-1 - bin_start) / spacing - 1).floor().clamp(min=0)
        sample = first[..., None] + torch.arange(2 * size + 6, device=low.device)
    position = bin_start[..., None] + (sample + 0.5) * bin_length[..., None] / count.clamp(min=1)[..., None]
    counts = (sample < count[..., None]) & (position >= -1) & (position <= size) & known[:, None, None]
    pixel = torch.arange(size, device=low.device)
    weight = (1 - (position.clamp(0, size - 1)[..., None] - pixel).abs()).clamp(min=0)  # [K, bins, samples, size]
    return torch.where(counts[..., None], weight, 0).sum(2) / count.clamp(min=1)[..., None]


def _align(
    features: Tensor,
    rois: Tensor,
    output_size: Sequence[int],
    spatial_scale: float,
    temporal_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """roi_align_3d before rounding to the dtype of `features`: [R, C, t, h, w] in float32 or wider."""
    (_, _, frames, height, width), (t, h, w) = features.shape, output_size
    dtype = torch.promote_types(features.dtype, torch.float32)
    features = features.to(dtype)

    def weights(low: Tensor, high: Tensor, bins: int, size: int, scale: float) -> Tensor:
        matrix = axis_weights(
            low.flatten(), high.flatten(), bins, size, scale=scale, sampling_ratio=sampling_ratio, aligned=aligned
        )
        return matrix.to(dtype).unflatten(0, low.shape)

    cuboids, tubelets = rois.shape[-1] == 7, rois.dim() == 3
    x1, y1, x2, y2 = (rois[..., i] for i in ((2, 3, 5, 6) if cuboids else (1, 2, 3, 4)))
    wy = weights(y1, y2, h, height, spatial_scale)  # [R, h, H], of tubelets [R, T, h, H]
    wx = weights(x1, x2, w, width, spatial_scale)
    if cuboids:
        wt = weights(rois[:, 1], rois[:, 4], t, frames, temporal_scale)  # [R, t, T]
    else:  # the clip's own frames, whatever the spatial sampling: t = T is a frame per bin
        start, end = rois.new_zeros(1), rois.new_full((1,), frames)
        wt = axis_weights(start, end, t, frames, scale=1.0, sampling_ratio=0, aligned=True)[0].to(dtype)  # [t, T]

    batch = rois[:, 0, 0] if tubelets else rois[:, 0]
    exists = (batch >= 0) & (batch < features.shape[0])
    wy = torch.where(exists.reshape(-1, *[1] * (wy.dim() - 1)), wy, 0)
    clip = torch.where(exists, batch, 0).long()  # features[clip]: its gradient is a sorted, deterministic sum
    if tubelets:
        x = torch.einsum("rthy,rctyx->rcthx", wy, features[clip])
        x = torch.einsum("rtwx,rcthx->rcthw", wx, x)
        return torch.einsum("bt,rcthw->rcbhw", wt, x)
    if cuboids:
        x = torch.einsum("rbt,rctyx->rcbyx", wt, features[clip])
    else:  # the time bins are the same for all RoIs: once per clip
        x = torch.einsum("bt,nctyx->ncbyx", wt, features)[clip]
    x = torch.einsum("rhy,rcbyx->rcbhx", wy, x)
    return torch.einsum("rwx,rcbhx->rcbhw", wx, x)


def _without_autocast(device_type: str) -> AbstractContextManager:
    available = torch.amp.is_autocast_available(device_type)  # not for meta tensors
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def roi_align_3d(features: Tensor, rois: Tensor, output_size: Sequence[int], *options: float) -> Tensor:
    """features [N, C, T, H, W], rois float32 or float64 -> [R, C, t, h, w]; options as for the op."""
    with _without_autocast(features.device.type):
        result = _align(features, rois, output_size, *options)  # type: ignore[arg-type]
    return result.to(features.dtype).contiguous(memory_format=output_memory_format(features))


def roi_align_3d_pool(features: Tensor, rois: Tensor, output_size: Sequence[int], *options: float) -> Tensor:
    """The mean of roi_align_3d over t, then the maximum over h x w (at a tie, the first takes the gradient): [R, C]."""
    with _without_autocast(features.device.type):
        result = _align(features, rois, output_size, *options)  # type: ignore[arg-type]
    return result.mean(2).flatten(2).max(2).values.to(features.dtype)
