"""Initial weights of a network that is trained from scratch."""

from __future__ import annotations

from torch import nn

from slowfast_model.models.non_local import NonLocalBlock
from slowfast_model.models.residual import BasicBlock, Bottleneck


def initialize(model: nn.Module) -> None:
    """He initialisation by fan-out, as the paper and PySlowFast.

    The last batch norm of every residual branch and non-local block starts at zero, so that each block starts as the
    identity; fully connected layers start at N(0, 0.01), and all biases at 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (Bottleneck, BasicBlock)):
            nn.init.zeros_(module.last_norm.weight)
        elif isinstance(module, NonLocalBlock):
            nn.init.zeros_(module.bn.weight)
