"""Options of any network: C2D and I3D pooling, frozen batch norm, activation checkpointing, several labels per clip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from slowfast_model.complexity import measure_complexity
from slowfast_model.errors import InputError
from slowfast_model.models import HeadConfig, ModelConfig, NonLocalConfig, StageConfig, build_model, get_preset


def changed(name: str = "slowfast_tiny", **fields) -> ModelConfig:
    config = get_preset(name)
    return replace(config, **{"head": replace(config.head, dropout=0.0), **fields})


def clips_for(config: ModelConfig, size: int = 32) -> list[torch.Tensor]:
    return [torch.randn(2, 3, 2 * a, size, size, dtype=torch.float64) for a in (1, config.alpha)[: config.num_pathways]]


def test_temporal_pooling_follows_res2_in_c2d_and_i3d() -> None:
    for name in ("c2d_r50_8x8", "i3d_r50_8x8"):
        config = get_preset(name)
        assert [stage.temporal_pool for stage in config.pathways[0].stages] == [2, 1, 1, 1]
        stages = {layer.name: layer.activations for layer in measure_complexity(config, crop_size=64).layers}
        assert stages["pathways.slow.res3.1.b.conv"] == 4 * 128 * 8 * 8  # 4 of 8 frames
    config = changed("slow_tiny")
    pooled = replace(config.pathways[0].stages[0], temporal_pool=2)
    pathway = replace(config.pathways[0], stages=(pooled, *config.pathways[0].stages[1:]))
    model = build_model(replace(config, pathways=(pathway,))).eval()
    before, after = (torch.randn(1, 3, 4, 32, 32), torch.randn(1, 3, 1, 32, 32))
    assert model.features([before])[0].shape[2] == 2
    assert model.features([after])[0].shape[2] == 1
    seen = []
    model.pathways["slow"]["res2"]["pool"].register_forward_hook(lambda _m, x, y: seen.append((x[0], y[0])))
    model([before])
    torch.testing.assert_close(seen[0][1], torch.maximum(seen[0][0][:, :, ::2], seen[0][0][:, :, 1::2]))


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    config = changed()
    slow = config.pathways[0]
    stage = replace(slow.stages[1], depth=3, non_local=NonLocalConfig((1,), "softmax"))
    config = replace(
        config, pathways=(replace(slow, stages=(slow.stages[0], stage, *slow.stages[2:])), config.pathways[1])
    )
    results = []
    clips = clips_for(config)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_model(replace(config, checkpointing=checkpointing), num_classes=3).double().train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
        runs = []
        model.pathways["slow"]["res3"]["1"].a.conv.register_forward_hook(lambda *_args, runs=runs: runs.append(1))
        logits = model(clips)
        logits.square().sum().backward()
        assert len(runs) == (2 if checkpointing else 1)
        results.append((logits, [p.grad for p in model.parameters()], dict(model.named_buffers())))
        with torch.no_grad():
            model.eval()(clips)
        assert len(runs) == (3 if checkpointing else 2)
        assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm3d))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("name", ["slow_tiny", "slowfast_tiny"])
def test_frozen_batch_norms_keep_their_statistics_and_train_their_weights(name: str) -> None:
    config = changed(name, frozen_norm=True)
    model = build_model(config, num_classes=3).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    clips = clips_for(config)
    logits = model(clips)  # in training mode from the start
    assert model.training
    logits.square().sum().backward()
    torch.testing.assert_close(model.eval().train()(clips), logits)
    torch.testing.assert_close(model.eval()(clips), logits)
    torch.testing.assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=0)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_several_labels_per_clip() -> None:
    config = changed(head=HeadConfig(activation="sigmoid", dropout=0.0), crop_size=64)
    model = build_model(config, num_classes=3).double().eval()
    clips = clips_for(config, size=64)
    torch.testing.assert_close(model.predict(clips), model(clips).sigmoid())
    larger = clips_for(config, size=96)
    logits = model.head.position_logits(model.features(larger), 2)
    assert logits.shape == (2, 2, 2, 3)
    torch.testing.assert_close(model.predict(larger), logits.sigmoid().mean((1, 2)))


@pytest.mark.parametrize(("height", "width"), [(17, 90), (64, 48), (130, 33)])
def test_detection_at_any_size(height: int, width: int) -> None:
    model = build_model("slowfast_tiny", num_classes=4, head="detection").eval()
    clips = [torch.randn(1, 3, frames, height, width) for frames in (1, 8)]
    boxes = torch.tensor([[0, 0, 0, width - 1, height - 1], [0, 2, 3, 9, 11]], dtype=torch.float32)
    with torch.no_grad():
        scores = model.predict(clips, boxes)
    assert scores.shape == (2, 4)
    assert scores.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StageConfig(1, temporal_pool=0), "stage.temporal_pool is 0"),
        (lambda: HeadConfig(activation="tanh"), "head.activation is 'tanh': expected one of softmax, sigmoid"),
        (
            lambda: changed(
                pathways=tuple(
                    replace(p, stages=(replace(p.stages[0], temporal_pool=2), *p.stages[1:]))
                    for p in get_preset("slowfast_tiny").pathways
                )
            ),
            r"stage.temporal_pool is \(2, 1, 1, 1, 2, 1, 1, 1\): expected 1 in a network of two pathways",
        ),
    ],
)
def test_impossible_values_are_refused_by_name(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
