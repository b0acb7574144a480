"""From the pathways' last feature maps to class scores: for the whole clip, or for boxes in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_model.models.config import HeadConfig
from slowfast_ops import roi_align_3d_pool


class ClassificationHead(nn.Module):
    """Average pooling per pathway, concatenation, dropout, fully connected layer (section 3.3).

    Args:
        feature_channels: channels of each pathway's features.
        num_classes: outputs K.
        config: dropout.
    """

    def __init__(self, feature_channels: Sequence[int], num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(sum(feature_channels), num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits [N, K] of features pooled over all of time and space."""
        pooled = torch.cat([x.mean((2, 3, 4)) for x in features], dim=1)
        return self.projection(self.dropout(pooled))

    def position_logits(self, features: Sequence[Tensor], window: int) -> Tensor:
        """Logits [N, h, w, K] at every position of a square ``window`` that moves by one feature pixel.

        A window larger than the map is cut to it.
        """
        height, width = features[0].shape[-2:]
        kernel = (min(window, height), min(window, width))
        pooled = torch.cat([F.avg_pool2d(x.mean(2), kernel, stride=1) for x in features], dim=1)
        return self.projection(self.dropout(pooled.movedim(1, -1)))


class DetectionHead(nn.Module):
    """Scores for boxes: temporal mean, RoIAlign, spatial maximum, concatenation, dropout, fully connected layer.

    A box lasts for the whole clip: the paper extends the key frame's box along time (section 4.1).

    Args:
        feature_channels: channels of each pathway's features.
        num_classes: outputs K.
        config: dropout and the RoIAlign settings.
        spatial_stride: input pixels per feature pixel.
    """

    def __init__(
        self, feature_channels: Sequence[int], num_classes: int, config: HeadConfig, spatial_stride: int
    ) -> None:
        super().__init__()
        self.config = config
        self.spatial_stride = spatial_stride
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(sum(feature_channels), num_classes)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Logits [R, K] for ``rois`` [R, 5]: index of the clip in the batch, then x1, y1, x2, y2 in input pixels."""
        pooled = [
            roi_align_3d_pool(
                x,
                rois,
                (self.config.roi_size, self.config.roi_size),
                spatial_scale=1 / self.spatial_stride,
                sampling_ratio=self.config.roi_sampling_ratio,
                aligned=self.config.roi_aligned,
            )
            for x in features
        ]
        return self.projection(self.dropout(torch.cat(pooled, dim=1)))
