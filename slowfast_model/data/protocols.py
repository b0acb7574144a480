"""The published protocols: what holds for clips where the configuration leaves a field null.

| | ``pyslowfast`` | ``paper`` |
|---|---|---|
| frames of a clip | spread evenly from its first to its last, a little more than the rate apart | every rate-th |
| a rate counts frames | at 30 a second, whatever the video's own (`target_fps`) | of the video itself |
| frames of the Slow pathway | spread evenly from the first to the last (`slow_sampling`) | every alpha-th |
| test clip i of n begins | i / n of the way (`views_to_end`) | i / (n - 1) of the way, in whole steps, to the end |
| scores of a test crop | softmax at every position of the training crop's window, averaged | softmax of the whole |
| sizes of training frames | uniform; in AVA their inverse is (`short_side_jitter`) | uniform |

Both test on 10 clips x 3 crops of 256 (Kinetics), or on one whole frame of short side 256 (AVA), and average the views'
scores. Of the paper the table has what it says (sections 3 and 4) and, where it leaves a choice, the plainest reading:
strides in raw frames, clips evenly spread over the whole video, a global average pool.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final, Literal

ProtocolName = Literal["pyslowfast", "paper"]
SlowSampling = Literal["linspace", "stride"]
Jitter = Literal["uniform", "inverse"]
OWN_RATE: Final = "video"


@dataclass(frozen=True)
class ClipRules:
    """How clips are taken; the fields of `DataConfig` of the same names say what they mean.

    Attributes:
        slow_sampling, target_fps, short_side_jitter, views_to_end: see `DataConfig` and `KineticsDataConfig`.
        whole_strides: a clip's frames are ``sampling_rate`` apart; else spread evenly from its first to its last.
        score_positions: a test crop that is larger than the training crop is scored at every position of the latter's
            window, else as a whole.
    """

    slow_sampling: SlowSampling
    target_fps: float | Literal["video"]
    short_side_jitter: Jitter
    views_to_end: bool
    whole_strides: bool
    score_positions: bool

    def frame_rate(self, fps: float) -> float:
        """Frames per second that the sampling rate counts, in a video of ``fps``."""
        return fps if isinstance(self.target_fps, str) else self.target_fps

    def overridden_by(self, config: object) -> ClipRules:
        """These rules, but for the fields that ``config`` has and that are not None there."""
        own = {field.name: getattr(config, field.name, None) for field in fields(self)}
        return replace(self, **{name: value for name, value in own.items() if value is not None})  # type: ignore[arg-type]


PROTOCOLS: dict[str, ClipRules] = {
    "pyslowfast": ClipRules(
        slow_sampling="linspace",
        target_fps=30.0,
        short_side_jitter="uniform",
        views_to_end=False,
        whole_strides=False,
        score_positions=True,
    ),
    "paper": ClipRules(
        slow_sampling="stride",
        target_fps=OWN_RATE,
        short_side_jitter="uniform",
        views_to_end=True,
        whole_strides=True,
        score_positions=False,
    ),
}
