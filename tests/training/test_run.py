"""Training from the command line to the run folder: what it leaves, and that an interruption changes nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from slowfast_model.commands import run_command
from slowfast_model.errors import InputError
from slowfast_model.train import main
from slowfast_model.training.callbacks import CheckpointFiles
from slowfast_model.training.weights import load_model
from tests.training.conftest import FAST, run_train

TIMINGS = ("clips_per_second", "seconds")
EVERY_STEP = ("--checkpoint-every-steps", 1, "--log-every-steps", 1)


def process_environment(threads: int) -> dict[str, str]:
    """The environment of a training in a process of its own."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parents[2])}


def metrics_rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]


def assert_same_outcome(run: Path, other: Path) -> None:
    """Figures, rows of metrics and weights are equal, to the bit."""
    figures, other_figures = (json.loads((r / "metrics.json").read_text()) for r in (run, other))
    del figures["train_seconds"], other_figures["train_seconds"]
    assert figures == other_figures
    assert metrics_rows(run) == metrics_rows(other)
    weights, other_weights = (load_file(r / "checkpoints" / "model.safetensors") for r in (run, other))
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights | other_weights)


@pytest.fixture(scope="module")
def unbroken(ava_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    run_train("--dataset", "ava", "--data-root", ava_root, "--max-epochs", 3, *EVERY_STEP, "--output-dir", run)
    return run


def test_a_run_folder_is_complete(unbroken: Path) -> None:
    assert {path.name for path in unbroken.iterdir()} == {
        "config.yaml", "metrics.csv", "metrics.json", "detections.csv", "checkpoints",
        "training_curves.png", "per_class_ap.png", "key_frame.png",
    }  # fmt: skip
    assert {path.name for path in (unbroken / "checkpoints").iterdir()} == {
        "last.ckpt",
        "best.ckpt",
        "model.safetensors",
    }
    figures = json.loads((unbroken / "metrics.json").read_text())
    assert 0 <= figures["frame_map_50"] <= 1
    assert set(figures["per_class_ap"]) == {"stand", "walk"}
    assert (figures["epoch"], figures["step"], figures["bad_videos"]) == (3, 9, 0)
    rows = metrics_rows(unbroken)
    assert [int(row["step"]) for row in rows] == list(range(1, 10))
    evaluated = [row for row in rows if row["frame_map_50"]]
    assert [int(row["step"]) for row in evaluated] == [3, 6, 9]
    assert float(evaluated[-1]["frame_map_50"]) == figures["frame_map_50"]
    config = yaml.safe_load((unbroken / "config.yaml").read_text())
    assert (config["max_epochs"], config["model"], config["lr_policy"]) == (3, "slow_tiny", "step")


def test_best_checkpoint_is_the_first_with_the_highest_figure(unbroken: Path) -> None:
    evaluated = [float(row["frame_map_50"]) for row in metrics_rows(unbroken) if row["frame_map_50"]]
    figures = json.loads((unbroken / "metrics.json").read_text())
    assert figures["best_frame_map_50"] == max(evaluated)
    assert figures["best_epoch"] == 1 + evaluated.index(max(evaluated))
    best = torch.load(unbroken / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 3 * figures["best_epoch"]


def test_the_same_command_gives_the_same_figures_and_the_seed_matters(
    unbroken: Path, ava_root: Path, tmp_path: Path
) -> None:
    arguments = ["--dataset", "ava", "--data-root", ava_root, "--max-epochs", 3, *EVERY_STEP]
    run_train(*arguments, "--output-dir", tmp_path / "again")
    assert_same_outcome(tmp_path / "again", unbroken)
    run_train(*arguments, "--seed", 1, "--max-steps", 1, "--output-dir", tmp_path / "seed")
    assert metrics_rows(tmp_path / "seed")[0]["loss"] != metrics_rows(unbroken)[0]["loss"]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_broke_after_a_checkpoint_ends_the_same(
    unbroken: Path, ava_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    save = CheckpointFiles._save

    def save_and_break(self, trainer, best):
        save(self, trainer, best)
        if trainer.global_step == step:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFiles, "_save", save_and_break)
        with pytest.raises(RuntimeError, match="power cut"):
            run_train(
                "--dataset", "ava", "--data-root", ava_root, "--max-epochs", 3, *EVERY_STEP, "--output-dir", tmp_path
            )
    run_train("--resume", "--output-dir", tmp_path)
    assert_same_outcome(tmp_path, unbroken)


def test_a_killed_run_ends_the_same(kinetics_root: Path, tmp_path: Path) -> None:
    """The process is killed, with a loader that reads ahead in a process of its own, at whatever moment it comes to."""
    arguments = ["--dataset", "kinetics", "--data-root", kinetics_root, "--max-epochs", 4, "--warmup-epochs", 1]
    arguments += ["--precise-bn-batches", 2, "--checkpoint-every-steps", 1, "--log-every-steps", 1]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "slowfast_model.train", *FAST, *map(str, arguments), "--num-workers", "1"]
    # As many threads as here: convolutions sum their gradients in an order that depends on it.
    environment = process_environment(torch.get_num_threads())
    process = subprocess.Popen([*command, "--output-dir", str(killed)], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if (killed / "metrics.csv").exists() and len((killed / "metrics.csv").read_text().splitlines()) > 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait(timeout=10) == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (killed / "metrics.json").exists()

    run_train("--resume", "--output-dir", killed)
    run_train(*arguments, "--output-dir", whole)
    assert_same_outcome(killed, whole)


def test_resuming_a_finished_run_evaluates_it_again(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.json").unlink()
    run_train("--resume", "--output-dir", tmp_path / "copy")
    assert_same_outcome(tmp_path / "copy", unbroken)


def test_resume_keeps_the_settings_of_the_run(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lr is 0\.5: --resume continues .*unbroken.* with its own, 0\.003125"):
        run_train("--resume", "--output-dir", unbroken, "--lr", 0.5)
    with pytest.raises(InputError, match=r"is not a run folder \(config\.yaml is missing\)"):
        run_train("--resume", "--output-dir", tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "another"])
def test_a_damaged_checkpoint_is_not_continued(unbroken: Path, tmp_path: Path, damage: str) -> None:
    run = Path(shutil.copytree(unbroken, tmp_path / "copy"))
    last = run / "checkpoints" / "last.ckpt"
    if damage == "another":
        torch.save({"state_dict": {}}, last)
    else:
        last.write_bytes({"truncated": last.read_bytes()[:20_000], "empty": b"", "text": b"hello\n"}[damage])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=rf"^{last}: (not a readable checkpoint|expected model\.safetensors or)"):
        run_train("--resume", "--output-dir", run, "--max-epochs", 4)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_with_something_in_it_is_left_alone(unbroken: Path, ava_root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")}
    with pytest.raises(InputError, match=r"output_dir is .*unbroken.*, which is not empty"):
        run_train("--dataset", "ava", "--data-root", ava_root, "--output-dir", unbroken)
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")} == before


def test_kinetics_leaves_scores_per_video_and_another_starts_from_its_weights(
    kinetics_root: Path, ava_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    figures = run_train("--dataset", "kinetics", "--data-root", kinetics_root, "--max-epochs", 1, "--output-dir", first)
    assert figures["num_videos"] == 2
    with (first / "video_scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == ["4.mp4", "5.mp4"]
    model, description = load_model(first / "checkpoints" / "best.ckpt")
    assert (description.head, description.num_classes, model.training) == ("classification", 2, False)

    weights = first / "checkpoints" / "model.safetensors"
    run_train(
        "--dataset", "ava", "--data-root", ava_root, "--weights", weights, "--max-steps", 1, "--lr", 0,
        "--output-dir", tmp_path / "second",
    )  # fmt: skip
    assert "; a new head.projection" in capsys.readouterr().out
    started = load_file(weights)
    ended = load_file(tmp_path / "second" / "checkpoints" / "model.safetensors")
    kept = [k for k in started if k.endswith("weight") and not k.startswith("head.")]
    assert kept
    assert all(torch.equal(started[name], ended[name]) for name in kept)


def test_bad_videos_are_replaced_and_listed(kinetics_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for video in kinetics_root.glob("*.mp4"):
        (root / video.name).write_bytes(video.read_bytes())
    (root / "0.mp4").write_text("this is no video")
    (root / "5.mp4").unlink()
    for name in ("train.csv", "val.csv"):
        (root / name).write_text((kinetics_root / name).read_text())
    run = tmp_path / "run"
    figures = run_train("--dataset", "kinetics", "--data-root", root, "--max-epochs", 2, "--output-dir", run)
    assert figures["bad_videos"] == 2
    assert figures["num_videos"] == 1
    with (run / "bad_videos.csv").open() as file:
        listed = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert set(listed) == {"0.mp4", "5.mp4"}
    assert int(listed["0.mp4"]["clips"]) >= 2  # in every epoch
    assert int(listed["5.mp4"]["clips"]) == 2


def test_divergence_is_said(kinetics_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+: the training diverged; try a lower --lr"):
        run_train(
            "--dataset", "kinetics", "--data-root", kinetics_root, "--lr", 1e30, "--warmup-epochs", 0,
            "--precise-bn-batches", 0, "--max-epochs", 4, "--output-dir", tmp_path / "run",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "ava", "--data-root", "missing"], "error: missing/annotations: No such file"),
        (["--dataset", "charades"], "error: dataset: expected 'ava' or 'kinetics', got charades"),
        (["--dataset", "ava", "--learning-rate", "1"], "error: unrecognized arguments: --learning_rate 1"),
        (["--dataset", "ava", "--lr", "fast"], "error: lr: expected float or null, got fast"),
        (["--dataset", "ava", "--batch-size", "0"], "error: batch_size is 0: expected 1 or more"),
        (["--dataset", "ava", "--model", "slowfast_huge"], "error: model is 'slowfast_huge': expected one of"),
        (["--dataset", "ava", "--config", "nowhere.yaml"], "error: config: File does not exist"),
        ([], "error: the following arguments are required: dataset"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("batch_size", [1, 2])  # with 2, no validation batch is left for the second process
def test_two_processes_share_the_work(kinetics_root: Path, tmp_path: Path, batch_size: int) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "slowfast_model.train", "--dataset", "kinetics", "--data-root", str(kinetics_root)]
    command += [*FAST, "--batch-size", str(batch_size), "--devices", "2", "--max-epochs", "1"]
    command += ["--output-dir", str(run)]
    subprocess.run(command, env=process_environment(1), check=True, capture_output=True, timeout=240)
    figures = json.loads((run / "metrics.json").read_text())
    assert (figures["num_videos"], figures["num_views"], figures["step"]) == (2, 2, 2 // batch_size)


def test_too_many_bad_videos_stop_the_run(kinetics_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(kinetics_root, root)
    for name in ("0.mp4", "1.mp4"):
        (root / name).write_text("this is no video")
    arguments = ["--dataset", "kinetics", "--data-root", root, "--max-epochs", 40, "--batch-size", 4]
    message = r"2\d of 5\d clips could not be read, more than data\.max_bad_share=0\.25; all are in .*[01]\.mp4: "
    with pytest.raises(InputError, match=message):
        run_train(*arguments, "--output-dir", tmp_path / "stopped")
    with (tmp_path / "stopped" / "bad_videos.csv").open() as file:
        assert {Path(row["path"]).name for row in csv.DictReader(file)} == {"0.mp4", "1.mp4"}
    with pytest.raises(InputError, match=r"data\.max_bad_share is 1\.5: expected a number from 0 to 1"):
        run_train(*arguments, "--data.max_bad_share", 1.5, "--output-dir", tmp_path / "wrong")
    figures = run_train(*arguments, "--max-steps", 20, "--data.max_bad_share", 1, "--output-dir", tmp_path / "allowed")
    assert figures["bad_videos"] == 2
