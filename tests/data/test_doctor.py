"""The doctor: what it finds in healthy and in damaged data sets, and that a second run does not decode again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slowfast_model.data import checks
from slowfast_model.doctor import examine, parse
from slowfast_model.errors import InputError
from tests.data.conftest import write_numbered_video

ACTIONS = 'item { name: "stand" id: 1 }\nitem { name: "walk" id: 2 }\n'


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_numbered_video(path, 60)  # two seconds
    return path


@pytest.fixture
def kinetics(video: Path, tmp_path: Path) -> Path:
    root = tmp_path / "kinetics"
    root.mkdir()
    for name in "abcdef":
        shutil.copy(video, root / f"{name}.mp4")
    (root / "train.csv").write_text("a.mp4 0\nb.mp4 1\nc.mp4 0\nd.mp4 1\n")
    (root / "val.csv").write_text("e.mp4 0\nf.mp4 1\n")
    return root


@pytest.fixture
def ava(video: Path, tmp_path: Path) -> Path:
    root = tmp_path / "ava"
    (root / "annotations").mkdir(parents=True)
    (root / "videos").mkdir()
    for name in "abcd":
        shutil.copy(video, root / "videos" / f"{name}.mp4")
    train = [f"{v},1,0.1,0.1,0.5,0.9,{k},0" for v in "abc" for k in (1, 2)]
    (root / "annotations" / "ava_train_v2.2.csv").write_text("\n".join(train))
    (root / "annotations" / "ava_val_v2.2.csv").write_text("d,0,0.1,0.1,0.5,0.9,1,0\nd,1,0.5,0.1,0.9,0.9,2,0\n")
    (root / "annotations" / "ava_action_list_v2.2.pbtxt").write_text(ACTIONS)
    return root


def run(root: Path, *arguments: str) -> dict[str, Any]:
    common = ["--dataset", root.name, "--data-root", str(root), "--model", "slowfast_tiny", "--num-workers", "1"]
    return examine(parse([*common, "--output-dir", str(root.parent / "doctor"), *arguments]))


def findings(report: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [(finding["level"], finding["check"], finding["count"]) for finding in report["findings"]]


def example(report: dict[str, Any], check: str) -> str:
    return next(f["examples"][0] for f in report["findings"] if f["check"] == check)


def test_healthy_data_sets_have_nothing_wrong(kinetics: Path, ava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root in (kinetics, ava):
        report = run(root)
        assert (report["healthy"], report["findings"]) == (True, [])
        assert json.loads((root.parent / "doctor" / "report.json").read_text()) == report
        assert "nothing is wrong" in capsys.readouterr().out
    assert report["facts"]["train"] == {
        "videos": 3, "readable": 3, "hours": 0.002, "shortest_seconds": 2.0, "longest_seconds": 2.0, "fps": [30.0],
        "smallest_side": report["facts"]["train"]["smallest_side"], "key_frames": 3, "boxes": 3,
    }  # fmt: skip


def test_every_malformed_row_is_listed(kinetics: Path, ava: Path) -> None:
    (kinetics / "train.csv").write_text("a.mp4 0\nb.mp4\nc.mp4 0\nd.mp4 x\n")
    report = run(kinetics)
    assert findings(report) == [("error", "rows", 2)]
    assert report["findings"][0]["examples"][1].startswith(f"{kinetics / 'train.csv'}:4: expected 'path label'")
    annotations = ava / "annotations" / "ava_train_v2.2.csv"
    annotations.write_text(
        "a,1,0.1,0.1,0.5,0.9,1,0\na,1,0.1,0.1\na,one,0.1,0.1,0.5,0.9,1,0\nb,1,0.1,0.1,0.5,0.9,1.5,0\n"
    )
    report = run(ava)
    assert findings(report) == [("error", "rows", 3)]
    assert [text.split(": ")[0] for text in report["findings"][0]["examples"]] == [
        f"{annotations}:{n}" for n in (2, 3, 4)
    ]


def test_videos_that_fail_are_listed_with_their_reasons(kinetics: Path) -> None:
    (kinetics / "a.mp4").write_bytes((kinetics / "a.mp4").read_bytes()[:2000])
    report = run(kinetics, "--data.max_bad_share", "0.3")
    assert findings(report) == [("warning", "videos", 1)]
    assert report["facts"]["train"]["readable"] == 3
    (kinetics / "b.mp4").write_text("this is no video")
    (kinetics / "e.mp4").unlink()
    report = run(kinetics, "--data.max_bad_share", "0.3")
    assert findings(report) == [("error", "videos", 2), ("error", "videos", 1)]
    assert "e.mp4: no such file" in report["findings"][1]["examples"][0]
    assert not report["healthy"]


def test_lists_are_checked_against_each_other(kinetics: Path) -> None:
    (kinetics / "train.csv").write_text("a.mp4 0\nb.mp4 0\nb.mp4 0\ne.mp4 0\n")
    (kinetics / "label_map.txt").write_text("run\nwalk\n")
    report = run(kinetics)
    assert findings(report) == [("warning", "duplicates", 1), ("warning", "classes", 1), ("warning", "duplicates", 1)]
    assert [f["examples"][0].removeprefix(f"{kinetics}/") for f in report["findings"]] == [
        "b.mp4: rows [1, 2]", "1 walk", "e.mp4",
    ]  # fmt: skip
    (kinetics / "label_map.txt").write_text("run\n")
    report = run(kinetics)
    assert findings(report) == [("error", "labels", 1)]
    assert "val.csv: has label 1, but there are 1 classes" in report["findings"][0]["message"]


def test_annotations_are_checked_against_videos_boxes_and_classes(ava: Path) -> None:
    (ava / "videos" / "a.mp4").unlink()
    with (ava / "annotations" / "ava_train_v2.2.csv").open("a") as file:
        file.write(
            "\nb,7,0.1,0.1,0.5,0.9,1,0\nb,0\nc,1,-0.05,0.1,0.5,0.9,1,0\nc,1,0.5,0.1,0.5,0.9,,0\nc,1,0.2,0.1,0.5,0.9,9,0\n"
        )
    report = run(ava, "--data.max_bad_share", "0.9")
    assert sorted(findings(report)) == [
        ("warning", "boxes", 1), ("warning", "boxes", 1), ("warning", "key frames", 1), ("warning", "labels", 1),
        ("warning", "labels", 1), ("warning", "timestamps", 1), ("warning", "videos", 1),
    ]  # fmt: skip
    assert example(report, "timestamps") == "('b', 7.0)"
    assert example(report, "key frames") == "('b', 0.0)"
    with (ava / "annotations" / "ava_train_v2.2.csv").open("a") as file:
        file.write("d,1,0.1,0.1,0.5,0.9,1,0\n")
    (ava / "annotations" / "ava_action_list_v2.2.pbtxt").write_text(f'{ACTIONS}item {{ name: "sit" id: 9 }}')
    report = run(ava, "--data.max_bad_share", "0.9")
    assert example(report, "duplicates") == "d"
    assert example(report, "classes") == "9 sit"  # in val
    with (ava / "annotations" / "ava_train_v2.2.csv").open("a") as file:
        file.write("b,1,10,20,30,40,1,0\n")
    report = run(ava)
    assert not report["healthy"]
    assert any("the box must be in fractions of the frame" in finding["message"] for finding in report["findings"])


def test_the_detector_is_compared_with_the_ground_truth(ava: Path) -> None:
    predicted = ava / "annotations" / "ava_val_predicted_boxes.csv"
    predicted.write_text("d,0,0.1,0.1,0.5,0.8,,0.9\nd,1,0.5,0.1,0.9,0.9,,0.5\n")
    report = run(ava, "--data.score_threshold", "0.4")
    assert report["facts"]["val"]["detector_recall"] == 1
    report = run(ava)
    assert report["facts"]["val"]["detector_recall"] == 0.5
    assert findings(report) == [("warning", "detector", 1)]
    assert example(report, "detector") == "('d', 1.0)"


def test_a_second_run_decodes_only_what_is_new(kinetics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(kinetics)
    record = kinetics.parent / "doctor" / "videos.jsonl"
    lines = record.read_text().splitlines()
    assert len(lines) == 6
    record.write_text("\n".join(lines[:4]) + "\n" + lines[4][:30] + "\n")  # killed while it wrote the fifth
    (kinetics / "c.mp4").write_text("this is no video")
    asked: list[str] = []
    monkeypatch.setattr(
        checks, "as_completed", lambda running: asked.extend(map(str, running.values())) or list(running)
    )
    report = run(kinetics)
    done = {json.loads(line)["path"] for line in lines[:4]}
    expected = {str(kinetics / f"{name}.mp4") for name in "abcdef"} - done | {str(kinetics / "c.mp4")}
    assert set(asked) == expected
    assert findings(report) == [("warning", "videos", 1)]


def test_the_command_exits_with_1_when_a_training_would_break(kinetics: Path) -> None:
    def status(*arguments: str) -> int:
        command = [sys.executable, "-m", "slowfast_model.doctor", "--dataset", "kinetics", *arguments]
        return subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2], check=False).returncode

    output = ["--output-dir", str(kinetics.parent / "out"), "--num-workers", "1"]
    (kinetics / "train.csv").write_text("a.mp4\n")
    assert status("--data-root", str(kinetics), *output) == 1
    assert status("--data-root", str(kinetics), "--model", "nothing", *output) == 2
    with pytest.raises(InputError, match="expected the folder of AVA's annotation files"):
        run(kinetics, "--dataset", "ava")
    with pytest.raises(InputError, match="num_workers is -2: expected 1 or more"):
        run(kinetics, "--dataset", "kinetics", "--num-workers", "-2")
