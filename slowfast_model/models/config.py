"""What a network is made of: frozen, hashable dataclasses that convert to and from plain dictionaries (YAML, JSON).

Stages are data: how many blocks, which temporal kernels, which stride and dilation. Nothing that can be computed from
them (channel counts, feature strides) is stored. A value that makes no sense is an InputError that names the field.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from slowfast_model.models.fields import from_plain, require, require_choice, to_plain

NonLocalInstantiation = Literal["dot_product", "softmax"]

BlockType = Literal["bottleneck", "basic"]
InputTransform = Literal["none", "half_resolution", "grey", "time_difference"]
Activation = Literal["softmax", "sigmoid"]
LateralKind = Literal["time_strided_conv", "time_strided_sample", "time_to_channel_concat", "time_to_channel_sum"]

PATHWAY_NAMES = ("slow", "fast")
EXPANSION = {"bottleneck": 4, "basic": 1}  # output channels of a block per channel of a pathway without groups


def _is_odd(kernel: int) -> bool:
    return kernel > 0 and kernel % 2 == 1


@dataclass(frozen=True)
class StemConfig:
    """conv1 and pool1: a convolution with batch norm and ReLU, then a 1x3x3 max pooling of spatial stride 2.

    Attributes:
        kernel: size of the convolution as (time, height, width); odd, padded to "same".
        stride: spatial stride of the convolution. Time is never strided (paper, section 3.2).
        pool: whether the max pooling follows.
    """

    kernel: tuple[int, int, int] = (1, 7, 7)
    stride: int = 2
    pool: bool = True

    def __post_init__(self) -> None:
        require(all(_is_odd(k) for k in self.kernel), "stem.kernel", self.kernel, "three odd numbers")
        require(self.stride >= 1, "stem.stride", self.stride, "1 or more")

    @property
    def total_stride(self) -> int:
        """Input pixels per pixel of the stem's output."""
        return self.stride * (2 if self.pool else 1)


@dataclass(frozen=True)
class NonLocalConfig:
    """Non-local blocks in a stage: every position attends to all positions of the clip (Wang et al., CVPR 2018).

    Attributes:
        after_blocks: the residual blocks (from 0) that a non-local block follows.
        instantiation: "dot_product", affinities divided by their number, or "softmax".
        pool: (time, height, width) of the max pooling of what is attended to; (1, 1, 1) for none. The paper's figures
            come from (2, 2, 2), most of PySlowFast's configurations have (1, 2, 2).
    """

    after_blocks: tuple[int, ...]
    instantiation: NonLocalInstantiation = "dot_product"
    pool: tuple[int, int, int] = (1, 2, 2)

    def __post_init__(self) -> None:
        require(
            len(self.after_blocks) > 0 and sorted(set(self.after_blocks)) == list(self.after_blocks),
            "non_local.after_blocks",
            self.after_blocks,
            "one or more different numbers in rising order",
        )
        require_choice(NonLocalInstantiation, "non_local.instantiation", self.instantiation)
        require(min(self.pool) >= 1, "non_local.pool", self.pool, "three numbers of 1 or more")


@dataclass(frozen=True)
class StageConfig:
    """One residual stage (res2, res3, ...) of one pathway.

    Attributes:
        depth: number of blocks.
        temporal_kernels: temporal size of each block's first convolution, repeated over the blocks: (3,) for all,
            (3, 1) for every other one.
        temporal_blocks: how many of the first blocks take their kernel from ``temporal_kernels``, the rest having 1;
            None: all of them.
        stride: spatial stride of the first block.
        dilation: spatial dilation of every block's 3x3 convolution.
        non_local: non-local blocks among the residual ones.
        temporal_pool: frames that a max pooling after the stage makes one (C2D and I3D; a single pathway only).
    """

    depth: int
    temporal_kernels: tuple[int, ...] = (1,)
    temporal_blocks: int | None = None
    stride: int = 2
    dilation: int = 1
    non_local: NonLocalConfig | None = None
    temporal_pool: int = 1

    def __post_init__(self) -> None:
        require(self.depth >= 1, "stage.depth", self.depth, "1 or more")
        require(
            len(self.temporal_kernels) > 0 and all(_is_odd(k) for k in self.temporal_kernels),
            "stage.temporal_kernels",
            self.temporal_kernels,
            "one or more odd numbers",
        )
        require(
            self.temporal_blocks is None or 0 <= self.temporal_blocks <= self.depth,
            "stage.temporal_blocks",
            self.temporal_blocks,
            f"0 to {self.depth} (the stage's depth), or null for all",
        )
        require(self.stride >= 1, "stage.stride", self.stride, "1 or more")
        require(self.dilation >= 1, "stage.dilation", self.dilation, "1 or more")
        require(self.temporal_pool >= 1, "stage.temporal_pool", self.temporal_pool, "1 or more")
        if self.non_local is not None:
            blocks = self.non_local.after_blocks
            require(
                min(blocks) >= 0 and max(blocks) < self.depth,
                "stage.non_local.after_blocks",
                blocks,
                f"numbers from 0 to {self.depth - 1}, the stage's blocks",
            )

    @property
    def block_kernels(self) -> tuple[int, ...]:
        """The temporal kernel of each block, ``depth`` numbers."""
        temporal = self.depth if self.temporal_blocks is None else self.temporal_blocks
        pattern = self.temporal_kernels
        return tuple(pattern[block % len(pattern)] if block < temporal else 1 for block in range(self.depth))


@dataclass(frozen=True)
class PathwayConfig:
    """One pathway: a 3D ResNet, without any temporal stride in the paper's networks.

    Attributes:
        width: channels of conv1. Stage i (from 0) has ``width * 2**i`` channels inside its blocks, and 4 times as many
            at its output (as many with basic blocks). The Fast pathway has a fraction beta of the Slow one's width.
        stages: res2, res3, ...
        stem: conv1 and pool1.
        in_channels: channels of the clip: 3, or 2 for optical flow.
        input_transform: what becomes of the clip before the stem (Table 5c): "half_resolution", "grey",
            "time_difference" (every frame less the one before), or "none".
        block: "bottleneck" (R50 and deeper) or "basic" (R18, R34).
        groups: of the bottlenecks' 3x3 convolutions (ResNeXt).
        inner_width: channels inside the bottlenecks of the first stage, doubled in each that follows; None: ``width``.
    """

    width: int
    stages: tuple[StageConfig, ...]
    stem: StemConfig = field(default_factory=StemConfig)
    in_channels: int = 3
    input_transform: InputTransform = "none"
    block: BlockType = "bottleneck"
    groups: int = 1
    inner_width: int | None = None

    def __post_init__(self) -> None:
        require(self.width >= 1, "pathway.width", self.width, "1 or more")
        require(len(self.stages) >= 1, "pathway.stages", self.stages, "one or more stages")
        require(self.in_channels >= 1, "pathway.in_channels", self.in_channels, "1 or more")
        require_choice(InputTransform, "pathway.input_transform", self.input_transform)
        if self.input_transform == "grey":
            require(self.in_channels == 3, "pathway.in_channels", self.in_channels, "3 (RGB), to be made grey")
        require_choice(BlockType, "pathway.block", self.block)
        if self.block == "basic":
            require(self.groups == 1, "pathway.groups", self.groups, "1 for basic blocks")
            require(self.inner_width is None, "pathway.inner_width", self.inner_width, "null for basic blocks")
        inner = self.inner_channels[0]
        require(inner >= 1, "pathway.inner_width", self.inner_width, "1 or more")
        require(
            self.groups >= 1 and inner % self.groups == 0,
            "pathway.groups",
            self.groups,
            f"a divisor of {inner}, the channels inside the first stage's blocks",
        )

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels at the output of the stem and of each stage."""
        expansion = EXPANSION[self.block]
        return (self.width, *(self.width * expansion * 2**i for i in range(len(self.stages))))

    @property
    def inner_channels(self) -> tuple[int, ...]:
        """Channels inside the blocks of each stage."""
        inner = self.width if self.inner_width is None else self.inner_width
        return tuple(inner * 2**i for i in range(len(self.stages)))

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Input pixels per feature pixel at the output of the stem and of each stage."""
        strides = [self.stem.total_stride * (2 if self.input_transform == "half_resolution" else 1)]
        for stage in self.stages:
            strides.append(strides[-1] * stage.stride)
        return tuple(strides)


@dataclass(frozen=True)
class LateralConfig:
    """The lateral connections, Fast to Slow, after the stem and every stage but the last (section 3.4).

    Attributes:
        kind: "time_strided_conv", a convolution of stride alpha (the paper's T-conv); "time_strided_sample", one of
            every alpha frames (T-sample); "time_to_channel_concat" or "time_to_channel_sum", alpha frames side by side
            in the channels (TtoC), concatenated to the Slow features or added to them.
        kernel_size: temporal size of the convolution, odd. The paper's text says 5; its 8x8 R50 results come from 7.
        channel_ratio: output channels of the convolution per channel of the Fast pathway.
        norm, relu: whether batch norm and ReLU follow the convolution, the sampled or the rearranged frames.
        bidirectional: whether the Slow features reach the Fast pathway, too: a 1x1x1 convolution to its channels (with
            ``norm`` and ``relu``), each frame repeated alpha times, added. The paper reports no gain and no details.
    """

    kind: LateralKind = "time_strided_conv"
    kernel_size: int = 5
    channel_ratio: int = 2
    norm: bool = True
    relu: bool = True
    bidirectional: bool = False

    def __post_init__(self) -> None:
        require_choice(LateralKind, "lateral.kind", self.kind)
        require(_is_odd(self.kernel_size), "lateral.kernel_size", self.kernel_size, "an odd number")
        require(self.channel_ratio >= 1, "lateral.channel_ratio", self.channel_ratio, "1 or more")

    def added_channels(self, fast_channels: int, alpha: int) -> int:
        """Channels that a connection adds to the Slow features."""
        return {
            "time_strided_conv": self.channel_ratio * fast_channels,
            "time_strided_sample": fast_channels,
            "time_to_channel_concat": alpha * fast_channels,
            "time_to_channel_sum": 0,
        }[self.kind]


@dataclass(frozen=True)
class HeadConfig:
    """What the heads need beyond the number of classes.

    Attributes:
        dropout: probability of dropping a pooled feature in training.
        activation: what makes a classifier's logits probabilities, "softmax" or, for several labels per clip (as in
            Charades), "sigmoid". Detection always has several labels per box.
        roi_size: bins of RoIAlign along each side, before the spatial maximum (detection).
        roi_aligned: RoIAlign with the half-pixel shift (detection). False for PySlowFast's Caffe2 checkpoints.
        roi_sampling_ratio: samples per bin and axis; 0 adapts to the box (detection).
    """

    dropout: float = 0.5
    activation: Activation = "softmax"
    roi_size: int = 7
    roi_aligned: bool = True
    roi_sampling_ratio: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, "head.dropout", self.dropout, "0 or more and less than 1")
        require_choice(Activation, "head.activation", self.activation)
        require(self.roi_size >= 1, "head.roi_size", self.roi_size, "1 or more")
        require(self.roi_sampling_ratio >= 0, "head.roi_sampling_ratio", self.roi_sampling_ratio, "0 or more")


@dataclass(frozen=True)
class ModelConfig:
    """A Slow-only or SlowFast network and the clip that it takes; the same for classification and detection.

    Attributes:
        name: for reports and run folders.
        num_frames: frames of the clip that the sampler takes: the Fast pathway's, or a single pathway's own.
        sampling_rate: source frames (at the data set's nominal rate) from one of them to the next.
        crop_size: side of the training crop in pixels.
        pathways: (slow,) or (slow, fast). A single pathway of any shape goes by the name of slow.
        alpha: Fast frames per Slow frame; 1 for a single pathway.
        lateral: the lateral connections; None for a single pathway.
        head: pooling, dropout and RoI settings.
        frozen_norm: whether batch norms keep and use their running statistics in training, too (fine-tuning on few
            clips); their weights and biases are trained.
        checkpointing: whether residual and non-local blocks are computed again in the backward pass instead of keeping
            their activations: less memory, more time, the same result.
    """

    name: str
    num_frames: int
    sampling_rate: int
    crop_size: int
    pathways: tuple[PathwayConfig, ...]
    alpha: int = 1
    lateral: LateralConfig | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    frozen_norm: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("num_frames", "sampling_rate", "crop_size", "alpha"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name}", value, "1 or more")
        require(len(self.pathways) in (1, 2), "model.pathways", f"{len(self.pathways)} pathways", "1 or 2")
        if self.num_pathways == 1:
            require(self.alpha == 1, "model.alpha", self.alpha, "1 for a single pathway")
            require(self.lateral is None, "model.lateral", self.lateral, "null for a single pathway")
            return
        require(
            self.num_frames % self.alpha == 0,
            "model.num_frames",
            self.num_frames,
            f"a multiple of alpha = {self.alpha}",
        )
        slow, fast = self.pathways
        pools = tuple(stage.temporal_pool for pathway in self.pathways for stage in pathway.stages)
        require(max(pools) == 1, "stage.temporal_pool", pools, "1 in a network of two pathways")
        require(
            fast.level_strides in (slow.level_strides, tuple(2 * stride for stride in slow.level_strides)),
            "model.pathways",
            f"spatial strides {slow.level_strides} (slow) and {fast.level_strides} (fast)",
            "the same strides in both pathways, or twice as much in the fast one",
        )
        if self.lateral is not None and self.lateral.bidirectional:
            require(
                not self.fast_is_half_size, "model.lateral.bidirectional", True, "false for a half-size Fast pathway"
            )
        if self.lateral is not None and self.lateral.kind == "time_to_channel_sum":
            packed = tuple(self.alpha * channels for channels in fast.level_channels)
            require(
                packed[:-1] == slow.level_channels[:-1],
                "model.lateral.kind",
                self.lateral.kind,
                f"another kind, or alpha times the Fast channels, {packed}, to be the Slow ones, {slow.level_channels}",
            )

    @property
    def num_pathways(self) -> int:
        return len(self.pathways)

    @property
    def pathway_frames(self) -> tuple[int, ...]:
        """Frames that each pathway takes, in the order of ``pathways``."""
        return (self.num_frames // self.alpha, self.num_frames)[: self.num_pathways]

    @property
    def fast_is_half_size(self) -> bool:
        """Whether the Fast pathway's maps are half as high and wide as the Slow one's."""
        return self.num_pathways == 2 and self.pathways[1].level_strides != self.pathways[0].level_strides

    @property
    def spatial_stride(self) -> int:
        """Input pixels per pixel of the last feature map of the first pathway."""
        return self.pathways[0].level_strides[-1]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each pathway's last feature map."""
        return tuple(pathway.level_channels[-1] for pathway in self.pathways)

    def for_detection(self) -> ModelConfig:
        """The same network with the last stage's stride traded for dilation: res5 at stride 1, dilation 2.

        A last stage that has stride 1 already is left as it is.
        """
        pathways = []
        for pathway in self.pathways:
            last = pathway.stages[-1]
            dense = replace(last, stride=1, dilation=last.dilation * last.stride)
            pathways.append(replace(pathway, stages=(*pathway.stages[:-1], dense)))
        return replace(self, pathways=tuple(pathways))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and scalars, ready for YAML or JSON; `from_dict` reads them back."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Builds the configuration from what `to_dict` gives; fields with defaults may be left out.

        Raises:
            InputError: an unknown, missing or ill-typed field, named with its path.
        """
        config: ModelConfig = from_plain(cls, values, "model")
        return config
