"""Our networks against PySlowFast's, in float64: parameters, multiply-adds, outputs and training steps."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slowfast_model.complexity import Complexity, measure_complexity
from slowfast_model.interop.pyslowfast import to_pyslowfast_key
from slowfast_model.models import VideoNetwork, build_model
from tests.model.reference import PRESETS, Reference

OUTPUTS = ["Kinetics/SLOW_8x8_R50", "Kinetics/SLOWFAST_8x8_R50", "AVA/SLOWFAST_32x2_R50_SHORT"]
TRAINING = ["Kinetics/SLOW_4x16_R50"]

measure = functools.cache(measure_complexity)  # some of PySlowFast's configurations differ in their checkpoints only


def close(actual: Tensor, expected: Any, relative: float = 1e-8, absolute: float = 1e-8) -> None:
    """The stored values have 9 or 10 digits."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.reshape(expected.shape), expected, rtol=relative, atol=absolute)


def test_all_of_pyslowfasts_configurations_are_compared(reference: Reference) -> None:
    assert PRESETS.keys() == reference.index.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_state_dict_has_pyslowfasts_tensors(reference: Reference, name: str) -> None:
    entry = reference.index[name]
    config = reference.config(name)
    assert (config.num_frames, config.sampling_rate) == (entry["frames"], entry["sampling_rate"])
    with torch.device("meta"):
        model = build_model(config, num_classes=entry["num_classes"], head=reference.head(name))
    shapes = {to_pyslowfast_key(key): list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == reference.read(entry["keys"])
    assert sum(parameter.numel() for parameter in model.parameters()) == entry["params"]


@pytest.mark.parametrize("name", PRESETS)
def test_multiply_adds_of_every_stage_equal_pyslowfasts(reference: Reference, name: str) -> None:
    for crop_size in (224, 256):
        check_multiply_adds(reference, name, crop_size)


def check_multiply_adds(reference: Reference, name: str, crop_size: int) -> None:
    entry = reference.index[name]
    expected = entry["flops"][str(crop_size)]
    measured = measure(
        reference.config(name), num_classes=entry["num_classes"], head=reference.head(name), crop_size=crop_size
    )
    assert measured.to_dict()["parameters"] == entry["params"]
    operators = measured.to_dict()["multiply_adds_by_operator"]
    assert operators["conv"] == round(expected["by_operator_G"]["conv"] * 1e9)
    assert operators["linear"] == round(expected["by_operator_G"]["linear"] * 1e9)
    assert operators.get("attention", 0) == round(expected["by_operator_G"].get("einsum", 0) * 1e9)
    stages = {name: round(flops * 1e9) for name, flops in expected["by_module_G"].items() if not name.endswith("pool")}
    assert pyslowfast_stages(measured) == stages


def pyslowfast_stages(measured: Complexity) -> dict[str, int]:
    """Costs under PySlowFast's module names; it counts two operations per activation for batch norm.

    A non-local block's batch norm follows its last convolution only, and attention has none.
    """
    numbers = {"stem": 1, "res2": 2, "res3": 3, "res4": 4, "res5": 5}
    flops: dict[str, int] = {}
    for layer in measured.layers:
        if layer.operator == "linear":
            name, cost = "head", layer.multiply_adds
        else:
            group, level = layer.stage.split(".")
            name = f"s{numbers[level]}" + ("_fuse" if group == "lateral" else "")
            unnormalised = layer.name.endswith((".theta", ".phi", ".g", ".attention"))
            cost = layer.multiply_adds + (0 if unnormalised else 2 * layer.activations)
        flops[name] = flops.get(name, 0) + cost
    return flops


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_equal_pyslowfasts(reference: Reference, name: str) -> None:
    model = reference.filled_model(name).eval()
    for case in reference.read(f"out_{name.replace('/', '__')}.json")["cases"].values():
        pathways = reference.pathways(case)
        rois = None if case["boxes"] is None else torch.tensor(case["boxes"], dtype=torch.float64)
        with torch.no_grad():
            stages = record_stages(model, pathways)
            features = stages["s5"]
            logits = model.head(features, rois) if rois is not None else model.head.position_logits(features, 2)
            close(logits, case["logits"])
            close(model.predict(pathways, rois), case["output"])
        for stage, digests in case["stages"].items():
            for value, digest in zip(stages[stage], digests, strict=True):
                assert list(value.shape) == digest["shape"]
                close(value.flatten()[digest["at"]], digest["values"])
                close(value.mean(), digest["mean"])
                close(value.std(correction=0), digest["std"])


def record_stages(model: VideoNetwork, pathways: list[Tensor]) -> dict[str, list[Tensor]]:
    """Every stage's outputs under PySlowFast's names; [slow, fast] each."""
    levels: dict[str, dict[str, Tensor]] = {name: {} for name in model.level_names}
    fused: dict[str, Tensor] = {}

    def record_level(pathway: str, level: str, output: Any) -> None:
        # A residual stage hands out its last block's two terms.
        levels[level][pathway] = output.clone() if level == "stem" else F.relu(output[0] + output[1])

    hooks = [
        module.register_forward_hook(lambda _m, _i, y, pathway=pathway, level=level: record_level(pathway, level, y))
        for pathway, modules in model.pathways.items()
        for level, module in modules.items()
    ]
    hooks += [
        module.register_forward_hook(lambda _m, _i, y, level=level: fused.__setitem__(level, y))
        for level, module in model.lateral.items()
    ]
    features = model.features(pathways)
    for hook in hooks:
        hook.remove()
    stages = {f"s{number}": list(levels[level].values()) for number, level in enumerate(model.level_names, start=1)}
    for number, level in enumerate(model.level_names, start=1):
        if level in fused:
            stages[f"s{number}_fuse"] = [fused[level], levels[level]["fast"]]
    for recorded, returned in zip(stages["s5"], features, strict=True):
        torch.testing.assert_close(recorded, returned, rtol=0, atol=1e-12)
    return stages


@pytest.mark.parametrize("name", TRAINING)
def test_three_training_steps_equal_pyslowfasts(reference: Reference, name: str) -> None:
    expected = reference.read(f"train_{name.replace('/', '__')}.json")
    model = reference.filled_model(name).train()
    names = {to_pyslowfast_key(key): parameter for key, parameter in model.named_parameters()}
    norms = {key for key in names if key.split(".")[-2].endswith("bn")}
    groups = [(sorted(norms), 0.0), (sorted(names.keys() - norms), 1e-4)]
    for (keys, _), group in zip(groups, expected["groups"], strict=True):
        assert hashlib.sha1("\n".join(keys).encode()).hexdigest() == group["sha1"]
    optimizer = torch.optim.SGD(
        [{"params": [names[key] for key in keys], "weight_decay": decay} for keys, decay in groups],
        lr=expected["lr"],
        momentum=expected["optimizer"]["momentum"],
        nesterov=True,
    )
    frames = reference.index[name]["frames"]
    clip = torch.from_numpy(reference.fill.clip("train", 2, frames, expected["crop"], expected["crop"]))
    labels = torch.tensor([7, 123])
    losses = []
    for step in range(3):
        logits = model([clip])
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            close(logits.flatten()[expected["pred_train_mode"]["at"]], expected["pred_train_mode"]["values"])
            gradients = {key: parameter.grad for key, parameter in names.items() if parameter.grad is not None}
            check_norms(gradients, expected["grad_norm"])
            state = {to_pyslowfast_key(key): value for key, value in model.state_dict().items()}
            check_norms(state, expected["running_mean_norm"] | expected["running_var_norm"])
        optimizer.step()
    close(torch.stack(losses), expected["loss"])
    check_norms(names, expected["param_norm_after"])
    with torch.no_grad():
        probabilities = model.eval().predict([clip]).flatten()[: len(expected["eval_after"])]
    close(probabilities, expected["eval_after"], absolute=1e-12)


def check_norms(tensors: Mapping[str, Tensor], norms: dict[str, float]) -> None:
    assert norms.keys() <= tensors.keys()
    keys = list(norms)
    close(torch.stack([tensors[key].detach().norm() for key in keys]), [norms[key] for key in keys])
