"""Residual blocks and the stages (res2, res3, ...) built of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from slowfast_model.models.config import PathwayConfig
from slowfast_model.models.convolution import ConvNorm
from slowfast_model.models.non_local import NonLocalBlock


class Bottleneck(nn.Module):
    """Residual block Tx1x1, 1x3x3, 1x1x1 (Table 1); the spatial stride sits on the 1x3x3 convolution.

    Args:
        in_channels, inner_channels, out_channels: of the input, between the convolutions, and of the output.
        temporal_kernel: temporal size of the first convolution.
        stride, dilation, groups: of the 1x3x3 convolution; stride and dilation are spatial.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        temporal_kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.a = ConvNorm(in_channels, inner_channels, (temporal_kernel, 1, 1))
        self.b = ConvNorm(inner_channels, inner_channels, (1, 3, 3), stride, dilation, groups)
        self.c = ConvNorm(inner_channels, out_channels, (1, 1, 1))
        self.shortcut = projection(in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        """The batch norm that ends the residual branch."""
        return self.c.bn

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms (branch, shortcut) whose sum, after a ReLU, is the block's output.

        They are handed out separately because a lateral connection adds them while it concatenates.
        """
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = F.relu(self.a(x), inplace=True)
        x = F.relu(self.b(x), inplace=True)
        return self.c(x), shortcut


class BasicBlock(nn.Module):
    """Residual block Tx3x3, 1x3x3 of the shallow networks; the spatial stride sits on the first convolution.

    Args:
        in_channels, out_channels: of the input, and of both convolutions.
        temporal_kernel: temporal size of the first convolution.
        stride, dilation: spatial; dilation of both convolutions.
    """

    def __init__(
        self, in_channels: int, out_channels: int, temporal_kernel: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.a = ConvNorm(in_channels, out_channels, (temporal_kernel, 3, 3), stride, dilation)
        self.b = ConvNorm(out_channels, out_channels, (1, 3, 3), dilation=dilation)
        self.shortcut = projection(in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        """The batch norm that ends the residual branch."""
        return self.b.bn

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the output, as `Bottleneck.forward`."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.b(F.relu(self.a(x), inplace=True)), shortcut


def projection(in_channels: int, out_channels: int, stride: int) -> ConvNorm | None:
    """The convolution on a shortcut whose block changes the shape; None for the identity."""
    unchanged = stride == 1 and in_channels == out_channels
    return None if unchanged else ConvNorm(in_channels, out_channels, (1, 1, 1), stride)


def join(branch: Tensor, shortcut: Tensor | None) -> Tensor:
    """A layer's output from its terms, written over ``branch``, the fresh output of a batch norm.

    Without a shortcut the branch is the output already.
    """
    return branch if shortcut is None else F.relu(branch.add_(shortcut), inplace=True)


class TemporalPool(nn.Module):
    """Maximum of every ``size`` frames; a layer of `ResidualStage`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[N, C, T, H, W] to ([N, C, T / size, H, W], None); fewer frames than ``size`` become one."""
        return F.max_pool3d(x, (min(self.size, x.shape[2]), 1, 1)), None


class ResidualStage(nn.ModuleDict):
    """The blocks of one stage; the first one carries the stride and the change of channels.

    Its layers run in the order of the dictionary: residual blocks "0", "1", ... and the non-local blocks between them;
    temporal pooling comes last.

    Args:
        pathway: the pathway that the stage is in.
        index: which of its stages, 0 for res2.
        in_channels: channels of the input, those of a lateral connection included.
        checkpointing: whether layers are computed again in the backward pass.
    """

    def __init__(self, pathway: PathwayConfig, index: int, in_channels: int, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        config, out_channels = pathway.stages[index], pathway.level_channels[index + 1]
        for block, kernel in enumerate(config.block_kernels):
            stride = config.stride if block == 0 else 1
            self[str(block)] = (
                BasicBlock(in_channels, out_channels, kernel, stride, config.dilation)
                if pathway.block == "basic"
                else Bottleneck(
                    in_channels,
                    pathway.inner_channels[index],
                    out_channels,
                    kernel,
                    stride,
                    config.dilation,
                    pathway.groups,
                )
            )
            in_channels = out_channels
            if config.non_local is not None and block in config.non_local.after_blocks:
                self[f"non_local{block}"] = NonLocalBlock(out_channels, config.non_local)
        if config.temporal_pool > 1:
            self["pool"] = TemporalPool(config.temporal_pool)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last layer's terms, each [N, C, T, H', W']; `join` makes the stage's output of them."""
        terms: tuple[Tensor, Tensor | None] = (x, None)
        for layer in self.values():
            x = join(*terms)
            terms = recomputed(layer, x) if self.checkpointing and torch.is_grad_enabled() else layer(x)
        return terms


def recomputed(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """``layer(x)`` without keeping its activations: the backward pass runs it again."""
    contexts = (contextlib.nullcontext(), _without_new_statistics(layer))
    return checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts)


@contextlib.contextmanager
def _without_new_statistics(layer: nn.Module) -> Iterator[None]:
    """Batch norms in training leave their running statistics alone, which the first run has updated already."""
    norms = [module for module in layer.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
