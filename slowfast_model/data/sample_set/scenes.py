"""Scenes of the sample set: who is in a video, what they do, and where they are, all drawn from a random generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from slowfast_model.data.sample_set import rendering
from slowfast_model.data.sample_set.motions import (
    FPS,
    KINETICS_ACTIONS,
    Activity,
    Pose,
    draw_activity,
    pose_of,
    single_activity,
)

WIDTH, HEIGHT = 112, 96
KEY_FRAMES = range(1, 11)  # seconds
AVA_SECONDS = 11.5
AVA_ACTIVITY_SECONDS = 2
KINETICS_SECONDS = 2.2


@dataclass(frozen=True)
class Performance:
    """One actor and what it does over the whole video: (number of frames, activity) after one another."""

    actor: rendering.Actor
    activities: tuple[tuple[int, Activity], ...]
    chest_phase: float
    head_phase: float

    def pose(self) -> Pose:
        return pose_of(self.activities, self.chest_phase, self.head_phase)

    def activity_at(self, frame: int) -> Activity:
        for count, activity in self.activities:
            if frame < count:
                return activity
            frame -= count
        raise IndexError("frame after the end of the video")


@dataclass(frozen=True)
class Scene:
    """A video: a still background and its performances."""

    background: np.ndarray
    performances: tuple[Performance, ...]

    @property
    def num_frames(self) -> int:
        return sum(count for count, _ in self.performances[0].activities)

    def render(self, chunk: int = 15) -> Iterator[np.ndarray]:
        """The frames in order, each uint8 [HEIGHT, WIDTH, 3] RGB; `chunk` frames are drawn at a time."""
        poses = [performance.pose() for performance in self.performances]
        for start in range(0, self.num_frames, chunk):
            which = slice(start, min(start + chunk, self.num_frames))
            frames = np.repeat(self.background[None], which.stop - start, axis=0)
            for performance, pose in zip(self.performances, poses, strict=True):
                rendering.paint(frames, performance.actor, pose, which)
            yield from np.rint(frames).astype(np.uint8)

    def boxes(self) -> np.ndarray:
        """Tight boxes (x1, y1, x2, y2) in fractions of the frame, float64 [actors, frames, 4]."""
        poses = [performance.pose() for performance in self.performances]
        actors = (performance.actor for performance in self.performances)
        boxes = [rendering.boxes_of(rendering.parts_of(actor, pose)) for actor, pose in zip(actors, poses, strict=True)]
        return np.clip(np.stack(boxes) / (WIDTH, HEIGHT, WIDTH, HEIGHT), 0, 1)


def ava_scene(rng: np.random.Generator) -> Scene:
    """Two to four actors that change what they do every two seconds, each at its own will.

    They change half-way between key frames: the second around a key frame shows the actions that it is labelled with.
    """
    counts = [FPS + FPS // 2]
    while (rest := round(AVA_SECONDS * FPS) - sum(counts)) > 0:
        counts.append(min(rest, AVA_ACTIVITY_SECONDS * FPS))
    return _scene(rng, lambda: tuple((count, draw_activity(rng)) for count in counts))


def kinetics_scene(rng: np.random.Generator, label: int) -> Scene:
    """One large actor that shows the action `label` of `KINETICS_ACTIONS` for the whole video."""
    background = rendering.draw_background(rng, WIDTH, HEIGHT)
    scale = rng.uniform(1.7, 2.1)
    actor = rendering.draw_actor(rng, WIDTH / 2 + rng.uniform(-8, 8), HEIGHT - rng.uniform(0, 6), scale)
    activities = ((round(KINETICS_SECONDS * FPS), single_activity(rng, KINETICS_ACTIONS[label])),)
    return Scene(background, (Performance(actor, activities, rng.random(), rng.random()),))


def _scene(rng: np.random.Generator, draw_activities: Callable[[], tuple[tuple[int, Activity], ...]]) -> Scene:
    """A random background and two to four actors, each in a quarter of the frame of its own."""
    background = rendering.draw_background(rng, WIDTH, HEIGHT)
    performances = []
    for quarter in rng.permutation(4)[: rng.integers(2, 5)]:
        x = (quarter % 2 + 0.5) * WIDTH / 2 + rng.uniform(-1, 1)
        y = (quarter // 2 + 1) * HEIGHT / 2 - rng.uniform(2, 9)
        actor = rendering.draw_actor(rng, x, y, rng.uniform(0.8, 0.95))
        performances.append(Performance(actor, draw_activities(), rng.random(), rng.random()))
    return Scene(background, tuple(performances))
