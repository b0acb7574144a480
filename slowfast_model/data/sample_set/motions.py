"""What the actors of the built-in sample set do: action classes, their motions over time, and which of them alias.

Every actor has one posture (stand, sidestep, crouch), and may scroll the stripes on its chest and blink with its head
and hands. A posture takes a second and shows in a few sparse frames. Scrolling and blinking are phases that run at a
constant speed, in cycles per frame, from a random start:

    chest   stripes displaced by phase = start + speed * frame;   speed > 0: they rise, speed < 0: they sink
    head    brightness 1/2 + sin(2 pi phase) / 2;                 |speed| small: it blinks slowly, large: quickly

and their four classes are two pairs that nobody can tell apart in frames that are `SLOW_STEP` = 8 apart (a Slow pathway
of 4 frames out of 32), at whatever resolution. For each speed v of one class, the other has v - `ALIAS`, where
`ALIAS` is 3/8 cycles per frame. After n Slow steps the two phases differ by 8 n * 3/8 = 3 n whole cycles: every Slow
frame is the same picture. Speeds are uniform in a band and in its partner, and starts are uniform, so the Slow frames
of both classes have the same distribution (cycles per frame; at 30 frames a second):

    rise    1/16 .. 5/16 (1.9 .. 9.4 Hz)       sink     -5/16 ..  -1/16
    slowly  0.04 .. 0.14 (1.2 .. 4.2 Hz)       quickly -0.335 .. -0.235 (7.1 .. 10.1 Hz; a sine has no direction)

All of them are below the Nyquist rate of 1/2 cycle per frame: the Fast pathway at stride 1 sees them as they are. The
bands are so wide that the phases after any Slow step near 8 (as 31/3, which linspace(0, 31, 4) gives) are spread over
the whole circle too, and tell next to nothing. Every class looks the same in a mirror, for random horizontal flips
are part of the usual training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FPS = 30
SLOW_STEP = 8
ALIAS = 3 / 8
RISE_BAND = (1 / 16, 5 / 16)
SLOW_BLINK_BAND = (0.04, 0.14)

POSTURES = ("stand", "sidestep", "crouch")
CHEST = ("stripes rise", "stripes sink")
HEAD = ("blink slowly", "blink quickly")
AVA_ACTIONS = (*POSTURES, *CHEST, *HEAD)  # ids 1..7
KINETICS_ACTIONS = ("sidestep", "crouch", *CHEST, *HEAD)  # labels 0..5
ALIASED_ACTIONS = (*CHEST, *HEAD)

GESTURE_FRAMES = FPS  # a sidestep or a crouch goes there and back in one second
SIDESTEP = 8.0  # its amplitude, in pixels of an actor of scale 1


@dataclass(frozen=True)
class Activity:
    """What an actor does for a while; speeds in cycles per frame, 0 for "does not"."""

    posture: str = "stand"
    chest_speed: float = 0.0
    head_speed: float = 0.0
    side: int = 1  # the way the sidestep goes first

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of all action classes that this activity shows."""
        names = [self.posture]
        if self.chest_speed:
            names.append(CHEST[0] if self.chest_speed > 0 else CHEST[1])
        if self.head_speed:
            names.append(HEAD[0] if abs(self.head_speed) <= SLOW_BLINK_BAND[1] else HEAD[1])
        return tuple(names)


@dataclass(frozen=True)
class Pose:
    """An actor's pose at each of F frames, float64 arrays [F]."""

    shift: np.ndarray  # to the right, in pixels of an actor of scale 1
    crouch: np.ndarray  # 0 upright .. 1 fully crouched
    chest_phase: np.ndarray  # cycles
    head_phase: np.ndarray


def alias_of(speed: float) -> float:
    """The speed whose frames at multiples of `SLOW_STEP` are the same as those of `speed` (see the module's text)."""
    return speed - ALIAS if speed > 0 else speed + ALIAS


def draw_speed(rng: np.random.Generator, action: str) -> float:
    """A random speed, cycles per frame, of one of the four classes of `ALIASED_ACTIONS`."""
    speed = rng.uniform(*(RISE_BAND if action in CHEST else SLOW_BLINK_BAND))
    return alias_of(speed) if action in (CHEST[1], HEAD[1]) else speed


def draw_activity(rng: np.random.Generator) -> Activity:
    """A random posture with the stripes, the head or both at work (each a third of the time)."""
    chest, head = ((True, False), (False, True), (True, True))[rng.integers(3)]
    posture = POSTURES[rng.integers(len(POSTURES))]
    chest_action, head_action = CHEST[rng.integers(2)], HEAD[rng.integers(2)]
    return Activity(
        posture,
        draw_speed(rng, chest_action) if chest else 0.0,
        draw_speed(rng, head_action) if head else 0.0,
        side=1 if rng.random() < 0.5 else -1,
    )


def single_activity(rng: np.random.Generator, action: str) -> Activity:
    """An activity that shows `action` and otherwise stands still."""
    side = 1 if rng.random() < 0.5 else -1
    if action in POSTURES:
        return Activity(action, side=side)
    speed = draw_speed(rng, action)
    return Activity(chest_speed=speed, side=side) if action in CHEST else Activity(head_speed=speed, side=side)


def pose_of(activities: Sequence[tuple[int, Activity]], chest_phase: float, head_phase: float) -> Pose:
    """The pose over time of an actor that does each activity for its number of frames.

    Every gesture begins and ends at the actor's place and the phases run on, so one activity goes over into the
    next without a jump of the body. The phases in cycles are those of the first frame.
    """
    frames = [count for count, _ in activities]
    local = np.concatenate([np.arange(count, dtype=np.float64) for count in frames])

    def spread(values: list[float]) -> np.ndarray:
        return np.repeat(np.asarray(values, dtype=np.float64), frames)

    def integrate(start: float, speed: np.ndarray) -> np.ndarray:
        return start + np.concatenate([[0.0], np.cumsum(speed[:-1])])

    chest_speed = spread([activity.chest_speed for _, activity in activities])
    head_speed = spread([activity.head_speed for _, activity in activities])
    sidestep = spread([activity.side * (activity.posture == "sidestep") for _, activity in activities])
    crouch = spread([activity.posture == "crouch" for _, activity in activities])
    return Pose(
        shift=SIDESTEP * sidestep * np.sin(2 * np.pi * local / GESTURE_FRAMES),
        crouch=crouch * np.sin(np.pi * local / GESTURE_FRAMES) ** 2,
        chest_phase=integrate(chest_phase, chest_speed),
        head_phase=integrate(head_phase, head_speed),
    )
