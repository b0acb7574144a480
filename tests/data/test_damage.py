"""Damaged data sets under `train`, `test` and `doctor`: a clear line and status 2, or a counted replacement.

The rows and files that a user may have got wrong, on small data sets, with the commands' own entry points.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from slowfast_model import doctor, train
from slowfast_model import test as testing
from slowfast_model.commands import run_command
from slowfast_model.models import build_model, get_preset
from slowfast_model.training.weights import ModelDescription, save_weights
from tests.data.conftest import write_numbered_video

ACTIONS = 'item {\n  name: "stand"\n  id: 1\n}\nitem {\n  name: "walk"\n  id: 2\n}\n'
COMMANDS: dict[str, Callable[[], object]] = {
    "train": train.main,
    "test": lambda: testing.test(testing.parse(sys.argv[1:])),
    "doctor": doctor.main,
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_numbered_video(tmp_path_factory.mktemp("video") / "a.mp4", 60).read_bytes()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, video: bytes) -> Path:
    """A healthy data set of each kind and weights for it."""
    folder = tmp_path_factory.mktemp("healthy")
    names = [f"v{k:02d}" for k in range(12)]
    for kind in ("ava", "kinetics"):
        (folder / kind / "videos").mkdir(parents=True)
        for name in names:
            (folder / kind / "videos" / f"{name}.mp4").write_bytes(video)
    train, val = names[:10], names[10:]
    lists = {"train.csv": train, "val.csv": val}
    for name, videos in lists.items():
        (folder / "kinetics" / name).write_text("".join(f"videos/{v}.mp4 {k % 2}\n" for k, v in enumerate(videos)))
    (folder / "ava" / "annotations").mkdir()
    for name, videos in {"ava_train_v2.2.csv": train, "ava_val_v2.2.csv": val}.items():
        rows = "".join(f"{v},1,0.1,0.2,0.5,0.8,{1 + k % 2},0\n" for k, v in enumerate(videos))
        (folder / "ava" / "annotations" / name).write_text(rows)
    (folder / "ava" / "annotations" / "ava_action_list_v2.2.pbtxt").write_text(ACTIONS)
    config = get_preset("slowfast_tiny")
    for kind, head in (("ava", "detection"), ("kinetics", "classification")):
        model = build_model(config, num_classes=2, head=head)
        save_weights(folder / f"{kind}.safetensors", model, ModelDescription(config, head, 2, {}))
    return folder


@pytest.fixture
def root(sources: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy that the test may damage, of the kind that it is parametrised with."""
    return Path(shutil.copytree(sources / request.param, tmp_path / request.param, copy_function=os.link))


both = pytest.mark.parametrize("root", ["ava", "kinetics"], indirect=True)
ava = pytest.mark.parametrize("root", ["ava"], indirect=True)
kinetics = pytest.mark.parametrize("root", ["kinetics"], indirect=True)


def run(command: str, root: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a command. Whatever is not meant for the user is raised."""
    kind = root.name
    arguments = ["--dataset", kind, "--data-root", str(root), "--output-dir", str(root.parent / command)]
    if command == "doctor":
        arguments += ["--model", "slowfast_tiny", "--num-workers", "1"]
    else:
        arguments += ["--accelerator", "cpu", "--num-workers", "0", "--batch-size", "4"]
    if command == "train":
        arguments += ["--model", "slowfast_tiny", "--max-epochs", "1", "--precise-bn-batches", "0"]
    if command == "test":
        arguments += ["--weights", str(sources / f"{kind}.safetensors")]
        arguments += ["--num-temporal-views", "1", "--num-spatial-crops", "1"] if kind == "kinetics" else []
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *arguments])
        try:
            run_command(COMMANDS[command])
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
    output = capsys.readouterr()
    return status, output.out, output.err


def rewrite(path: Path, data: bytes | str) -> None:
    path.unlink()  # the other copies share it
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def damage_videos(folder: Path, names: list[str], data: bytes) -> dict[str, str]:
    """Spoils the videos, each in another way; returns what the report says of each."""
    kinds: list[tuple[str, Callable[[Path], object], str]] = [
        ("truncated", lambda p: rewrite(p, data[: len(data) // 3]), "cannot be opened as a video"),
        ("zero bytes", lambda p: rewrite(p, b""), "the file is empty"),
        ("zeros", lambda p: rewrite(p, bytes(len(data))), "cannot be opened as a video"),
        ("text", lambda p: rewrite(p, "no video\n" * 50), "cannot be opened as a video"),
        ("missing", lambda p: p.unlink(), "no "),
        (
            "directory",
            lambda p: (p.unlink(), p.mkdir()),
            "the folder has no" if folder.parent.name == "kinetics" else "no ",
        ),
    ]
    for name, (_, spoil, _) in zip(names, kinds, strict=False):
        spoil(folder / f"{name}.mp4")
    return {name: reason for name, (_, _, reason) in zip(names, kinds, strict=False)}


@both
def test_damaged_videos_are_replaced_counted_and_listed(
    root: Path, sources: Path, video: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six of ten training videos and one of two validation videos are damaged: a training goes on to its end."""
    reasons = damage_videos(root / "videos", [f"v{k:02d}" for k in range(6)], video)
    reasons |= damage_videos(root / "videos", ["v10"], video)
    (root / "videos" / "v06.mp4").rename(root / "videos" / "v06.avi")  # found all the same in AVA's layout
    if root.name == "kinetics":
        rewrite(root / "train.csv", (root / "train.csv").read_text().replace("v06.mp4", "v06.avi"))
    status, output, errors = run("train", root, sources, capsys)
    assert (status, errors) == (0, "")
    listed = {Path(row["path"]).stem: row for row in rows_of(root.parent / "train" / "bad_videos.csv")}
    assert set(listed) <= set(reasons)
    assert {"v10"} < set(listed)
    assert all(row["reason"].startswith(reasons[name]) and int(row["clips"]) >= 1 for name, row in listed.items())
    assert f"warning: {len(listed)} videos could not be read" in " ".join(output.split())

    status, _, errors = run("test", root, sources, capsys)
    assert (status, errors) == (0, "")
    assert [Path(row["path"]).stem for row in rows_of(root.parent / "test" / "bad_videos.csv")] == ["v10"]

    status, output, _ = run("doctor", root, sources, capsys)
    assert status == 1
    assert "6 train videos of 10 are missing or cannot be read, more than data.max_bad_share=0.25 allows" in output
    assert "1 val videos of 2 are missing or cannot be read" in output


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@both
def test_an_evaluation_without_a_readable_video_ends_with_a_message(
    root: Path, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("v10.mp4", "v11.mp4"):
        (root / "videos" / name).unlink()
    if root.name == "ava":  # which notices where none is there at all
        (root / "videos" / "v10.mp4").write_bytes(b"")
    status, _, errors = run("test", root, sources, capsys)
    assert status == 2
    bad_videos = root.parent / "test" / "bad_videos.csv"
    assert errors.startswith(f"error: no video can be read: all are in {bad_videos}, the last is ")
    assert errors.count("\n") == 1
    rows = rows_of(bad_videos)
    assert [Path(row["path"]).stem for row in rows] == ["v10", "v11"]
    assert all(Path(row["path"]).parent == root / "videos" for row in rows)  # not in one of the other possible places


@both
def test_a_training_without_a_readable_video_ends_with_a_message(
    root: Path, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (root / "videos").iterdir():
        rewrite(path, b"")
    status, _, errors = run("train", root, sources, capsys)
    assert status == 2
    assert errors.startswith("error: no video can be read: ")
    assert errors.count("\n") == 1
    shutil.rmtree(root / "videos")
    assert run("train", root, sources, capsys)[0] == 2


def insert_second_row(path: Path, row: str) -> None:
    first, *others = path.read_text().splitlines()
    rewrite(path, "\n".join([first, row, *others]))


def refuses(root: Path, sources: Path, capsys: pytest.CaptureFixture[str], expected: str) -> None:
    """`train` says what is wrong in a line that holds the text, and the doctor finds it, too."""
    status, _, errors = run("train", root, sources, capsys)
    assert status == 2, errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert expected in errors
    status, output, errors = run("doctor", root, sources, capsys)
    assert status in (1, 2)
    assert expected in (output if status == 1 else errors)


AVA_ROWS = {
    "v00,1,0.1,0.2": ":2: expected 7 or 8 columns",
    "v00,1,0.1,0.2,0.3,0.4,1,0,9": ":2: expected 7 or 8 columns",
    "v00,1,left,0.2,0.3,0.4,1,0": ":2: x1 must be a number, got 'left'",
    "v00,1,nan,0.2,0.3,0.4,1,0": ":2: x1 must be a number, got 'nan'",
    "v00,1,0.1,0.2,inf,0.4,1,0": ":2: x2 must be a number, got 'inf'",
    f"v00,1,0.1,0.2,1{'0' * 400},0.4,1,0": ":2: x2 must be a number",
    "v00,1,0.1,0.2,0.3,0.4,-5,0": ":2: action_id must be 1 or more",
    "v00,1,0.1,0.2,0.3,0.4,0,0": ":2: action_id must be 1 or more",
    "v00,1,0.1,0.2,0.3,0.4,1.5,0": ":2: action_id must be a whole number",
    "v00,1,0.1,0.2,0.3,0.4,999999999999,0": ":2: action_id must be at most 100000",
    "v00,1,0.1,0.2,0.3,0.4,1e300,0": ":2: action_id must be a whole number",
    ",1,0.1,0.2,0.3,0.4,1,0": ":2: the video_id is empty",
    "v00,1,0.5,0.2,0.3,0.4,1,0": ":2: the box must have x1 <= x2",
    "v00,1,0.5,0.2,1.7,0.4,1,0": ":2: the box must be in fractions",
    "v00,1,50,20,170,140,1,0": ":2: the box must be in fractions",
    "v00,one,0.1,0.2,0.3,0.4,1,0": ":2: timestamp must be a number of seconds, got 'one'",
    "v00\t1\t0.1\t0.2\t0.3\t0.4\t1\t0": ":2: expected 7 or 8 columns",
    "v00,1,0.1\0,0.2,0.3,0.4,1,0": ":2: x1 must be a number",
    "video_id,timestamp,x1,y1,x2,y2,action_id,person_id": ":2: timestamp must be a number of seconds",
    ",,,,,,,": ":2: ",
    "x" * 100_000: ":2: expected 7 or 8 columns",
}


@ava
@pytest.mark.parametrize("row", AVA_ROWS, ids=lambda row: row[:40])
def test_rows_of_ava_that_cannot_be_meant(
    root: Path, sources: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    insert_second_row(root / "annotations" / "ava_train_v2.2.csv", row)
    refuses(root, sources, capsys, AVA_ROWS[row])


HARMLESS_AVA_ROWS = {
    "v00,5000,0.1,0.2,0.3,0.4,1,0": "key frames of train lie outside their videos",
    "v00,-3,0.1,0.2,0.3,0.4,1,0": "key frames of train lie outside their videos",
    "v00,1e300,0.1,0.2,0.3,0.4,1,0": "key frames of train lie outside their videos",
    "v00,1,0.1,0.2,0.3,0.4,9,0": "class ids of train are not in the action list",
    "v00,1,-0.05,0.2,1.05,0.4,1,0": "reach out of the frame",
    "v00,1,0.3,0.2,0.3,0.4,1,0": "have no area",
    "v00,1,0.3,0.2,0.5,0.4,,0": "boxes of train have no label",
    "gone,1,0.1,0.2,0.3,0.4,1,0": "train videos of 11 are missing",
    "caf\udce9,1,0.1,0.2,0.3,0.4,1,0": "train videos of 11 are missing",
    '"v00,1,0.1,0.2,0.3,0.4,1,0': "",  # quotes have no meaning
}


@ava
def test_rows_of_ava_that_a_training_survives(root: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "annotations" / "ava_train_v2.2.csv"
    rows = "\ufeff" + path.read_text() + "\r\n".join([*HARMLESS_AVA_ROWS, "", "   "]) + "\r\n"
    rewrite(path, rows.replace("   \r\n", "").encode(errors="surrogateescape"))
    status, output, _ = run("doctor", root, sources, capsys)
    assert status == 0, output
    for message in set(HARMLESS_AVA_ROWS.values()) - {"", "train videos of 11 are missing"}:
        assert message in output, message
    assert "2 train videos of 12 are missing" in output
    status, _, errors = run("train", root, sources, capsys)
    assert (status, errors) == (0, "")


ACTION_LISTS = {
    "": "no classes found",
    '{"a": 1}': "no classes found",
    'item { name: "stand" }': ":1: an item needs a name",
    'item { name: "stand" id: one }': ":1: an item needs a name",
    'item { name: "a" id: 1 }\nitem { name: "b" id: 1 }': ":2: class id 1 is listed twice",
    'item { name: "a" id: 1 }\nitem { name: "a" id: 2 }': ":2: the class 'a' is listed twice",
    'item { name: "a" id: 0 }': "class ids must be 1 or more, got 0",
    'item { name: "a" id: 99999999999999999999 }': ":1: class id 99999999999999999999: expected at most 100000",
    'item { name: "a" id: 1': "no classes found",
}


@ava
@pytest.mark.parametrize("text", ACTION_LISTS, ids=lambda text: text[:40])
def test_action_lists_that_cannot_be_read(
    root: Path, sources: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    rewrite(root / "annotations" / "ava_action_list_v2.2.pbtxt", text)
    refuses(root, sources, capsys, ACTION_LISTS[text])


LIST_ROWS = {
    "videos/v00.mp4": ":2: expected 'path label'",
    "3": ":2: expected 'path label'",
    "videos/v00.mp4 eating": ":2: expected 'path label'",
    "videos/v00.mp4 -3": ":2: expected 'path label'",
    "videos/v00.mp4 1.5": ":2: expected 'path label'",
    "videos/v00.mp4 nan": ":2: expected 'path label'",
    "videos/v00.mp4 ²": ":2: expected 'path label'",
    "videos/v00.mp4 99999999999999999999": ":2: expected a label below 100000",
    "videos/v00.mp4 999999999": ":2: expected a label below 100000",
    '"" 3': ":2: expected 'path label'",
    ",3": ":2: expected 'path label'",
    "x" * 100_000: ":2: expected 'path label'",
}


@kinetics
@pytest.mark.parametrize("row", LIST_ROWS, ids=lambda row: row[:40])
def test_rows_of_lists_that_cannot_be_meant(
    root: Path, sources: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    insert_second_row(root / "train.csv", row)
    refuses(root, sources, capsys, LIST_ROWS[row])


@kinetics
def test_rows_of_lists_that_a_training_survives(root: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(root / "videos" / "pipe.mp4")  # opening it would wait for ever
    bad = [
        "gone.mp4 0", "videos 1", "/dev/null 0", "videos/pipe.mp4 1", "nul\0.mp4 0", "caf\udce9.mp4 1", '"open.mp4 0',
        f"{'long' * 200}.mp4 1",
    ]  # fmt: skip
    good = ["videos/v00.mp4,0", "videos/v01.mp4\t1", "videos/v00.mp4 0", "   \t"]
    text = "\ufeff" + "\r\n".join([*(root / "train.csv").read_text().splitlines(), *bad, *good])
    rewrite(root / "train.csv", text.encode(errors="surrogateescape"))
    status, output, _ = run("doctor", root, sources, capsys)
    assert status == 1
    assert f"{len(bad)} train videos of 18 are missing or cannot be read, more than" in output
    assert "2 videos are more than once in train" in output
    status, _, errors = run("train", root, sources, capsys)
    assert (status, errors) == (0, "")
    reasons = {row["reason"] for row in rows_of(root.parent / "train" / "bad_videos.csv")}
    assert reasons <= {"no such file", "the folder has no numbered images (such as img_000001.jpg)"}


CLASS_NAMES = {
    "": "the file is empty",
    "walk\n": "has label 1, but there are 1 classes",
    "walk\n\nrun\n": ":2: the name is empty",
    "walk\nwalk\n": ":2: the class 'walk' is in line 1 already",
    "\udcff\udcfe\n": "not a text file in UTF-8",
}


@kinetics
@pytest.mark.parametrize("text", CLASS_NAMES)
def test_class_names_that_cannot_be_meant(
    root: Path, sources: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (root / "label_map.txt").write_bytes(text.encode(errors="surrogateescape"))
    refuses(root, sources, capsys, CLASS_NAMES[text])


FILES = {
    "ava": ("annotations/ava_train_v2.2.csv", "annotations/ava_val_v2.2.csv"),
    "kinetics": ("train.csv", "val.csv"),
}


@ava
def test_validation_boxes_without_ground_truth(root: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "annotations" / "ava_val_predicted_boxes.csv").write_text("v10,1,0.1,0.2,0.5,0.8,,0.9\n")
    rewrite(root / "annotations" / "ava_val_v2.2.csv", "v10,1,0.1,0.2,0.5,0.8,7,0\n")
    refuses(root, sources, capsys, "ava_val_v2.2.csv: no box has a class of ava_action_list_v2.2.pbtxt")


@ava
def test_line_ends_of_every_kind(root: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / "annotations").iterdir():
        rewrite(path, path.read_bytes().replace(b"\n", b"\r\n" if "train" in path.name else b"\r"))
    assert run("doctor", root, sources, capsys)[0] == 0


@both
@pytest.mark.parametrize("content", [None, b"", b"\n \n\n", bytes(range(256)) * 9, "directory"], ids=repr)
def test_annotation_files_that_are_none(
    root: Path, sources: Path, capsys: pytest.CaptureFixture[str], content: bytes | str | None
) -> None:
    for name in FILES[root.name]:
        path = root / name
        before = path.read_bytes()
        path.unlink()
        if content == "directory":
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)  # type: ignore[arg-type]
        refuses(root, sources, capsys, path.stem.removesuffix("_v2.2") if content is None else path.name)
        if path.is_dir():
            path.rmdir()
        path.write_bytes(before)


@both
def test_a_root_that_is_not_there(root: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root)
    refuses(root, sources, capsys, "No such file or directory")


@both
def test_output_folders_that_cannot_be_made(root: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root.parent / "file").touch()
    for command in COMMANDS:
        (root.parent / command).symlink_to(root.parent / "file" / "folder")
        status, _, errors = run(command, root, sources, capsys)
        assert status == 2
        assert errors.startswith(f"error: output_dir is {root.parent / command}")
        assert ", which cannot be made: " in errors
        assert errors.count("\n") == 1


@both
def test_files_that_may_not_be_read(
    root: Path, sources: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an ordinary user sees them: the superuser, who may run the tests, may read everything."""
    forbidden = {Path(FILES[root.name][1]).name}
    plain_open, plain_read = av.open, Path.read_bytes

    def refuse(path: object) -> None:
        if Path(str(path)).name in forbidden:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(av, "open", lambda path, *a, **k: refuse(path) or plain_open(path, *a, **k))
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path) or plain_read(path))
    refuses(root, sources, capsys, "Permission denied")
    forbidden = {"v10.mp4"}
    status, _, errors = run("test", root, sources, capsys)
    assert (status, errors) == (0, "")
    (row,) = rows_of(root.parent / "test" / "bad_videos.csv")
    assert row["reason"] == "cannot be opened as a video: Permission denied"
