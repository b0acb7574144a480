"""The README's Python examples run as they stand; its commands, files and options, and those of docs/, exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
import torch

from slowfast_model import list_presets
from slowfast_model.complexity import ComplexityConfig
from slowfast_model.convert import ConvertConfig
from slowfast_model.doctor import DoctorConfig
from slowfast_model.test import TestConfig
from slowfast_model.training.config import DATA_CONFIGS, TrainConfig

COMMANDS = (TrainConfig, TestConfig, DoctorConfig, ConvertConfig, ComplexityConfig)
ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.split("import ")[1].split("\n")[0])
def test_example_runs_and_gives_the_stated_shapes(block):
    names = {"torch": torch}
    if "build_model(" in block:
        names |= {"slow": torch.randn(1, 3, 8, 64, 64), "fast": torch.randn(1, 3, 32, 64, 64)}
        names["rois"] = torch.tensor([[0, 4.0, 4.0, 40.0, 60.0]])
    exec(compile(block, "README.md", "exec"), names)
    for name, shape in re.findall(r"^(\w+) = .*# (\[[^\]]*\])$", block, re.MULTILINE):
        assert list(names[name].shape) == eval(shape), name


def test_there_are_examples_of_every_op():
    for op in ("LateralConvConcat", "roi_align_3d_pool", "gather_frames", "temporal_gather"):
        assert any(op in block for block in PYTHON_BLOCKS), op


def test_every_preset_is_listed():
    section = README.split("### The networks")[1].split("\n## ")[0]
    names = re.findall(r"`([a-z0-9_]+_(?:\d+x\d+|tiny))`", section)
    assert sorted(names) == sorted(list_presets())


def test_commands_and_files_exist():
    for module in set(re.findall(r"python -m ([\w.]+)", README)):
        assert importlib.util.find_spec(module) is not None, module
    paths = re.findall(r"(?:csrc|slowfast_ops|slowfast_model|benchmarks|tests)/[\w/]+\.\w+", README)
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


def test_options_exist():
    data = {f"data.{field.name}" for config in DATA_CONFIGS.values() for field in dataclasses.fields(config)}
    fields = {field.name for config in COMMANDS for field in dataclasses.fields(config)}
    others = {"help", "print_config", "benchmark_only"}  # jsonargparse's and pytest-benchmark's
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text()
        options = set(re.findall(r"(?<![-\w])--([a-z][\w.-]*)", text))
        assert options
        assert {option.replace("-", "_") for option in options} <= fields | data | others, path
        assert {f"data.{name}" for name in re.findall(r"`data\.(\w+)`", text)} <= data, path


def test_ci_finds_the_commands():
    for name in ("train", "test"):
        assert re.search(rf"<!-- ci: {name} -->\n```bash\npip install -e .+\n```", README), name
