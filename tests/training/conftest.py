"""Data sets of a few small videos, and the command lines that train on them in a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from slowfast_model.training.config import parse_train_config
from slowfast_model.training.run import train
from tests.data.conftest import write_numbered_video

FAST = ["--model", "slow_tiny", "--batch-size", "2", "--num-workers", "0", "--accelerator", "cpu"]


@pytest.fixture(scope="session")
def ava_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AVA-format data set: 6 key frames to train on, 2 for validation, two of three classes evaluated."""
    root = tmp_path_factory.mktemp("ava")
    (root / "videos").mkdir()
    (root / "annotations").mkdir()
    rows: dict[str, list[str]] = {"train": [], "val": []}
    for split, video in [("train", "a"), ("train", "b"), ("train", "c"), ("val", "d")]:
        write_numbered_video(root / "videos" / f"{video}.mp4", 60)
        for second in (0, 1):
            rows[split] += [f"{video},{second},0.10,0.10,0.50,0.90,{1 + second},0"]
            rows[split] += [f"{video},{second},0.10,0.10,0.50,0.90,3,0", f"{video},{second},0.55,0.2,0.95,0.8,1,1"]
    for split, lines in rows.items():
        (root / "annotations" / f"ava_{split}_v2.2.csv").write_text("\n".join(lines) + "\n")
    (root / "annotations" / "ava_action_list_v2.2.pbtxt").write_text(
        'item { name: "stand" id: 1 }\nitem { name: "walk" id: 2 }\n'
    )
    return root


@pytest.fixture(scope="session")
def kinetics_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Kinetics-format data set: 4 videos to train on, 2 for validation, two classes."""
    root = tmp_path_factory.mktemp("kinetics")
    for number in range(6):
        write_numbered_video(root / f"{number}.mp4", 40)
    (root / "train.csv").write_text("".join(f"{n}.mp4 {n % 2}\n" for n in range(4)))
    (root / "val.csv").write_text("4.mp4 0\n5.mp4 1\n")
    return root


def run_train(*arguments: object) -> dict:
    """Trains as the command does, and returns the figures."""
    return train(parse_train_config("train", "", [*FAST, *map(str, arguments)]))
