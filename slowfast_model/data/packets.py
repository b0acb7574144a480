"""Says which packets of a video need not be decoded: often a third of those of H.264, without changing a pixel."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import av

# Packets to look ahead for the frame that follows on screen. If it comes later still, its predecessor is decoded.
_LOOKAHEAD = 8


class Demand:
    """The moments at which frames are wanted, and the frames that were left out because they are on screen at none.

    Only frames ahead of the last wanted moment are left out, so that reading can go on from there.

    Attributes:
        moments: in seconds, increasing; none: all frames are wanted.
        left_out: when the frames that may have been left out would have been shown, increasing.
        is_open: whether frames may be left out.
    """

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.left_out: list[float] = []
        self.is_open = False

    def includes(self, start: float, end: float) -> bool:
        """Whether the frame that is on screen from ``start`` until ``end``, or less, has to be decoded."""
        following = bisect_left(self.moments, start)
        return following == len(self.moments) or self.moments[following] < end

    def lacks(self, start: float, moment: float) -> bool:
        """Whether a frame was left out that would have been shown after ``start``, and by ``moment``."""
        following = bisect_right(self.left_out, start)
        return following < len(self.left_out) and self.left_out[following] <= moment


def needed_packets(
    packets: Iterable[av.Packet], seconds: Callable[[int], float], demand: Demand
) -> Iterator[tuple[av.Packet, bool]]:
    """The packets, each with whether a frame in it that no other frame refers to has to be decoded.

    A frame is on screen until the next one, and so at most until any later one. The packets give their times ahead of
    decoding, though not in the order of presentation.

    Args:
        packets: of one stream, in the order of decoding.
        seconds: from a packet's timestamp to the time that ``demand`` counts.
        demand: what is wanted; may change between packets. Is closed where timestamps are missing or repeated.
    """
    ahead: deque[av.Packet] = deque()
    stamps: list[int] = []  # of the packets seen, increasing

    def released() -> tuple[av.Packet, bool]:
        packet = ahead.popleft()
        if not demand.is_open or not demand.moments or packet.pts is None:
            return packet, True
        following = bisect_right(stamps, packet.pts)
        # Before the first frame is shown, it stands in for all that might have been.
        if following in (1, len(stamps)):
            return packet, True
        start = seconds(packet.pts)
        if demand.includes(start, seconds(stamps[following])):
            return packet, True
        insort(demand.left_out, start)
        return packet, False

    failure = None
    try:
        for packet in packets:
            ahead.append(packet)
            if packet.pts is not None:
                place = bisect_left(stamps, packet.pts)
                if stamps[place : place + 1] == [packet.pts]:
                    demand.is_open = False
                if not packet.is_discard:
                    stamps.insert(place, packet.pts)
            elif packet.size > 0:
                demand.is_open = False
            if len(ahead) > _LOOKAHEAD:
                yield released()
    except (av.error.FFmpegError, OSError, ValueError) as error:
        failure = error
    while ahead:
        yield released()
    if failure is not None:
        raise failure
