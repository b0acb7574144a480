"""What the tests of roi_align_3d share: boxes of all kinds, features, and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

NAN, INF = float("nan"), float("inf")
BOXES = [[0, 2.0, 3.0, 40.0, 50.0], [1, -20.0, 5.0, 33.0, 30.5], [0, 30.0, 20.0, 90.0, 70.0], [1, 9.0, 9.0, 9.0, 9.0]]
CUBOIDS = [[0, 0.5, 2.0, 3.0, 3.7, 40.0, 50.0], [1, -3.0, -20.0, 5.0, 9.0, 33.0, 30.5], [1, 1.0, 8.0, 8.0, 2.0, 16, 16]]


def tubelets(frames: int) -> list:
    return [[[b, x1 + 3 * t, y1, x2, y2 + 2 * t] for t in range(frames)] for b, x1, y1, x2, y2 in BOXES]


def uniform(shape, seed: int = 1) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def gradient(output: Tensor, features: Tensor, weights: Tensor) -> Tensor:
    return torch.autograd.grad(output, features, weights)[0]
