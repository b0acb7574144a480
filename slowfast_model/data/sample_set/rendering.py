"""Draws the sample set's scenes: textured backgrounds and actors, every frame an exact instant (no motion blur).

An actor is a small figure of legs, arms, hands, a blinking head and a torso with scrolling stripes. Each part is a
shape whose signed distance gives anti-aliased edges and whose extent gives an exact bounding box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slowfast_model.data.sample_set.motions import Pose

# Lengths in pixels of an actor of scale 1.
LEG, TORSO, HALF_TORSO, ARM = 9.0, 19.0, 9.0, 9.0
HEAD_RADIUS, HAND_RADIUS, LIMB_RADIUS = 7.0, 3.5, 2.7
STRIPE_PERIOD = 10.0  # in pixels at any scale


@dataclass(frozen=True)
class Actor:
    """An actor's looks and place; colours are RGB in 0..255."""

    x: float  # of its feet, in pixels of the frame
    y: float
    scale: float
    arm_angle: float  # from hanging (0) to raised (pi), radians
    dark: np.ndarray
    bright: np.ndarray


@dataclass(frozen=True)
class Part:
    """A capsule (all points within `radius` of a segment) or, with `half_width`, an upright box, at each of F frames.

    The segment's ends (x0, y0), (x1, y1) are arrays [F] in pixels of the frame; a box spans its (vertical) segment.
    """

    x0: np.ndarray
    y0: np.ndarray
    x1: np.ndarray
    y1: np.ndarray
    shade: np.ndarray  # 0 in the actor's dark colour .. 1 in the bright one
    radius: float = 0.0
    half_width: float = 0.0

    def extent(self) -> np.ndarray:
        """(x1, y1, x2, y2) of the part, float64 [F, 4]."""
        sides = self.radius + self.half_width
        low = (np.minimum(self.x0, self.x1) - sides, np.minimum(self.y0, self.y1) - self.radius)
        high = (np.maximum(self.x0, self.x1) + sides, np.maximum(self.y0, self.y1) + self.radius)
        return np.stack([*low, *high], axis=1)

    def distance(self, x: np.ndarray, y: np.ndarray, which: slice) -> np.ndarray:
        """Signed distance of the points (x [W], y [H, 1]) to the edge at the frames `which`, float32 [which, H, W]."""
        x0, y0, x1, y1 = (_per_frame(end[which]) for end in (self.x0, self.y0, self.x1, self.y1))
        if self.half_width:
            return np.maximum(np.abs(x - x0) - np.float32(self.half_width), np.maximum(y0 - y, y - y1))
        dx, dy = x1 - x0, y1 - y0
        along = ((x - x0) * dx + (y - y0) * dy) / np.maximum(dx * dx + dy * dy, np.float32(1e-6))
        along = np.clip(along, 0, 1)
        return np.hypot(x - x0 - along * dx, y - y0 - along * dy) - np.float32(self.radius)


def draw_actor(rng: np.random.Generator, x: float, y: float, scale: float) -> Actor:
    """An actor with random colours, a dark and a bright one, that carries its arms in some way."""
    return Actor(x, y, scale, rng.uniform(0.3, 2.4), dark=rng.uniform(0, 60, 3), bright=rng.uniform(190, 255, 3))


def parts_of(actor: Actor, pose: Pose) -> list[Part]:
    """The actor's parts in the order in which they are painted."""
    s = actor.scale
    x = actor.x + s * pose.shift
    hip = actor.y - s * LEG * (1 - 0.75 * pose.crouch)
    top = hip - s * TORSO * (1 - 0.3 * pose.crouch)
    face = top - s * (HEAD_RADIUS - 1)
    dark, blink = np.zeros_like(x), 0.5 + 0.5 * np.sin(2 * np.pi * pose.head_phase)
    parts = []
    for side in (-1, 1):
        foot_x, foot_y = x + side * s * 5, np.full_like(x, actor.y - s * LIMB_RADIUS)
        shoulder_x, shoulder_y = x + side * s * (HALF_TORSO + 1), top + s * 4
        hand_x = shoulder_x + side * s * ARM * np.sin(actor.arm_angle)
        hand_y = shoulder_y + s * ARM * np.cos(actor.arm_angle)
        parts += [
            Part(foot_x, hip, foot_x, foot_y, dark, radius=s * LIMB_RADIUS),
            Part(shoulder_x, shoulder_y, hand_x, hand_y, dark, radius=s * LIMB_RADIUS),
            Part(hand_x, hand_y, hand_x, hand_y, blink, radius=s * HAND_RADIUS),
        ]
    head = Part(x, face, x, face, blink, radius=s * HEAD_RADIUS)
    torso = Part(x, top, x, hip, dark, half_width=s * HALF_TORSO)
    return [*parts, head, torso]


def boxes_of(parts: Sequence[Part]) -> np.ndarray:
    """Tight boxes (x1, y1, x2, y2) around all parts, in pixels of the frame, float64 [F, 4]."""
    extents = np.stack([part.extent() for part in parts])
    return np.concatenate([extents[..., :2].min(axis=0), extents[..., 2:].max(axis=0)], axis=1)


def paint(frames: np.ndarray, actor: Actor, pose: Pose, which: slice) -> None:
    """Paints the actor, at the frames `which` of its pose, over `frames`: float32 [which, H, W, 3] in 0..255."""
    dark, bright = actor.dark.astype(np.float32), actor.bright.astype(np.float32)
    for part in parts_of(actor, pose):
        extent = part.extent()[which]
        left, top = np.maximum(extent[:, :2].min(axis=0).astype(int) - 1, 0)
        right, bottom = np.maximum(extent[:, 2:].max(axis=0).astype(int) + 2, 0)
        patch = frames[:, top:bottom, left:right]
        x = np.arange(left, left + patch.shape[2], dtype=np.float32) + np.float32(0.5)
        y = np.arange(top, top + patch.shape[1], dtype=np.float32)[:, None] + np.float32(0.5)
        shade = _per_frame(part.shade[which])
        if part.half_width:  # the striped chest
            # Reduced to one cycle in float64: float32 would lose the digits that make aliased frames equal.
            phase = _per_frame(pose.chest_phase[which] % 1.0)
            middle = _per_frame((part.y0[which] + part.y1[which]) / 2)
            along = (y - middle) / np.float32(STRIPE_PERIOD) + phase
            shade = np.float32(0.5) + np.float32(0.5) * np.sin(np.float32(2 * np.pi) * along)
        colour = dark + shade[..., None] * (bright - dark)
        patch += cover(part.distance(x, y, which)) * (colour - patch)


def cover(distance: np.ndarray) -> np.ndarray:
    """Share of a pixel inside of an edge, [..., 1], from the signed distance [...] of its centre to the edge."""
    return np.clip(0.5 - distance, 0, 1)[..., None]


def draw_background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A textured background with clutter: bars, discs and boards striped like the actors' chests; float32 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image = np.broadcast_to(rng.uniform(70, 180, 3), (height, width, 3))
    for cells in (2, 5, 12):
        texture = rng.normal(0, 1, (cells + 1, cells + 1, 1)) + rng.normal(0, 0.5, (cells + 1, cells + 1, 3))
        image = image + _enlarge(texture, height, width) * rng.uniform(6, 20)
    for _ in range(rng.integers(4, 9)):
        centre, half_size, turn = rng.uniform(0, (width, height)), rng.uniform(3, 14, 2), rng.uniform(0, np.pi)
        u = (x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)
        v = (y - centre[1]) * np.cos(turn) - (x - centre[0]) * np.sin(turn)
        if rng.random() < 0.5:
            distance = np.maximum(np.abs(u) - half_size[0], np.abs(v) - half_size[1])
        else:
            distance = np.hypot(u, v) - half_size[0]
        plain, stripe = rng.uniform(0, 255, (2, 3))
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * (v / rng.uniform(5, 14) + rng.random()))
        colour = plain + wave[..., None] * (stripe - plain) * (rng.random() < 0.6)
        image = image + cover(distance) * (colour - image) * rng.uniform(0.4, 0.9)
    return np.clip(image, 0, 255).astype(np.float32)


def _per_frame(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[:, None, None]


def _enlarge(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear enlargement of [n, n, 3] to [height, width, 3], corners on corners."""

    def positions(size: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.linspace(0, len(grid) - 1, size)
        low = np.minimum(at.astype(int), len(grid) - 2)
        return low, (at - low)[:, None]

    (row, y), (column, x) = positions(height), positions(width)
    rows = grid[row] * (1 - y[..., None]) + grid[row + 1] * y[..., None]
    return rows[:, column] * (1 - x) + rows[:, column + 1] * x
