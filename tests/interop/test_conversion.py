"""Weights of PySlowFast and of Caffe2 in our networks, every tensor accounted for."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from slowfast_model.errors import InputError
from slowfast_model.interop import from_pyslowfast
from slowfast_model.interop.caffe2 import CAFFE2, is_solver_state
from slowfast_model.interop.conversion import Source, build_and_load, identify
from slowfast_model.interop.pyslowfast import from_pyslowfast_key, to_pyslowfast_keys
from slowfast_model.models import VideoNetwork, build_model
from tests.model.reference import Reference

# One block a stage and a tenth of the channels: a depth that PySlowFast has, and quick.
SMALL = {
    "RESNET": {
        "DEPTH": 18,
        "WIDTH_PER_GROUP": 8,
        "NUM_BLOCK_TEMP_KERNEL": [[2, 2]] * 4,
        "SPATIAL_STRIDES": [[1, 1], [2, 2], [2, 2], [2, 2]],
        "SPATIAL_DILATIONS": [[1, 1]] * 4,
    },
    "NONLOCAL": {"LOCATION": [[[], []], [[1], []], [[], []], [[], []]]},
    "MODEL": {"NUM_CLASSES": 5},
}


@pytest.fixture
def yaml_path(tmp_path: Path) -> Path:
    path = tmp_path / "SMALL.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture
def trained(yaml_path: Path) -> VideoNetwork:
    """A network with different values everywhere, so that no two tensors can be mistaken for each other."""
    model = from_pyslowfast(yaml_path)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))
    return model


def caffe2_name(key: str) -> str:
    """Caffe2's name of a tensor of PySlowFast's: their naming written the other way round, for tests."""
    rules = [
        (r"s1\.pathway0_stem\.conv", "conv1"),
        (r"s1\.pathway1_stem\.conv", "t_conv1"),
        (r"s1\.pathway0_stem\.bn", "res_conv1_bn"),
        (r"s1\.pathway1_stem\.bn", "t_res_conv1_bn"),
        (r"s1_fuse\.conv_f2s", "t_pool1_subsample"),
        (r"s1_fuse\.bn", "t_pool1_subsample_bn"),
        (r"s(\d)_fuse\.conv_f2s", r"t_res\1_7_branch2c_bn_subsample"),
        (r"s(\d)_fuse\.bn", r"t_res\1_7_branch2c_bn_subsample_bn"),
        (r"s(\d)\.pathway0_nonlocal(\d+)\.(?:conv_)?(\w+)", r"nonlocal_conv\1_\2_\3"),
        (r"s(\d)\.pathway0_res(\d+)\.branch(\d)\.?(\w*)", r"res\1_\2_branch\3\4"),
        (r"s(\d)\.pathway1_res(\d+)\.branch(\d)\.?(\w*)", r"t_res\1_\2_branch\3\4"),
        (r"head\.projection", "pred"),
    ]
    module, leaf = key.rsplit(".", 1)
    for pattern, name in rules:
        if re.fullmatch(pattern, module):
            module = re.sub(f"^{pattern}$", name, module)
            break
    norm = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    return f"{module}_{(norm if module.endswith('bn') else {'weight': 'w', 'bias': 'b'})[leaf]}"


def caffe2_blobs(state: Mapping[str, Tensor]) -> dict[str, Any]:
    named = {k: v.numpy() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    blobs = {caffe2_name(key): array for key, array in named.items()}
    momenta = {f"{name}_momentum": array for name, array in blobs.items()}
    return {"blobs": {**blobs, **momenta, "lr": np.zeros(1), "model_iter": np.zeros(1)}}


def same(a: VideoNetwork, b: VideoNetwork) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("blob", "ours"),
    [
        ("conv1_w", "pathways.slow.stem.conv.weight"),
        ("t_conv1_w", "pathways.fast.stem.conv.weight"),
        ("res_conv1_bn_riv", "pathways.slow.stem.bn.running_var"),
        ("t_res_conv1_bn_s", "pathways.fast.stem.bn.weight"),
        ("res2_0_branch2a_w", "pathways.slow.res2.0.a.conv.weight"),
        ("t_res4_22_branch2c_bn_rm", "pathways.fast.res4.22.c.bn.running_mean"),
        ("res3_0_branch1_w", "pathways.slow.res3.0.shortcut.conv.weight"),
        ("res3_0_branch1_bn_b", "pathways.slow.res3.0.shortcut.bn.bias"),
        ("t_pool1_subsample_w", "lateral.stem.conv.weight"),
        ("t_pool1_subsample_bn_s", "lateral.stem.bn.weight"),
        ("t_res2_2_branch2c_bn_subsample_w", "lateral.res2.conv.weight"),
        ("t_res4_5_branch2c_bn_subsample_bn_riv", "lateral.res4.bn.running_var"),
        ("nonlocal_conv4_13_theta_w", "pathways.slow.res4.non_local13.theta.weight"),
        ("nonlocal_conv4_13_out_b", "pathways.slow.res4.non_local13.out.bias"),
        ("nonlocal_conv3_1_bn_s", "pathways.slow.res3.non_local1.bn.weight"),
        ("pred_w", "head.projection.weight"),
        ("pred_b", "head.projection.bias"),
    ],
)
def test_caffe2_names(blob: str, ours: str) -> None:
    assert CAFFE2.to_ours(blob) == ours
    assert not is_solver_state(blob)
    assert is_solver_state(f"{blob}_momentum")


def test_caffe2_names_cover_all_of_pyslowfasts_networks(reference: Reference) -> None:
    for name, entry in reference.index.items():
        keys = [key for key in reference.read(entry["keys"]) if not key.endswith("num_batches_tracked")]
        assert [CAFFE2.to_ours(caffe2_name(key)) for key in keys] == [from_pyslowfast_key(key) for key in keys], name


def test_pyslowfast_checkpoint(tmp_path: Path, yaml_path: Path, trained: VideoNetwork) -> None:
    state = to_pyslowfast_keys(trained.state_dict())
    torch.save({"epoch": 9, "model_state": state, "optimizer_state": {}, "cfg": "..."}, tmp_path / "x.pyth")
    for checkpoint in (tmp_path / "x.pyth", state):
        loaded = from_pyslowfast(yaml_path, checkpoint)
        assert same(loaded, trained)
        assert not loaded.training


def test_caffe2_file(tmp_path: Path, yaml_path: Path, trained: VideoNetwork) -> None:
    content = caffe2_blobs(to_pyslowfast_keys(trained.state_dict()))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=2))
    assert same(from_pyslowfast(yaml_path, tmp_path / "x.pkl"), trained)


def test_every_tensor_is_accounted_for(trained: VideoNetwork) -> None:
    state = to_pyslowfast_keys(trained.state_dict())
    del state["s1_fuse.bn.weight"]
    state["s9.extra"] = torch.zeros(1)
    state["s3.pathway0_nonlocal1.conv_theta.weight"] = torch.zeros(32, 64)
    state["s2.pathway0_res0.branch2.a.weight"] = torch.zeros(8, 10, 1, 3, 1)

    def load(*allowed: str):
        source = Source(trained.config, "classification", 5)
        return build_and_load(source, identify(state), allow_missing=allowed, path="x.pyth")

    with pytest.raises(InputError) as error:
        load()
    assert str(error.value).startswith(
        "x.pyth: the weights do not fit the network: 1 missing (lateral.stem.bn.weight); 1 of another shape "
        "(pathways.slow.res2.0.a.conv.weight: [8, 10, 1, 3, 1] -> [8, 10, 1, 1, 1]); "
        "1 without a place in the network (s9.extra). "
    )
    for allowed in (["lateral.*"], ["lateral.*", "pathways.slow.res2.0.a.*"], ["s9.*", "lateral.stem.bn.weight"]):
        with pytest.raises(InputError, match="do not fit"):
            load(*allowed)
    model, report = load("lateral.*", "s9.*", "pathways.slow.res2.0.a.conv.weight")
    assert report.missing == ["lateral.stem.bn.weight"]
    assert report.unexpected == ["s9.extra"]
    assert report.reshaped == ["pathways.slow.res3.non_local1.theta.weight: [32, 64] -> [32, 64, 1, 1, 1]"]
    assert report.mismatched == ["pathways.slow.res2.0.a.conv.weight: [8, 10, 1, 3, 1] -> [8, 10, 1, 1, 1]"]
    assert len(report.loaded) == len(model.state_dict()) - 2
    assert torch.equal(model.lateral["stem"].bn.bias, trained.lateral["stem"].bn.bias)
    lines = report.lines()
    assert lines[0] == f"loaded: {len(report.loaded)} tensors"
    assert lines[1:5] == ["missing: 1", "  lateral.stem.bn.weight", "unexpected: 1", "  s9.extra"]


def test_other_classes_get_a_new_head(tmp_path: Path, yaml_path: Path, trained: VideoNetwork) -> None:
    state = to_pyslowfast_keys(trained.state_dict())
    loaded = from_pyslowfast(yaml_path, state, num_classes=7)
    assert loaded.head.projection.weight.shape[0] == 7
    assert torch.equal(loaded.pathways["fast"]["stem"].conv.weight, trained.pathways["fast"]["stem"].conv.weight)
    del state["s1_fuse.bn.weight"]
    with pytest.raises(InputError, match=r"1 missing \(lateral"):
        from_pyslowfast(yaml_path, state, num_classes=7)


def test_another_network_is_refused(yaml_path: Path) -> None:
    other = to_pyslowfast_keys(build_model("slow_tiny", num_classes=5).state_dict())
    with pytest.raises(InputError, match=r"the state dict: the weights do not fit the network: \d+ missing"):
        from_pyslowfast(yaml_path, other)
    with pytest.raises(InputError, match=r"its tensors \(fc.weight, ...\) are not those of a SlowFast"):
        from_pyslowfast(yaml_path, {"fc.weight": torch.zeros(3)})
