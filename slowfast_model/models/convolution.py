"""Convolution followed by batch norm: the unit that stems and residual blocks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Above this many output channels the weight gradient of a (T, 1) 2D convolution is slower than the 3D one's.
_TIME_PLANE_MAX_CHANNELS = 64


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last_3d if ``x`` [N, C, T, H, W] lies so in memory, contiguous otherwise."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if channels_last else torch.contiguous_format


class PlanarConv3d(nn.Conv3d):
    """An nn.Conv3d with "same" padding that runs as a 2D convolution where its kernel is flat.

    In channels_last_3d memory the frames of all clips are one batch of channels_last images, and time by height x width
    is one channels_last image per clip: both are views. PyTorch's CPU convolutions are faster on them (measured at this
    network's shapes, float32, forward and forward + backward: 1xHxW kernels 1 to 9 times, Tx1x1 kernels of the Fast
    pathway 1.1 to 1.9 times). Elsewhere, and for other kernels, this is nn.Conv3d; parameters are nn.Conv3d's always.

    Args:
        in_channels, out_channels: channels of input and output.
        kernel: (time, height, width), odd.
        stride, dilation: spatial; time has none.
        groups: of channels that are convolved apart.
        bias: whether a bias is added; batch norm makes it needless.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int],
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        t, h, w = kernel
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            stride=(1, stride, stride),
            padding=(t // 2, dilation * (h // 2), dilation * (w // 2)),
            dilation=(1, dilation, dilation),
            groups=groups,
            bias=bias,
        )
        self.is_spatial = t == 1
        self.is_temporal = (h, w, stride) == (1, 1, 1) and out_channels <= _TIME_PLANE_MAX_CHANNELS

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, H, W] to [N, C', T, H', W'], in the memory format of ``x``."""
        if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last_3d):
            if self.is_spatial:
                return self._over_frames(x)
            if self.is_temporal:
                return self._over_time_planes(x)
        return super().forward(x)

    def _over_frames(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1)
        _, *stride = self.stride
        _, *padding = self.padding
        _, *dilation = self.dilation
        y = F.conv2d(frames, self.weight.squeeze(2), self.bias, stride, padding, dilation, self.groups)
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    def _over_time_planes(self, x: Tensor) -> Tensor:
        y = F.conv2d(
            x.flatten(3), self.weight.squeeze(4), self.bias, padding=(int(self.padding[0]), 0), groups=self.groups
        )
        return y.unflatten(3, x.shape[3:])


class ConvNorm(nn.Module):
    """``bn(conv(x))``; arguments as for `PlanarConv3d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int],
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = PlanarConv3d(in_channels, out_channels, kernel, stride, dilation, groups)
        self.bn = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))
