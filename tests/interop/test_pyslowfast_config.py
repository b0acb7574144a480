"""PySlowFast's YAML files in our terms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from slowfast_model.data.ava import AvaDataConfig
from slowfast_model.data.kinetics import KineticsDataConfig
from slowfast_model.errors import InputError
from slowfast_model.interop.pyslowfast_config import PySlowFastConfig, read_pyslowfast_config
from slowfast_model.models import NonLocalConfig, get_preset, slowfast_config
from slowfast_model.test import TestConfig
from slowfast_model.training.config import TrainConfig
from tests.model.reference import Reference

FILES = {
    "AVA/SLOWFAST_32x2_R50_SHORT",
    "AVA/c2/SLOW_8x8_R50",
    "Kinetics/SLOW_8x8_R50",
    "Kinetics/c2/SLOWFAST_8x8_R50",
    "Kinetics/c2/SLOWFAST_NLN_16x8_R101_50_50",
}
SINGLE = {"MODEL": {"ARCH": "slow", "MODEL_NAME": "ResNet"}, "DATA": {"INPUT_CHANNEL_NUM": [3]}}


def write(path: Path, content: dict[str, Any]) -> PySlowFastConfig:
    path.write_text(yaml.safe_dump(content))
    return read_pyslowfast_config(path)


def test_all_files_are_compared(yaml_folder: Path) -> None:
    found = {str(path.relative_to(yaml_folder).with_suffix("")) for path in yaml_folder.rglob("*.yaml")}
    assert found == FILES | {"Kinetics/SLOWFAST_8x8_R50_stepwise_multigrid"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_networks_are_the_presets(reference: Reference, yaml_folder: Path, name: str) -> None:
    config = read_pyslowfast_config(yaml_folder / f"{name}.yaml")
    model = config.model_config()
    assert model.name == Path(name).name
    assert replace(model, name="") == replace(reference.config(name), name="")
    assert (config.head, config.num_classes) == (reference.head(name), reference.index[name]["num_classes"])


@pytest.mark.parametrize("name", sorted(FILES))
def test_settings_are_fields_of_ours(yaml_folder: Path, name: str) -> None:
    config = read_pyslowfast_config(yaml_folder / f"{name}.yaml")
    train, test = config.train_settings(), config.test_settings()
    data_class = AvaDataConfig if name.startswith("AVA") else KineticsDataConfig
    TrainConfig(**train).schedule().at(1.5)
    TestConfig(weights=Path("x"), **test)
    data_class(root=".", **train["data"])
    data_class(root=".", **test["data"])


def test_training_recipe(yaml_folder: Path) -> None:
    train = read_pyslowfast_config(yaml_folder / "AVA/SLOWFAST_32x2_R50_SHORT.yaml").train_settings()
    assert (train["lr"], train["weight_decay"], train["max_epochs"]) == (0.1, 1e-7, 20)  # 1e-7 is a text for YAML
    assert (train["lr_policy"], train["lr_steps"], train["relative_lrs"][:2]) == ("step", [0, 10, 15, 20], [1, 0.1])
    assert (train["batch_size"], train["devices"]) == (8, 8)
    assert train["data"]["train_groundtruth"] == "annotations/ava_train_v2.2.csv"
    boxes = "annotations/person_box_67091280_iou90/ava_detection_train_boxes_and_labels_include_negative_v2.2.csv"
    assert (train["data"]["train_predicted_boxes"], train["data"]["include_negatives"]) == (boxes, True)
    train = read_pyslowfast_config(yaml_folder / "Kinetics/SLOW_8x8_R50.yaml").train_settings()
    assert (train["lr_policy"], train["warmup_epochs"], train["warmup_start_lr"]) == ("cosine", 34.0, 0.01)
    assert (train["precise_bn_batches"], train["momentum"], train["nesterov"]) == (200, 0.9, True)
    assert train["data"]["short_side"] == [256, 320]


def test_test_protocol(yaml_folder: Path) -> None:
    test = read_pyslowfast_config(yaml_folder / "Kinetics/c2/SLOWFAST_8x8_R50.yaml").test_settings()
    assert (test["num_temporal_views"], test["num_spatial_crops"], test["data"]["test_short_side"]) == (10, 3, 256)
    test = read_pyslowfast_config(yaml_folder / "AVA/c2/SLOW_8x8_R50.yaml").test_settings()
    assert (test["protocol"], test["data"]["protocol"]) == ("pyslowfast", "pyslowfast")
    assert test["data"]["score_threshold"] == 0.9


def test_defaults_are_pyslowfasts(tmp_path: Path) -> None:
    """PySlowFast's own: 4x16's alpha and kernel, but 8 frames at rate 8."""
    two_pathways = {
        "NUM_BLOCK_TEMP_KERNEL": [[3, 3], [4, 4], [6, 6], [3, 3]],
        "SPATIAL_STRIDES": [[1, 1], [2, 2], [2, 2], [2, 2]],
        "SPATIAL_DILATIONS": [[1, 1]] * 4,
    }
    model = write(tmp_path / "x.yaml", {"RESNET": two_pathways}).model_config()
    expected = replace(get_preset("slowfast_r50_4x16"), name="x", num_frames=8, sampling_rate=8)
    assert model == expected


def test_temporal_blocks_and_non_local_blocks(tmp_path: Path) -> None:
    content = {
        "DATA": {"NUM_FRAMES": 32, "SAMPLING_RATE": 2},
        "SLOWFAST": {"ALPHA": 4},
        "RESNET": {
            "DEPTH": 101,
            "NUM_BLOCK_TEMP_KERNEL": [[3, 3], [4, 4], [6, 23], [3, 3]],
            "SPATIAL_STRIDES": [[1, 1], [2, 2], [2, 2], [2, 2]],
            "SPATIAL_DILATIONS": [[1, 1], [1, 1], [1, 1], [1, 1]],
        },
        "NONLOCAL": {
            "LOCATION": [[[], []], [[], []], [[6, 13, 20], []], [[], []]],
            "INSTANTIATION": "softmax",
            "POOL": [[[2, 2, 2], [2, 2, 2]]] * 4,
        },
    }
    expected = slowfast_config(
        8,
        8,
        alpha=4,
        depth=101,
        all_temporal=("fast",),
        non_local={"res4": NonLocalConfig((6, 13, 20), "softmax", (2, 2, 2))},
    )
    assert write(tmp_path / "x.yaml", content).model_config() == replace(expected, name="x")


@pytest.mark.parametrize("preset", ["c2d_r50_8x8", "i3d_r50_8x8"])
def test_c2d_and_i3d_are_the_presets(tmp_path: Path, preset: str) -> None:
    content = {
        "MODEL": {"ARCH": preset[:3], "MODEL_NAME": "ResNet"},
        "DATA": {"NUM_FRAMES": 8, "SAMPLING_RATE": 8, "INPUT_CHANNEL_NUM": [3]},
        "RESNET": {"NUM_BLOCK_TEMP_KERNEL": [[3], [4], [6], [3]]},
    }
    assert write(tmp_path / "x.yaml", content).model_config() == replace(get_preset(preset), name="x")


def test_res_next_widths(tmp_path: Path) -> None:
    content = {**SINGLE, "RESNET": {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4}}
    (pathway,) = write(tmp_path / "x.yaml", content).model_config().pathways
    assert (pathway.width, pathway.groups, pathway.inner_channels[0]) == (4, 32, 128)


def test_multi_label_head_and_frozen_batch_norm(tmp_path: Path) -> None:
    options = {"HEAD_ACT": "sigmoid", "FROZEN_BN": True, "ACT_CHECKPOINT": True}
    model = write(tmp_path / "x.yaml", {**SINGLE, "MODEL": {**SINGLE["MODEL"], **options}}).model_config()
    assert (model.head.activation, model.frozen_norm, model.checkpointing) == ("sigmoid", True, True)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("MODEL", "ARCH", "x3d"),
        ("MODEL", "MODEL_NAME", "PTVResNet"),
        ("MODEL", "HEAD_ACT", "relu"),
        ("RESNET", "DEPTH", 42),
        ("RESNET", "TRANS_FUNC", "basic_transform"),
        ("RESNET", "STRIDE_1X1", True),
        ("DATA", "MEAN", [0.5, 0.5, 0.5]),
        ("DATA", "REVERSE_INPUT_CHANNEL", True),
    ],
)
def test_what_changes_the_network_and_has_no_counterpart_is_named(
    tmp_path: Path, section: str, key: str, value: Any
) -> None:
    content = {**SINGLE, section: {**SINGLE.get(section, {}), key: value}}
    with pytest.raises(InputError, match=rf"x\.yaml: {section}\.{key} is .*, which has no counterpart here: expected"):
        write(tmp_path / "x.yaml", content).model_config()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("MULTIGRID", "LONG_CYCLE", True),
        ("SOLVER", "LR_POLICY", "exp"),
        ("SOLVER", "OPTIMIZING_METHOD", "adam"),
        ("SOLVER", "DAMPENING", 0.5),
        ("AUG", "ENABLE", True),
        ("MIXUP", "ENABLE", True),
        ("BN", "NORM_TYPE", "sub_batchnorm"),
        ("BN", "WEIGHT_DECAY", 1e-4),
        ("RESNET", "ZERO_INIT_FINAL_BN", False),
        ("TRAIN", "DATASET", "charades"),
    ],
)
def test_what_changes_only_the_training_is_named_when_it_is_asked_for(
    tmp_path: Path, section: str, key: str, value: Any
) -> None:
    content = {**SINGLE, "RESNET": {"ZERO_INIT_FINAL_BN": True}}
    write(tmp_path / "x.yaml", content).train_settings()
    config = write(tmp_path / "x.yaml", {**content, section: {**content.get(section, {}), key: value}})
    config.model_config()
    with pytest.raises(InputError, match=rf"x\.yaml: {section}\.{key} is"):
        config.train_settings()


def test_multigrid_still_gives_the_network(yaml_folder: Path) -> None:
    config = read_pyslowfast_config(yaml_folder / "Kinetics/SLOWFAST_8x8_R50_stepwise_multigrid.yaml")
    assert replace(config.model_config(), name="slowfast_r50_8x8") == get_preset("slowfast_r50_8x8")
    with pytest.raises(InputError, match=r"MULTIGRID\.SHORT_CYCLE is True"):
        config.train_settings()


def test_keys_without_effect_are_listed_and_unknown_ones_refused(tmp_path: Path) -> None:
    config = write(tmp_path / "x.yaml", {**SINGLE, "OUTPUT_DIR": "/tmp", "DEMO": {"ENABLE": True}})
    assert config.keys_without_effect == ["DEMO.ENABLE", "OUTPUT_DIR"]
    with pytest.raises(InputError, match=r"x\.yaml: MODEL\.NUM_CLASS, TRIAN\.LR: not a key of PySlowFast's"):
        write(tmp_path / "x.yaml", {"MODEL": {"NUM_CLASS": 3}, "TRIAN": {"LR": 1}})


@pytest.mark.parametrize("content", ["", "- a list", "a: [", "\x00"])
def test_files_that_are_no_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(InputError, match=r"x\.yaml: "):
        read_pyslowfast_config(tmp_path / "x.yaml")
    with pytest.raises(InputError, match=r"gone\.yaml: "):
        read_pyslowfast_config(tmp_path / "gone.yaml")


def test_lists_that_fit_no_network(tmp_path: Path) -> None:
    for resnet in (
        {"SPATIAL_STRIDES": [[1]]},
        {"SPATIAL_STRIDES": 2},
        {"NUM_BLOCK_TEMP_KERNEL": [[3], [4], ["x"], [3]]},
    ):
        with pytest.raises(InputError, match=r"x\.yaml: the values of RESNET"):
            write(tmp_path / "x.yaml", {**SINGLE, "RESNET": resnet}).model_config()
    with pytest.raises(InputError, match=r"x\.yaml: model\.num_frames is 0: expected 1 or more"):
        write(tmp_path / "x.yaml", {**SINGLE, "DATA": {"NUM_FRAMES": 0, "INPUT_CHANNEL_NUM": [3]}}).model_config()
