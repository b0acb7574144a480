"""Reads AVA-format files: labelled boxes (csv), excluded timestamps (csv) and the action list (pbtxt).

The csv reader is vectorised: half a million rows take about half a second. Every error names file and line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from slowfast_model.errors import MAX_CLASSES, InputError
from slowfast_model.evaluation.frame_keys import FrameKey, FrameKeys, frame_key, round_timestamps

_COMMA, _NEWLINE, _DOT, _ZERO = b",\n.0"
_EXACT_DIGITS = 15  # an integer of up to 15 digits divided by a power of ten is correctly rounded in float64
_BLOCK_BYTES = 1 << 20
_LOWEST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
_COORDINATES = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class LabelledBoxes:
    """One row per (box, action label) on a set of key frames.

    Attributes:
        keys: the key frames, each once, including those that have no boxes.
        frames: int64 [n], the row's key frame as an index into ``keys``.
        boxes: float64 [n, 4], x1, y1, x2, y2 as fractions of the full frame.
        labels: int64 [n], class ids; -1 for a box without a label.
        scores: float64 [n], confidences. Ground truth has none: its eighth column, the person id, stands here
            (0 where that is not a number).
    """

    keys: FrameKeys
    frames: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_arrays(
        cls,
        row_keys: Sequence[FrameKey],
        boxes: npt.ArrayLike,
        labels: npt.ArrayLike,
        scores: npt.ArrayLike | None = None,
        *,
        keys: Sequence[FrameKey] = (),
    ) -> LabelledBoxes:
        """Builds the table from parallel arrays of n rows; ``keys`` adds key frames that may have no row.

        ``scores=None`` means ground truth (all zeros).
        """
        count = len(row_keys)
        table_keys, frames = _in_order_of_appearance(FrameKeys.of([*keys, *row_keys]))
        return cls(
            keys=table_keys,
            frames=frames[len(keys) :],
            boxes=np.asarray(boxes, np.float64).reshape(count, 4),
            labels=np.asarray(labels, np.int64).reshape(count),
            scores=np.zeros(count) if scores is None else np.asarray(scores, np.float64).reshape(count),
        )


def _in_order_of_appearance(keys: FrameKeys) -> tuple[FrameKeys, npt.NDArray[np.int64]]:
    """Each key frame once, in the order in which they come, and the number of each of ``keys`` among them."""
    _, first, number = keys.unique()
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return keys.take(first[order]), rank[number]


def read_groundtruth(path: str | PathLike[str]) -> LabelledBoxes:
    """Reads ``video_id, timestamp, x1, y1, x2, y2, action_id[, person_id]`` rows (no header).

    A row of just ``video_id, timestamp`` is a key frame without boxes, as in the official script; an empty action_id is
    a person without a labelled action.

    Raises:
        InputError: the file cannot be read or a row is malformed; the message names file and line.
    """
    return _read_boxes(path, scored=False, unlabelled=True)


def read_detections(path: str | PathLike[str]) -> LabelledBoxes:
    """Reads ``video_id, timestamp, x1, y1, x2, y2, action_id[, score]`` rows (no header); without a score it is 1.

    Raises:
        InputError: the file cannot be read or a row is malformed; the message names file and line.
    """
    return _read_boxes(path, scored=True, unlabelled=False)


def read_predicted_boxes(path: str | PathLike[str]) -> LabelledBoxes:
    """Reads a person detector's boxes: rows as `read_detections` takes them, but the action_id may be empty or -1.

    Raises:
        InputError: as `read_detections`.
    """
    return _read_boxes(path, scored=True, unlabelled=True)


def read_excluded_timestamps(path: str | PathLike[str]) -> set[FrameKey]:
    """Reads ``video_id, timestamp`` rows: the key frames that do not count.

    Raises:
        InputError: as `read_groundtruth`.
    """
    excluded = set()
    for number, line in enumerate(_read_bytes(path).decode(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        columns = line.split(",")
        if len(columns) != 2:
            raise InputError(f"{path}:{number}: expected 2 columns (video_id,timestamp), got {len(columns)}: {line!r}")
        try:
            excluded.add(_parse_key(*columns))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return excluded


def read_label_map(path: str | PathLike[str]) -> dict[int, str]:
    """Reads an action list in pbtxt form: ``item { name: "stand" id: 12 }`` (``label_id:`` works too).

    Returns:
        Class id -> name, in the file's order. Only these classes are evaluated (60 of 80 in AVA's own list).

    Raises:
        InputError: the file cannot be read, has no items, an item lacks its name or id, or an id is too large or comes
            twice.
    """
    text = _read_bytes(path).decode(errors="replace")
    classes: dict[int, str] = {}
    for item in re.finditer(r"item\s*\{(.*?)\}", text, flags=re.DOTALL):
        line = text.count("\n", 0, item.start()) + 1
        name = re.search(r"""\bname:\s*(["'])(.*?)\1""", item[1])
        class_id = re.search(r"\b(?:label_)?id:\s*(\d+)", item[1])
        if name is None or class_id is None:
            raise InputError(f'{path}:{line}: an item needs a name: "..." and an id: number')
        if int(class_id[1]) > MAX_CLASSES:
            raise InputError(f"{path}:{line}: class id {class_id[1][:30]}: expected at most {MAX_CLASSES}")
        if int(class_id[1]) in classes:
            raise InputError(f"{path}:{line}: class id {class_id[1]} is listed twice")
        if name[2] in classes.values():
            raise InputError(f"{path}:{line}: the class {name[2]!r} is listed twice")
        classes[int(class_id[1])] = name[2]
    if not classes:
        raise InputError(f'{path}: no classes found; expected pbtxt items such as item {{ name: "stand" id: 12 }}')
    return classes


def _read_bytes(path: str | PathLike[str]) -> bytes:
    """The file's bytes with Unix line ends and without a byte order mark."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def find_malformed_rows(path: str | PathLike[str], *, scored: bool) -> list[str]:
    """What is wrong with each row that `read_groundtruth` (or `read_predicted_boxes`, if scored) would not take."""
    try:
        lines = _read_bytes(path).splitlines(keepends=True)
    except InputError as error:
        return [str(error)]
    problems: list[str] = []
    stretches = [(0, len(lines))]  # halved until the malformed rows stand alone
    while stretches:
        first, stop = stretches.pop()
        try:
            _parse_boxes(b"".join(lines[first:stop]), path, first + 1, scored=scored, unlabelled=True)
        except InputError as error:
            if stop - first == 1:
                problems.append(str(error))
            else:
                middle = (first + stop) // 2
                stretches += [(middle, stop), (first, middle)]
    return problems


def _read_boxes(path: str | PathLike[str], *, scored: bool, unlabelled: bool) -> LabelledBoxes:
    return _parse_boxes(_read_bytes(path), path, 1, scored=scored, unlabelled=unlabelled)


def _parse_boxes(
    data: bytes, path: str | PathLike[str], first_line: int, *, scored: bool, unlabelled: bool
) -> LabelledBoxes:
    data = data.replace(b'"', b"")
    if not data.endswith(b"\n"):
        data += b"\n"
    video_ids: dict[str, int] = {}
    keys, frames, boxes, labels, scores = [], [], [], [], []
    num_keys = 0
    position, line = 0, first_line
    while position < len(data):
        stop = data.find(b"\n", min(position + _BLOCK_BYTES, len(data) - 1)) + 1
        block = _Block(data[position:stop], path, line)
        labelled = block.columns >= 7
        has_score = block.columns == 8
        block_keys, block_frames = block.read_keys(video_ids)
        keys.append(block_keys)
        frames.append(num_keys + block_frames[labelled])
        num_keys += len(block_keys[0])
        boxes.append(np.stack([block.numbers(2 + i, name, labelled) for i, name in enumerate(_COORDINATES)], axis=1))
        labels.append(block.whole_numbers(6, "action_id", labelled, empty=-1.0 if unlabelled else None))
        block_scores = np.full(len(block.columns), 1.0 if scored else 0.0)
        block_scores[has_score] = block.numbers(7, "score", has_score, otherwise=None if scored else 0.0)
        scores.append(block_scores[labelled])
        position, line = stop, line + block.num_lines
    if not frames:
        return LabelledBoxes.from_arrays([], [], [])
    table_keys, number = _in_order_of_appearance(
        FrameKeys(list(video_ids), *(np.concatenate(column) for column in zip(*keys, strict=True)))
    )
    rows = (np.concatenate(column) for column in (boxes, labels, scores))
    return LabelledBoxes(table_keys, number[np.concatenate(frames)], *rows)


class _Block:
    """The rows of some whole lines of a csv file, split into fields; blank lines are not rows.

    A block is small enough for the parser's temporaries to stay in the cache.
    """

    def __init__(self, data: bytes, path: str | PathLike[str], first_line: int) -> None:
        self.buffer = np.frombuffer(data, np.uint8)
        self.path = path
        # The eight bytes that begin at each place.
        self.eight_bytes = sliding_window_view(np.pad(self.buffer, (0, 8)), 8)
        line_ends = np.flatnonzero(self.buffer == _NEWLINE)
        self.num_lines = len(line_ends)
        line_starts = np.concatenate([[0], line_ends[:-1] + 1])
        filled = np.flatnonzero(line_ends > line_starts)
        self.line_numbers = first_line + filled
        self.separators = np.flatnonzero((self.buffer == _COMMA) | (self.buffer == _NEWLINE))
        self.row_starts = line_starts[filled]
        self.first_separator = np.searchsorted(self.separators, self.row_starts)
        self.columns = np.searchsorted(self.separators, line_ends[filled]) - self.first_separator + 1
        wrong = ~np.isin(self.columns, (2, 7, 8))
        if wrong.any():
            row = int(wrong.argmax())
            text = data[self.row_starts[row] : line_ends[filled[row]]].decode(errors="replace")
            raise self.error(
                row,
                "expected 7 or 8 columns (video_id,timestamp,x1,y1,x2,y2,action_id[,score or person_id]) "
                f"or 2 (video_id,timestamp), got {self.columns[row]}: {text[:80]!r}",
            )

    def error(self, row: int, message: str) -> InputError:
        return InputError(f"{self.path}:{self.line_numbers[row]}: {message}")

    def read_keys(
        self, video_ids: dict[str, int]
    ) -> tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]], npt.NDArray[np.int64]]:
        """The key frames, rows of one that follow one another taken together.

        Args:
            video_ids: the number of each video, which gains the new ones.

        Returns:
            Their videos and timestamps; and which of them each row has.
        """
        is_new = self._differs_from_row_above(stop_column=1)
        heads = np.flatnonzero(is_new)
        timestamps = round_timestamps(self.numbers(1, "timestamp", is_new, rule="a number of seconds"))
        new_video = self._differs_from_row_above(stop_column=0)[heads]
        numbers = [self._video_number(row, video_ids) for row in heads[new_video].tolist()]
        videos = np.array(numbers or [0], np.int64)[np.cumsum(new_video) - 1]
        return (videos, timestamps), np.cumsum(is_new) - 1

    def _video_number(self, row: int, video_ids: dict[str, int]) -> int:
        start, stop = self.row_starts[row], self.separators[self.first_separator[row]]
        video_id = self.buffer[start:stop].tobytes().decode(errors="replace").strip()
        if not video_id:
            raise self.error(row, "the video_id is empty")
        return video_ids.setdefault(video_id, len(video_ids))

    def _differs_from_row_above(self, stop_column: int) -> npt.NDArray[np.bool_]:
        """Whether a row is spelled differently from the one above, up to the end of a column; of the first row, yes."""
        stops = self.separators[self.first_separator + stop_column]
        widths = stops - self.row_starts
        differs = np.ones(len(widths), bool)
        differs[1:] = widths[1:] != widths[:-1]
        for position in range(0, int(widths.max(initial=0)), 8):
            words = self.eight_bytes[np.minimum(self.row_starts + position, stops)].view("<u8")[:, 0]
            words &= _LOWEST_BYTES[np.clip(widths - position, 0, 8)]
            differs[1:] |= words[1:] != words[:-1]
        return differs

    def whole_numbers(
        self, column: int, name: str, rows: npt.NDArray[np.bool_], empty: float | None = None
    ) -> npt.NDArray[np.int64]:
        values = self.numbers(column, name, rows, empty=empty)
        fractional = (values != np.floor(values)) | (np.abs(values) >= 2.0**53)
        if fractional.any():
            first = int(fractional.argmax())
            raise self.error(np.flatnonzero(rows)[first], f"{name} must be a whole number, got {values[first]}")
        return values.astype(np.int64)

    def numbers(
        self,
        column: int,
        name: str,
        rows: npt.NDArray[np.bool_],
        otherwise: float | None = None,
        empty: float | None = None,
        rule: str = "a number",
    ) -> npt.NDArray[np.float64]:
        """The column's values in the chosen rows, correctly rounded as ``float()`` does.

        What is not a number is an error, or ``otherwise`` where that is given; an empty field may be ``empty`` instead.

        Plain ``ddd.ddd`` of up to 15 digits is parsed in numpy, digit by digit for all rows at once; whatever else
        there is (signs, exponents, spaces, longer numbers) goes through ``float()``.
        """
        separator = self.first_separator[rows] + column
        starts, stops = self.separators[separator - 1] + 1, self.separators[separator]
        width = stops - starts
        mantissa, digits, decimals, dots = np.zeros((4, len(starts)), np.int64)
        for position in range(min(int(width.max(initial=0)), _EXACT_DIGITS + 1)):
            characters = self.buffer[np.minimum(starts + position, stops)]  # a stop is neither digit nor dot
            digit = characters - np.uint8(_ZERO)  # wraps around below "0": larger than 9, too
            is_digit = digit <= 9
            mantissa = np.where(is_digit, mantissa * 10 + digit, mantissa)
            digits += is_digit
            decimals += is_digit & (dots > 0)
            dots += characters == _DOT
        values = mantissa / 10.0**decimals
        plain = (digits + dots == width) & (digits > 0) & (digits <= _EXACT_DIGITS) & (dots <= 1)
        for i in np.flatnonzero(~plain).tolist():
            text = self.buffer[starts[i] : stops[i]].tobytes().decode(errors="replace")
            if empty is not None and not text.strip():
                values[i] = empty
                continue
            try:
                values[i] = float(text)
            except ValueError:
                values[i] = math.nan
            if math.isfinite(values[i]):
                continue
            if otherwise is None:
                raise self.error(np.flatnonzero(rows)[i], f"{name} must be {rule}, got {text!r}")
            values[i] = otherwise
        return values


def _parse_key(video_id: str, timestamp: str) -> FrameKey:
    if not video_id.strip():
        raise ValueError("the video_id is empty")
    try:
        seconds = float(timestamp)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"timestamp must be a number of seconds, got {timestamp!r}")
    return frame_key(video_id.strip(), seconds)
