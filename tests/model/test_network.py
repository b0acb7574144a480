"""The networks: shapes, heads, gradients, memory formats, and what they refuse."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from slowfast_model.errors import InputError
from slowfast_model.models import VideoNetwork, build_model, get_preset, list_presets
from slowfast_model.models.residual import Bottleneck, join
from slowfast_ops import use_backend

TINY = ["slow_tiny", "slowfast_tiny"]
HEADS = ["classification", "detection"]


def make_model(name: str, head: str = "classification", num_classes: int = 5, live: bool = True) -> VideoNetwork:
    """In float64 without dropout; ``live``: with every residual branch contributing, unlike at initialisation."""
    config = get_preset(name)
    config = replace(config, head=replace(config.head, dropout=0.0))
    model = build_model(config, num_classes=num_classes, head=head).double()
    if live:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.uniform_(module.bias, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def make_clips(model: VideoNetwork, n: int = 2, size: tuple[int, int] = (48, 64), slow_frames: int = 2) -> list[Tensor]:
    frames = [slow_frames, slow_frames * model.config.alpha][: model.config.num_pathways]
    return [torch.randn(n, 3, t, *size, dtype=torch.float64) for t in frames]


def make_rois(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)


ROIS = make_rois((0, 3, 4, 40, 30), (1, 0, 0, 63, 47), (0, 20, 10, 30, 20))


def scores(model: VideoNetwork, clips: list[Tensor]) -> Tensor:
    return model(clips, ROIS.to(clips[0].dtype)) if model.head_type == "detection" else model(clips)


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_serves_both_heads(name: str) -> None:
    for head in HEADS:
        with FakeTensorMode(), torch.no_grad():  # shapes only
            model = build_model(name, num_classes=11, head=head).eval()
            assert model.config == get_preset(name)
            assert model.head_type == head
            clips = [clip.float() for clip in make_clips(model, n=1, size=(64, 64), slow_frames=1)]
            rois = torch.empty(3, 5) if head == "detection" else None
            for output in (model(clips, rois), model.predict(clips, rois)):
                assert output.shape == (1 if rois is None else 3, 11)


@settings(deadline=None, max_examples=12)
@given(height=st.integers(1, 75), width=st.integers(1, 75), slow_frames=st.integers(1, 3), name=st.sampled_from(TINY))
def test_any_size_and_length(height: int, width: int, slow_frames: int, name: str) -> None:
    model = make_model(name).eval()
    clips = make_clips(model, size=(height, width), slow_frames=slow_frames)
    stride = model.config.spatial_stride
    with torch.no_grad():
        for clip, features in zip(clips, model.features(clips), strict=True):
            assert features.shape[2:] == (clip.shape[2], math.ceil(height / stride), math.ceil(width / stride))
        assert model(clips).shape == (2, 5)
        assert model.predict(clips).isfinite().all()


@pytest.mark.parametrize("name", TINY)
def test_detection_halves_the_feature_stride(name: str) -> None:
    classifier, detector = make_model(name), make_model(name, "detection")
    stride = classifier.config.spatial_stride
    clips = make_clips(classifier, size=(2 * stride, 3 * stride))
    assert classifier.features(clips)[0].shape[-2:] == (2, 3)
    assert detector.features(clips)[0].shape[-2:] == (4, 6)


@pytest.mark.parametrize("name", TINY)
def test_prediction_at_the_training_size_is_the_softmax_of_the_logits(name: str) -> None:
    model = make_model(name).eval()
    crop, stride = model.config.crop_size, model.config.spatial_stride
    for size in ((crop, crop), (stride, crop)):  # a smaller map cuts the window
        clips = make_clips(model, n=1, size=size, slow_frames=1)
        torch.testing.assert_close(model.predict(clips), model(clips).softmax(-1))


@pytest.mark.parametrize("pool_size", [None, 1, 2])
def test_prediction_averages_the_softmax_over_positions(pool_size: int | None) -> None:
    model = make_model("slowfast_tiny").eval()
    stride, window = model.config.spatial_stride, pool_size or 3
    model.config = replace(model.config, crop_size=3 * stride)
    clips = make_clips(model, size=(4 * stride, 5 * stride))
    maps = [features.mean(2) for features in model.features(clips)]
    windows = [
        model.head.projection(torch.cat([x[:, :, y : y + window, z : z + window].mean((2, 3)) for x in maps], 1))
        for y in range(4 - window + 1)
        for z in range(5 - window + 1)
    ]
    expected = torch.stack(windows).softmax(-1).mean(0)
    torch.testing.assert_close(model.predict(clips, pool_size=pool_size), expected)
    torch.testing.assert_close(expected.sum(-1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(model(clips), model.head.projection(torch.cat([x.mean((2, 3)) for x in maps], 1)))


@pytest.mark.parametrize("name", TINY)
def test_detection_scores_boxes_in_their_clips(name: str) -> None:
    model = make_model(name, "detection").eval()
    clips = make_clips(model)
    logits = model(clips, ROIS)
    torch.testing.assert_close(model.predict(clips, ROIS), logits.sigmoid())
    for row, roi in enumerate(ROIS):
        clip = int(roi[0])
        alone = make_rois((0, *roi[1:].tolist()))
        torch.testing.assert_close(model([c[clip : clip + 1] for c in clips], alone), logits[row : row + 1])


@pytest.mark.parametrize("name", TINY)
def test_clips_without_boxes(name: str) -> None:
    model = make_model(name, "detection").train()
    logits = model(make_clips(model), make_rois())
    assert logits.shape == (0, 5)
    logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_every_parameter(name: str, head: str) -> None:
    model = make_model(name, head).train()
    scores(model, make_clips(model)).square().sum().backward()
    untouched = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert untouched == []


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("training", [False, True])
def test_channels_last_changes_nothing(name: str, head: str, training: bool) -> None:
    model = make_model(name, head).train(training)
    clips = make_clips(model)
    results = []
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        model.load_state_dict(state)
        model.zero_grad()
        model.to(memory_format=memory_format)
        formatted = [clip.to(memory_format=memory_format) for clip in clips]
        logits = scores(model, formatted)
        logits.square().sum().backward()
        gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        results.append((logits.detach(), gradients, {key: value.clone() for key, value in model.named_buffers()}))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_features_have_the_memory_format_of_the_clips(name: str, memory_format: torch.memory_format) -> None:
    model = make_model(name).float().to(memory_format=memory_format)
    stride = model.config.spatial_stride
    clips = [clip.float().to(memory_format=memory_format) for clip in make_clips(model, size=(2 * stride, 2 * stride))]
    assert all(x.is_contiguous(memory_format=memory_format) for x in model.features(clips))


@pytest.mark.parametrize("training", [False, True])
def test_the_fused_lateral_connections_equal_separate_operations(training: bool) -> None:
    """Adding the last block's terms in the concatenation, and batch norm in its epilogue, changes nothing."""
    fused, plain = make_model("slowfast_tiny").train(training), make_model("slowfast_tiny").train(training)
    plain.load_state_dict(fused.state_dict())
    clips = make_clips(fused)
    logits, expected = fused(clips), plain.head(plain_features(plain, clips))
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for (key, p), q in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, key=key: f"gradient of {key}: {text}")
    torch.testing.assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()))


def plain_features(model: VideoNetwork, clips: list[Tensor]) -> list[Tensor]:
    """`VideoNetwork.features`, as the paper describes it."""
    maps = clips
    for level in model.level_names:
        outputs = [pathway[level](x) for pathway, x in zip(model.pathways.values(), maps, strict=True)]
        maps = outputs if level == "stem" else [join(*terms) for terms in outputs]
        if level in model.lateral:
            connection = model.lateral[level]
            maps[0] = torch.cat([maps[0], F.relu(connection.bn(connection.conv(maps[1])))], dim=1)
    return maps


@pytest.mark.parametrize("name", TINY)
def test_dropout_acts_in_training_only(name: str) -> None:
    model = build_model(name).double()
    clips = make_clips(model)
    torch.manual_seed(0)
    first = model(clips)
    assert not torch.equal(first, model(clips))
    model.eval()
    assert torch.equal(model(clips), model(clips))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = build_model("slowfast_r50_4x16")
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            fan_out = module.weight.shape[0] * math.prod(module.kernel_size)
            spread = (module.weight.std() * math.sqrt(fan_out / 2)).item()
            assert spread == pytest.approx(1, rel=10 / math.sqrt(module.weight.numel()))
        if isinstance(module, Bottleneck):
            assert not module.c.bn.weight.any()
            assert (module.a.bn.weight == 1).all()
    assert model.head.projection.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.head.projection.bias.any()


def test_blocks_start_as_the_identity() -> None:
    block = Bottleneck(32, 8, 32, temporal_kernel=3)
    nn.init.zeros_(block.c.bn.weight)
    x = torch.rand(2, 32, 4, 6, 6)
    assert torch.equal(join(*block(x)), x)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("head", HEADS)
def test_saved_states_restore_the_network(name: str, head: str) -> None:
    model, other = make_model(name, head).eval(), make_model(name, head).eval()
    clips = make_clips(model)
    assert not torch.equal(scores(model, clips), scores(other, clips))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(scores(model, clips), scores(other, clips))


def test_state_dict_names() -> None:
    names = {key.rsplit(".", 1)[0] for key in build_model("slowfast_tiny").state_dict()}
    assert {"pathways.slow.stem.conv", "pathways.fast.res2.0.a.bn", "pathways.slow.res3.0.shortcut.conv"} <= names
    assert {"lateral.stem.conv", "lateral.res2.bn", "head.projection"} <= names


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("head", HEADS)
def test_all_backends_agree(name: str, head: str) -> None:
    model = make_model(name, head).train()
    clips = make_clips(model)
    logits = scores(model, clips)
    with use_backend("reference"):
        torch.testing.assert_close(scores(model, clips), logits)


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast_stays_close(training: bool) -> None:
    model = make_model("slowfast_tiny").float().train(training)
    clips = [clip.float() for clip in make_clips(model)]
    expected = model(clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(clips)
    assert logits.dtype == torch.bfloat16
    tolerance = 0.3 if training else 0.05  # the statistics of two clips amplify rounding
    assert (logits - expected).abs().max() < tolerance * expected.abs().max()
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_compiles_as_one_graph() -> None:
    model = make_model("slowfast_tiny", "detection").train()
    clips = [clip.to(memory_format=torch.channels_last_3d) for clip in make_clips(model)]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    logits = scores(compiled, clips)
    torch.testing.assert_close(logits, scores(model, clips))
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "segmentation"}, "head is 'segmentation': expected one of classification, detection"),
        ({"num_classes": 0}, "num_classes is 0: expected 1 or more"),
    ],
)
def test_build_model_refuses(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model("slow_tiny", **options)


def test_pathways_that_do_not_fit_are_refused() -> None:
    slow_only, model = make_model("slow_tiny"), make_model("slowfast_tiny")
    slow, fast = make_clips(model)
    for network, clips, message in (
        (model, slow, "pathways is a tensor: expected a list of 2 clips"),
        (model, [fast], "pathways is 1 tensors: expected a list of 2 clips"),
        (slow_only, [slow, fast], "pathways is 2 tensors: expected a list of 1 clips"),
        (slow_only, [slow[0]], r"the slow clip has shape \[3, 2, 48, 64\]: expected \[N, 3, T, H, W\]"),
        (model, [slow, fast[:, :2]], r"the fast clip has shape \[2, 2, 16, 48, 64\]: expected \[N, 3, T, H, W\]"),
        (model, [slow, fast[:, :, :8]], r"the fast clip has shape \[2, 3, 8, 48, 64\]: expected \[2, 3, 16, 48, 64\]"),
        (model, [slow, fast[..., :50]], r"the fast clip has .* and the same size"),
        (model, [slow[:1], fast], r"the fast clip has shape \[2, .*\]: expected \[1, "),
    ):
        with pytest.raises(ValueError, match=message):
            network(clips)


def test_an_empty_pooling_window_is_refused() -> None:
    model = make_model("slow_tiny")
    with pytest.raises(ValueError, match="pool_size is 0: expected 1 or more"):
        model.predict(make_clips(model), pool_size=0)


def test_heads_refuse_missing_unwanted_and_misshaped_boxes() -> None:
    classifier, detector = make_model("slow_tiny"), make_model("slow_tiny", "detection")
    clips = make_clips(classifier)
    with pytest.raises(ValueError, match="the classification head takes none"):
        classifier(clips, ROIS)
    with pytest.raises(ValueError, match="the classification head takes none"):
        classifier.predict(clips, ROIS)
    with pytest.raises(ValueError, match="the detection head needs boxes"):
        detector(clips)
    with pytest.raises(ValueError, match=r"rois has shape \[3, 4\]: expected \[R, 5\]"):
        detector.predict(clips, ROIS[:, 1:])
