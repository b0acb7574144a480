"""LateralConvConcat against the same convolution, batch norm, ReLU and concatenation called one by one.

Each group is one connection of SlowFast R50 (paper table 1, 224 x 224), in inference or in training (forward and
backward). Both implementations share one module's weights, and their results are compared before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slowfast_ops import LateralConvConcat

STAGES = {"pool1": (64, 8, 56), "res2": (256, 32, 56), "res3": (512, 64, 28), "res4": (1024, 128, 14)}  # C, Cf, H = W
MODELS = {"4x16": (4, 8, 5), "8x8": (8, 4, 7)}  # T, alpha, K
# Model, stage, clips, dtype. PyTorch's bfloat16 convolution takes up to a second here: one stage of it is enough.
CASES = [(model, stage, 1, torch.float32) for model in MODELS for stage in STAGES]
CASES += [("4x16", "pool1", 4, torch.float32), ("4x16", "res4", 4, torch.float32), ("4x16", "res3", 1, torch.bfloat16)]


def one_by_one(module: LateralConvConcat, slow: Tensor, fast: Tensor) -> Tensor:
    return torch.cat([slow, F.relu(module.bn(module.conv(fast)))], dim=1)


def fused(module: LateralConvConcat, slow: Tensor, fast: Tensor) -> Tensor:
    return module(slow, fast)


@pytest.mark.parametrize("implementation", [fused, one_by_one], ids=["lateral_conv_concat", "conv_bn_relu_cat"])
@pytest.mark.parametrize("direction", ["inference", "training"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}-{str(case[3])[6:]}")
def test_lateral_conv_concat(benchmark, case: tuple, layout: str, direction: str, implementation: Callable) -> None:
    model, stage, clips, dtype = case
    (channels, fast_channels, size), (frames, alpha, kernel_size) = STAGES[stage], MODELS[model]
    memory_format = torch.channels_last_3d if layout == "channels_last_3d" else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)

    def features(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=memory_format)

    slow = features(clips, channels, frames, size, size)
    fast = features(clips, fast_channels, alpha * frames, size, size)
    module = LateralConvConcat(fast_channels, 2 * fast_channels, kernel_size=kernel_size, alpha=alpha)
    module = module.to(dtype=dtype, memory_format=memory_format).train(direction == "training")
    grad = features(clips, channels + 2 * fast_channels, frames, size, size)
    leaves = [slow.requires_grad_(), fast.requires_grad_(), *module.parameters()]

    def run(call: Callable = implementation) -> list[Tensor]:
        if direction == "inference":
            with torch.no_grad():
                return [call(module, slow, fast)]
        output = call(module, slow, fast)
        return [output, *torch.autograd.grad(output, leaves, grad)]

    for i, (ours, theirs) in enumerate(zip(run(fused), run(one_by_one), strict=True)):
        # By the norm, and less strictly for gradients: one ReLU input of a million that rounds across zero changes
        # the norm of a gradient by a thousandth.
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        bound = (1e-5 if i == 0 else 1e-2) if dtype == torch.float32 else 5e-2
        assert error < bound, f"result {i}: relative error {error:.1e}"
    benchmark.group = f"{model} {stage}, {clips} clip(s); {str(dtype).removeprefix('torch.')}, {layout}; {direction}"
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
