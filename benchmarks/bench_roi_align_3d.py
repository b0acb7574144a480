"""roi_align_3d_pool and roi_align_3d against torchvision's roi_align, at the sizes of the AVA head of SlowFast 8x8 R50.

Two compositions stand beside the pooled op: the modules that PySlowFast's head is made of, and the fastest that plain
PyTorch offers. torchvision has no bfloat16 roi_align on the CPU, so that everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from slowfast_ops import roi_align_3d, roi_align_3d_pool

PATHWAYS = {"Slow": (2048, 8), "Fast": (256, 32)}  # channels and frames after res5
SCALE = 1 / 16


def pool_op(features: Tensor, rois: Tensor) -> Tensor:
    return roi_align_3d_pool(features, rois, 7, spatial_scale=SCALE)


def pool_modules(features: Tensor, rois: Tensor) -> Tensor:
    mean = F.avg_pool3d(features, (features.shape[2], 1, 1)).squeeze(2)
    return F.max_pool2d(roi_align(mean, rois, 7, SCALE, 0, True), 7).flatten(1)


def pool_eager(features: Tensor, rois: Tensor) -> Tensor:
    return roi_align(features.mean(2), rois, 7, SCALE, 0, True).amax((2, 3))


def frames_op(features: Tensor, rois: Tensor) -> Tensor:
    return roi_align_3d(features, rois, (None, 7, 7), spatial_scale=SCALE)


def frames_eager(features: Tensor, rois: Tensor) -> Tensor:
    """All frames in one call of torchvision's op: frame t of clip n is image n T + t."""
    frames = features.shape[2]
    images = features.transpose(1, 2).flatten(0, 1)
    boxes = torch.cat([torch.cat([rois[:, :1] * frames + t, rois[:, 1:]], 1) for t in range(frames)])
    aligned = roi_align(images, boxes, 7, SCALE, 0, True).unflatten(0, (frames, -1))
    channels_last = features.stride(1) == 1
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    return aligned.permute(1, 2, 0, 3, 4).contiguous(memory_format=memory_format)


def inputs(pathway: str, clips: int, side: int, layout: str) -> tuple[Tensor, Tensor]:
    """Features, and three boxes of people in each clip: half the frame high, a quarter to a half wide."""
    generator = torch.Generator().manual_seed(0)
    channels, frames = PATHWAYS[pathway]
    features = torch.randn(clips, channels, frames, side, side, generator=generator)
    if layout == "channels_last_3d":
        features = features.contiguous(memory_format=torch.channels_last_3d)
    pixels = side / SCALE
    corner = torch.rand(clips * 3, 2, generator=generator) * 0.5 * pixels
    extent = (0.25 + 0.25 * torch.rand(clips * 3, 2, generator=generator)) * pixels
    index = torch.arange(clips).repeat_interleave(3)[:, None]
    return features, torch.cat([index, corner, corner + extent * torch.tensor([1.0, 1.5])], 1)


def measure(benchmark, features: Tensor, rois: Tensor, direction: str, implementation: Callable, check: Callable):
    """Times `implementation` once its output and gradient are known to equal those of `check`."""
    features.requires_grad_(direction != "forward")
    grad = torch.randn(check(features, rois).shape, generator=torch.Generator().manual_seed(1))

    def run(function: Callable = implementation) -> tuple[Tensor, ...]:
        output = function(features, rois)
        return (output, *torch.autograd.grad(output, features, grad)) if output.requires_grad else (output,)

    if implementation is not check:
        for actual, expected in zip(run(), run(check), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("implementation", [pool_op, pool_modules, pool_eager], ids=["op", "modules", "eager"])
@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
@pytest.mark.parametrize(("clips", "side"), [(1, 14), (4, 14), (1, 16)])
@pytest.mark.parametrize("pathway", PATHWAYS)
def test_roi_align_3d_pool(
    benchmark, pathway: str, clips: int, side: int, layout: str, direction: str, implementation: Callable
) -> None:
    features, rois = inputs(pathway, clips, side, layout)
    benchmark.group = f"roi_align_3d_pool; {pathway} {list(features.shape)}; {layout}; {direction}"
    measure(benchmark, features, rois, direction, implementation, pool_modules)


@pytest.mark.parametrize("implementation", [frames_op, frames_eager], ids=["op", "eager"])
@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("pathway", PATHWAYS)
def test_roi_align_3d(benchmark, pathway: str, layout: str, direction: str, implementation: Callable) -> None:
    features, rois = inputs(pathway, 1, 14, layout)
    benchmark.group = f"roi_align_3d; {pathway} {list(features.shape)}; {layout}; {direction}"
    measure(benchmark, features, rois, direction, implementation, frames_eager)
