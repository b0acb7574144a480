"""Weights in files: round trips to the bit, refusals that name the file, and nothing executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slowfast_model.errors import InputError
from slowfast_model.models import VideoNetwork, build_model, get_preset
from slowfast_model.training.sources import read_initial_weights
from slowfast_model.training.weights import (
    CHECKPOINT_KEY,
    ModelDescription,
    load_model,
    read_weights,
    save_weights,
)


def network(name: str = "slowfast_tiny", head: str = "classification", num_classes: int = 3) -> VideoNetwork:
    return build_model(name, num_classes=num_classes, head=head)


def description(model: VideoNetwork, num_classes: int = 3) -> ModelDescription:
    return ModelDescription(model.config, model.head_type, num_classes, {1: "run", 2: "jump"})


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, VideoNetwork]:
    model = network()
    path = tmp_path / "model.safetensors"
    save_weights(path, model, description(model))
    return path, model


def test_safetensors_round_trip(saved: tuple[Path, VideoNetwork]) -> None:
    path, model = saved
    loaded, described = load_model(path)
    assert described == description(model)
    assert not loaded.training
    assert loaded.config == get_preset("slowfast_tiny")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_channels_last_weights_are_saved_all_the_same(tmp_path: Path) -> None:
    model = network().to(memory_format=torch.channels_last_3d)
    save_weights(tmp_path / "model.safetensors", model, description(model))
    loaded, _ = load_model(tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_checkpoint_of_a_run(tmp_path: Path) -> None:
    model = network(head="detection")
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, CHECKPOINT_KEY: description(model).to_dict()}, tmp_path / "last.ckpt")
    loaded, described = load_model(tmp_path / "last.ckpt")
    assert (loaded.head_type, described.class_names[2]) == ("detection", "jump")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.ckpt"])
def test_unreadable_files_are_named(tmp_path: Path, saved: tuple[Path, VideoNetwork], name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError, match=rf"{name}: no such file"):
        read_weights(path)
    for content in (b"", b"not weights", b"root:x:0:0:root:/root\n", saved[0].read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: not a readable checkpoint \(.+\)$"):
            read_weights(path)
    if name.endswith("ckpt"):
        torch.save({"state_dict": {}}, path)
    else:
        save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=rf"{name}: expected model\.safetensors or a checkpoint of a training run"):
        read_weights(path)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(InputError, match=r"missing.model\.safetensors: cannot be written \(.*No such file"):
        save_weights(tmp_path / "missing" / "model.safetensors", model, description(model))


def test_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.ckpt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(InputError, match=r"evil\.ckpt: not a readable checkpoint"):
        read_weights(path)
    torch.save({"state_dict": Malicious(proof)}, path)
    with pytest.raises(InputError, match=r"evil\.ckpt: not a readable checkpoint"):
        read_weights(path)
    assert not proof.exists()


def test_detection_starts_from_a_classifier_with_a_new_projection(saved: tuple[Path, VideoNetwork]) -> None:
    path, classifier = saved
    detector = network(head="detection", num_classes=7)
    report = read_initial_weights(path).load_into(detector)
    assert report.missing == ["head.projection.weight", "head.projection.bias"]
    expected = {k: v for k, v in classifier.state_dict().items() if not k.startswith("head.projection")}
    assert all(torch.equal(detector.state_dict()[name], tensor) for name, tensor in expected.items())
    assert read_initial_weights(path).load_into(network()).missing == []


def test_another_architecture_is_refused(saved: tuple[Path, VideoNetwork]) -> None:
    with pytest.raises(
        InputError, match=r"model\.safetensors: the weights do not fit the network: \d+ of another shape"
    ):
        read_initial_weights(saved[0]).load_into(network("slow_tiny"))
