"""Depths, widths and block types: the same ResNets as torchvision's where no kernel has temporal extent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision

from slowfast_model.complexity import measure_complexity
from slowfast_model.errors import InputError
from slowfast_model.models import (
    ModelConfig,
    PathwayConfig,
    StageConfig,
    StemConfig,
    build_model,
    fast_config,
    get_preset,
    slow_config,
    slowfast_config,
)
from slowfast_model.models.presets import resnet

FLAT_KERNELS = ((1,),) * 4


def flat(depth: int, **changes: int) -> ModelConfig:
    """An image network: one frame, no temporal kernel."""
    pathway = replace(resnet(depth, FLAT_KERNELS, StemConfig()), **changes)
    return ModelConfig("flat", 1, 1, 224, (pathway,))


TORCHVISION = {
    "resnet18": flat(18),
    "resnet34": flat(34),
    "resnet50": flat(50),
    "resnet101": flat(101),
    "resnet152": flat(152),
    "resnext50_32x4d": flat(50, groups=32, inner_width=128),
    "resnext101_32x8d": flat(101, groups=32, inner_width=256),
    "wide_resnet50_2": flat(50, inner_width=128),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_flat_networks_have_torchvisions_tensors(name: str) -> None:
    with torch.device("meta"):
        model = build_model(TORCHVISION[name], num_classes=1000)
        images = torchvision.models.get_model(name)
    ours = [tuple(value.flatten().shape) for value in model.state_dict().values()]
    assert ours == [tuple(value.flatten().shape) for value in images.state_dict().values()]


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_flat_networks_are_torchvisions_on_every_frame(name: str) -> None:
    images = torchvision.models.get_model(name).double().eval()
    model = build_model(TORCHVISION[name], num_classes=1000).double().eval()
    given = zip(model.state_dict().items(), images.state_dict().values(), strict=True)
    model.load_state_dict({key: theirs.reshape(ours.shape) for (key, ours), theirs in given})
    clip = torch.randn(2, 3, 2, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = images(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 2)).mean(1)
        torch.testing.assert_close(model([clip]), expected)


def test_basic_blocks_have_their_temporal_kernel_in_the_first_convolution() -> None:
    model = build_model("slow_r18_8x8")
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["pathways.slow.res3.0.a.conv.weight"] == (128, 64, 1, 3, 3)
    assert shapes["pathways.slow.res4.1.a.conv.weight"] == (256, 256, 3, 3, 3)
    assert shapes["pathways.slow.res4.1.b.conv.weight"] == (256, 256, 1, 3, 3)
    assert all(not block.last_norm.weight.any() for block in model.pathways["slow"]["res4"].values())


def test_deep_networks_have_as_many_temporal_blocks_as_r50() -> None:
    kernels = [stage.block_kernels for stage in get_preset("slowfast_r152_8x8").pathways[1].stages]
    assert [sum(kernel == 3 for kernel in stage) for stage in kernels] == [3, 4, 6, 3]
    assert [len(stage) for stage in kernels] == [3, 8, 36, 3]
    deep = slowfast_config(8, 8, alpha=4, depth=101, all_temporal=("slow", "fast"))
    assert deep.pathways[0].stages[2].block_kernels == (3,) * 23


def test_each_pathway_has_a_depth_of_its_own() -> None:
    config = slowfast_config(4, 16, alpha=8, depth=50, fast_depth=18)
    assert [pathway.block for pathway in config.pathways] == ["bottleneck", "basic"]
    assert config.feature_channels == (2048, 64)
    costs, plain = (measure_complexity(c, crop_size=64).to_dict()["stages"] for c in (config, "slowfast_r50_4x16"))
    assert costs["fast.res4"]["parameters"] != plain["fast.res4"]["parameters"]
    assert costs["lateral.stem"] == plain["lateral.stem"]
    # The lateral connection of 2 x 8 channels, instead of 2 x 32, is all that the Slow pathway sees of it.
    assert plain["slow.res3"]["parameters"] - costs["slow.res3"]["parameters"] == (64 - 16) * (128 + 512)


def test_the_fast_pathway_alone() -> None:
    """Kernels as in I3D and a count without batch norm give the paper's 6.4 G and 0.53 M, Table 1's kernels do not."""
    config = fast_config(32, 2)
    with torch.device("meta"):
        model = build_model(config)
    convolutions = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    assert round((convolutions + 400) / 1e6, 2) == 0.53
    assert round(measure_complexity(config, crop_size=256).to_dict()["multiply_adds"] / 1e9, 1) == 6.4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: slow_config(8, 8, depth=51), "depth is 51: expected one of 18, 34, 50, 101, 152"),
        (lambda: slowfast_config(8, 6, alpha=4), "slow_rate is 6: expected a multiple of alpha = 4"),
        (lambda: PathwayConfig(8, (StageConfig(1),), block="plain"), "pathway.block is 'plain': expected one of"),
        (lambda: PathwayConfig(8, (StageConfig(1),), groups=3), "pathway.groups is 3: expected a divisor of 8"),
        (lambda: PathwayConfig(8, (StageConfig(1),), groups=0), "pathway.groups is 0"),
        (lambda: PathwayConfig(8, (StageConfig(1),), inner_width=0), "pathway.inner_width is 0"),
        (lambda: PathwayConfig(8, (StageConfig(1),), block="basic", groups=2), "groups is 2: expected 1 for basic"),
        (lambda: PathwayConfig(8, (StageConfig(1),), block="basic", inner_width=8), "inner_width is 8: expected null"),
    ],
)
def test_impossible_values_are_refused_by_name(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
