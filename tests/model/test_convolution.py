"""PlanarConv3d is nn.Conv3d, whichever way it runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from slowfast_model.models.convolution import PlanarConv3d

KERNELS = [(1, 1, 1), (1, 3, 3), (1, 7, 7), (3, 1, 1), (5, 1, 1), (3, 3, 3), (5, 5, 7)]


@settings(deadline=None, max_examples=40)
@given(
    kernel=st.sampled_from(KERNELS),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 5), st.sampled_from([1, 3, 8, 65])),
    size=st.tuples(*[st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)]),
    channels_last=st.booleans(),
)
def test_values_and_gradients_are_those_of_a_3d_convolution(
    kernel: tuple[int, int, int],
    stride: int,
    dilation: int,
    channels: tuple[int, int],
    size: tuple[int, int, int, int],
    channels_last: bool,
) -> None:
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    conv = PlanarConv3d(*channels, kernel, stride, dilation).double().to(memory_format=memory_format)
    n, *clip_size = size
    x = torch.randn(n, channels[0], *clip_size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    expected = F.conv3d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation)
    actual = conv(x)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad(actual, (x, conv.weight), upstream),
        torch.autograd.grad(expected, (x, conv.weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("kernel", KERNELS)
def test_flat_kernels_run_as_2d_convolutions_without_a_copy(
    kernel: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = PlanarConv3d(4, 8, kernel)
    x = torch.randn(2, 4, 3, 6, 5).to(memory_format=torch.channels_last_3d)
    planes: list[torch.Tensor] = []
    conv2d = F.conv2d

    def spy(plane: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        planes.append(plane)
        return conv2d(plane, *args, **kwargs)

    monkeypatch.setattr(F, "conv2d", spy)
    conv(x)
    conv(x.contiguous())
    is_flat = kernel[0] == 1 or kernel[1:] == (1, 1)
    assert [plane.data_ptr() for plane in planes] == [x.data_ptr()] * is_flat


def test_parameters_are_a_3d_convolutions() -> None:
    conv = PlanarConv3d(3, 8, (1, 7, 7), stride=2)
    assert {key: tuple(value.shape) for key, value in conv.state_dict().items()} == {"weight": (8, 3, 1, 7, 7)}
