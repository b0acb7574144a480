"""The named networks of the paper, and small ones that a CPU trains in minutes."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

from slowfast_model.errors import InputError
from slowfast_model.models.config import (
    HeadConfig,
    LateralConfig,
    ModelConfig,
    NonLocalConfig,
    PathwayConfig,
    StageConfig,
    StemConfig,
)
from slowfast_model.models.fields import require, require_choice

FastInput = Literal["rgb", "half_resolution", "grey", "time_difference", "optical_flow"]

RESNET_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC_DEPTHS = (18, 34)  # the depths with basic blocks
# Only this many first blocks of a stage have temporal kernels, however deep it is. The paper does not say so, but no
# other number gives the cost of its R101 networks; PySlowFast calls it R101_50_50.
TEMPORAL_BLOCKS = (3, 4, 6, 3)
R50_NON_LOCAL = {"res3": NonLocalConfig((1, 3)), "res4": NonLocalConfig((1, 3, 5))}  # PySlowFast's
R101_NON_LOCAL = {"res4": NonLocalConfig((6, 13, 20), pool=(2, 2, 2))}  # in res4 only, as in the paper

STAGES = ("res2", "res3", "res4", "res5")
SLOW_KERNELS = ((1,), (1,), (3,), (3,))  # Table 1: temporal convolutions in the last two stages only
FAST_KERNELS = ((3,), (3,), (3,), (3,))  # and everywhere
I3D_KERNELS = ((3,), (3, 1), (3, 1), (1, 3))
C2D_KERNELS = ((1,), (1,), (1,), (1,))
FAST_STEM = StemConfig(kernel=(5, 7, 7))


def resnet_stages(
    depths: tuple[int, ...],
    kernels: tuple[tuple[int, ...], ...],
    *,
    all_temporal: bool = False,
    non_local: Mapping[str, NonLocalConfig] | None = None,
) -> tuple[StageConfig, ...]:
    """res2 to res5.

    Args:
        depths: blocks of each stage.
        kernels: temporal kernels of each stage.
        all_temporal: whether all blocks have them, and not just as many as R50 has.
        non_local: non-local blocks by stage ("res4").
    """
    non_local = non_local or {}
    return tuple(
        StageConfig(
            depth,
            kernel,
            temporal_blocks=None if all_temporal or depth <= first else first,
            stride=1 if name == "res2" else 2,
            non_local=non_local.get(name),
        )
        for name, depth, kernel, first in zip(STAGES, depths, kernels, TEMPORAL_BLOCKS, strict=True)
    )


def resnet(
    depth: int,
    kernels: tuple[tuple[int, ...], ...],
    stem: StemConfig,
    *,
    width: int = 64,
    all_temporal: bool = False,
    non_local: Mapping[str, NonLocalConfig] | None = None,
) -> PathwayConfig:
    """A pathway of one of the `RESNET_DEPTHS`; the other arguments as for `PathwayConfig` and `resnet_stages`.

    Raises:
        InputError: another depth.
    """
    require(depth in RESNET_DEPTHS, "depth", depth, f"one of {', '.join(map(str, RESNET_DEPTHS))}")
    stages = resnet_stages(RESNET_DEPTHS[depth], kernels, all_temporal=all_temporal, non_local=non_local)
    return PathwayConfig(width, stages, stem, block="basic" if depth in BASIC_DEPTHS else "bottleneck")


def single_pathway_config(
    family: str, depth: int, num_frames: int, sampling_rate: int, pathway: PathwayConfig
) -> ModelConfig:
    """A network of one pathway, named after its family, depth and clip."""
    non_local = any(stage.non_local is not None for stage in pathway.stages)
    return ModelConfig(
        name=f"{family}_r{depth}{'_nl' if non_local else ''}_{num_frames}x{sampling_rate}",
        num_frames=num_frames,
        sampling_rate=sampling_rate,
        crop_size=224,
        pathways=(pathway,),
    )


def slow_config(
    num_frames: int, sampling_rate: int, *, depth: int = 50, non_local: Mapping[str, NonLocalConfig] | None = None
) -> ModelConfig:
    """Slow-only, T x tau = ``num_frames`` x ``sampling_rate``; ``non_local``: non-local blocks by stage ("res4")."""
    pathway = resnet(depth, SLOW_KERNELS, StemConfig(), non_local=non_local)
    return single_pathway_config("slow", depth, num_frames, sampling_rate, pathway)


def fast_config(num_frames: int, sampling_rate: int, *, depth: int = 50, width: int = 8) -> ModelConfig:
    """Fast-only. With the Fast pathway's own kernels it would cost more than in the paper, with I3D's it does not."""
    pathway = resnet(depth, I3D_KERNELS, FAST_STEM, width=width)
    return single_pathway_config("fast", depth, num_frames, sampling_rate, pathway)


def c2d_config(num_frames: int, sampling_rate: int, *, depth: int = 50) -> ModelConfig:
    """C2D: an image network on every frame, but for a temporal max pooling after res2."""
    pathway = _with_temporal_pool(resnet(depth, C2D_KERNELS, StemConfig()))
    return single_pathway_config("c2d", depth, num_frames, sampling_rate, pathway)


def i3d_config(
    num_frames: int, sampling_rate: int, *, depth: int = 50, non_local: Mapping[str, NonLocalConfig] | None = None
) -> ModelConfig:
    """I3D: C2D with temporal kernels in the stem and in every other block."""
    pathway = _with_temporal_pool(resnet(depth, I3D_KERNELS, FAST_STEM, non_local=non_local))
    return single_pathway_config("i3d", depth, num_frames, sampling_rate, pathway)


def _with_temporal_pool(pathway: PathwayConfig) -> PathwayConfig:
    first, *others = pathway.stages
    return replace(pathway, stages=(replace(first, temporal_pool=2), *others))


def slowfast_config(
    slow_frames: int,
    slow_rate: int,
    *,
    alpha: int,
    depth: int = 50,
    fast_depth: int | None = None,
    fast_width: int = 8,
    fast_input: FastInput = "rgb",
    fusion_kernel: int = 5,
    all_temporal: Collection[str] = (),
    non_local: Mapping[str, NonLocalConfig] | None = None,
) -> ModelConfig:
    """SlowFast, T x tau = ``slow_frames`` x ``slow_rate`` for the Slow pathway.

    Args:
        slow_frames, slow_rate: of the Slow pathway's clip.
        alpha: the Fast clip has this many times the frames, at 1/alpha of the rate.
        depth: of the Slow pathway's ResNet, see `RESNET_DEPTHS`.
        fast_depth: of the Fast pathway's; None: the same.
        fast_width: channels of the Fast stem: 64 times the paper's beta.
        fast_input: what the Fast pathway sees (Table 5c): "rgb", or made of it "half_resolution", "grey" or
            "time_difference"; "optical_flow": its clip has two channels.
        fusion_kernel: temporal size of the lateral convolutions.
        all_temporal: pathways ("slow", "fast") in which all blocks of a stage have its temporal kernel, and not just as
            many as R50 has: both for PySlowFast's R101_101_101, "fast" for R101_50_101.
        non_local: non-local blocks of the Slow pathway, by stage ("res4").

    Raises:
        InputError: a depth that there is none of, or a rate that ``alpha`` does not divide.
    """
    require_choice(FastInput, "fast_input", fast_input)
    require(slow_rate % alpha == 0, "slow_rate", slow_rate, f"a multiple of alpha = {alpha}")
    slow = resnet(depth, SLOW_KERNELS, StemConfig(), all_temporal="slow" in all_temporal, non_local=non_local)
    fast = resnet(fast_depth or depth, FAST_KERNELS, FAST_STEM, width=fast_width, all_temporal="fast" in all_temporal)
    if fast_input == "optical_flow":
        fast = replace(fast, in_channels=2)
    elif fast_input != "rgb":
        fast = replace(fast, input_transform=fast_input)
    return ModelConfig(
        name=f"slowfast_r{depth}{'_nl' if non_local else ''}_{slow_frames}x{slow_rate}",
        num_frames=slow_frames * alpha,
        sampling_rate=slow_rate // alpha,
        crop_size=224,
        pathways=(slow, fast),
        alpha=alpha,
        lateral=LateralConfig(kernel_size=fusion_kernel),
    )


# A stem of stride 4 without temporal kernel or pooling: a temporal kernel in the Fast stem would be half of the cost on
# a CPU, and those of the Fast pathway's blocks see the motion well enough.
_TINY_DEPTHS = (1, 1, 1, 1)
_TINY_STEM = StemConfig(kernel=(1, 7, 7), stride=4, pool=False)
_TINY_HEAD = HeadConfig(dropout=0.2)


def _slow_tiny() -> ModelConfig:
    return ModelConfig(
        name="slow_tiny",
        num_frames=4,
        sampling_rate=8,
        crop_size=96,
        pathways=(PathwayConfig(16, resnet_stages(_TINY_DEPTHS, SLOW_KERNELS), _TINY_STEM),),
        head=_TINY_HEAD,
    )


def _slowfast_tiny() -> ModelConfig:
    return ModelConfig(
        name="slowfast_tiny",
        num_frames=32,
        sampling_rate=1,
        crop_size=96,
        pathways=(
            PathwayConfig(16, resnet_stages(_TINY_DEPTHS, SLOW_KERNELS), _TINY_STEM),
            PathwayConfig(4, resnet_stages(_TINY_DEPTHS, FAST_KERNELS), _TINY_STEM),
        ),
        alpha=8,
        lateral=LateralConfig(),
        head=_TINY_HEAD,
    )


_PRESETS = {
    config.name: config
    for config in (
        slow_config(4, 16),
        slow_config(8, 8),
        slow_config(4, 16, non_local=R50_NON_LOCAL),
        slow_config(8, 8, non_local=R50_NON_LOCAL),
        slow_config(8, 8, depth=18),
        slow_config(8, 8, depth=34),
        slow_config(8, 8, depth=101),
        slow_config(16, 8, depth=101),
        slow_config(8, 8, depth=152),
        fast_config(32, 2),
        c2d_config(8, 8),
        i3d_config(8, 8),
        i3d_config(8, 8, non_local=R50_NON_LOCAL),
        slowfast_config(4, 16, alpha=8, depth=18),
        slowfast_config(4, 16, alpha=8, depth=34),
        slowfast_config(4, 16, alpha=8),
        slowfast_config(8, 8, alpha=4, fusion_kernel=7),
        slowfast_config(16, 8, alpha=4, fusion_kernel=7),
        slowfast_config(4, 16, alpha=8, non_local=R50_NON_LOCAL),
        slowfast_config(8, 8, alpha=4, non_local=R50_NON_LOCAL),
        slowfast_config(8, 8, alpha=4, depth=101),
        slowfast_config(16, 8, alpha=4, depth=101),
        slowfast_config(8, 8, alpha=4, depth=101, non_local=R101_NON_LOCAL),
        slowfast_config(16, 8, alpha=4, depth=101, non_local=R101_NON_LOCAL),
        slowfast_config(8, 8, alpha=4, depth=152),
        _slow_tiny(),
        _slowfast_tiny(),
    )
}


def list_presets() -> list[str]:
    """The names that `get_preset` and `build_model` know."""
    return list(_PRESETS)


def get_preset(name: str) -> ModelConfig:
    """The configuration of a preset. Change a field with ``dataclasses.replace``.

    Raises:
        InputError: no preset has this name.
    """
    if name not in _PRESETS:
        similar = difflib.get_close_matches(name, _PRESETS, n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        raise InputError(f"model is {name!r}: expected one of {', '.join(_PRESETS)}{hint}")
    return _PRESETS[name]
