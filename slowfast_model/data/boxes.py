"""Boxes (x1, y1, x2, y2): from fractions of the full frame to pixels of the network's input.

Coordinates are continuous: pixel column c covers [c, c + 1], a frame of width W covers [0, W], and mirroring maps x to
W - x.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slowfast_model.data.sampling import ClipGeometry


def to_input_pixels(boxes: npt.NDArray[np.floating], geometry: ClipGeometry) -> npt.NDArray[np.float64]:
    """Boxes as fractions of the full frame [R, 4] -> pixels of the network's input, cut off where the crop ends.

    A box outside the crop comes out with no area, on the crop's edge; `is_visible` tells.
    """
    (height, width), (top, left, crop_height, crop_width) = geometry.resize, geometry.crop
    pixels = boxes * np.array([width, height, width, height], np.float64)
    pixels -= [left, top, left, top]
    pixels = np.clip(pixels, 0, [crop_width, crop_height, crop_width, crop_height])
    if geometry.flip:
        pixels = np.stack([crop_width - pixels[:, 2], pixels[:, 1], crop_width - pixels[:, 0], pixels[:, 3]], axis=1)
    return pixels


def is_visible(boxes: npt.NDArray[np.floating], min_size: float = 1.0) -> npt.NDArray[np.bool_]:
    """Which boxes in pixels [R, 4] are at least ``min_size`` pixels wide and high: bool [R]."""
    return (boxes[:, 2] - boxes[:, 0] >= min_size) & (boxes[:, 3] - boxes[:, 1] >= min_size)
