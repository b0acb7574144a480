"""Stochastic gradient descent as in the recipes: Nesterov momentum, and no weight decay on normalisation layers."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD

from slowfast_model.errors import InputError


def build_optimizer(
    model: nn.Module,
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    norm_weight_decay: float = 0.0,
) -> SGD:
    """SGD over a model's trainable parameters; biases of linear layers are decayed like weights.

    Args:
        model: its parameters with ``requires_grad`` are optimised.
        lr: initial learning rate; 1 for `slowfast_model.training.schedules.lr_scheduler`.
        momentum: paper: 0.9.
        nesterov: PySlowFast: True; the paper does not say.
        weight_decay: 1e-4 for Kinetics, 1e-7 for AVA.
        norm_weight_decay: for the weights and biases of batch normalisation.

    Raises:
        InputError: Nesterov without momentum.
    """
    if nesterov and momentum <= 0:
        raise InputError(f"momentum is {momentum}: Nesterov's method needs more than 0 (or set nesterov to false)")
    norm = {
        parameter
        for module in model.modules()
        if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm))
        for parameter in module.parameters(recurse=False)
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p not in norm], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p in norm], "weight_decay": norm_weight_decay},
    ]
    return SGD([group for group in groups if group["params"]], lr=lr, momentum=momentum, nesterov=nesterov)
