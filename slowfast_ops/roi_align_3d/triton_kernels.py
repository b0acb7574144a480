"""The Triton kernels of roi_align_3d, and what those of roi_align_3d_pool share with them; triton.py launches them.

As in csrc/cuda/roi_align_3d_cuda.cu: a first kernel (triton_plan.py) turns boxes into weights, so that the host reads
no value of a RoI. The forward and the backward, in gather form, then are one step, `_resampled`, with the weights
transposed: each output (a bin, or a pixel of the gradient) adds up the few inputs that it reads, the first of all
outputs of a program at once, then the second, ... Neighbouring outputs read the same inputs, out of the L1 cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def along(index, stride, IS_INNER: tl.constexpr):
    """Offsets along an axis. A stride that is known to be 1 lets neighbouring threads take neighbouring elements."""
    if IS_INNER:
        return index
    else:
        return index * stride


@triton.jit
def _resampled(
    input_ptr,  # of one clip (forward) or RoI (backward)
    input_c,
    input_t,
    input_h,
    input_w,
    channel,
    channel_inside,
    first_t,
    last_t,
    time_weights_ptr,  # of input frame t: time_weights_ptr[t * time_weight_step]
    time_weight_step,
    row,
    column,
    output_inside,
    y_weights_ptr,  # of input row y in output row r: y_weights_ptr[r * y_output_step + y * y_input_step]
    y_output_step,
    y_input_step,
    y_ranges_ptr,  # the input rows [y_ranges_ptr[2 r], y_ranges_ptr[2 r + 1]) of output row r
    x_weights_ptr,
    x_output_step,
    x_input_step,
    x_ranges_ptr,
    CHANNELS_LAST: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Outputs at (row, column) [OUTPUTS] in some channels [BLOCK]: the weighted sum of the inputs that they read."""
    y_range = y_ranges_ptr + 2 * row
    x_range = x_ranges_ptr + 2 * column
    first_y = tl.load(y_range, mask=output_inside, other=0)
    first_x = tl.load(x_range, mask=output_inside, other=0)
    rows = tl.load(y_range + 1, mask=output_inside, other=0) - first_y  # an empty range ends before it begins
    columns = tl.load(x_range + 1, mask=output_inside, other=0) - first_x
    result = tl.full([OUTPUTS, BLOCK], 0, x_weights_ptr.dtype.element_ty)
    for i in range(tl.max(rows, 0)):
        y = first_y + i
        y_weight = tl.load(y_weights_ptr + row * y_output_step + y * y_input_step, mask=i < rows, other=0)
        for j in range(tl.max(columns, 0)):
            x = first_x + j
            inside = (i < rows) & (j < columns)
            x_weight = tl.load(x_weights_ptr + column * x_output_step + x * x_input_step, mask=inside, other=0)
            place = input_ptr + (y * input_h + x * input_w)[:, None] + along(channel, input_c, CHANNELS_LAST)[None, :]
            mask = inside[:, None] & channel_inside[None, :]
            for t in range(first_t, last_t):
                value = tl.load(place + t * input_t, mask=mask, other=0).to(result.dtype)
                weight = y_weight * x_weight * tl.load(time_weights_ptr + t * time_weight_step)
                result += weight[:, None] * value
    return result


@triton.jit
def bins_of_roi(
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
    time_bins,
    y_bins,
    x_bins,
    feature_n,
    feature_c,
    feature_t,
    feature_h,
    feature_w,
    roi,
    time_bin,
    first_bin,
    channel,
    channel_inside,
    CHANNELS_LAST: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bins [first_bin, first_bin + OUTPUTS) of a time bin of a RoI, in row-major order: [OUTPUTS, BLOCK]."""
    clip = tl.maximum(tl.load(clip_ptr + roi), 0).to(tl.int64)
    time_row = roi * time_rows_per_roi
    time_range = time_ranges_ptr + 2 * (time_row * time_bins + time_bin)
    last_t = tl.load(time_range + 1)
    bin = first_bin + tl.arange(0, OUTPUTS)
    result = tl.full([OUTPUTS, BLOCK], 0, x_weights_ptr.dtype.element_ty)
    # Frames that share a box: all of them, or a tubelet's one by one.
    step = frames // boxes_per_roi
    for t in range(tl.load(time_range), last_t, step):
        box = roi * boxes_per_roi + t % boxes_per_roi
        result += _resampled(
            features_ptr + clip * feature_n,
            feature_c,
            feature_t,
            feature_h,
            feature_w,
            channel,
            channel_inside,
            t,
            tl.minimum(t + step, last_t),
            time_weights_ptr + time_row * frames * time_bins + time_bin,
            time_bins,
            bin // x_bins,
            bin % x_bins,
            bin < y_bins * x_bins,
            y_weights_ptr + box * height * y_bins,
            1,
            y_bins,
            y_ranges_ptr + 2 * box * y_bins,
            x_weights_ptr + box * width * x_bins,
            1,
            x_bins,
            x_ranges_ptr + 2 * box * x_bins,
            CHANNELS_LAST,
            OUTPUTS,
            BLOCK,
        )
    return result


@triton.jit
def forward_kernel(
    features_ptr,
    output_ptr,
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
    time_bins,
    y_bins,
    x_bins,
    feature_n: tl.int64,
    feature_c: tl.int64,
    feature_t: tl.int64,
    feature_h: tl.int64,
    feature_w: tl.int64,
    output_n: tl.int64,
    output_c: tl.int64,
    output_t: tl.int64,
    output_w: tl.int64,
    FEATURES_CHANNELS_LAST: tl.constexpr,
    OUTPUT_CHANNELS_LAST: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program makes OUTPUTS bins of a time bin of a RoI in BLOCK channels."""
    tiles = (channels + BLOCK - 1) // BLOCK
    chunks = (y_bins * x_bins + OUTPUTS - 1) // OUTPUTS
    channel = (tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    rest = tl.program_id(0) // tiles
    first_bin = rest % chunks * OUTPUTS
    time_bin = rest // chunks % time_bins
    roi = (rest // chunks // time_bins).to(tl.int64)
    result = bins_of_roi(
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
        time_bins,
        y_bins,
        x_bins,
        feature_n,
        feature_c,
        feature_t,
        feature_h,
        feature_w,
        roi,
        time_bin,
        first_bin,
        channel,
        channel < channels,
        FEATURES_CHANNELS_LAST,
        OUTPUTS,
        BLOCK,
    )
    bin = first_bin + tl.arange(0, OUTPUTS)
    place = output_ptr + roi * output_n + time_bin * output_t + along(channel, output_c, OUTPUT_CHANNELS_LAST)[None, :]
    place += along(bin.to(tl.int64), output_w, not OUTPUT_CHANNELS_LAST)[:, None]  # the bins are dense
    mask = (bin < y_bins * x_bins)[:, None] & (channel < channels)[None, :]
    tl.store(place, result.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    grad_output_ptr,
    grad_features_ptr,
    members_ptr,
    counts_ptr,
    time_weights_ptr,
    time_ranges_ptr,
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
    time_bins,
    y_bins,
    x_bins,
    output_n: tl.int64,
    output_c: tl.int64,
    output_t: tl.int64,
    output_h: tl.int64,
    output_w: tl.int64,
    feature_n: tl.int64,
    feature_c: tl.int64,
    feature_t: tl.int64,
    feature_w: tl.int64,
    OUTPUT_CHANNELS_LAST: tl.constexpr,
    FEATURES_CHANNELS_LAST: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns OUTPUTS pixels in BLOCK channels of one frame of a clip or, if one frame is distinct, of all."""
    tiles = (channels + BLOCK - 1) // BLOCK
    chunks = (height * width + OUTPUTS - 1) // OUTPUTS
    channel = (tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    channel_inside = channel < channels
    rest = tl.program_id(0) // tiles
    pixel = rest % chunks * OUTPUTS + tl.arange(0, OUTPUTS)
    pixel_inside = pixel < height * width
    y = pixel // width
    x = pixel % width
    mask = pixel_inside[:, None] & channel_inside[None, :]
    frame = rest // chunks % distinct_frames
    n = (rest // chunks // distinct_frames).to(tl.int64)
    total = tl.full([OUTPUTS, BLOCK], 0, x_weights_ptr.dtype.element_ty)
    for i in range(tl.load(counts_ptr + n)):
        roi = tl.load(members_ptr + n * rois + i).to(tl.int64)
        box = roi * boxes_per_roi + frame % boxes_per_roi
        time_row = roi * time_rows_per_roi * frames + frame
        time_weights = time_weights_ptr + time_row * time_bins
        y_weights = y_weights_ptr + box * height * y_bins
        x_weights = x_weights_ptr + box * width * x_bins
        total += _resampled(
            grad_output_ptr + roi * output_n,
            output_c,
            output_t,
            output_h,
            output_w,
            channel,
            channel_inside,
            tl.load(time_ranges_ptr + 2 * time_row),
            tl.load(time_ranges_ptr + 2 * time_row + 1),
            time_weights,
            1,
            y,
            x,
            pixel_inside,
            y_weights,
            y_bins,
            1,
            y_ranges_ptr + 2 * box * height,
            x_weights,
            x_bins,
            1,
            x_ranges_ptr + 2 * box * width,
            OUTPUT_CHANNELS_LAST,
            OUTPUTS,
            BLOCK,
        )
    place = along(pixel.to(tl.int64), feature_w, not FEATURES_CHANNELS_LAST)[:, None]  # the pixels are dense
    place += grad_features_ptr + n * feature_n + along(channel, feature_c, FEATURES_CHANNELS_LAST)[None, :]
    gradient = total.to(grad_features_ptr.dtype.element_ty)
    for f in range(frame, frame + frames - distinct_frames + 1):
        tl.store(place + f * feature_t, gradient, mask=mask)
