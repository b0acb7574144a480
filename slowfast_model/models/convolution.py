"""Convolution followed by batch norm: the unit that stems and residual blocks are made of."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNorm(nn.Module):
    """``bn(conv(x))`` for ``x`` [N, C, T, H, W], without bias and padded so that stride 1 keeps the size.

    Args:
        in_channels, out_channels: channels of input and output.
        kernel: (time, height, width), odd.
        stride: spatial; time is never strided.
        dilation: spatial.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        t, h, w = kernel
        self.conv = nn.Conv3d(
            in_channels,
            out_channels,
            kernel,
            stride=(1, stride, stride),
            padding=(t // 2, dilation * (h // 2), dilation * (w // 2)),
            dilation=(1, dilation, dilation),
            bias=False,
        )
        self.bn = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))
