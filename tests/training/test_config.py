"""The configuration of a training: spellings, files, errors that name the field, recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from slowfast_model.errors import InputError
from slowfast_model.training.config import TrainConfig, parse_train_config, resolve


def parse(*arguments: str) -> TrainConfig:
    return parse_train_config("train", "", arguments)


def test_hyphens_underscores_and_equals_signs_are_the_same() -> None:
    expected = parse("--dataset", "ava", "--data-root", "x", "--max-epochs", "3", "--data.score-threshold", "0.5")
    assert parse("--dataset=ava", "--data_root=x", "--max_epochs=3", "--data.score_threshold=0.5") == expected
    assert (expected.data_root, expected.max_epochs, expected.data["score_threshold"]) == (Path("x"), 3, 0.5)


def test_file_and_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("dataset: kinetics\nlr: 0.5\ndata_root: clips\ndata:\n  temporal_views: 4\n")
    config = parse("--config", str(path), "--lr", "0.25", "--nesterov", "false")
    assert (config.dataset, config.lr, config.nesterov) == ("kinetics", 0.25, False)
    assert (config.data_root, config.data["temporal_views"]) == (Path("clips"), 4)


def test_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = resolve(parse("--dataset", "ava", "--data-root", "x", "--data.short-side", "[100, 120]"), 1)
    config.save(tmp_path / "config.yaml")
    again = parse("--config", str(tmp_path / "config.yaml"))
    assert again.to_dict() == config.to_dict()
    assert resolve(again, 1).to_dict() == config.to_dict()


def test_print_config_is_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--dataset", "ava", "--seed", "5", "--print_config")
    assert not ended.value.code
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert yaml.safe_load(path.read_text())["data"]["score_threshold"] == 0.8
    assert parse("--config", str(path)).seed == 5


def test_help_shows_hyphens_and_the_fields_of_the_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--dataset", "kinetics", "--help")
    text = capsys.readouterr().out
    assert "--data-root" in text
    assert "--data.temporal-views" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "ava", "--data.temporal-views", "3"], r"unrecognized arguments: --data\.temporal_views 3"),
        (["--dataset", "ava", "--max-epochs", "many"], "max_epochs: expected int or null, got many"),
        (["--dataset", "ava", "--max-epochs", "0"], "max_epochs is 0: expected 1 or more"),
        (["--dataset", "ava", "--seed", "-1"], "seed is -1: expected 0 or more"),
        (["--dataset", "ava", "--seed", str(2**63)], f"seed is {2**63}: expected at most {2**63 - 1}"),
        (["--dataset", "ava", "--optimizer", "adam"], "optimizer: expected 'sgd' or 'adamw' or null, got adam"),
        (["--dataset", "ava", "--data.short-side", "3"], r"short_side: expected tuple\[int, int\] or null, got 3"),
        (["--dataset", "ava", "--lr", "nan"], "lr"),
        (["--dataset", "ava", "--resume", "perhaps"], "perhaps"),
        (["--dataset", "ava", "surplus"], "unrecognized arguments: surplus"),
        (["--dataset"], "expected one argument"),
    ],
)
def test_wrong_fields_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: ava\nlerning_rate: 1\n", "lerning_rate"),
        ("dataset: ava\ndata:\n  score: 1\n", "score"),
        ("dataset: [", "config"),
        ("dataset: ava\nlr: high\n", "lr: expected float or null, got high"),
    ],
)
def test_wrong_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        parse("--config", str(path))
    assert "\n" not in str(error.value)


def test_recipes_scale_the_learning_rate_with_the_total_batch() -> None:
    config = resolve(parse("--dataset", "ava", "--data-root", "x", "--batch-size", "8"), world_size=8)
    assert config.lr == pytest.approx(0.1)
    assert config.warmup_start_lr == pytest.approx(0.000125)
    assert (config.weight_decay, config.lr_steps) == (1e-7, [0, 10, 15])
    config = resolve(parse("--dataset", "kinetics", "--data-root", "x", "--batch-size", "16"), world_size=1)
    assert config.lr == pytest.approx(0.025)
    assert (config.max_epochs, config.warmup_epochs, config.precise_bn_batches) == (196, 34, 200)
    assert resolve(parse("--dataset", "kinetics", "--data-root", "x", "--lr", "0.3"), 4).lr == 0.3


def test_published_schedules(shared_data: Path) -> None:
    """The recipes for real data give PySlowFast's learning rates."""
    cases = {case["config"]: case for case in json.loads((shared_data / "reference/data/lr.json").read_text())[2:4]}
    config = resolve(parse("--dataset", "ava", "--data-root", "x", "--batch-size", "64"), 1)
    expected = cases["AVA/SLOWFAST_32x2_R50_SHORT"]["epochs"]
    assert [config.schedule().at(epoch) for epoch in range(20)] == pytest.approx(expected, rel=1e-12)


def test_sample_sets_have_recipes_of_their_own() -> None:
    sample = resolve(parse("--dataset", "ava"), 1)
    assert sample.max_epochs is not None
    assert sample.max_epochs < 20
    assert sample.data["test_short_side"] == 96
    assert resolve(parse("--dataset", "ava", "--data.test-short-side", "120"), 1).data["test_short_side"] == 120
