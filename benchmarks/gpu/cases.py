"""What is measured: each op at the shapes of SlowFast 8x8 R50, with the PyTorch composition that it replaces.

Bytes are the least that memory must move: every input that is needed and every result, once for each pass over them
that no implementation can avoid. FLOPs are those of the convolution (and of its two gradients).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from slowfast_ops import (
    LateralConvConcat,
    YUVFrames,
    gather_frames,
    lateral_conv_concat,
    roi_align_3d,
    roi_align_3d_pool,
    slow_frame_indices,
    temporal_gather,
)

try:
    from torchvision.ops import roi_align
except ImportError:
    roi_align = None

EPS = 1e-5  # of batch norm
FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    op: str
    shape: str
    dtype: torch.dtype
    memory_format: str
    direction: str  # "forward" or "forward and backward"
    inputs: Callable[[torch.Generator], tuple]  # new ones at each call, in `dtype`
    ours: Callable
    eager: Callable | None  # None: the peer is not installed
    gradients: tuple[int, ...] = ()  # the inputs that get one; the last input is the output's gradient then
    bytes: int = 0
    flops: int = 0

    def run(self, function: Callable, *inputs: object) -> tuple:
        """The outputs of a call of `function`; and the gradients, where they are measured."""
        if self.direction == "forward":
            with torch.no_grad():
                result = function(*inputs)
            return result if isinstance(result, tuple) else (result,)
        leaves = [inputs[i].requires_grad_() for i in self.gradients]  # type: ignore[attr-defined]
        output = function(*inputs[:-1])
        return (output.detach(), *torch.autograd.grad(output, leaves, inputs[-1]))


def random(generator: torch.Generator, shape: tuple, dtype: torch.dtype, memory_format: str = "contiguous") -> Tensor:
    x = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(dtype)
    return x.contiguous(memory_format=FORMATS[memory_format]) if len(shape) == 5 else x


def size_in_bytes(dtype: torch.dtype, *shapes: tuple) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize


def lateral(stage: str, slow: tuple, fast: tuple, alpha: int, kernel: int, dtype: torch.dtype, fmt: str) -> Iterator:
    n, channels, frames, height, width = slow
    out_channels, fast_channels = 2 * fast[1], fast[1]
    output, conv = (n, channels + out_channels, *slow[2:]), (n, out_channels, *slow[2:])
    weight = (out_channels, fast_channels, kernel, 1, 1)
    taps = [[t * alpha + k - kernel // 2 for k in range(kernel)] for t in range(frames)]
    reached = [i for row in taps for i in row if 0 <= i < fast[2]]
    reached_fast = (n, fast_channels, len(set(reached)), height, width)
    flops = 2 * n * height * width * out_channels * fast_channels * len(reached)
    module = LateralConvConcat(fast_channels, out_channels, kernel_size=kernel, alpha=alpha)

    def convolved(fast: Tensor, weight: Tensor) -> Tensor:
        return F.conv3d(fast, weight, stride=(alpha, 1, 1), padding=(kernel // 2, 0, 0))

    def eager_inference(slow: Tensor, fast: Tensor, weight: Tensor, *norm: Tensor) -> Tensor:
        gamma, beta, mean, var, _ = norm
        return torch.cat([slow, F.relu(F.batch_norm(convolved(fast, weight), mean, var, gamma, beta, eps=EPS))], 1)

    def ours_inference(slow: Tensor, fast: Tensor, weight: Tensor, *norm: Tensor) -> Tensor:
        return lateral_conv_concat(slow, fast, weight, *norm[:2], alpha=alpha)

    def eager_training(slow: Tensor, fast: Tensor, weight: Tensor, *norm: Tensor) -> Tensor:
        gamma, beta, mean, var, batches = norm
        batches.add_(1)  # as nn.BatchNorm3d does
        return torch.cat(
            [slow, F.relu(F.batch_norm(convolved(fast, weight), mean, var, gamma, beta, training=True, eps=EPS))], 1
        )

    def ours_training(slow: Tensor, fast: Tensor, weight: Tensor, *norm: Tensor) -> Tensor:
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        state = {"conv.weight": weight} | {f"bn.{name}": value for name, value in zip(names, norm, strict=True)}
        return torch.func.functional_call(module, state, (slow, fast))

    def make(generator: torch.Generator, with_gradient: bool) -> tuple:
        # Batch norm keeps its parameters in float32 in a network of low precision. With a mean of 0 and a variance
        # of 1 with eps, its folded scale and shift are gamma and beta.
        vector = (out_channels,)
        gamma, beta = random(generator, vector, torch.float32).abs() + 0.5, random(generator, vector, torch.float32)
        norm = (gamma, beta, torch.zeros_like(gamma), torch.full_like(gamma, 1 - EPS))
        batches = torch.zeros((), dtype=torch.int64, device=generator.device)
        conv_weight = random(generator, weight, dtype, fmt) * (fast_channels * kernel) ** -0.5
        inputs = (random(generator, slow, dtype, fmt), random(generator, fast, dtype, fmt), conv_weight, *norm, batches)
        return (*inputs, random(generator, output, dtype, fmt)) if with_gradient else inputs

    forward_bytes = size_in_bytes(dtype, slow, reached_fast, weight, output)
    yield Case(
        "lateral_conv_concat",
        f"{stage} {list(slow)} {list(fast)}",
        dtype,
        fmt,
        "forward",
        lambda generator: make(generator, False),
        ours_inference,
        eager_inference,
        bytes=forward_bytes,
        flops=flops,
    )
    # Training: the normalisation waits for the batch's statistics, so the convolution is written and read once more;
    # backward reads the gradient, the lateral output's sign, the convolution and the Fast frames.
    training_bytes = forward_bytes + size_in_bytes(dtype, conv, conv)
    training_bytes += size_in_bytes(dtype, output, conv, conv, reached_fast, slow, fast, weight)
    yield Case(
        "lateral_conv_concat",
        f"{stage} {list(slow)} {list(fast)}, batch norm",
        dtype,
        fmt,
        "forward and backward",
        lambda generator: make(generator, True),
        ours_training,
        eager_training,
        (0, 1, 2, 3, 4),
        training_bytes,
        3 * flops,
    )


def roi_pool(features: tuple, boxes: int, dtype: torch.dtype, fmt: str) -> Iterator:
    n, channels, _, height, _ = features
    output, scale = (boxes, channels), 1 / 16

    def make(generator: torch.Generator, with_gradient: bool) -> tuple:
        def uniform() -> Tensor:
            return torch.rand(boxes, 2, generator=generator, device=generator.device) * height / scale / 2

        corner, extent = uniform(), uniform() + height / scale / 8
        clip = torch.arange(boxes, device=generator.device)[:, None] % n
        inputs = (random(generator, features, dtype, fmt), torch.cat([clip, corner, corner + extent], 1))
        return (*inputs, random(generator, output, dtype)) if with_gradient else inputs

    def eager(features: Tensor, rois: Tensor) -> Tensor:
        mean = features.mean(2)
        wide = mean.float() if mean.dtype == torch.bfloat16 else mean  # torchvision has no bfloat16 RoIAlign
        return roi_align(wide, rois.to(wide.dtype), 7, scale, 0, True).amax((2, 3)).to(mean.dtype)

    for direction in ("forward", "forward and backward"):
        passes = 1 if direction == "forward" else 2
        yield Case(
            "roi_align_3d_pool",
            f"{list(features)}, {boxes} boxes",
            dtype,
            fmt,
            direction,
            lambda generator, passes=passes: make(generator, passes == 2),
            lambda features, rois: roi_align_3d_pool(features, rois, 7, spatial_scale=scale),
            eager if roi_align is not None else None,
            (0,) if passes == 2 else (),
            passes * size_in_bytes(dtype, features, output),
        )


def roi_per_frame(features: tuple, tubelets: int, dtype: torch.dtype, fmt: str) -> Iterator:
    """roi_align_3d of boxes that move: [R, T, 5] RoIs, a box for each frame."""
    n, channels, frames, height, _ = features
    output, scale = (tubelets, channels, frames, 7, 7), 1 / 16

    def make(generator: torch.Generator, with_gradient: bool) -> tuple:
        def uniform() -> Tensor:
            shape = (tubelets, frames, 2)
            return torch.rand(shape, generator=generator, device=generator.device) * height / scale / 2

        corner, extent = uniform(), uniform() + height / scale / 8
        clip = (torch.arange(tubelets, device=generator.device) % n)[:, None, None].expand(tubelets, frames, 1)
        inputs = (random(generator, features, dtype, fmt), torch.cat([clip, corner, corner + extent], 2))
        return (*inputs, random(generator, output, dtype)) if with_gradient else inputs

    def eager(features: Tensor, rois: Tensor) -> Tensor:
        flat = features.transpose(1, 2).flatten(0, 1)
        flat = flat.float() if flat.dtype == torch.bfloat16 else flat  # torchvision has no bfloat16 RoIAlign
        frame = rois[..., :1] * frames + torch.arange(frames, device=rois.device)[:, None]
        boxes = torch.cat([frame, rois[..., 1:]], 2).flatten(0, 1)
        aligned = roi_align(flat, boxes.to(flat.dtype), 7, scale, 0, True).to(features.dtype)
        return aligned.unflatten(0, (tubelets, frames)).transpose(1, 2)

    for direction in ("forward", "forward and backward"):
        passes = 1 if direction == "forward" else 2
        yield Case(
            "roi_align_3d",
            f"{list(features)}, {tubelets} tubelets",
            dtype,
            fmt,
            direction,
            lambda generator, passes=passes: make(generator, passes == 2),
            lambda features, rois: roi_align_3d(features, rois, (frames, 7, 7), spatial_scale=scale),
            eager if roi_align is not None else None,
            (0,) if passes == 2 else (),
            passes * size_in_bytes(dtype, features, output),
        )


def gather(
    clips: int,
    frames: tuple,
    picked: int,
    size: tuple,
    crop: int,
    dtype: torch.dtype,
    fmt: str,
    antialias: bool = False,
) -> Iterator:
    """From RGB frames, and from YUV 4:2:0 planes."""
    alpha, mean, std = 4, 0.45, 0.225
    window = ((size[0] - crop) // 2, (size[1] - crop) // 2, crop, crop)
    read = [round(crop * side / resized) for side, resized in zip(frames[1:], size, strict=True)]  # of a frame
    outputs = [(clips, 3, t, crop, crop) for t in (picked, picked // alpha)]
    half = [(side + 1) // 2 for side in frames[1:]]

    def make(generator: torch.Generator, *shapes: tuple) -> tuple:
        pixels = [
            torch.randint(
                0, 256, (clips, frames[0], *shape), dtype=torch.uint8, generator=generator, device=generator.device
            )
            for shape in shapes
        ]
        return *pixels, torch.linspace(0, frames[0] - 1, picked, device=generator.device).long()

    def ours(pixels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        options = {"resize": size, "crop": window, "flip": True, "antialias": antialias}
        options |= {"dtype": dtype, "memory_format": FORMATS[fmt]}
        return gather_frames(pixels, indices=indices, alpha=alpha, **options)  # type: ignore[arg-type]

    def ours_of_yuv(luma: Tensor, chroma: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        return ours(YUVFrames(luma, chroma), indices)  # type: ignore[arg-type]

    def eager(pixels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        return pipeline(pixels.index_select(1, indices))

    def eager_of_yuv(luma: Tensor, chroma: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        return pipeline(YUVFrames(luma.index_select(1, indices), chroma.index_select(1, indices)).rgb())

    def pipeline(pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = (pixels.float() / 255 - mean) / std
        x = x.flatten(0, 1).permute(0, 3, 1, 2)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=antialias)
        top, left, height, width = window
        x = x[:, :, top : top + height, left : left + width].flip(-1).unflatten(0, (clips, picked)).transpose(1, 2)
        slow = x.index_select(2, slow_frame_indices(picked, alpha).to(x.device))
        return tuple(p.to(dtype).contiguous(memory_format=FORMATS[fmt]) for p in (slow, x))  # type: ignore[return-value]

    yield Case(
        "gather_frames",
        f"{clips} x {[*frames, 3]} to {picked} x {crop} x {crop}",
        dtype,
        fmt,
        "forward",
        lambda generator: make(generator, (*frames[1:], 3)),
        ours,
        eager,
        bytes=size_in_bytes(torch.uint8, (clips, picked, *read, 3)) + size_in_bytes(dtype, *outputs),
    )
    planes = [(clips, picked, *read), (clips, picked, 2, *((side + 1) // 2 for side in read))]
    yield Case(
        "gather_frames",
        f"YUV 4:2:0, {clips} x {list(frames)} to {picked} x {crop} x {crop}",
        dtype,
        fmt,
        "forward",
        lambda generator: make(generator, frames[1:], (2, *half)),
        ours_of_yuv,
        eager_of_yuv,
        bytes=size_in_bytes(torch.uint8, *planes) + size_in_bytes(dtype, *outputs),
    )


def gather_in_time(shape: tuple, alpha: int, dtype: torch.dtype, fmt: str) -> Iterator:
    output = (*shape[:2], shape[2] // alpha, *shape[3:])

    def make(generator: torch.Generator, with_gradient: bool) -> tuple:
        inputs = (random(generator, shape, dtype, fmt), slow_frame_indices(shape[2], alpha).to(generator.device))
        return (*inputs, random(generator, output, dtype, fmt)) if with_gradient else inputs

    def eager(x: Tensor, indices: Tensor) -> Tensor:
        return x.index_select(2, indices).contiguous(memory_format=FORMATS[fmt])

    for direction in ("forward", "forward and backward"):
        both = direction != "forward"
        yield Case(
            "temporal_gather",
            f"{list(shape)}, alpha {alpha}",
            dtype,
            fmt,
            direction,
            lambda generator, both=both: make(generator, both),
            temporal_gather,
            eager,
            (0,) if both else (),
            size_in_bytes(dtype, output, output) + (size_in_bytes(dtype, output, shape) if both else 0),
        )


def full_cases() -> Iterator[Case]:
    """SlowFast 8x8 R50 at batch 8 (alpha 4, 8 and 32 frames, 224 x 224), and the head of AVA."""
    stages = {"pool1": (64, 56), "res2": (256, 56), "res3": (512, 28), "res4": (1024, 14)}
    for dtype, fmt in ((torch.bfloat16, "channels_last_3d"), (torch.float32, "contiguous")):
        for stage, (channels, side) in stages.items():
            if dtype == torch.bfloat16 or stage == "res3":
                slow, fast = (8, channels, 8, side, side), (8, channels // 8, 32, side, side)
                yield from lateral(stage, slow, fast, 4, 7, dtype, fmt)
    for dtype, fmt in ((torch.bfloat16, "channels_last_3d"), (torch.float32, "contiguous")):
        yield from gather(8, (64, 256, 340), 32, (288, 382), 224, dtype, fmt)
    for dtype, fmt in ((torch.bfloat16, "channels_last_3d"), (torch.float32, "contiguous")):
        yield from roi_pool((8, 2048, 8, 14, 14), 24, dtype, fmt)
        yield from roi_per_frame((8, 2048, 8, 14, 14), 24, dtype, fmt)
    for fmt in FORMATS:
        yield from gather_in_time((8, 32, 32, 56, 56), 4, torch.bfloat16, fmt)


def quick_cases() -> Iterator[Case]:
    """Tiny shapes, for a test of this benchmark and for compute-sanitizer."""
    for dtype, fmt in ((torch.bfloat16, "channels_last_3d"), (torch.float32, "contiguous")):
        yield from lateral("tiny", (2, 16, 2, 5, 6), (2, 8, 8, 5, 6), 4, 5, dtype, fmt)
        # So wide that a sanitizer also sees loads of two pixels of chroma at once.
        for size, crop, antialias in (((14, 23), 8, False), ((6, 10), 6, True)):
            yield from gather(2, (5, 12, 20), 4, size, crop, dtype, fmt, antialias)
        yield from roi_pool((2, 16, 2, 4, 4), 3, dtype, fmt)
        yield from roi_per_frame((2, 16, 2, 4, 4), 3, dtype, fmt)
        yield from gather_in_time((2, 3, 8, 5, 6), 4, dtype, fmt)
