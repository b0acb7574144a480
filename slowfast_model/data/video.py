"""Reads frames of a video file by presentation time, in any container that FFmpeg opens, and survives damaged files."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, overload

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch.utils.data import get_worker_info

from slowfast_model.data.packets import Demand, needed_packets
from slowfast_model.data.pixels import ClipBuffer, Frames, Pixels, RGBBuffer, YUVBuffer, display_matrix, upright
from slowfast_model.errors import InputError
from slowfast_ops import YUVFrames

Times: TypeAlias = npt.NDArray[np.float64]

_ELEMENTARY_STREAM = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS: a codec's bare stream, without a container around it
_DEFAULT_RATE = 25.0  # FFmpeg's own default, for a file that has one frame and says nothing
_FORWARD_REACH = 2.0  # seconds that are rather decoded than sought across where the container has no index
_MOST_REORDERED = 16  # frames that codecs decode ahead of one that is shown before them
_SEEK_LEADS = (0.0, 1.0, 10.0)  # seconds before the target to seek to: some containers land behind it
_MOST_FRAMES_AT_FIRST = 1 << 16  # to make room for, whatever a file states
_TRUNCATION_SLACK = 0.5  # seconds that a stream may end before its stated duration without being called truncated
_BUFFERS: dict[str, type[ClipBuffer]] = {"rgb": RGBBuffer, "yuv": YUVBuffer}


class VideoError(InputError):
    """A video file that cannot give the frames that were asked for.

    Attributes:
        path: the file.
        reason: what is wrong with it, without the path.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)  # both as args, so that pickling works
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Shot(NamedTuple):
    """A decoded frame and when it is shown: from ``time`` to ``end``, in seconds from the start of the stream."""

    time: float
    end: float
    frame: av.VideoFrame


class VideoReader(Generic[Pixels]):
    """The frames of a file's best video stream, by time or by number.

    Time counts in seconds from the start of the stream, its first frame, whatever the first timestamp is. The frame at
    time t is the one on screen then: the last that starts at or before t, with a tolerance of one tick of the file's
    clock, so that times computed from a frame rate meet timestamps that a coarse clock has rounded. Times outside the
    video give its first or last frame. Where timestamps are missing or wrong (elementary streams; AVI with B-frames,
    which knows decoding times only) frame n is shown at n / fps, the order of decoding being the order of presentation.

    Reading seeks to the key frame before the first wanted frame and decodes up to the last one, but for frames of H.264
    that are not wanted and that no other frame refers to. Only wanted frames are copied or converted. Rotations and
    mirrorings that the file's metadata ask for are applied.

    Args:
        path: a video file; always taken as a file name, never as a URL.
        pixels: "rgb": frames are uint8 [T, H, W, 3], by FFmpeg's swscale with its defaults. "yuv": frames are
            `YUVFrames`, the decoder's own planes, half the bytes and no conversion; what it has in another form than
            8-bit 4:2:0 (10 bits, 4:4:4, RGB, ...) is converted to that, with its matrix and range.
        num_threads: decoding threads; 0 lets FFmpeg choose. In a DataLoader worker it is always 1.

    Raises:
        VideoError: there is no such file, or it holds no video stream that can be decoded.
        ValueError: ``pixels`` is something else.
    """

    @overload
    def __init__(
        self: VideoReader[Frames], path: str | PathLike[str], *, pixels: Literal["rgb"] = "rgb", num_threads: int = 1
    ) -> None: ...

    @overload
    def __init__(
        self: VideoReader[YUVFrames], path: str | PathLike[str], *, pixels: Literal["yuv"], num_threads: int = 1
    ) -> None: ...

    def __init__(self, path: str | PathLike[str], *, pixels: str = "rgb", num_threads: int = 1) -> None:
        if pixels not in _BUFFERS:
            raise ValueError(f"pixels={pixels!r}: expected 'rgb' or 'yuv'")
        self.path = Path(path)
        self._buffer_type: type[ClipBuffer[Pixels]] = _BUFFERS[pixels]
        self._num_threads = 1 if get_worker_info() is not None else num_threads
        if not os.path.isfile(self.path):  # which never raises, whatever the name
            raise VideoError(path, "no such file")
        if os.path.getsize(self.path) == 0:
            raise VideoError(path, "the file is empty")
        self._reformatter = VideoReformatter()
        self._demand = Demand()
        self._shown: _Shot | None = None
        self._upcoming: _Shot | None = None
        self._broken: str | None = None
        self._open()
        self._seekable = self._keeps_time
        self._stated_size = self._stream.width, self._stream.height  # the decoder changes them where the frames change
        # H.264 says of each frame whether any other refers to it, whatever the order and the layers of its stream.
        self._demand.is_open = self._keeps_time and self._stream.codec_context.name == "h264"

    def __enter__(self) -> VideoReader[Pixels]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the decoder; the reader cannot be used afterwards."""
        self._decoder.close()  # it refers back to the reader
        self._shown = self._upcoming = None
        self._container.close()

    @cached_property
    def fps(self) -> float:
        """Frames per second: the average where the rate varies."""
        stream = self._stream
        rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
        if self._is_elementary:  # no average is known there: FFmpeg puts its default of 25
            rates.pop(0)
        for rate in rates:
            if rate is not None and 0 < rate <= 1000:
                return float(rate)
        count, seconds = self._scan
        return count / seconds if seconds > 0 else _DEFAULT_RATE

    @cached_property
    def duration(self) -> float:
        """Seconds from the start of the first frame to the end of the last, as the file states it, or else counted."""
        if self._keeps_time and self._stream_duration is not None:
            return self._stream_duration
        if self._keeps_time and self._container.duration:
            return float(self._container.duration / av.time_base) - self._time_before
        return self.num_frames / self.fps

    @cached_property
    def num_frames(self) -> int:
        """Number of frames as the file states it, or else counted by going through its packets once, undecoded."""
        return int(self._stream.frames) or self._scan[0]

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the frames as they are shown, rotation applied."""
        frame = self._shot_at(0.0).frame
        width, height = self._stated_size
        shape = upright(np.empty((height or frame.height, width or frame.width), np.uint8), display_matrix(frame)).shape
        return shape[0], shape[1]

    @cached_property
    def tolerance(self) -> float:
        """Seconds ahead of its start from which a frame counts as on screen: a tick of the file's clock."""
        return min(self._tick, 0.25 / self.fps)

    def read(self, times: npt.ArrayLike) -> tuple[Pixels, Times]:
        """The frames on screen at the given times.

        Args:
            times: seconds from the first frame, in any order, repetitions allowed; at least one.

        Returns:
            T frames in the order asked for, see `VideoReader`, and the time at which each starts, float64 [T].

        Raises:
            VideoError: the file breaks, or ends long before its stated duration, ahead of a wanted frame.
            ValueError: no times, or one that is not finite.
        """
        wanted = np.asarray(times, np.float64).reshape(-1)
        if wanted.size == 0 or not np.isfinite(wanted).all():
            raise ValueError(f"times must be one or more finite numbers of seconds, got {wanted.tolist()}")
        starts = np.empty(len(wanted))
        clip = self._buffer(len(wanted))
        last = -1
        order = np.argsort(wanted, kind="stable").tolist()
        self._demand.moments = [float(wanted[position]) + self.tolerance for position in order]
        try:
            for position in order:
                shot = self._shot_at(float(wanted[position]))
                starts[position] = shot.time
                if last >= 0 and starts[last] == shot.time:
                    clip.repeat(position, last)
                else:
                    clip.put(position, shot.frame)
                    last = position
        finally:
            self._demand.moments = []
        return clip.clip(len(wanted)), starts

    def read_frames(self, start: int = 0, stop: int | None = None, step: int = 1) -> tuple[Pixels, Times]:
        """Frames ``range(start, stop, step)`` in decode order, counted from the first frame of the file.

        Returns:
            T frames, see `VideoReader`, and the time at which each starts, float64 [T]. Where the file ends or breaks
            ahead of ``stop`` they are those that decode until then, and may be none.

        Raises:
            VideoError: the file has no frame that can be decoded.
            ValueError: a negative start or stop, or a step below 1.
        """
        if start < 0 or step < 1 or (stop is not None and stop < 0):
            raise ValueError(f"start and stop must be 0 or more and step 1 or more, got {start}, {stop}, {step}")
        first = self._shot_at(0.0).frame
        end = self.num_frames if stop is None else min(stop, self._stream.frames or stop)
        clip = self._buffer(max(1, min(len(range(start, end, step)), _MOST_FRAMES_AT_FIRST)))
        starts: list[float] = []
        self._rewind()
        for number, shot in enumerate(self._decoder):
            if stop is not None and number >= stop:
                break
            if number >= start and (number - start) % step == 0:
                clip.put(len(starts), shot.frame)
                starts.append(shot.time)
        self._rewind()
        if not starts:
            clip.put(0, first)  # for its size and colours
        return clip.clip(len(starts)), np.array(starts)

    def _buffer(self, capacity: int) -> ClipBuffer[Pixels]:
        return self._buffer_type(capacity, self._stated_size, self._reformatter)

    # The decoder's place in the file: `_shown` is on screen, `_upcoming` follows. Neither: nothing is decoded yet.
    # Only `_shown`: the file ends there, or breaks for the reason in `_broken`.

    def _shot_at(self, time: float) -> _Shot:
        """Moves to the frame on screen at ``time``."""
        limit = time + self.tolerance
        if self._must_seek(limit):
            self._seek(limit)
        shot = self._decode_until(limit)
        if self._demand.lacks(shot.time, limit):  # the packets' times were wrong, or an error came between
            self._demand.is_open = False
            self._seek(limit)
            shot = self._decode_until(limit)
        if self._upcoming is None and time >= shot.end:
            self._require_end(shot.end)
        return shot

    def _decode_until(self, limit: float) -> _Shot:
        """Goes on to the frame on screen at ``limit``."""
        if self._shown is None and self._upcoming is None:
            self._upcoming = next(self._decoder, None)
        while self._upcoming is not None and (self._shown is None or self._upcoming.time <= limit):
            self._shown, self._upcoming = self._upcoming, next(self._decoder, None)
        if self._shown is None:
            raise VideoError(self.path, self._broken or "has no frame that can be decoded")
        return self._shown

    def _require_end(self, end: float) -> None:
        """Tells the end of the video, beyond which its last frame stands, from a place where frames are missing."""
        if self._broken is not None:
            raise VideoError(self.path, f"breaks at {end:.2f} s: {self._broken}")
        stated = self._stream_duration
        if stated is not None and stated - end > _TRUNCATION_SLACK:
            raise VideoError(self.path, f"is cut off: ends at {end:.2f} s and states a duration of {stated:.2f} s")

    def _must_seek(self, limit: float) -> bool:
        """Whether decoding on from here does not reach ``limit``, or reaches it later than a key frame would."""
        place = self._shown.time if self._shown is not None else 0.0
        if limit < place:
            return True
        if not self._seekable:
            return False
        index: Any = getattr(self._stream, "index_entries", ())  # since PyAV 17
        if len(index) > 1:
            # The index has times of decoding, which lie ahead of those of presentation.
            key_frame = index.search_timestamp(self._ticks(limit - _MOST_REORDERED / self.fps))
            return key_frame >= 0 and self._seconds(index[key_frame].timestamp) > place
        return limit > place + _FORWARD_REACH

    def _seek(self, limit: float) -> None:
        """Places the decoder at a key frame at or before ``limit``, or else at the start of the file."""
        for lead in _SEEK_LEADS:
            target = min(limit, self.duration) - lead
            if not self._seekable or target <= 0:
                break
            try:
                self._container.seek(self._ticks(target), stream=self._stream)
            except (av.error.FFmpegError, OSError):
                break
            self._start(after_seek=True)
            self._upcoming = next(self._decoder, None)
            if self._upcoming is not None and self._upcoming.time <= limit:
                return
        else:
            self._seekable = False  # never again in vain: every later place is reached by decoding on
        self._rewind()

    def _rewind(self) -> None:
        """Places the decoder at the first frame. To open anew is the one way that works for every container."""
        self._container.close()
        self._open()

    def _open(self) -> None:
        try:
            # "file:" keeps FFmpeg from taking a colon in the name for a protocol.
            self._container = av.open(f"file:{self.path}", metadata_errors="ignore")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(self.path, f"cannot be opened as a video: {_describe(error)}") from None
        stream = self._container.streams.best("video")
        # FFmpeg renders plain text as a terminal session, and takes the cover picture of a song for a video.
        is_text = self._container.format.name == "tty"
        is_picture = "attached_pic" in str(getattr(stream, "disposition", ""))
        if not isinstance(stream, VideoStream) or is_text or is_picture:
            self._container.close()
            raise VideoError(self.path, "holds no video stream")
        context = stream.codec_context
        context.thread_count = self._num_threads
        context.thread_type = "SLICE" if self._num_threads == 1 else "AUTO"
        self._stream = stream
        self._start(after_seek=False)

    def _start(self, *, after_seek: bool) -> None:
        self._shown = self._upcoming = self._broken = None
        self._demand.left_out.clear()
        self._decoder = self._decode(after_seek)

    def _decode(self, after_seek: bool) -> Generator[_Shot, None, None]:
        """The frames from the container's present position on, until the file ends or breaks."""
        interval = 1 / self.fps
        number, previous = 0, -interval
        packets = needed_packets(self._container.demux(self._stream), self._seconds, self._demand)
        try:
            for frame in self._decoded(packets):
                if number == 0 and after_seek and (not frame.key_frame or frame.pts is None):
                    continue  # it may lack the frames that it refers to, or its place is unknown
                if not self._has_timestamps:
                    time = number * interval
                else:
                    stamp = self._seconds(frame.pts) if frame.pts is not None else previous
                    time = stamp if number == 0 or stamp > previous else previous + interval
                ticks = getattr(frame, "duration", 0)  # since PyAV 15
                yield _Shot(time, time + (ticks * self._tick if ticks else interval), frame)
                number, previous = number + 1, time
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self._broken = f"cannot be decoded: {_describe(error)}"

    def _decoded(self, packets: Iterator[tuple[av.Packet, bool]]) -> Iterator[av.VideoFrame]:
        context = self._stream.codec_context
        for packet, is_needed in packets:
            context.skip_frame = "DEFAULT" if is_needed else "NONREF"
            yield from self._stream.decode(packet)

    # The stream's clock.

    @cached_property
    def _is_elementary(self) -> bool:
        return bool(self._container.format.flags & _ELEMENTARY_STREAM)

    @cached_property
    def _has_timestamps(self) -> bool:
        """Whether frames carry presentation times. AVI stores decoding times, which differ where there are B-frames."""
        return not self._is_elementary and not (
            self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
        )

    @cached_property
    def _keeps_time(self) -> bool:
        """Whether places and the duration are right. MPEG program streams time few of their frames, and what FFmpeg
        makes up for the others depends on where it starts."""
        return self._has_timestamps and self._container.format.name != "mpeg"

    @cached_property
    def _tick(self) -> float:
        return float(self._stream.time_base or 0)

    def _seconds(self, ticks: int) -> float:
        return (ticks - (self._stream.start_time or 0)) * self._tick

    def _ticks(self, seconds: float) -> int:
        return int(seconds / self._tick) + (self._stream.start_time or 0)

    @cached_property
    def _stream_duration(self) -> float | None:
        """Seconds that the file states for this stream, not for whatever else it holds (sound may go on for longer)."""
        if self._stream.duration:
            return float(self._stream.duration * self._tick)
        tag = self._stream.metadata.get("DURATION", "").split(":")  # Matroska: hours:minutes:seconds
        try:
            hours, minutes, seconds = map(float, tag)
        except ValueError:
            return None
        # mkvmerge, which marks its tags, counts from the first frame.
        before = 0.0 if "_STATISTICS_TAGS" in self._stream.metadata else self._time_before
        return 3600 * hours + 60 * minutes + seconds - before

    @cached_property
    def _time_before(self) -> float:
        """Seconds ahead of the first frame that the container's own duration includes: Matroska's and NUT's do."""
        counts_from_zero = self._container.format.name in ("matroska,webm", "nut")
        return (self._stream.start_time or 0) * self._tick if counts_from_zero else 0.0

    @cached_property
    def _scan(self) -> tuple[int, float]:
        """How many packets the stream has, and how many seconds lie between the first and the last of them."""
        stamps = []
        count = 0
        with av.open(f"file:{self.path}", metadata_errors="ignore") as container:
            try:
                for packet in container.demux(container.streams[self._stream.index]):
                    count += packet.size > 0
                    stamps += [packet.pts] if packet.size > 0 and packet.pts is not None else []
            except (av.error.FFmpegError, OSError):
                pass  # what comes before the break counts
        return count, (max(stamps) - min(stamps)) * self._tick if stamps else 0.0


def _describe(error: Exception) -> str:
    """The error's own words, without number and path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
