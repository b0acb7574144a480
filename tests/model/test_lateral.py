"""Every kind of lateral connection against its definition, and the weaker inputs of the Fast pathway."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_model.errors import InputError
from slowfast_model.models import LateralConfig, PathwayConfig, StageConfig, build_model, get_preset, slowfast_config
from slowfast_model.models.config import ModelConfig
from slowfast_model.models.lateral import LateralRearrange, SlowToFast
from slowfast_model.models.stem import transform_input
from slowfast_ops import use_backend

ALPHA = 4
KINDS = ["time_strided_conv", "time_strided_sample", "time_to_channel_concat", "time_to_channel_sum"]
FORMATS = [torch.contiguous_format, torch.channels_last_3d]


def tiny(**lateral) -> ModelConfig:
    config = get_preset("slowfast_tiny")
    fast = replace(config.pathways[1], width=2)  # so that alpha = 8 times the Fast channels are the Slow ones
    return replace(config, pathways=(config.pathways[0], fast), lateral=LateralConfig(**lateral) if lateral else None)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(("norm", "relu"), [(False, False), (True, False), (True, True), (False, True)])
def test_rearranged_frames(kind: str, norm: bool, relu: bool, memory_format: torch.memory_format) -> None:
    slow = torch.randn(2, 12, 2, 3, 4).to(memory_format=memory_format)
    residual = torch.randn(2, 12, 2, 3, 4).to(memory_format=memory_format)
    fast = torch.randn(2, 3, 2 * ALPHA, 3, 4).to(memory_format=memory_format)
    module = LateralRearrange(LateralConfig(kind=kind, norm=norm, relu=relu), 3, ALPHA)
    frames = [fast[:, channel, shift::ALPHA] for channel in range(3) for shift in range(ALPHA)]
    if kind == "time_strided_sample":
        frames = frames[::ALPHA]
    x = torch.stack(frames, dim=1)
    if norm:
        assert module.bn is not None
        nn.init.uniform_(module.bn.bias)
        x = F.batch_norm(x, None, None, module.bn.weight, module.bn.bias, training=True)
    x = x.relu() if relu else x
    joined = (slow + residual).relu()
    expected = joined + x if kind == "time_to_channel_sum" else torch.cat([joined, x], 1)
    output = module(slow.clone(memory_format=torch.preserve_format), fast, residual=residual)
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_way_back_repeats_each_slow_frame(memory_format: torch.memory_format) -> None:
    slow = torch.randn(2, 12, 2, 3, 4).to(memory_format=memory_format)
    fast = torch.randn(2, 3, 2 * ALPHA, 3, 4).to(memory_format=memory_format)
    module = SlowToFast(LateralConfig(bidirectional=True), 12, 3, ALPHA).eval()
    output = module(slow, fast)
    assert output.is_contiguous(memory_format=memory_format)
    added = F.relu(module.bn(module.conv(slow)))
    for frame in range(fast.shape[2]):
        torch.testing.assert_close(output[:, :, frame], fast[:, :, frame] + added[:, :, frame // ALPHA])


CONNECTIONS = [
    {},
    *({"kind": kind} for kind in KINDS),
    {"norm": False, "relu": False},
    *({"kind": kind, "bidirectional": True} for kind in KINDS),
    {"kind": "time_strided_sample", "norm": False, "relu": False, "bidirectional": True},
]


@pytest.mark.parametrize("lateral", CONNECTIONS, ids=lambda lateral: "-".join(map(str, lateral.values())) or "none")
def test_networks_of_every_kind_train_on_all_backends(lateral: dict) -> None:
    config = tiny(**lateral)
    config = replace(config, head=replace(config.head, dropout=0.0))
    model = build_model(config, num_classes=3).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
    clips = [torch.randn(2, 3, frames, 32, 32, dtype=torch.float64) for frames in (2, 16)]
    logits = model(clips)
    logits.square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    with use_backend("reference"):
        torch.testing.assert_close(model(clips), logits)


def reached(config: ModelConfig) -> list[bool]:
    """Whether the (Slow, Fast) features change when the other pathway's clip does."""
    model = build_model(config, num_classes=3).eval()
    clips = [torch.randn(1, 3, frames, 32, 32) for frames in (2, 16)]
    plain = model.features(clips)
    others = model.features([clips[0], clips[1] + 1]), model.features([clips[0] + 1, clips[1]])
    return [not torch.equal(changed[i], plain[i]) for i, changed in enumerate(others)]


def test_directions() -> None:
    assert reached(tiny()) == [False, False]
    assert reached(tiny(kind="time_to_channel_sum")) == [True, False]
    assert reached(tiny(bidirectional=True)) == [True, True]


def test_bidirectional_connections_read_the_features_before_they_are_fused() -> None:
    model = build_model(tiny(bidirectional=True), num_classes=3).eval()
    seen: list[Tensor] = []
    model.slow_to_fast["res2"].register_forward_hook(lambda _m, inputs, _y: seen.extend(inputs))
    model([torch.randn(1, 3, frames, 32, 32) for frames in (2, 16)])
    assert [x.shape[1] for x in seen] == [64, 8]


def test_packed_frames_must_have_the_slow_channels_to_be_added() -> None:
    with pytest.raises(InputError, match=r"model.lateral.kind is 'time_to_channel_sum': expected .*\(32, 128,"):
        replace(get_preset("slowfast_tiny"), lateral=LateralConfig(kind="time_to_channel_sum"))
    with pytest.raises(InputError, match=r"lateral.kind is 'sum': expected one of time_strided_conv"):
        LateralConfig(kind="sum")


def test_weaker_inputs() -> None:
    clip = torch.arange(2 * 3 * 4 * 3 * 5, dtype=torch.float64).reshape(2, 3, 4, 3, 5) ** 1.5
    half = transform_input(clip, "half_resolution")
    assert half.shape == (2, 3, 4, 2, 3)
    torch.testing.assert_close(half[:, :, :, 0, 1], clip[:, :, :, 0:2, 2:4].mean((3, 4)))
    torch.testing.assert_close(half[:, :, :, 1, 2], clip[:, :, :, 2, 4])  # a corner without neighbours
    grey = transform_input(clip, "grey")
    torch.testing.assert_close(grey[:, 0], 0.299 * clip[:, 0] + 0.587 * clip[:, 1] + 0.114 * clip[:, 2])
    difference = transform_input(clip, "time_difference")
    assert not difference[:, :, 0].any()
    torch.testing.assert_close(difference[:, :, 1:], clip[:, :, 1:] - clip[:, :, :-1])
    assert transform_input(clip, "none") is clip


@pytest.mark.parametrize("fast_input", ["rgb", "half_resolution", "grey", "time_difference", "optical_flow"])
def test_networks_with_weaker_inputs(fast_input: str) -> None:
    config = slowfast_config(4, 16, alpha=8, depth=18, fast_input=fast_input)
    model = build_model(config, num_classes=3).eval()
    fast_channels = 2 if fast_input == "optical_flow" else 3
    with torch.no_grad():
        for height, width in ((64, 64), (37, 53)):
            clips = [torch.randn(1, 3, 1, height, width), torch.randn(1, fast_channels, 8, height, width)]
            assert model(clips).shape == (1, 3)
    first = model.pathways["fast"]["stem"].conv.weight.shape[1]
    assert first == {"grey": 1, "optical_flow": 2}.get(fast_input, 3)


def test_a_half_size_fast_pathway_is_enlarged_to_the_slow_ones_size() -> None:
    config = slowfast_config(4, 16, alpha=8, depth=18, fast_input="half_resolution")
    assert config.pathways[1].level_strides == (8, 8, 16, 32, 64)
    model = build_model(config, num_classes=3).eval()
    seen: dict[str, list[Tensor]] = {}
    for name, module in model.lateral.items():
        module.register_forward_hook(lambda _m, given, _kw, _y, name=name: seen.update({name: given}), with_kwargs=True)
    clips = [torch.randn(1, 3, 1, 64, 96), torch.randn(1, 3, 8, 64, 96)]
    slow, fast = model.features(clips)
    assert fast.shape[3:] == slow.shape[3:] == (2, 3)
    for x, y in seen.values():
        assert x.shape[3:] == y.shape[3:]
        if x.shape[4] % 2 == 0:
            torch.testing.assert_close(y[..., 1::2, 1::2], y[..., ::2, ::2])
    with pytest.raises(InputError, match=r"lateral.bidirectional is True: expected false"):
        replace(config, lateral=LateralConfig(bidirectional=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: slowfast_config(4, 16, alpha=8, fast_input="depth"), "fast_input is 'depth': expected one of rgb"),
        (lambda: PathwayConfig(8, (StageConfig(1),), input_transform="gray"), "input_transform is 'gray'"),
        (lambda: PathwayConfig(8, (StageConfig(1),), in_channels=2, input_transform="grey"), "in_channels is 2"),
    ],
)
def test_impossible_inputs_are_refused_by_name(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
