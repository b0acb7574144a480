"""temporal_gather against torch.index_select, forward and with backward, at the sizes of the pathways.

index_select returns a contiguous tensor whatever it is given, so for channels_last_3d it is followed by the conversion
that keeps the network in that format.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slowfast_ops import slow_frame_indices, temporal_gather

SHAPES = {
    "clips": (2, 3, 32, 224, 224),
    "Fast pathway after res2": (4, 32, 32, 56, 56),
    "Slow pathway's width": (2, 64, 32, 28, 28),
}


def index_select(x: Tensor, indices: Tensor) -> Tensor:
    channels_last = x.is_contiguous(memory_format=torch.channels_last_3d)
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    return torch.index_select(x, 2, indices).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("implementation", [temporal_gather, index_select], ids=["temporal_gather", "index_select"])
@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_temporal_gather(
    benchmark, shape: str, dtype: torch.dtype, layout: str, direction: str, implementation: Callable
) -> None:
    memory_format = torch.channels_last_3d if layout == "channels_last_3d" else torch.contiguous_format
    x = torch.randn(SHAPES[shape], generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=memory_format).requires_grad_(direction != "forward")
    indices = slow_frame_indices(x.shape[2], 8)
    grad = torch.ones_like(index_select(x, indices))

    def run() -> tuple[Tensor, ...]:
        output = implementation(x, indices)
        return (output, *torch.autograd.grad(output, x, grad)) if output.requires_grad else (output,)

    expected_output = index_select(x, indices)
    assert torch.equal(temporal_gather(x, indices), expected_output)
    if x.requires_grad:
        (expected,) = torch.autograd.grad(expected_output, x, grad)
        assert torch.equal(run()[1], expected)
    benchmark.group = f"{shape} {list(x.shape)}; {str(dtype).removeprefix('torch.')}, {layout}; {direction}"
    benchmark.pedantic(run, rounds=9, warmup_rounds=2)
