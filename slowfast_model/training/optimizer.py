"""The optimisers, SGD with Nesterov momentum as in the recipes or AdamW: no weight decay on normalisation layers."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, AdamW, Optimizer

from slowfast_model.errors import InputError

OptimizerName = Literal["sgd", "adamw"]


def build_optimizer(
    model: nn.Module,
    name: OptimizerName = "sgd",
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    norm_weight_decay: float = 0.0,
) -> Optimizer:
    """An optimiser of a model's trainable parameters; biases of linear layers are decayed like weights.

    Args:
        model: its parameters with ``requires_grad`` are optimised.
        name: "sgd" (all published recipes) or "adamw".
        lr: initial learning rate; 1 for `slowfast_model.training.schedules.lr_scheduler`.
        momentum: of SGD. Paper: 0.9.
        nesterov: of SGD. PySlowFast: True; the paper does not say.
        weight_decay: 1e-4 for Kinetics, 1e-7 for AVA.
        norm_weight_decay: for the weights and biases of batch normalisation.

    Raises:
        InputError: an unknown name, or Nesterov without momentum.
    """
    if name not in get_args(OptimizerName):
        raise InputError(f"optimizer is {name!r}: expected one of {', '.join(get_args(OptimizerName))}")
    if name == "sgd" and nesterov and momentum <= 0:
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
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return AdamW(groups, lr=lr)
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
