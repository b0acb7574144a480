"""The public forms of roi_align_3d and roi_align_3d_pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from slowfast_ops._arguments import INT64_MAX, check_floating, checked_integer, checked_positive, described
from slowfast_ops.backends import OpBackends
from slowfast_ops.roi_align_3d import ops, reference

BACKENDS = OpBackends("roi_align_3d", cuda=True, triton=True)
POOL_BACKENDS = OpBackends("roi_align_3d_pool", cuda=True, triton=True)


def roi_align_3d(
    features: Tensor,
    rois: Tensor,
    output_size: int | Sequence[int | None],
    *,
    spatial_scale: float,
    temporal_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign (He et al. 2017) extended over time: features of regions of clips, t x h x w bins each.

    A bin is the mean of equally spaced samples, a sample the (tri)linear interpolation of the features around it. On
    a frame this is `torchvision.ops.roi_align`, to rounding: a sample more than one pixel outside the feature map
    counts as zero, one closer takes the border's value.

    Args:
        features: floating point [N, C, T, H, W], any strides; T, H, W >= 1.
        rois: floating point, on the device of `features`, one of
            [R, 5] (batch index, x1, y1, x2, y2): a box, the same on every frame (SlowFast, section 4.1 on AVA);
            [R, 7] (batch index, t1, x1, y1, t2, x2, y2): a cuboid;
            [R, T, 5]: a tubelet, a box for each of the T frames of `features`, all with one batch index.
            Boxes are in input pixels, times in input frames. x covers [x1, x2): pixel k of an axis is [k, k + 1), so
            frames 2 to 5 are t1 = 2, t2 = 6 (with `aligned`).
        output_size: (t, h, w); an int n is (n, n, n); t = None stands for T.
        spatial_scale: feature pixels per input pixel, such as 1/16.
        temporal_scale: feature frames per input frame; for cuboids only.
        sampling_ratio: samples per bin along each axis; 0 or less: as many as the bin is long in feature pixels,
            rounded up.
        aligned: shift scaled coordinates by -0.5, so that pixel centres are where the samples believe them to be.
            False is the older convention, which also makes every box at least one feature pixel (and frame) large.

    Time: for cuboids as an axis of space, `sampling_ratio` and `aligned` included. For boxes and tubelets the T frames
    are split into t equal bins of ceil(T / t) samples at half-pixel positions, whatever `sampling_ratio` and `aligned`
    say: t = T is one frame per bin, and a t that divides T averages T / t frames. A tubelet's frames are aligned
    each with its own box before they are averaged.

    Odd boxes: an empty or inverted one gives zeros where torchvision does (adaptive sampling and `aligned`). A NaN
    coordinate makes its RoI zeros. Scaled coordinates are clamped to +-2^20, so infinite boxes are very large ones;
    time and memory do not grow with a box's size.

    Returns:
        [R, C, t, h, w] with the dtype of `features`, contiguous or channels_last_3d like them. Sampling positions are
        computed in float64 if `features` or `rois` are float64, else in float32 (also under autocast, which changes no
        dtype here); sums in float32 or wider.
        Differentiable in `features` only, as in torchvision; the gradient has the same bits each time.
        A feature that is not finite may spread over all RoIs of its clip, never to other clips.

    Raises:
        ValueError: a wrong shape, dtype, device or option; a batch index outside [0, N), or one that varies along a
            tubelet (checked for CPU tensors; on a GPU the check would stall the stream, and a RoI on no clip gives
            zeros, a tubelet takes its first index).
    """
    rois = _checked_rois(features, rois)
    options = _checked_options(spatial_scale, temporal_scale, sampling_ratio, aligned)
    size = tuple(output_size) if isinstance(output_size, (list, tuple, Tensor)) else (output_size,) * 3
    if len(size) != 3:
        raise ValueError(f"output_size must be an int or (t, h, w), got {output_size!r}")
    size = _checked_size(features.shape[2] if size[0] is None else size[0], *size[1:])
    backend = BACKENDS.select(features)
    if backend == "reference":
        return reference.roi_align_3d(features, rois, size, *options)
    op = ops.roi_align_3d_triton if backend == "triton" else ops.roi_align_3d
    return op(features, rois, size, *options)


def roi_align_3d_pool(
    features: Tensor,
    rois: Tensor,
    output_size: int | Sequence[int],
    *,
    spatial_scale: float,
    temporal_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """The RoI head of SlowFast on AVA in one op: temporal mean, RoIAlign to h x w bins, spatial maximum.

    Equal, to rounding, to `roi_align_3d(features, rois, (t, h, w), ...).mean(2).amax((2, 3))` with t = 1: the mean is
    over all T frames for boxes and tubelets and over the cuboid's extent for cuboids. For boxes the mean is taken
    first, once per clip, since it commutes with RoIAlign.

    Args:
        output_size: (h, w), or an int for both; (t, h, w) takes the mean over that many temporal bins.
        features, rois, spatial_scale, temporal_scale, sampling_ratio, aligned: as for `roi_align_3d`.

    Returns:
        [R, C] with the dtype of `features`; the maximum is taken before rounding to it. Its gradient goes to the
        largest bin, among equals to the first in row-major order.

    Raises:
        ValueError: as `roi_align_3d`.
    """
    rois = _checked_rois(features, rois)
    options = _checked_options(spatial_scale, temporal_scale, sampling_ratio, aligned)
    size = tuple(output_size) if isinstance(output_size, (list, tuple, Tensor)) else (output_size,) * 2
    if len(size) not in (2, 3):
        raise ValueError(f"output_size must be an int, (h, w) or (t, h, w), got {output_size!r}")
    size = _checked_size(*((1, *size) if len(size) == 2 else size))
    backend = POOL_BACKENDS.select(features)
    if backend == "reference":
        return reference.roi_align_3d_pool(features, rois, size, *options)
    op = ops.roi_align_3d_pool_triton if backend == "triton" else ops.roi_align_3d_pool
    return op(features, rois, size, *options)[0]


def _checked_size(*size: Any) -> tuple[int, ...]:
    return tuple(checked_integer("output_size", bins, 1) for bins in size)


def _checked_options(
    spatial_scale: float, temporal_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[float, float, int, bool]:
    return (
        checked_positive("spatial_scale", spatial_scale),
        checked_positive("temporal_scale", temporal_scale),
        max(checked_integer("sampling_ratio", sampling_ratio, -INT64_MAX), 0),
        bool(aligned),
    )


def _checked_rois(features: Tensor, rois: Tensor) -> Tensor:
    """The RoIs without gradient, in the dtype that positions are computed in."""
    check_floating("features", features, "[N, C, T, H, W]")
    if 0 in features.shape[2:]:
        raise ValueError(f"features must have at least one frame and one pixel, got {list(features.shape)}")
    check_floating("rois", rois, "[R, 5]", "[R, 7]", "[R, T, 5]")
    flat = rois.dim() == 2
    if rois.shape[-1] not in ((5, 7) if flat else (5,)):
        raise ValueError(f"rois must be [R, 5], [R, 7] or [R, T, 5], got {described(rois)}")
    if not flat and rois.shape[1] != features.shape[2]:
        raise ValueError(f"rois has boxes for {rois.shape[1]} frames, features has {features.shape[2]} frames")
    if rois.device != features.device:
        raise ValueError(f"rois is on {rois.device}, features on {features.device}")
    known = rois.device.type == "cpu" and not isinstance(rois, FakeTensor) and not torch.compiler.is_compiling()
    if known:  # the values, without waiting for a device
        _check_batch_indices(rois, features.shape[0])
    wide = torch.float64 in (rois.dtype, features.dtype)
    return rois.detach().to(torch.float64 if wide else torch.float32)


def _check_batch_indices(rois: Tensor, clips: int) -> None:
    if rois.shape[0] == 0:
        return
    index = rois[..., 0].detach()
    low, high = index.aminmax()
    if not (low >= 0 and high < clips):  # a NaN fails, too
        outside = ~((index >= 0) & (index < clips))
        row = int(outside.nonzero()[0, 0])
        raise ValueError(f"rois[{row}] has batch index {index[row].tolist()}, outside [0, {clips})")
    if rois.dim() == 3 and (index != index[:, :1]).any():
        row = int((index != index[:, :1]).nonzero()[0, 0])
        raise ValueError(f"rois[{row}]: a tubelet lies in one clip, got batch indices {index[row].tolist()}")


class RoIAlign3D(nn.Module):
    """roi_align_3d with fixed options; see there."""

    def __init__(
        self,
        output_size: int | Sequence[int | None],
        spatial_scale: float,
        temporal_scale: float = 1.0,
        sampling_ratio: int = 0,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.temporal_scale = temporal_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """features [N, C, T, H, W], rois [R, 5], [R, 7] or [R, T, 5] -> [R, C, t, h, w]."""
        return roi_align_3d(features, rois, self.output_size, **self._options())

    def _options(self) -> dict:
        names = ("spatial_scale", "temporal_scale", "sampling_ratio", "aligned")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in {"output_size": self.output_size, **self._options()}.items())


class RoIAlign3DPool(RoIAlign3D):
    """roi_align_3d_pool with fixed options; see there."""

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """features [N, C, T, H, W], rois [R, 5], [R, 7] or [R, T, 5] -> [R, C]."""
        return roi_align_3d_pool(features, rois, self.output_size, **self._options())  # type: ignore[arg-type]
