"""The whole network: pathways, the lateral connections between them, and a head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slowfast_model.errors import InputError
from slowfast_model.models.config import PATHWAY_NAMES, ModelConfig, PathwayConfig
from slowfast_model.models.heads import ClassificationHead, DetectionHead
from slowfast_model.models.initialization import initialize
from slowfast_model.models.lateral import build_laterals, build_ways_back, enlarge, lateral_channels
from slowfast_model.models.presets import get_preset
from slowfast_model.models.residual import ResidualStage, join
from slowfast_model.models.stem import Stem

HeadType = Literal["classification", "detection"]


def build_model(model: str | ModelConfig, *, num_classes: int = 400, head: HeadType = "classification") -> VideoNetwork:
    """Builds a network with the initial weights of a training from scratch (torch's global random generator).

    Args:
        model: name of a preset (see `list_presets`) or a configuration.
        num_classes: outputs of the head.
        head: "classification" for a score per clip, "detection" for a score per box. Detection trades the stride of
            res5 for dilation (`ModelConfig.for_detection`), whatever the preset.

    Raises:
        InputError: an unknown preset or head, or no classes.
    """
    if head not in get_args(HeadType):
        raise InputError(f"head is {head!r}: expected one of {', '.join(get_args(HeadType))}")
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: expected 1 or more")
    return VideoNetwork(get_preset(model) if isinstance(model, str) else model, num_classes, head)


class VideoNetwork(nn.Module):
    """A Slow-only or SlowFast network with a classification or a detection head. Build it with `build_model`.

    Clips may be contiguous or channels_last_3d, of any size and any number of frames (Fast alpha times those of Slow).

    Attributes:
        config: the configuration as it was given, that is with res5's stride even under a detection head.
        head_type: "classification" or "detection".
        level_names: stem, res2, res3, ..., in the order in which they run.
    """

    def __init__(self, config: ModelConfig, num_classes: int, head: HeadType) -> None:
        super().__init__()
        self.config = config
        self.head_type = head
        built = config.for_detection() if head == "detection" else config
        self.level_names = ["stem", *(f"res{level + 2}" for level in range(len(built.pathways[0].stages)))]
        self.pathways = nn.ModuleDict()
        for index, pathway in enumerate(built.pathways):
            added = [lateral_channels(built, level) if index == 0 else 0 for level in range(len(self.level_names))]
            self.pathways[PATHWAY_NAMES[index]] = self._build_pathway(pathway, added)
        self.lateral = build_laterals(built, self.level_names)
        self.slow_to_fast = build_ways_back(built, self.level_names)
        self.head: ClassificationHead | DetectionHead
        if head == "detection":
            self.head = DetectionHead(built.feature_channels, num_classes, built.head, built.spatial_stride)
        else:
            self.head = ClassificationHead(built.feature_channels, num_classes, built.head)
        initialize(self)
        self.train()

    def train(self, mode: bool = True) -> VideoNetwork:
        """Training or evaluation mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.config.frozen_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _build_pathway(self, config: PathwayConfig, added_channels: list[int]) -> nn.ModuleDict:
        levels = nn.ModuleDict({"stem": Stem(config)})
        for index in range(len(config.stages)):
            in_channels = config.level_channels[index] + added_channels[index]
            levels[self.level_names[index + 1]] = ResidualStage(config, index, in_channels, self.config.checkpointing)
        return levels

    def forward(self, pathways: Sequence[Tensor], rois: Tensor | None = None) -> Tensor:
        """Logits, for training and for losses.

        Args:
            pathways: [slow, fast] or [clip], normalised clips [N, C, T, H, W]; Fast has alpha times the frames of Slow.
            rois: boxes [R, 5] (index of the clip in the batch, x1, y1, x2, y2 in input pixels), R = 0 allowed;
                required by the detection head and refused by the classification head.

        Returns:
            [N, K], features averaged over all positions whatever the size of the clip (for clips larger than the
            training crop, `predict` classifies position by position); or [R, K], a row per box.

        Raises:
            ValueError: pathways that do not fit each other or the network, missing or unwanted rois.
        """
        features = self.features(pathways)
        if isinstance(self.head, DetectionHead):
            return self.head(features, self._require_rois(rois))
        self._refuse_rois(rois)
        return self.head(features)

    def predict(
        self, pathways: Sequence[Tensor], rois: Tensor | None = None, *, pool_size: int | None = None
    ) -> Tensor:
        """Probabilities, for testing; call ``eval()`` before.

        Classification is fully convolutional: features are averaged in a window of the training crop's size at every
        position, and the softmax of each position's logits is averaged, as PySlowFast does. For clips of the training
        size this is the softmax of `forward`. A multi-label classifier has the sigmoid for the softmax, and detection
        gives the sigmoid of each box's logits.

        Args:
            pathways, rois: as for `forward`.
            pool_size: side of the pooling window in feature pixels. None: that of the training crop's map (7 for 224).
                A window larger than the map is cut to it.

        Returns:
            [N, K], rows summing to one unless there are several labels per clip; or [R, K].

        Raises:
            ValueError: as `forward`, or a window without pixels.
        """
        if isinstance(self.head, DetectionHead):
            return self(pathways, rois).sigmoid()
        self._refuse_rois(rois)
        window = math.ceil(self.config.crop_size / self.config.spatial_stride) if pool_size is None else pool_size
        if window < 1:
            raise ValueError(f"pool_size is {window}: expected 1 or more")
        logits = self.head.position_logits(self.features(pathways), window)
        scores = logits.sigmoid() if self.config.head.activation == "sigmoid" else logits.softmax(dim=-1)
        return scores.mean(dim=(1, 2))

    def features(self, pathways: Sequence[Tensor]) -> list[Tensor]:
        """The last feature map of each pathway, [N, C, T, H/s, W/s] with s = 32, or 16 under a detection head.

        A Fast pathway of half the size is enlarged to the Slow one's.
        """
        self._check_pathways(pathways)
        levels = list(self.pathways.values())
        maps = [level["stem"](clip) for level, clip in zip(levels, pathways, strict=True)]
        maps = self._connect("stem", [(x, None) for x in maps])
        for name in self.level_names[1:]:
            maps = self._connect(name, [level[name](x) for level, x in zip(levels, maps, strict=True)])
        return [maps[0], enlarge(maps[1], maps[0])] if self.config.fast_is_half_size else maps

    def _connect(self, name: str, terms: list[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """What the pathways have after a level, given the terms of each one's own output (see `Bottleneck.forward`)."""
        (slow, shortcut), *others = terms
        fast = [join(*other) for other in others]
        if name in self.slow_to_fast:  # reads what the Slow pathway has before the Fast one's features join it
            slow, shortcut = join(slow, shortcut), None
            return [self.lateral[name](slow, *fast), self.slow_to_fast[name](slow, *fast)]
        if name in self.lateral:  # adds the Slow pathway's two terms on its way through them
            given = [enlarge(x, slow) for x in fast] if self.config.fast_is_half_size else fast
            return [self.lateral[name](slow, *given, residual=shortcut), *fast]
        return [join(slow, shortcut), *fast]

    def _check_pathways(self, pathways: Sequence[Tensor]) -> None:
        config = self.config
        names = PATHWAY_NAMES[: config.num_pathways]
        if isinstance(pathways, Tensor) or len(pathways) != len(names):
            given = "a tensor" if isinstance(pathways, Tensor) else f"{len(pathways)} tensors"
            raise ValueError(f"pathways is {given}: expected a list of {len(names)} clips, [{', '.join(names)}]")
        for name, clip, pathway in zip(names, pathways, config.pathways, strict=True):
            if clip.dim() != 5 or clip.shape[1] != pathway.in_channels:
                expected = f"[N, {pathway.in_channels}, T, H, W]"
                raise ValueError(f"the {name} clip has shape {list(clip.shape)}: expected {expected}")
        if len(pathways) == 2:
            (n, _, t, h, w), fast = pathways[0].shape, pathways[1].shape
            expected_shape = [n, fast[1], t * config.alpha, h, w]
            if list(fast) != expected_shape:
                raise ValueError(
                    f"the fast clip has shape {list(fast)}: expected {expected_shape}, that is alpha = {config.alpha} "
                    f"times the {t} frames of the slow clip and the same size"
                )

    @staticmethod
    def _require_rois(rois: Tensor | None) -> Tensor:
        if rois is None:
            raise ValueError("rois is None: the detection head needs boxes [R, 5]")
        if rois.dim() != 2 or rois.shape[1] != 5:
            raise ValueError(f"rois has shape {list(rois.shape)}: expected [R, 5] (batch index, x1, y1, x2, y2)")
        return rois

    @staticmethod
    def _refuse_rois(rois: Tensor | None) -> None:
        if rois is not None:
            raise ValueError("rois were given: the classification head takes none (build with head='detection')")
