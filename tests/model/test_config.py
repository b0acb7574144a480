"""Configurations: presets, plain dictionaries and back, and errors that name the field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slowfast_model.errors import InputError
from slowfast_model.models import (
    HeadConfig,
    LateralConfig,
    ModelConfig,
    PathwayConfig,
    StageConfig,
    StemConfig,
    get_preset,
    list_presets,
)


def test_presets_are_listed_and_named_like_themselves() -> None:
    assert {"slow_r50_4x16", "slow_r50_8x8", "slowfast_r50_4x16", "slowfast_r50_8x8"} <= set(list_presets())
    assert {"slow_tiny", "slowfast_tiny"} <= set(list_presets())
    assert [get_preset(name).name for name in list_presets()] == list_presets()


@pytest.mark.parametrize(
    ("name", "frames", "rate", "alpha", "pathway_frames", "kernel"),
    [
        ("slow_r50_4x16", 4, 16, 1, (4,), None),
        ("slow_r50_8x8", 8, 8, 1, (8,), None),
        ("slowfast_r50_4x16", 32, 2, 8, (4, 32), 5),
        ("slowfast_r50_8x8", 32, 2, 4, (8, 32), 7),
    ],
)
def test_the_papers_clips(
    name: str, frames: int, rate: int, alpha: int, pathway_frames: tuple[int, ...], kernel: int | None
) -> None:
    config = get_preset(name)
    assert (config.num_frames, config.sampling_rate, config.alpha, config.crop_size) == (frames, rate, alpha, 224)
    assert config.pathway_frames == pathway_frames
    assert config.num_pathways == len(pathway_frames)
    assert (config.lateral.kernel_size if config.lateral else None) == kernel
    assert config.spatial_stride == 32
    assert config.feature_channels == (2048, 256)[: config.num_pathways]


def test_table_1() -> None:
    slow, fast = get_preset("slowfast_r50_4x16").pathways
    assert slow.level_channels == (64, 256, 512, 1024, 2048)
    assert fast.level_channels == (8, 32, 64, 128, 256)
    assert slow.level_strides == fast.level_strides == (4, 4, 8, 16, 32)
    assert [stage.depth for stage in slow.stages] == [stage.depth for stage in fast.stages] == [3, 4, 6, 3]
    assert [set(stage.block_kernels) for stage in slow.stages] == [{1}, {1}, {3}, {3}]
    assert [set(stage.block_kernels) for stage in fast.stages] == [{3}, {3}, {3}, {3}]
    assert slow.stem.kernel == (1, 7, 7)
    assert fast.stem.kernel == (5, 7, 7)


@pytest.mark.parametrize("name", list_presets())
def test_configurations_survive_yaml_and_json_and_are_hashable(name: str) -> None:
    config = get_preset(name)
    for read, write in ((yaml.safe_load, yaml.safe_dump), (json.loads, json.dumps)):
        again = ModelConfig.from_dict(read(write(config.to_dict())))
        assert again == config
        assert hash(again) == hash(config)
    assert len({config, replace(config, crop_size=config.crop_size + 32)}) == 2


def test_fields_with_defaults_may_be_left_out() -> None:
    config = ModelConfig.from_dict(
        {
            "name": "mine",
            "num_frames": 8,
            "sampling_rate": 4,
            "crop_size": 64,
            "pathways": [{"width": 8, "stages": [{"depth": 1}], "stem": {"kernel": [1, 3, 3]}}],
            "head": {"dropout": 0},
        }
    )
    stem = StemConfig(kernel=(1, 3, 3))
    assert config == ModelConfig(
        "mine", 8, 4, 64, (PathwayConfig(8, (StageConfig(1),), stem),), head=HeadConfig(dropout=0.0)
    )


@given(depth=st.integers(1, 30), blocks=st.integers(0, 30), pattern=st.lists(st.sampled_from([1, 3, 5]), min_size=1))
def test_temporal_kernels_repeat_over_the_first_blocks(depth: int, blocks: int, pattern: list[int]) -> None:
    blocks = min(blocks, depth)
    kernels = StageConfig(depth, tuple(pattern), temporal_blocks=blocks).block_kernels
    assert kernels == tuple((pattern * depth)[:blocks]) + (1,) * (depth - blocks)
    assert StageConfig(depth, tuple(pattern)).block_kernels == tuple((pattern * depth)[:depth])


def test_detection_trades_the_last_stride_for_dilation_once() -> None:
    for name in list_presets():
        config = get_preset(name)
        dense = config.for_detection()
        assert dense.for_detection() == dense
        assert dense.spatial_stride * 2 == config.spatial_stride
        for before, after in zip(config.pathways, dense.pathways, strict=True):
            assert (after.stages[-1].stride, after.stages[-1].dilation) == (1, 2)
            assert after.stages[:-1] == before.stages[:-1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: get_preset("slowfast_r50_8x9"), "slowfast_r50_8x9.*expected one of .*did you mean slowfast_r50_8x8"),
        (lambda: StageConfig(0), r"stage.depth is 0: expected 1 or more"),
        (lambda: StageConfig(2, (2,)), r"stage.temporal_kernels is \(2,\): expected .*odd"),
        (lambda: StageConfig(2, ()), r"stage.temporal_kernels is \(\)"),
        (lambda: StageConfig(2, temporal_blocks=3), r"stage.temporal_blocks is 3: expected 0 to 2"),
        (lambda: StageConfig(2, stride=0), r"stage.stride is 0"),
        (lambda: StageConfig(2, dilation=0), r"stage.dilation is 0"),
        (lambda: StemConfig(kernel=(1, 7, 6)), r"stem.kernel is \(1, 7, 6\): expected three odd numbers"),
        (lambda: StemConfig(stride=0), r"stem.stride is 0"),
        (lambda: PathwayConfig(0, (StageConfig(1),)), r"pathway.width is 0"),
        (lambda: PathwayConfig(8, ()), r"pathway.stages is \(\)"),
        (lambda: PathwayConfig(8, (StageConfig(1),), in_channels=0), r"pathway.in_channels is 0"),
        (lambda: LateralConfig(kernel_size=4), r"lateral.kernel_size is 4: expected an odd number"),
        (lambda: LateralConfig(channel_ratio=0), r"lateral.channel_ratio is 0"),
        (lambda: HeadConfig(dropout=1.0), r"head.dropout is 1.0"),
        (lambda: HeadConfig(roi_size=0), r"head.roi_size is 0"),
        (lambda: HeadConfig(roi_sampling_ratio=-1), r"head.roi_sampling_ratio is -1"),
        (
            lambda: replace(get_preset("slowfast_tiny"), num_frames=30),
            r"num_frames is 30: expected a multiple of alpha",
        ),
        (lambda: replace(get_preset("slow_tiny"), alpha=4), r"model.alpha is 4: expected 1 for a single pathway"),
        (lambda: replace(get_preset("slow_tiny"), lateral=LateralConfig()), r"model.lateral.*single pathway"),
        (lambda: replace(get_preset("slow_tiny"), sampling_rate=0), r"model.sampling_rate is 0"),
        (lambda: replace(get_preset("slow_tiny"), pathways=()), r"model.pathways is '0 pathways': expected 1 or 2"),
    ],
)
def test_impossible_values_are_refused_by_name(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_pathways_of_different_strides_are_refused() -> None:
    slow, fast = get_preset("slowfast_r50_4x16").pathways
    strided = replace(fast, stem=replace(fast.stem, pool=False))
    with pytest.raises(InputError, match="the same strides in both pathways"):
        replace(get_preset("slowfast_r50_4x16"), pathways=(slow, strided))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("num_frames",), "32", r"model.num_frames is '32': expected a value of type int"),
        (("num_frames",), True, r"model.num_frames is True: expected a value of type int"),
        (("num_frame",), 32, r"model is \['num_frame'\]: expected no fields but name, num_frames"),
        (("pathways",), 3, r"model.pathways is 3: expected a list"),
        (("pathways", 1, "stages", 2, "depth"), 6.0, r"model.pathways\[1\].stages\[2\].depth is 6.0: .* type int"),
        (("pathways", 0, "stem", "kernel"), [7, 7], r"model.pathways\[0\].stem.kernel is \[7, 7\]: expected 3 values"),
        (("pathways", 0, "stem"), [7, 7], r"model.pathways\[0\].stem is \[7, 7\]: expected the fields of StemConfig"),
        (("head", "dropout"), "half", r"model.head.dropout is 'half': expected a value of type float"),
    ],
)
def test_ill_typed_fields_are_refused_with_their_path(path: tuple[Any, ...], value: Any, message: str) -> None:
    values = get_preset("slowfast_r50_8x8").to_dict()
    target: Any = values
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(InputError, match=message):
        ModelConfig.from_dict(values)


def test_missing_fields_are_refused_by_name() -> None:
    values = get_preset("slow_tiny").to_dict()
    del values["crop_size"]
    with pytest.raises(InputError, match=r"model is .*expected also crop_size"):
        ModelConfig.from_dict(values)
