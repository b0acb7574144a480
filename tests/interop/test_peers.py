"""PyTorchVideo's and mmaction2's state dicts, built from their documented names and shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from slowfast_model.errors import InputError
from slowfast_model.interop.conversion import Source, build_and_load, identify, read_source
from slowfast_model.interop.fitting import LoadReport
from slowfast_model.interop.mmaction2 import mmaction2_model, prepare
from slowfast_model.interop.pytorchvideo import pytorchvideo_model
from slowfast_model.models import VideoNetwork, get_preset

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Recipe:
    """A state dict in the making: convolutions and batch norms as the peers' builders make them."""

    def __init__(self, conv_name: str, norm_name: Callable[[str], str]) -> None:
        self.conv_name, self.norm_name = conv_name, norm_name
        self.tensors: dict[str, Tensor] = {}

    def unit(self, name: str, out: int, inputs: int, *kernel: int, norm: bool = True) -> None:
        self.tensors[self.conv_name.format(name)] = torch.empty(out, inputs, *kernel, device="meta")
        for leaf in ("weight", "bias", "running_mean", "running_var") if norm else ():
            self.tensors[f"{self.norm_name(name)}.{leaf}"] = torch.empty(out, device="meta")
        if norm:
            self.tensors[f"{self.norm_name(name)}.num_batches_tracked"] = torch.empty((), device="meta")

    def linear(self, name: str, out: int, inputs: int) -> None:
        self.tensors[f"{name}.weight"] = torch.empty(out, inputs, device="meta")
        self.tensors[f"{name}.bias"] = torch.empty(out, device="meta")


def pytorchvideo_state(depth: int, *, fast: bool, temporal: int, fusion: int, head: str, classes: int) -> dict:
    """``temporal``: blocks of res4 with a temporal kernel."""

    def norm_name(conv: str) -> str:
        if conv.endswith("conv_fast_to_slow"):
            return conv.removesuffix("conv_fast_to_slow") + "norm"
        return re.sub(r"conv(?=(_[abc])?$)", "norm", conv)

    recipe = Recipe("{}.weight", norm_name)
    pathway = "multipathway_blocks.{}." if fast else ""
    widths = (64, 8) if fast else (64,)
    for level in range(5):
        for index, width in enumerate(widths):
            prefix = f"blocks.{level}.{pathway.format(index)}"
            if level == 0:
                recipe.unit(f"{prefix}conv", width, 3, 5 if index else 1, 7, 7)
                continue
            inner = width * 2 ** (level - 1)
            inputs = width if level == 1 else inner * 2
            inputs += inputs // 4 if fast and index == 0 else 0
            for block in range(BLOCKS[depth][level - 1]):
                name = f"{prefix}res_blocks.{block}."
                kernel = 3 if index or (level >= 3 and (level == 4 or block < temporal)) else 1
                if block == 0:
                    recipe.unit(f"{name}branch1_conv", inner * 4, inputs, 1, 1, 1)
                recipe.unit(f"{name}branch2.conv_a", inner, inputs, kernel, 1, 1)
                recipe.unit(f"{name}branch2.conv_b", inner, inner, 1, 3, 3)
                recipe.unit(f"{name}branch2.conv_c", inner * 4, inner, 1, 1, 1)
                inputs = inner * 4
                if index and level == 3 and block >= temporal:  # 50_50: the Fast pathway as the Slow one
                    recipe.tensors[f"{name}branch2.conv_a.weight"] = torch.empty(inner, inputs, 1, 1, 1, device="meta")
        if fast and level < 4:
            channels = 8 if level == 0 else 8 * 2 ** (level - 1) * 4
            recipe.unit(f"blocks.{level}.multipathway_fusion.conv_fast_to_slow", 2 * channels, channels, fusion, 1, 1)
    recipe.linear(head, classes, 2304 if fast else 2048)
    prefix = "model." if head.startswith("detection") else ""
    return {name if name.startswith(head) else prefix + name: t for name, t in recipe.tensors.items()}


HUB = {
    "slow_r50": (
        partial(pytorchvideo_state, depth=50, fast=False, temporal=6, fusion=0, head="blocks.5.proj", classes=400),
        32.45,
    ),
    "slowfast_r50": (
        partial(pytorchvideo_state, depth=50, fast=True, temporal=6, fusion=7, head="blocks.6.proj", classes=400),
        34.57,
    ),
    "slowfast_r101": (
        partial(pytorchvideo_state, depth=101, fast=True, temporal=23, fusion=5, head="blocks.6.proj", classes=400),
        62.83,
    ),
    "slowfast_16x8_r101_50_50": (
        partial(pytorchvideo_state, depth=101, fast=True, temporal=6, fusion=5, head="blocks.6.proj", classes=400),
        53.77,
    ),
    "slow_r50_detection": (
        partial(pytorchvideo_state, depth=50, fast=False, temporal=6, fusion=0, head="detection_head.proj", classes=80),
        31.80,
    ),
    "slowfast_r50_detection": (
        partial(pytorchvideo_state, depth=50, fast=True, temporal=6, fusion=7, head="detection_head.proj", classes=80),
        33.83,
    ),
}


def load_on_meta(name: str, state: dict[str, Tensor]) -> tuple[Source, VideoNetwork, LoadReport]:
    weights = identify(state)
    source = read_source(name, weights)
    with torch.device("meta"):
        return source, *build_and_load(source, weights)


@pytest.mark.parametrize("name", HUB)
def test_pytorchvideos_hub_models(name: str) -> None:
    make_state, parameters = HUB[name]
    state = make_state()
    source, model, report = load_on_meta(name, state)
    assert identify(state).project == "PyTorchVideo"
    assert len(report.loaded) == len(state) == len(model.state_dict())
    assert not report.reshaped
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters * 1e6, abs=0.011e6)
    assert source.config.head.roi_aligned == (
        source.head == "classification"
    )  # torchvision's RoIAlign is not, by default


def test_pytorchvideos_presets_are_ours() -> None:
    for name, preset in (("slow_r50", "slow_r50_8x8"), ("slowfast_r50", "slowfast_r50_8x8")):
        assert replace(pytorchvideo_model(name)[0], name=preset) == get_preset(preset)
    with pytest.raises(InputError, match=r"'x3d_s' is not a hub model of PyTorchVideo that we know: expected slow_r50"):
        pytorchvideo_model("x3d_s")


def mmaction2_state(
    depths: tuple[int, ...], *, fusion: int, detection: bool, classes: int, slow_only: bool = False
) -> dict[str, Tensor]:
    recipe = Recipe("{}.conv.weight", lambda name: f"{name}.bn")
    for index, depth in enumerate(depths):
        prefix = "backbone." if slow_only else f"backbone.{('slow', 'fast')[index]}_path."
        width = (64, 8)[index]
        recipe.unit(f"{prefix}conv1", width, 3, 5 if index else 1, 7, 7)
        lateral = index == 0 and not slow_only
        for layer in range(1, 5):
            inner = width * 2 ** (layer - 1)
            inputs = (width if layer == 1 else inner * 2) * (5 if lateral else 4) // 4
            for block in range(BLOCKS[depth][layer - 1]):
                name = f"{prefix}layer{layer}.{block}."
                recipe.unit(f"{name}conv1", inner, inputs, 3 if index or layer >= 3 else 1, 1, 1)
                recipe.unit(f"{name}conv2", inner, inner, 1, 3, 3)
                recipe.unit(f"{name}conv3", inner * 4, inner, 1, 1, 1)
                if block == 0:
                    recipe.unit(f"{name}downsample", inner * 4, inputs, 1, 1, 1)
                inputs = inner * 4
        if lateral:
            for name, channels in (("conv1", 8), ("layer1", 32), ("layer2", 64), ("layer3", 128)):
                recipe.unit(f"{prefix}{name}_lateral", 2 * channels, channels, fusion, 1, 1, norm=False)
    head = "roi_head.bbox_head.fc_cls" if detection else "cls_head.fc_cls"
    recipe.linear(head, classes, 2048 if slow_only else 2304)
    return recipe.tensors


@pytest.mark.parametrize(
    ("name", "make_state", "frames", "alpha"),
    [
        ("slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb.py",
         partial(mmaction2_state, depths=(50, 50), fusion=5), 32, 8),
        ("slowfast_r50_8x8x1_256e_kinetics400_rgb_20200716-73547d2b.pth",
         partial(mmaction2_state, depths=(50, 50), fusion=7), 32, 4),
        ("slowfast_r101_8xb8-8x8x1-256e_kinetics400-rgb", partial(mmaction2_state, depths=(101, 101), fusion=5), 32, 4),
        ("slowfast_r101-r50_32xb8-4x16x1-256e_kinetics400-rgb",
         partial(mmaction2_state, depths=(101, 50), fusion=5), 32, 8),
        ("slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
         partial(mmaction2_state, depths=(50,), fusion=0, slow_only=True), 4, 1),
        ("slowonly_r101_8xb16-8x8x1-196e_kinetics400-rgb",
         partial(mmaction2_state, depths=(101,), fusion=0, slow_only=True), 8, 1),
        ("slowfast_kinetics400-pretrained-r50_8xb8-8x8x1-20e_ava21-rgb",
         partial(mmaction2_state, depths=(50, 50), fusion=7), 32, 4),
        ("slowonly_kinetics400-pretrained-r50_8xb16-4x16x1-20e_ava21-rgb",
         partial(mmaction2_state, depths=(50,), fusion=0, slow_only=True), 4, 1),
    ],
)  # fmt: skip
def test_mmaction2s_models(name: str, make_state: Callable[..., dict], frames: int, alpha: int) -> None:
    detection = "ava" in name
    state = make_state(detection=detection, classes=81 if detection else 400)
    source, model, report = load_on_meta(f"configs/{name}", state)
    config = source.config
    assert (config.num_frames, config.alpha) == (frames, alpha)
    assert (source.head, source.num_classes) == (("detection", 80) if detection else ("classification", 400))
    assert source.data["slow_sampling"] == "stride"
    assert identify(state).project == "mmaction2"
    assert len(report.loaded) == len(state) == len(model.state_dict())
    if config.lateral:
        assert not config.lateral.norm
        assert not config.lateral.relu
    if detection:
        last = model.pathways["slow"]["res5"]["0"].b.conv
        assert (last.stride, last.dilation, config.head.roi_size) == ((1, 1, 1), (1, 1, 1), 8)


def test_mmaction2s_names_must_say_depth_and_clip() -> None:
    for name in ("epoch_20.pth", "x3d_s_13x6x1_facebook-kinetics400-rgb"):
        with pytest.raises(InputError, match="expected the name of a configuration or checkpoint of mmaction2"):
            mmaction2_model(name, {})


def test_mmaction2s_classifier_takes_fast_features_first() -> None:
    slow, fast = torch.rand(2, 2048, dtype=torch.float64), torch.rand(2, 256, dtype=torch.float64)
    weight = torch.rand(5, 2304, dtype=torch.float64)
    state = {
        "backbone.fast_path.layer4.0.conv3.conv.weight": torch.zeros(256, 64, 1, 1, 1),
        "cls_head.fc_cls.weight": weight,
        "cls_head.fc_cls.bias": torch.zeros(5),
    }
    ours = prepare(state)["cls_head.fc_cls.weight"]
    torch.testing.assert_close(torch.cat([slow, fast], 1) @ ours.T, torch.cat([fast, slow], 1) @ weight.T)
    single = {"cls_head.fc_cls.weight": weight[:, :2048]}
    assert prepare(single)["cls_head.fc_cls.weight"] is single["cls_head.fc_cls.weight"]


def test_mmaction2s_first_detection_class_is_dropped() -> None:
    state = {"roi_head.bbox_head.fc_cls.weight": torch.randn(81, 8), "roi_head.bbox_head.fc_cls.bias": torch.randn(81)}
    prepared = prepare(state)
    for name, tensor in state.items():
        assert torch.equal(prepared[name], tensor[1:])
