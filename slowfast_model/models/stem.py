"""What comes before the residual stages of a pathway: a weaker input if it is to have one, conv1 and pool1."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from slowfast_model.models.config import InputTransform, PathwayConfig
from slowfast_model.models.convolution import ConvNorm

LUMA = (0.299, 0.587, 0.114)  # of R, G, B (ITU-R BT.601)


def transform_input(clip: Tensor, transform: InputTransform) -> Tensor:
    """The paper's weaker inputs of the Fast pathway (Table 5c), made from the normalised clip [N, C, T, H, W].

    Returns:
        "half_resolution": [N, C, T, H/2, W/2] (rounded up), means of 2x2 pixels; "grey": [N, 1, T, H, W];
        "time_difference": every frame less the one before it, and zeros for the first; "none": the clip.
    """
    if transform == "half_resolution":
        return F.avg_pool3d(clip, (1, 2, 2), ceil_mode=True)
    if transform == "grey":
        return (clip * clip.new_tensor(LUMA).view(3, 1, 1, 1)).sum(1, keepdim=True)
    if transform == "time_difference":
        return clip - clip[:, :, [0, *range(clip.shape[2] - 1)]]
    return clip


class Stem(ConvNorm):
    """Clip [N, in_channels, T, H, W] to features [N, width, T, H/4, W/4] (sizes rounded up)."""

    def __init__(self, config: PathwayConfig) -> None:
        channels = 1 if config.input_transform == "grey" else config.in_channels
        super().__init__(channels, config.width, config.stem.kernel, stride=config.stem.stride)
        self.input_transform = config.input_transform
        self.pool = config.stem.pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(super().forward(transform_input(x, self.input_transform)), inplace=True)
        return F.max_pool3d(x, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)) if self.pool else x
