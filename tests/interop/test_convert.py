"""The convert command: files in, files out, round trips to the bit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from slowfast_model.convert import convert, parse
from slowfast_model.errors import InputError
from slowfast_model.interop import from_pyslowfast
from slowfast_model.interop.files import read_tensors
from slowfast_model.interop.mmaction2 import MMACTION2
from slowfast_model.interop.pyslowfast import to_pyslowfast_keys, to_pyslowfast_state
from slowfast_model.models import ModelConfig, VideoNetwork, build_model, get_preset, slow_config
from slowfast_model.training.config import parse_train_config
from slowfast_model.training.sources import load_any, read_initial_weights, resolve_model
from slowfast_model.training.weights import ModelDescription, load_model, read_weights, save_weights
from tests.interop.test_conversion import SMALL, caffe2_blobs, same
from tests.model.reference import PRESETS, Reference


@pytest.fixture
def yaml_path(tmp_path: Path) -> Path:
    path = tmp_path / "SMALL.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, yaml_path: Path) -> tuple[Path, VideoNetwork]:
    model = from_pyslowfast(yaml_path)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))
    torch.save({"model_state": to_pyslowfast_keys(model.state_dict())}, tmp_path / "SMALL.pyth")
    return tmp_path / "SMALL.pyth", model


def run(*arguments: Any):
    return convert(parse([str(argument) for argument in arguments]))


def test_pyslowfast_to_ours_and_back_is_the_same_to_the_bit(
    tmp_path: Path, yaml_path: Path, checkpoint: tuple[Path, VideoNetwork]
) -> None:
    path, model = checkpoint
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "back.pyth"
    report = run("pyslowfast", "--config", yaml_path, "--checkpoint", path, "--output", ours)
    assert (report.missing, report.unexpected, len(report.loaded)) == ([], [], len(model.state_dict()))
    loaded, description = load_model(ours)
    assert same(loaded, model)
    assert (description.head, description.num_classes) == ("classification", 5)
    assert description.data == {"slow_sampling": "linspace"}
    run("slowfast_model", "--to", "pyslowfast", "--checkpoint", ours, "--output", theirs)
    before, after = read_tensors(path), read_tensors(theirs)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert same(from_pyslowfast(yaml_path, theirs), model)


def test_caffe2_file(tmp_path: Path, yaml_path: Path, checkpoint: tuple[Path, VideoNetwork]) -> None:
    content = caffe2_blobs(to_pyslowfast_keys(checkpoint[1].state_dict()))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=2))
    run("pyslowfast", "--config", yaml_path, "--checkpoint", tmp_path / "x.pkl", "--output", tmp_path / "x.safetensors")
    assert same(load_model(tmp_path / "x.safetensors")[0], checkpoint[1])


@pytest.mark.parametrize("name", PRESETS)
def test_names_shapes_and_order_of_what_goes_back_are_pyslowfasts(reference: Reference, name: str) -> None:
    entry, config = reference.index[name], reference.config(name)
    with torch.device("meta"):
        model = build_model(config, num_classes=entry["num_classes"], head=reference.head(name))
    state = to_pyslowfast_state(model.state_dict(), config)
    assert [(key, list(value.shape)) for key, value in state.items()] == list(reference.read(entry["keys"]).items())


def test_what_pyslowfast_cannot_express_does_not_go_back(tmp_path: Path) -> None:
    slowfast = get_preset("slowfast_r50_4x16")
    assert slowfast.lateral is not None
    for config in (get_preset("slow_tiny"), replace(slowfast, lateral=replace(slowfast.lateral, norm=False))):
        with pytest.raises(InputError, match=f"{config.name}: PySlowFast only has"):
            to_pyslowfast_state({}, config)


def test_detection_from_a_classifier_and_other_classes(
    tmp_path: Path, yaml_path: Path, checkpoint: tuple[Path, VideoNetwork]
) -> None:
    path, model = checkpoint
    ours = tmp_path / "x.safetensors"
    common = ("pyslowfast", "--config", yaml_path, "--checkpoint", path, "--output", ours)
    for options, head, classes in (
        (("--head", "detection", "--num-classes", 8), "detection", 8),
        (("--head", "detection"), "detection", 5),
        (("--num-classes", 9), "classification", 9),
    ):
        report = run(*common, *options)
        assert report.missing == ["head.projection.weight", "head.projection.bias"]
        loaded, description = load_model(ours)
        assert (description.head, description.num_classes) == (head, classes)
        assert torch.equal(
            loaded.pathways["slow"]["res5"]["1"].b.conv.weight, model.pathways["slow"]["res5"]["1"].b.conv.weight
        )
    yaml_path.write_text(yaml.safe_dump({**SMALL, "MODEL": {"NUM_CLASSES": 6}}))
    with pytest.raises(InputError, match=r"2 of another shape \(head\.projection\.weight: \[5, 288\] -> \[6, 288\]"):
        run(*common)


def test_settings_of_the_yaml_file(tmp_path: Path, yaml_path: Path, checkpoint: tuple[Path, VideoNetwork]) -> None:
    content = {**SMALL, "RESNET": {**SMALL["RESNET"], "ZERO_INIT_FINAL_BN": True}, "SOLVER": {"WEIGHT_DECAY": "1e-5"}}
    yaml_path.write_text(yaml.safe_dump(content))
    train, test = tmp_path / "train.yaml", tmp_path / "test.yaml"
    run("pyslowfast", "--config", yaml_path, "--checkpoint", checkpoint[0], "--output", tmp_path / "x.safetensors",
        "--train-config", train, "--test-config", test)  # fmt: skip
    config = parse_train_config("train", "", ["--config", str(train)])
    assert (config.model, config.dataset, config.weight_decay) == (str(yaml_path), "kinetics", 1e-5)
    assert resolve_model(config.model).pathways == checkpoint[1].config.pathways
    from slowfast_model.test import parse as parse_test

    parsed = parse_test(["--config", str(test), "--dataset", "kinetics"])
    assert (parsed.num_temporal_views, parsed.data["test_short_side"]) == (10, 256)


def test_train_and_test_take_the_files_as_they_are(yaml_path: Path, checkpoint: tuple[Path, VideoNetwork]) -> None:
    path, model = checkpoint
    loaded, description = load_any(path, str(yaml_path))
    assert same(loaded, model)
    assert description.config.name == "SMALL"
    detector = build_model(resolve_model(str(yaml_path)), num_classes=3, head="detection")
    report = read_initial_weights(path).load_into(detector)
    assert report.missing == ["head.projection.weight", "head.projection.bias"]
    assert torch.equal(detector.lateral["stem"].conv.weight, model.lateral["stem"].conv.weight)


def mmaction2_state(model: VideoNetwork) -> dict[str, Tensor]:
    """SlowOnly has no pathways in its names."""
    state = {MMACTION2.to_theirs(name): tensor for name, tensor in model.state_dict().items()}
    return {name.replace("slow_path.", ""): tensor for name, tensor in state.items()}


def test_data_settings_of_mmaction2_go_with_the_weights(tmp_path: Path) -> None:
    model = build_model(slow_config(4, 16), num_classes=3)
    torch.save({"state_dict": mmaction2_state(model), "meta": {}}, tmp_path / "x.pth")
    name = "slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb.py"
    ours = tmp_path / "x.safetensors"
    report = run("mmaction2", "--config", name, "--checkpoint", tmp_path / "x.pth", "--output", ours)
    assert "data.slow_sampling stride" in report.notes[0]
    loaded, description = load_model(ours)
    assert same(loaded, model)
    assert description.data["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert description.data["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert description.data["slow_sampling"] == "stride"
    assert read_initial_weights(ours).data == read_initial_weights(tmp_path / "x.pth").data == description.data
    with pytest.raises(InputError, match="PySlowFast has one mean, std and slow_sampling"):
        run("slowfast_model", "--to", "pyslowfast", "--checkpoint", ours, "--output", tmp_path / "x.pyth")


def narrow_resnet(blocks: tuple[int, ...], width: int) -> dict[str, Tensor]:
    """torchvision's names and shapes of a ResNet with bottlenecks, as its documentation has them."""
    tensors: dict[str, Tensor] = {}

    def unit(conv: str, norm: str, *shape: int) -> None:
        tensors[f"{conv}.weight"] = torch.rand(*shape)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{leaf}"] = torch.rand(shape[0])

    unit("conv1", "bn1", width, 3, 7, 7)
    inputs = width
    for layer, depth in enumerate(blocks, 1):
        inner = width * 2 ** (layer - 1)
        for block in range(depth):
            name = f"layer{layer}.{block}"
            unit(f"{name}.conv1", f"{name}.bn1", inner, inputs, 1, 1)
            unit(f"{name}.conv2", f"{name}.bn2", inner, inner, 3, 3)
            unit(f"{name}.conv3", f"{name}.bn3", inner * 4, inner, 1, 1)
            if block == 0:
                unit(f"{name}.downsample.0", f"{name}.downsample.1", inner * 4, inputs, 1, 1)
            inputs = inner * 4
    return {**tensors, "fc.weight": torch.rand(7, inputs), "fc.bias": torch.rand(7)}


@pytest.fixture
def small_config(yaml_path: Path) -> ModelConfig:
    return resolve_model(str(yaml_path))


def test_inflated_image_network(tmp_path: Path, small_config: ModelConfig) -> None:
    torch.save(narrow_resnet((2, 2, 2, 2), 8), tmp_path / "resnet.pth")
    tensors = read_tensors(tmp_path / "resnet.pth")
    model = build_model(small_config, num_classes=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = read_initial_weights(tmp_path / "resnet.pth").load_into(model)
    after = model.state_dict()
    slow = {name for name in after if name.startswith("pathways.slow.") and "non_local" not in name}
    assert set(report.loaded) == {name for name in slow if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - slow)
    temporal = after["pathways.slow.res5.1.a.conv.weight"]
    torch.testing.assert_close(temporal.sum(2), tensors["layer4.1.conv1.weight"])
    assert torch.equal(temporal[:, :, 0], temporal[:, :, 2])
    widened = after["pathways.slow.res3.0.a.conv.weight"]  # the lateral connection's channels come last
    assert torch.equal(widened[:, :32, 0], tensors["layer2.0.conv1.weight"])
    assert not widened[:, 32:].any()


def test_still_clips_give_what_the_image_gave(tmp_path: Path) -> None:
    """Without padding in time to see, the inflated network is the image network on every frame."""
    torchvision = pytest.importorskip("torchvision")
    image_network = torchvision.models.resnet50(weights=None).eval()
    torch.save(image_network.state_dict(), tmp_path / "resnet50.pth")
    ours = tmp_path / "x.safetensors"
    run("torchvision", "--config", "slow_r50_8x8", "--checkpoint", tmp_path / "resnet50.pth", "--output", ours,
        "--num-classes", 3)  # fmt: skip
    model, _ = load_model(ours)
    image = torch.rand(1, 3, 32, 32)
    features = torch.nn.Sequential(*list(image_network.children())[:-2])
    with torch.no_grad():
        expected = features(image)
        (given,) = model.features([image[:, :, None].expand(-1, -1, 33, -1, -1)])
    torch.testing.assert_close(given[:, :, 16], expected, rtol=1e-4, atol=1e-4)


def test_wrong_input_is_named(tmp_path: Path, yaml_path: Path, checkpoint: tuple[Path, VideoNetwork]) -> None:
    path, model = checkpoint
    out = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="config is missing: pyslowfast's weights do not say"):
        run("pyslowfast", "--checkpoint", path, "--output", out)
    with pytest.raises(InputError, match=r"SMALL\.pyth: these are weights of PySlowFast: try `convert pyslowfast`"):
        run("mmaction2", "--config", "slowonly_r50", "--checkpoint", path, "--output", out)
    with pytest.raises(InputError, match=r"gone/x: expected a file to write, in a folder that exists"):
        run("pyslowfast", "--config", yaml_path, "--checkpoint", path, "--output", tmp_path / "gone" / "x")
    with pytest.raises(InputError, match="train_config and test_config come from a PySlowFast YAML file"):
        run("torchvision", "--config", "slow_tiny", "--checkpoint", path, "--output", out, "--train-config", out)
    save_weights(out, model, ModelDescription(model.config, "classification", 5, {}))
    with pytest.raises(InputError, match="our own checkpoints are taken as they are"):
        run("slowfast_model", "--num-classes", 3, "--checkpoint", out, "--output", out)
    assert read_weights(out)[1].num_classes == 5
    with pytest.raises(InputError, match="project"):
        parse(["tensorflow", "--checkpoint", "x", "--output", "y"])
