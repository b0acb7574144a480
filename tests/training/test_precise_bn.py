"""Precise batch norm: plain averages over the batches, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slowfast_model.models import build_model
from slowfast_model.training.precise_bn import update_batch_norm


def test_statistics_are_the_averages_over_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.5))
    batches = [torch.randn(5, 3) * (i + 1) + i for i in range(4)]
    model(batches[0])  # something to forget
    assert update_batch_norm(model, model, batches, 3) == 3
    norm = model[0]
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches[:3]]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches[:3]]).mean(0))
    assert norm.momentum == 0.3
    assert all(module.training for module in model.modules())


def test_network_keeps_its_weights_and_frozen_layers_their_statistics() -> None:
    model = build_model("slowfast_tiny", num_classes=2)
    frozen = model.lateral["stem"].bn
    frozen.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clips = [[torch.randn(2, 3, 4, 32, 32), torch.randn(2, 3, 32, 32, 32)] for _ in range(2)]
    update_batch_norm(model, model, clips, 2)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert changed == {name for name in statistics if not name.startswith("lateral.stem")}
    assert not frozen.training
    assert model.head.dropout.training


def test_a_result_in_eval_mode_follows_the_new_statistics() -> None:
    torch.manual_seed(0)
    model = build_model("slow_tiny", num_classes=2)
    clips = [[3 * torch.randn(4, 3, 4, 96, 96) + 1]]
    update_batch_norm(model, model, clips, 5)
    with torch.no_grad():
        model.train()
        model.head.dropout.eval()
        expected = model(clips[0])
        model.eval()
        # The variance of the running statistics is unbiased: not quite the batch's own.
        torch.testing.assert_close(model(clips[0]), expected, rtol=0.05, atol=1e-3)


def test_without_batches_nothing_changes() -> None:
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(7)
    assert update_batch_norm(norm, norm, [], 5) == 0
    assert norm.running_mean.tolist() == [7, 7]


def test_an_error_restores_the_modes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    with pytest.raises(RuntimeError):
        update_batch_norm(model, model, [torch.randn(3, 5)], 1)
    assert model[0].momentum == 0.1
    assert model[1].training
