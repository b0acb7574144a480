"""Lists of videos with one action each: ``path label`` files as they are found in the wild, and a folder per class."""

from __future__ import annotations

import csv
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slowfast_model.errors import MAX_CLASSES, InputError

VIDEO_SUFFIXES = frozenset((
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
))  # fmt: skip
"""What counts as a video in a class's folder, in lower case; lists may name any file."""

PATH_COLUMNS = ("path", "video_path", "video", "file", "filename", "file_name", "name")
LABEL_COLUMNS = ("label", "label_id", "class", "class_id", "class_index", "category", "category_id")
"""Names by which a header may call the two columns, in lower case."""

# A quoted path, or one that ends in an extension; then the label; what follows is not ours. (The first alternative only
# saves time: most paths contain no separator.)
_EXTENSION = r"\.(?:[A-Za-z]\w{1,3}|3gp)"
_PATH_FIRST = re.compile(rf'(?:"([^"]+)"|([^ ,\t"]+{_EXTENSION}|.+?{_EXTENSION}))[ ,\t]+([0-9]+)(?:[ ,\t].*)?')
# A path that may end in anything: the label is the last word.
_LABEL_LAST = re.compile(r"(.+?)[ ,\t]+([0-9]+)")

# To read a block of lines at once. Where nothing follows a label, it is the last word of its line in any case.
_BLOCK_BYTES = 1 << 20
_LABEL_AMID = re.compile(rb"\.[A-Za-z3][^ ,\t\n]+[ ,\t]+[0-9]+[ ,\t]")
_IS_SEPARATOR = np.isin(np.arange(256), list(b" ,\t"))
_IS_PLAIN = np.isin(np.arange(256), [*b"\t\n", *range(0x20, 0x100)]) & (np.arange(256) != ord('"'))
_CAN_BEGIN = ~_IS_SEPARATOR & (np.arange(256) < 0x80)  # of the others, some are Unicode's spaces


class VideoList:
    """Paths and labels, in flat memory: half a million rows cost no Python objects.

    Args:
        rows: (path, label) of each video.
        folder: what the paths are relative to, besides the root of the data set.
    """

    def __init__(self, rows: Iterable[tuple[str, int]], folder: Path) -> None:
        self._fill([_Part.of((os.fsencode(name), label) for name, label in rows)], folder)

    def _fill(self, parts: Sequence[_Part], folder: Path) -> None:
        self.folder = folder
        self.labels: npt.NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)])
        self._names = b"".join(part.names for part in parts)
        self._offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *(part.lengths for part in parts)]))

    @classmethod
    def from_file(cls, path: Path) -> VideoList:
        """Reads a text file with a video a line: its path, then its label, a number of 0 or more.

        Spaces, commas or tabs separate the two. A path may contain them if it is quoted or ends in an extension of two
        to four letters; what follows the label is ignored then. Of a path without an extension the label is the last
        word of the line. Blank lines are skipped. A first line with the names of columns (see `PATH_COLUMNS`,
        `LABEL_COLUMNS`) makes the file an ordinary csv file, with any other columns.

        Raises:
            InputError: the file cannot be read, is empty, or has a malformed row; file and line are named.
        """
        videos = cls.__new__(cls)
        videos._fill(list(_parts(_read(path), path)), path.parent)
        if not len(videos):
            raise InputError(f"{path}: the list is empty")
        return videos

    @classmethod
    def from_folders(cls, path: Path, class_names: list[str]) -> VideoList:
        """Takes the videos in ``path/<class name>/``, at any depth, whose labels are the positions of the names.

        Raises:
            InputError: the folder has one that is no class, or no video at all.
        """
        labels = {name: label for label, name in enumerate(class_names)}
        for folder in class_folders(path):
            if folder not in labels:
                raise InputError(f"{path / folder}: no class has the name of this folder")
        rows = (
            (file.relative_to(path).as_posix(), label)
            for name, label in labels.items()
            for file in sorted((path / name).rglob("*"))
            if file.suffix.lower() in VIDEO_SUFFIXES
        )
        videos = cls(rows, path)
        if not len(videos):
            raise InputError(f"{path}: no folder in it has a video (a file in {', '.join(sorted(VIDEO_SUFFIXES))})")
        return videos

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, row: int) -> str:
        """The path in a row, as it is written there."""
        return os.fsdecode(self._names[self._offsets[row] : self._offsets[row + 1]])


def class_folders(path: Path) -> list[str]:
    """The names of the folders in a folder, in alphabetical order; hidden ones do not count."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def find_malformed_rows(path: Path) -> list[str]:
    """What is wrong with each row of a list that cannot be read, file and line named."""
    problems: list[str] = []
    try:
        lines = _lines(_read(path))
    except InputError as error:
        return [str(error)]
    for _ in _rows(lines, path, on_error=lambda error: problems.append(str(error))):
        pass
    return problems


@dataclass(frozen=True)
class _Part:
    """Rows that follow one another: their paths as one text, the length of each, and their labels."""

    names: bytes
    lengths: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[tuple[bytes, int]]) -> _Part:
        names, lengths, labels = bytearray(), array("q"), array("q")
        for name, label in rows:
            names += name
            lengths.append(len(name))
            labels.append(label)
        return cls(bytes(names), np.array(lengths, np.int64), np.array(labels, np.int64))


def _read(path: Path) -> bytes:
    """The file with Unix line ends, the last one included, and without a byte order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data if data.endswith(b"\n") else data + b"\n"


def _lines(data: bytes) -> Iterable[str]:
    return data.decode("utf-8", "surrogateescape").split("\n")


def _parts(data: bytes, path: Path) -> Iterator[_Part]:
    """The rows of a file, a block of lines at a time: at once where all are plain, else one by one."""
    first_line = data.lstrip()[: 1 << 16].split(b"\n", 1)[0]
    if _Header.read(os.fsdecode(first_line).strip()):
        yield _Part.of((os.fsencode(name), label) for name, label in _rows(_lines(data), path))
        return
    position, number = 0, 1
    while position < len(data):
        stop = data.index(b"\n", min(position + _BLOCK_BYTES, len(data) - 1)) + 1
        block, position = data[position:stop], stop
        part = _plain_part(block)
        yield part or _Part.of((os.fsencode(name), label) for name, label in _rows(_lines(block), path, number))
        number += block.count(b"\n")


def _plain_part(block: bytes) -> _Part | None:
    """The rows of some lines, if each is a path, separators and a label, and there is no doubt which is which."""
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    separators = np.flatnonzero(_IS_SEPARATOR[text])
    if not (_IS_PLAIN[text].all() and _CAN_BEGIN[text[starts]].all()) or not len(separators):
        return None
    # The last separator of each line; of one without any, in another line, with a line end among the "digits".
    stops = separators[np.searchsorted(separators, ends) - 1]
    digits = ends - stops - 1
    if not ((digits > 0) & (digits <= len(str(MAX_CLASSES - 1)))).all():
        return None
    labels = np.zeros(len(ends), np.int64)
    for k in range(int(digits.max())):
        digit = text[np.minimum(stops + 1 + k, ends)].astype(np.int64) - ord("0")
        is_there = k < digits
        if (is_there & ((digit < 0) | (digit > 9))).any():
            return None
        labels = np.where(is_there, 10 * labels + digit, labels)
    if _LABEL_AMID.search(block):
        return None
    while (more := _IS_SEPARATOR[text[stops - 1]]).any():
        stops = stops - more
    borders = np.zeros(len(text), np.int8)
    borders[starts], borders[stops] = 1, -1
    return _Part(text[np.cumsum(borders, dtype=np.int8).view(bool)].tobytes(), stops - starts, labels)


def _raise(error: InputError) -> None:
    raise error


def _rows(
    lines: Iterable[str], path: Path, first_number: int = 1, on_error: Callable[[InputError], None] = _raise
) -> Iterator[tuple[str, int]]:
    parse: Callable[[int, str, Path], tuple[str, int]] | None = None if first_number == 1 else _row
    for number, line in enumerate(lines, start=first_number):
        line = line.strip()
        if not line:
            continue
        if parse is None:
            header = _Header.read(line)
            parse = header.row if header else _row
            if header:
                continue
        try:
            yield parse(number, line, path)
        except InputError as error:
            on_error(error)


def _row(number: int, line: str, path: Path) -> tuple[str, int]:
    match = _PATH_FIRST.fullmatch(line)
    if match:
        name, label = match[1] or match[2], match[3]
    elif match := _LABEL_LAST.fullmatch(line):
        name, label = match[1], match[2]
    if not match or not name.strip('"'):
        raise InputError(f"{path}:{number}: expected 'path label' with a label of 0 or more, got {line[:80]!r}")
    return name, _label(label, number, path)


def _label(text: str, number: int, path: Path) -> int:
    if len(text) > len(str(MAX_CLASSES)) or int(text) >= MAX_CLASSES:
        raise InputError(f"{path}:{number}: expected a label below {MAX_CLASSES}, got {text[:80]}")
    return int(text)


@dataclass
class _Header:
    """Where the two columns of a csv file are."""

    separator: str
    path: int
    label: int
    label_name: str

    @classmethod
    def read(cls, line: str) -> _Header | None:
        """None: the line is no header."""
        separator = next((separator for separator in ",\t" if separator in line), " ")
        columns = [name.strip().lower() for name in line.split(separator)]
        path = next((name for name in PATH_COLUMNS if name in columns), None)
        label = next((name for name in LABEL_COLUMNS if name in columns), None)
        if path is None or label is None:
            return None
        return cls(separator, columns.index(path), columns.index(label), label)

    def row(self, number: int, line: str, path: Path) -> tuple[str, int]:
        try:
            fields = [field.strip() for field in next(csv.reader([line], delimiter=self.separator, strict=True))]
        except csv.Error as error:
            raise InputError(f"{path}:{number}: {error}: {line[:80]!r}") from None
        is_row = len(fields) > max(self.path, self.label) and fields[self.path] and fields[self.label].isdecimal()
        if not is_row:
            expected = f"a path, and a number of 0 or more in column {self.label_name!r}"
            raise InputError(f"{path}:{number}: expected {expected}, got {line[:80]!r}")
        return fields[self.path], _label(fields[self.label], number, path)
