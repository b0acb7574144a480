"""The Triton kernels of roi_align_3d_pool; triton.py launches them, triton_kernels.py has what roi_align_3d shares.

As in csrc/cuda/roi_align_3d_pool_cuda.cu, where all frames count the same: the forward works on their mean, made once
for the RoIs that overlap, and the backward computes one gradient for all frames.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slowfast_ops.roi_align_3d.triton_kernels import along, bins_of_roi


@triton.jit
def mean_forward_kernel(
    features_ptr,
    mean_ptr,
    channels,
    frames,
    height,
    width,
    feature_n: tl.int64,
    feature_c: tl.int64,
    feature_t: tl.int64,
    feature_h: tl.int64,
    feature_w: tl.int64,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program takes the mean over time of BLOCK elements of a clip, in the order of its memory."""
    elements = channels * height * width
    chunks = (elements + BLOCK - 1) // BLOCK
    n = (tl.program_id(0) // chunks).to(tl.int64)
    i = tl.program_id(0) % chunks * BLOCK + tl.arange(0, BLOCK)
    pixel = i // channels if CHANNELS_LAST else i % (height * width)
    channel = i % channels if CHANNELS_LAST else i // (height * width)
    place = features_ptr + n * feature_n + (pixel // width * feature_h + pixel % width * feature_w)
    place += along(channel.to(tl.int64), feature_c, CHANNELS_LAST)
    element: tl.constexpr = mean_ptr.dtype.element_ty
    share = tl.full([BLOCK], 1, element) / frames
    total = tl.full([BLOCK], 0, element)
    for first in range(0, frames, 4):  # four loads under way together
        for k in tl.static_range(4):
            mask = (i < elements) & (first + k < frames)
            total += share * tl.load(place + (first + k) * feature_t, mask=mask, other=0).to(element)
    tl.store(mean_ptr + n * elements + i, total, mask=i < elements)


@triton.jit
def pool_forward_kernel(
    features_ptr,
    output_ptr,
    argmax_ptr,
    clip_ptr,
    time_weights_ptr,
    time_ranges_ptr,
    y_weights_ptr,
    y_ranges_ptr,
    x_weights_ptr,
    x_ranges_ptr,
    boxes_per_roi,
    time_rows_per_roi,
    channels,
    frames,
    height,
    width,
    y_bins,
    x_bins,
    feature_n: tl.int64,
    feature_c: tl.int64,
    feature_t: tl.int64,
    feature_h: tl.int64,
    feature_w: tl.int64,
    CHANNELS_LAST: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program makes BLOCK channels of a RoI: the largest bin, the first of equals, and NaN if there is one."""
    tiles = (channels + BLOCK - 1) // BLOCK
    channel = (tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    roi = (tl.program_id(0) // tiles).to(tl.int64)
    infinity = float("inf")
    best = tl.full([BLOCK], -infinity, x_weights_ptr.dtype.element_ty)
    best_place = tl.full([BLOCK], 0, tl.int32)
    for first_bin in range(0, y_bins * x_bins, OUTPUTS):
        value = bins_of_roi(
            features_ptr,
            clip_ptr,
            time_weights_ptr,
            time_ranges_ptr,
            y_weights_ptr,
            y_ranges_ptr,
            x_weights_ptr,
            x_ranges_ptr,
            boxes_per_roi,
            time_rows_per_roi,
            frames,
            height,
            width,
            1,
            y_bins,
            x_bins,
            feature_n,
            feature_c,
            feature_t,
            feature_h,
            feature_w,
            roi,
            0,
            first_bin,
            channel,
            channel < channels,
            CHANNELS_LAST,
            OUTPUTS,
            BLOCK,
        )
        bin = (first_bin + tl.arange(0, OUTPUTS))[:, None]
        known = (value == value) & (bin < y_bins * x_bins)
        largest = tl.max(tl.where(known, value, -infinity), 0)
        place = tl.min(tl.where(known & (value == largest[None, :]), bin, 2147483647), 0)
        unknown = tl.min(tl.where(value != value, bin, 2147483647), 0)
        has_unknown = unknown < 2147483647
        better = ((largest > best) | has_unknown) & (best == best)
        best_place = tl.where(better, tl.where(has_unknown, unknown, place), best_place)
        best = tl.where(better, tl.where(has_unknown, float("nan"), largest), best)
    place = roi * channels + channel
    tl.store(output_ptr + place, best.to(output_ptr.dtype.element_ty), mask=channel < channels)
    tl.store(argmax_ptr + place, best_place.to(tl.int64), mask=channel < channels)


@triton.jit
def pool_backward_kernel(
    grad_output_ptr,
    grad_features_ptr,
    argmax_ptr,
    members_ptr,
    counts_ptr,
    time_weights_ptr,
    y_weights_ptr,
    y_ranges_ptr,
    x_weights_ptr,
    x_ranges_ptr,
    boxes_per_roi,
    time_rows_per_roi,
    rois,
    distinct_frames,
    channels,
    frames,
    height,
    width,
    y_bins,
    x_bins,
    output_n: tl.int64,
    output_c: tl.int64,
    feature_n: tl.int64,
    feature_c: tl.int64,
    feature_t: tl.int64,
    feature_w: tl.int64,
    CHANNELS_LAST: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns PIXELS pixels in BLOCK channels of one frame of a clip or, if one frame is distinct, of all.

    All of a RoI's gradient is in one bin of each channel, the one that argmax says.
    """
    tiles = (channels + BLOCK - 1) // BLOCK
    chunks = (height * width + PIXELS - 1) // PIXELS
    channel = (tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    channel_inside = channel < channels
    rest = tl.program_id(0) // tiles
    pixel = rest % chunks * PIXELS + tl.arange(0, PIXELS)
    pixel_inside = pixel < height * width
    y = pixel // width
    x = pixel % width
    frame = rest // chunks % distinct_frames
    n = (rest // chunks // distinct_frames).to(tl.int64)
    total = tl.full([PIXELS, BLOCK], 0, x_weights_ptr.dtype.element_ty)
    for i in range(tl.load(counts_ptr + n)):
        roi = tl.load(members_ptr + n * rois + i).to(tl.int64)
        box = roi * boxes_per_roi + frame % boxes_per_roi
        y_range = y_ranges_ptr + 2 * (box * height + y)
        x_range = x_ranges_ptr + 2 * (box * width + x)
        reached = tl.load(y_range, mask=pixel_inside, other=0) < tl.load(y_range + 1, mask=pixel_inside, other=0)
        reached &= tl.load(x_range, mask=pixel_inside, other=0) < tl.load(x_range + 1, mask=pixel_inside, other=0)
        time_weight = tl.load(time_weights_ptr + roi * time_rows_per_roi * frames + frame)
        if (tl.max(reached.to(tl.int32), 0) > 0) & (time_weight != 0):
            place = tl.load(argmax_ptr + roi * channels + channel, mask=channel_inside, other=0).to(tl.int32)
            value = tl.load(grad_output_ptr + roi * output_n + channel * output_c, mask=channel_inside, other=0)
            mask = reached[:, None] & channel_inside[None, :]
            y_weights = y_weights_ptr + box * height * y_bins + ((y * y_bins)[:, None] + (place // x_bins)[None, :])
            x_weights = x_weights_ptr + box * width * x_bins + ((x * x_bins)[:, None] + (place % x_bins)[None, :])
            weight = tl.load(y_weights, mask=mask, other=0) * tl.load(x_weights, mask=mask, other=0)
            total += tl.where(mask, weight * (time_weight * value.to(total.dtype))[None, :], 0)
    place = along(pixel.to(tl.int64), feature_w, not CHANNELS_LAST)[:, None]  # the pixels are dense
    place += along(channel, feature_c, CHANNELS_LAST)[None, :]
    gradient = total.to(grad_features_ptr.dtype.element_ty)
    mask = pixel_inside[:, None] & channel_inside[None, :]
    for f in range(frame, frame + frames - distinct_frames + 1):
        tl.store(grad_features_ptr + n * feature_n + f * feature_t + place, gradient, mask=mask)
