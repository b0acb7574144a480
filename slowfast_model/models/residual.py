"""Bottleneck blocks and the residual stages (res2, res3, ...) built of them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_model.models.config import EXPANSION, StageConfig
from slowfast_model.models.convolution import ConvNorm
from slowfast_model.models.non_local import NonLocalBlock


class Bottleneck(nn.Module):
    """Residual block Tx1x1, 1x3x3, 1x1x1 (Table 1); the spatial stride sits on the 1x3x3 convolution.

    Args:
        in_channels: channels of the input.
        inner_channels: channels between the convolutions; the output has 4 times as many.
        temporal_kernel: temporal size of the first convolution.
        stride, dilation: spatial, of the 1x3x3 convolution.
    """

    def __init__(self, in_channels: int, inner_channels: int, temporal_kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = EXPANSION * inner_channels
        self.a = ConvNorm(in_channels, inner_channels, (temporal_kernel, 1, 1))
        self.b = ConvNorm(inner_channels, inner_channels, (1, 3, 3), stride=stride, dilation=dilation)
        self.c = ConvNorm(inner_channels, out_channels, (1, 1, 1))
        projects = stride != 1 or in_channels != out_channels
        self.shortcut = ConvNorm(in_channels, out_channels, (1, 1, 1), stride=stride) if projects else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms (branch, shortcut) whose sum, after a ReLU, is the block's output.

        They are handed out separately because a lateral connection adds them while it concatenates.
        """
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = F.relu(self.a(x), inplace=True)
        x = F.relu(self.b(x), inplace=True)
        return self.c(x), shortcut


def join(branch: Tensor, shortcut: Tensor | None) -> Tensor:
    """A layer's output from its terms, written over ``branch``, the fresh output of a batch norm.

    Without a shortcut the branch is the output already.
    """
    return branch if shortcut is None else F.relu(branch.add_(shortcut), inplace=True)


class ResidualStage(nn.ModuleDict):
    """The blocks of one stage; the first one carries the stride and the change of channels.

    Its layers run in the order of the dictionary: residual blocks "0", "1", ... and the non-local blocks between them.

    Args:
        config: depth, temporal kernels, stride, dilation, non-local blocks.
        in_channels: channels of the input, those of a lateral connection included.
        inner_channels: channels inside the blocks.
    """

    def __init__(self, config: StageConfig, in_channels: int, inner_channels: int) -> None:
        super().__init__()
        for index, kernel in enumerate(config.block_kernels):
            stride = config.stride if index == 0 else 1
            self[str(index)] = Bottleneck(in_channels, inner_channels, kernel, stride, config.dilation)
            in_channels = EXPANSION * inner_channels
            if config.non_local is not None and index in config.non_local.after_blocks:
                self[f"non_local{index}"] = NonLocalBlock(in_channels, config.non_local)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last layer's terms, each [N, 4 * inner_channels, T, H', W']; `join` makes the output of them."""
        terms: tuple[Tensor, Tensor | None] = (x, None)
        for layer in self.values():
            terms = layer(join(*terms))
        return terms
