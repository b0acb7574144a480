"""The optimiser's parameter groups, and its steps against the shared training reference of three SGD steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slowfast_model.errors import InputError
from slowfast_model.models import build_model
from slowfast_model.training.optimizer import build_optimizer


def test_every_parameter_is_in_one_group_and_batch_norm_is_not_decayed() -> None:
    model = build_model("slowfast_tiny", num_classes=5)
    optimizer = build_optimizer(model, weight_decay=1e-4)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            assert decay[parameter] == (0.0 if isinstance(module, nn.BatchNorm3d) else 1e-4), name


def test_step_is_nesterov_with_decay_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    optimizer = build_optimizer(model, lr=0.5, momentum=0.9, weight_decay=0.1)
    weight, velocity = 2.0, 0.0
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        gradient = 1.0 + 0.1 * weight
        velocity = 0.9 * velocity + gradient
        weight -= 0.5 * (gradient + 0.9 * velocity)
        assert model[0].weight.item() == pytest.approx(weight, rel=1e-6)


def test_adamw_has_the_same_groups() -> None:
    model = build_model("slow_tiny", num_classes=3)
    optimizer = build_optimizer(model, "adamw", weight_decay=0.05)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]


def test_unknown_optimizer_is_named() -> None:
    with pytest.raises(InputError, match=r"optimizer is 'lars': expected one of sgd, adamw"):
        build_optimizer(nn.Linear(1, 1), "lars")  # type: ignore[arg-type]


def test_frozen_parameters_are_left_out() -> None:
    model = build_model("slow_tiny", num_classes=3)
    for parameter in model.pathways.parameters():
        parameter.requires_grad_(False)
    optimizer = build_optimizer(model)
    assert [p for group in optimizer.param_groups for p in group["params"]] == list(model.head.parameters())


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(InputError, match="momentum is 0"):
        build_optimizer(nn.Linear(1, 1), momentum=0.0)
