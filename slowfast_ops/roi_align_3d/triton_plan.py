"""What the Triton kernels of roi_align_3d know about the boxes: the weights of each axis, and the RoIs of each clip."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from slowfast_ops._native import allocate

BOXES = 8  # boxes that a program makes the weights of
MEMBERS = 128  # RoIs at a time, where those of a clip are listed
# No fused multiply-adds: the number of adaptive samples is a rounding-up, which one bit more would change.
EXACT = {"enable_fp_fusion": False}
# A 1 among these would arrive as a constant, which has no dtype.
_NUMBERS = (
    "clips",
    "boxes",
    "frames",
    "height",
    "width",
    "time_bins",
    "y_bins",
    "x_bins",
    "averaged_time_bins",
    "sampling_ratio",
    "aligned",
    "cuboids",
    "boxes_per_roi",
)


@triton.jit(do_not_specialize=_NUMBERS)
def weights_kernel(
    rois_ptr,
    clip_ptr,
    weights_ptr,
    ranges_ptr,
    clips,
    boxes,
    frames,
    height,
    width,
    time_bins,
    y_bins,
    x_bins,
    averaged_time_bins,
    sampling_ratio,
    aligned,
    cuboids,
    boxes_per_roi,
    roi_stride: tl.int64,
    frame_stride: tl.int64,
    column_stride: tl.int64,
    spatial_scale_bits: tl.int64,
    temporal_scale_bits: tl.int64,
    x_weights: tl.int64,
    time_weights: tl.int64,
    x_ranges: tl.int64,
    time_ranges: tl.int64,
    BACKWARD: tl.constexpr,
    BOXES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Program (i, axis) makes the weights of one axis (0: y, 1: x, 2: time) of BOXES boxes, as [size, bins] matrices.

    Positions are computed as in reference.axis_weights. The ranges are those of the pixels that each bin reads
    (forward) or of the bins that each pixel feeds (backward); an empty one is (the axis' end, 0).
    """
    axis = tl.program_id(1)
    is_time = axis == 2
    own_time = is_time & (cuboids == 0)  # the clip's own frames: a frame per bin if t = T, whatever the options
    box = tl.program_id(0).to(tl.int64) * BOXES + tl.arange(0, BOXES)
    box_inside = box < tl.where(own_time, 1, boxes)
    base = rois_ptr + box // boxes_per_roi * roi_stride
    index = tl.load(base, mask=box_inside, other=0)
    exists = (index >= 0) & (index < clips)
    first_of_roi = box_inside & (box % boxes_per_roi == 0) & (box * 0 + axis == 0)
    tl.store(clip_ptr + box // boxes_per_roi, tl.where(exists, index, -1).to(tl.int32), mask=first_of_roi)

    bins = tl.where(axis == 0, y_bins, tl.where(is_time, time_bins, x_bins))
    size = tl.where(axis == 0, height, tl.where(is_time, frames, width))
    averaged = tl.where(is_time, averaged_time_bins, 1)
    column = tl.where(is_time, 1, 1 + (cuboids != 0).to(tl.int32) + (axis == 0).to(tl.int32))
    corner = base + box % boxes_per_roi * frame_stride + column * column_stride
    low = tl.load(corner, mask=box_inside, other=0)
    high = tl.load(corner + (2 + (cuboids != 0).to(tl.int32)) * column_stride, mask=box_inside, other=0)
    # Scales come as bits, since floating-point arguments are passed in float32.
    scale = tl.where(is_time, temporal_scale_bits, spatial_scale_bits).to(tl.float64, bitcast=True).to(low.dtype)
    low = tl.where(own_time, 0.0, low)
    high = tl.where(own_time, frames.to(low.dtype), high)
    scale = tl.where(own_time, 1.0, scale)
    ratio = tl.where(own_time, 0, sampling_ratio)
    offset = tl.where(own_time | (aligned != 0), 0.5, 0.0)
    shortest = tl.where(own_time | (aligned != 0), -4194304.0, 1.0)

    known = (low == low) & (high == high)
    limit = 1048576.0
    start = tl.minimum(tl.maximum(tl.where(known, low * scale, 0.0), -limit), limit) - offset
    end = tl.minimum(tl.maximum(tl.where(known, high * scale, 0.0), -limit), limit) - offset
    # `/` of float32 tensors is an approximation on a GPU; one of float64, rounded, is what float32 should give.
    length = tl.maximum(end - start, shortest).to(tl.float64)
    bin_length = (length / (bins * averaged)).to(low.dtype)
    samples = tl.where(ratio <= 0, tl.maximum(tl.ceil(bin_length), 0.0), ratio.to(low.dtype))
    exists = box_inside & (exists | (box * 0 + own_time.to(tl.int64) == 1))
    samples = tl.where(known & exists, samples, 0.0)
    divisor = tl.maximum(samples, 1.0).to(tl.float64)
    # Two adaptive samples are more than half a pixel apart: few are near the image, however large the box.
    spacing = tl.where((samples > 0) & (bin_length > 0), bin_length / divisor, 1.0)
    nearby = tl.where(ratio <= 0, 2 * size + 6, 2147483647)
    element: tl.constexpr = weights_ptr.dtype.element_ty
    share = (1.0 / (divisor * averaged)).to(element)

    rows = size if BACKWARD else bins
    matrix = weights_ptr + tl.where(axis == 0, 0, tl.where(is_time, time_weights, x_weights)) + box * size * bins
    ranges = ranges_ptr + tl.where(axis == 0, 0, tl.where(is_time, time_ranges, x_ranges)) + box * 2 * rows
    pixel = tl.arange(0, PIXELS)[None, :]
    inside = box_inside[:, None] & (pixel < size)
    first_bin = tl.full([BOXES, PIXELS], 0, tl.int32) + bins
    last_bin = tl.full([BOXES, PIXELS], 0, tl.int32)
    for b in range(bins):
        weight = tl.full([BOXES, PIXELS], 0, element)
        for a in range(averaged):
            bin_start = start + (b * averaged + a) * bin_length
            before = tl.maximum(tl.floor((-1 - bin_start) / spacing - 1), 0.0)
            first = tl.where(ratio <= 0, before, 0.0).to(tl.int32)
            count = tl.minimum(samples.to(tl.int32) - first, nearby)
            for i in range(tl.max(count, 0)):
                position = ((first + i + 0.5) * bin_length).to(tl.float64) / divisor
                position = bin_start + position.to(low.dtype)
                counted = (i < count) & (position >= -1) & (position <= size)
                position = tl.minimum(tl.maximum(position, 0.0), (size - 1).to(low.dtype))
                part = tl.maximum(1 - tl.abs(position[:, None] - pixel.to(low.dtype)), 0.0).to(element)
                weight += part * tl.where(counted, share, 0.0)[:, None]
        tl.store(matrix[:, None] + pixel * bins + b, weight, mask=inside)
        touched = (weight != 0) & inside
        if BACKWARD:
            first_bin = tl.where(touched, tl.minimum(first_bin, b), first_bin)
            last_bin = tl.where(touched, b + 1, last_bin)
        else:
            tl.store(ranges + 2 * b, tl.min(tl.where(touched, pixel, size), 1), mask=box_inside)
            tl.store(ranges + 2 * b + 1, tl.max(tl.where(touched, pixel + 1, 0), 1), mask=box_inside)
    if BACKWARD:
        tl.store(ranges[:, None] + 2 * pixel, first_bin, mask=inside)
        tl.store(ranges[:, None] + 2 * pixel + 1, last_bin, mask=inside)


@triton.jit
def members_kernel(clip_ptr, members_ptr, counts_ptr, rois, BLOCK: tl.constexpr):
    """Program n lists the RoIs of clip n in ascending order: members[n, :counts[n]]."""
    n = tl.program_id(0)
    members_ptr += n.to(tl.int64) * rois
    count = 0
    for first in range(0, rois, BLOCK):
        roi = first + tl.arange(0, BLOCK)
        mine = (tl.load(clip_ptr + roi, mask=roi < rois, other=-1) == n).to(tl.int32)
        tl.store(members_ptr + count + tl.cumsum(mine, 0) - 1, roi, mask=mine == 1)
        count += tl.sum(mine, 0)
    tl.store(counts_ptr + n, count)


class Axis(NamedTuple):
    """The weights of one axis for all boxes, as parts of the workspace."""

    weights: Tensor  # [boxes, size, bins]
    ranges: Tensor  # forward: [boxes, bins, 2], the pixels of each bin; backward: [boxes, size, 2], the bins of a pixel


class Plan(NamedTuple):
    """Everything that the kernels know about the RoIs."""

    boxes_per_roi: int  # T for tubelets, else 1
    time_rows_per_roi: int  # 1 for cuboids, 0 if all RoIs share the clip's own frames
    clip: Tensor  # int32 [R]: the RoI's clip, or -1
    time: Axis
    y: Axis
    x: Axis


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _rounded_up(count: int) -> int:
    return (count + 15) // 16 * 16  # so that each part of the workspace is as aligned as the whole


def make_plan(features: Tensor, rois: Tensor, options: tuple, backward: bool) -> Plan:
    """The plan for features [N, C, T, H, W] (their values are not read); options as in native.py."""
    (t, h, w), spatial_scale, temporal_scale, sampling_ratio, aligned, pool = options
    clips, _, frames, height, width = features.shape
    cuboids, boxes_per_roi = rois.shape[-1] == 7, frames if rois.dim() == 3 else 1
    boxes = rois.shape[0] * boxes_per_roi
    time_rows, averaged = rois.shape[0] if cuboids else 1, t if pool else 1
    sizes = ((boxes, height, h), (boxes, width, w), (time_rows, frames, t // averaged))
    matrices = [rows * size * bins for rows, size, bins in sizes]
    spans = [2 * rows * (size if backward else bins) for rows, size, bins in sizes]
    wide = features.dtype == torch.float64
    weights = allocate(
        (sum(map(_rounded_up, matrices)),), like=features, dtype=torch.float64 if wide else torch.float32
    )
    ranges = allocate((sum(map(_rounded_up, spans)),), like=features, dtype=torch.int32)
    clip = allocate((rois.shape[0],), like=features, dtype=torch.int32)
    matrix_starts = [sum(map(_rounded_up, matrices[:i])) for i in range(3)]
    span_starts = [sum(map(_rounded_up, spans[:i])) for i in range(3)]
    if boxes:
        weights_kernel[(triton.cdiv(boxes, BOXES), 3)](
            rois,
            clip,
            weights,
            ranges,
            clips,
            boxes,
            *(frames, height, width),
            *(t // averaged, h, w),
            averaged,
            sampling_ratio,
            int(aligned),
            int(cuboids),
            boxes_per_roi,
            rois.stride(0),
            rois.stride(1) if rois.dim() == 3 else 0,
            rois.stride(-1),
            _bits(spatial_scale),
            _bits(temporal_scale),
            *matrix_starts[1:],
            *span_starts[1:],
            BACKWARD=backward,
            BOXES=BOXES,
            PIXELS=triton.next_power_of_2(max(frames, height, width)),
            **EXACT,
        )
    y, x, time = (Axis(weights[m:], ranges[s:]) for m, s in zip(matrix_starts, span_starts, strict=True))
    return Plan(boxes_per_roi, int(cuboids), clip, time, y, x)


def members_of_clips(plan: Plan, clips: int) -> tuple[Tensor, Tensor]:
    """(members, counts): the RoIs of clip n in ascending order are members[n, :counts[n]]."""
    rois = plan.clip.shape[0]
    members = allocate((clips, rois), like=plan.clip)
    counts = allocate((clips,), like=plan.clip)
    members_kernel[(clips,)](plan.clip, members, counts, rois, BLOCK=MEMBERS)
    return members, counts


def plan_configurations() -> Iterator[tuple[Any, dict, dict, dict]]:
    """compile_configurations() of these kernels; see triton.py."""
    places = [f"{name}_stride" for name in ("roi", "frame", "column")]
    places += ["spatial_scale_bits", "temporal_scale_bits", "x_weights", "time_weights", "x_ranges", "time_ranges"]
    for backward in (False, True):
        types = {"rois_ptr": "*fp32", "clip_ptr": "*i32", "weights_ptr": "*fp32", "ranges_ptr": "*i32"}
        types |= dict.fromkeys(_NUMBERS, "i32") | dict.fromkeys(places, "i64")
        yield weights_kernel, types, {"BACKWARD": backward, "BOXES": BOXES, "PIXELS": 32}, EXACT
    types = {"clip_ptr": "*i32", "members_ptr": "*i32", "counts_ptr": "*i32", "rois": "i32"}
    yield members_kernel, types, {"BLOCK": MEMBERS}, {}
