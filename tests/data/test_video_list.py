"""Lists of videos and labels, in the forms in which people have them."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slowfast_model.data.video_list import VideoList, _lines, _Part, _plain_part, _row, _rows
from slowfast_model.errors import InputError


def read(tmp_path: Path, text: str) -> list[tuple[str, int]]:
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    videos = VideoList.from_file(path)
    assert videos.folder == tmp_path
    return [(videos.path(row), label) for row, label in enumerate(videos.labels.tolist())]


def test_lists_take_spaces_commas_tabs_quotes_and_blank_lines(tmp_path: Path) -> None:
    text = '\ufeffa.mp4 3\n\nsome folder/b c.mp4 4\r\nd,e.mp4,5\n"f g", 6\nümlaut.mp4\t7\n'
    expected = [("a.mp4", 3), ("some folder/b c.mp4", 4), ("d,e.mp4", 5), ("f g", 6), ("ümlaut.mp4", 7)]
    assert read(tmp_path, text) == expected


def test_what_follows_the_label_is_ignored_where_the_path_has_an_end(tmp_path: Path) -> None:
    text = 'a.mp4 3 10 20\nb c.webm,4,train,0.5\n"no extension" 5 6\nclip 1.5 2/d.3gp 7 8\nfolder/frames 9\nv1.2 10\n'
    expected = [
        ("a.mp4", 3), ("b c.webm", 4), ("no extension", 5), ("clip 1.5 2/d.3gp", 7), ("folder/frames", 9), ("v1.2", 10),
    ]  # fmt: skip
    assert read(tmp_path, text) == expected


def test_plain_lines_are_read_in_blocks_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    separators = " ,\t"
    lines = [f"{k}/clip_{k:0{k % 9}d}.mp4{separators[k % 3]}{k}" for k in range(300)]
    lines[77], lines[150], lines[151] = "with space/b.mp4 7", '"quoted c.mp4", 8', ""
    expected = [_row(1, line, Path("list.csv")) for line in lines if line]
    for block_bytes in (1, 100, 1000, 1 << 20):
        monkeypatch.setattr("slowfast_model.data.video_list._BLOCK_BYTES", block_bytes)
        assert read(tmp_path, "\n".join(lines)) == expected
        assert read(tmp_path, "\r\n".join(lines) + "\r\n") == expected
        with pytest.raises(InputError, match=r"list\.csv:200: expected 'path label'.* got 'nothing'"):
            read(tmp_path, "\n".join([*lines[:199], "nothing", *lines[200:]]))


@pytest.mark.parametrize("separator", [",", "\t", " "])
def test_a_header_names_the_columns(tmp_path: Path, separator: str) -> None:
    rows = ["split Label VIDEO_PATH", "train 3 a.mp4", 'val 12 "b.mp4"', "", "val 0 folder"]
    text = "\n".join(row.replace(" ", separator) for row in rows)
    assert read(tmp_path, text) == [("a.mp4", 3), ("b.mp4", 12), ("folder", 0)]


def test_a_header_lets_paths_and_other_columns_hold_anything(tmp_path: Path) -> None:
    assert read(tmp_path, 'path,label,note\n"a, b.mp4",1,"x, 2"\nc d.mp4,2,\n') == [("a, b.mp4", 1), ("c d.mp4", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 1\nb.mp4\n", r"list\.csv:2: expected 'path label' .* got 'b\.mp4'"),
        ("a.mp4 1\nb.mp4 -1\n", r"list\.csv:2: "),
        ("a.mp4 one\n", r"list\.csv:1: .* got 'a\.mp4 one'"),
        ("12\n", r"list\.csv:1: "),
        ("a.mp4 100000\n", r"list\.csv:1: expected a label below 100000, got 100000"),
        (f"a.mp4 {'9' * 5000}\n", r"list\.csv:1: expected a label below 100000, got 9{80}$"),
        ("path,label\na.mp4,99999999999999999999\n", r"list\.csv:2: expected a label below 100000"),
        ('path,label\n"a.mp4,1\n', r"list\.csv:2: unexpected end of data: "),
        ("path,label\n,1\n", r"list\.csv:2: expected a path"),
        (f"path,label\n{'x' * 200000},1\n", r"list\.csv:2: field larger than field limit"),
        ("\n \n", r"list\.csv: the list is empty"),
        ("path,label\n", r"list\.csv: the list is empty"),
        (
            "path,label\na.mp4,1\n\nb.mp4\n",
            r"list\.csv:4: expected a path, and a number .* in column 'label', got 'b",
        ),
        ("path,label\na.mp4,x\n", r"list\.csv:2: "),
    ],
)
def test_malformed_lists_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        VideoList.from_file(tmp_path / "list.csv")


@given(
    name=st.text(string.ascii_letters + string.digits + " ,._-/äß", min_size=1).map(lambda name: f"x{name}x.mp4"),
    label=st.integers(0, 10**5 - 1),
    separator=st.sampled_from([" ", ",", ", ", "\t"]),
)
def test_any_quoted_path_is_read_back(name: str, label: int, separator: str) -> None:
    assert _row(1, f'"{name}"{separator}{label}', Path("list.csv")) == (name, label)


@given(
    name=st.text(string.ascii_letters + " ,_-/äß", min_size=1).map(lambda name: f"x{name}x.mp4"),
    label=st.integers(0, 10**5 - 1),
    separator=st.sampled_from([" ", ",", ", ", "\t"]),
)
def test_any_path_with_one_extension_is_read_back(name: str, label: int, separator: str) -> None:
    assert _row(1, f"{name}{separator}{label}", Path("list.csv")) == (name, label)


PIECES = [
    "a", "b c", ".mp4", ".3gp", ".5", ".é", " 7", ", 12", "\t0100000", "  ", ",", "٥", " 1:", " ٥", '"', "\xa0", "\x1c",
]  # fmt: skip
LINES = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@settings(max_examples=600)
@given(st.lists(st.one_of(LINES.map("x{}.mp4 3".format), LINES.map("{} 4".format), LINES), min_size=1, max_size=2))
def test_a_block_of_lines_is_read_as_its_lines_are(lines: list[str]) -> None:
    block = "".join(f"{line}\n" for line in lines).encode()
    part = _plain_part(block)
    if part is not None:
        rows = _rows(_lines(block), Path("list.csv"), first_number=2)
        expected = _Part.of((name.encode(), label) for name, label in rows)
        assert part.names == expected.names
        assert part.lengths.tolist() == expected.lengths.tolist()
        assert part.labels.tolist() == expected.labels.tolist()


@pytest.mark.parametrize(
    "line", ["a.mp4 1", "/data/riding a bike/v_1.5.mp4, 12", "a,b\t99999", "frames/naïve 0007", "x/3 b.mp4 \t 7"]
)
def test_what_ordinary_lists_hold_is_read_in_blocks(line: str) -> None:
    part = _plain_part(f"{line}\n".encode())
    assert part is not None
    assert (part.names.decode(), part.labels[0]) == _row(1, line, Path("list.csv"))


def test_a_large_list_takes_little_memory(tmp_path: Path) -> None:
    count = 100_000
    path = tmp_path / "list.csv"
    path.write_text("".join(f"videos/class_{n % 400}/video_{n:06d}.mp4 {n % 400}\n" for n in range(count)))
    videos = VideoList.from_file(path)
    assert videos.path(77_777) == "videos/class_177/video_077777.mp4"
    assert videos.labels[77_777] == 177
    assert len(videos._names) + videos._offsets.nbytes + videos.labels.nbytes < 100 * count
