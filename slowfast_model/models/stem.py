"""conv1 and pool1 of a pathway."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from slowfast_model.models.config import PathwayConfig
from slowfast_model.models.convolution import ConvNorm


class Stem(ConvNorm):
    """Clip [N, in_channels, T, H, W] to features [N, width, T, H/4, W/4] (sizes rounded up)."""

    def __init__(self, config: PathwayConfig) -> None:
        super().__init__(config.in_channels, config.width, config.stem.kernel, stride=config.stem.stride)
        self.pool = config.stem.pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(super().forward(x), inplace=True)
        return F.max_pool3d(x, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)) if self.pool else x
