"""Key frames by the hundred thousand: (video id, timestamp) pairs in flat arrays, and finding them in one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

FrameKey = tuple[str, float]
"""A key frame: (video id, timestamp in seconds rounded to a microsecond)."""


def round_timestamps(seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """To a microsecond: "0902", 902 and 902.0000001 are the same second of a video."""
    with np.errstate(over="ignore"):
        micros = np.rint(seconds * 1e6)
    return np.where(np.abs(micros) < 2**53, micros / 1e6, seconds)


def frame_key(video_id: str, timestamp: float) -> FrameKey:
    """The canonical key of a frame, see `round_timestamps`."""
    return video_id, float(round_timestamps(np.float64(timestamp)))


class FrameKeys(Sequence[FrameKey]):
    """A sequence of key frames that costs no Python object each.

    Args:
        video_ids: the videos, each once.
        videos: int64 [K], each key frame's video as an index into ``video_ids``.
        timestamps: float64 [K], as `round_timestamps` gives them.
    """

    def __init__(
        self, video_ids: list[str], videos: npt.NDArray[np.int64], timestamps: npt.NDArray[np.float64]
    ) -> None:
        self.video_ids = video_ids
        self.videos = videos
        self.timestamps = timestamps

    @classmethod
    def of(cls, keys: Iterable[FrameKey]) -> FrameKeys:
        """From any pairs, in their order."""
        index: dict[str, int] = {}
        pairs = [(index.setdefault(video_id, len(index)), timestamp) for video_id, timestamp in keys]
        videos = np.array([video for video, _ in pairs], np.int64)
        return cls(list(index), videos, round_timestamps(np.array([time for _, time in pairs], np.float64)))

    def __len__(self) -> int:
        return len(self.videos)

    @overload
    def __getitem__(self, index: int) -> FrameKey: ...

    @overload
    def __getitem__(self, index: slice) -> FrameKeys: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return FrameKeys(self.video_ids, self.videos[index], self.timestamps[index])
        return self.video_ids[self.videos[index]], float(self.timestamps[index])

    def __iter__(self) -> Iterator[FrameKey]:
        return zip(map(self.video_ids.__getitem__, self.videos.tolist()), self.timestamps.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (FrameKeys, list)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, frames: npt.NDArray[np.int64]) -> FrameKeys:
        """Those of these numbers."""
        return FrameKeys(self.video_ids, self.videos[frames], self.timestamps[frames])

    def find(self, others: FrameKeys) -> npt.NDArray[np.int64]:
        """The place here of each of ``others``, the first one if it is here more than once; -1: not here."""
        _, first, number = FrameKeys.concatenate([self, others]).unique()
        place = first[number[len(self) :]]
        return np.where(place < len(self), place, -1)

    @staticmethod
    def concatenate(parts: Sequence[FrameKeys]) -> FrameKeys:
        """All of them one after the other; videos in order of their first appearance in the lists of videos."""
        index: dict[str, int] = {}
        videos = []
        for part in parts:
            renumbered = [index.setdefault(video_id, len(index)) for video_id in part.video_ids]
            videos.append(np.array(renumbered or [0], np.int64)[part.videos])
        empty = np.zeros(0)
        return FrameKeys(
            list(index),
            np.concatenate([empty.astype(np.int64), *videos]),
            np.concatenate([empty, *(part.timestamps for part in parts)]),
        )

    def unique(self) -> tuple[FrameKeys, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Each key frame once, by video (in the order of ``video_ids``) and time.

        Returns:
            The unique ones; where each is first, int64; and the number of each of ours among them, int64 [K].
        """
        order = np.lexsort((self.timestamps, self.videos))  # stable
        videos, timestamps = self.videos[order], self.timestamps[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (videos[1:] != videos[:-1]) | (timestamps[1:] != timestamps[:-1])
        number = np.empty(len(order), np.int64)
        number[order] = np.cumsum(is_new) - 1
        return FrameKeys(self.video_ids, videos[is_new], timestamps[is_new]), order[is_new], number
