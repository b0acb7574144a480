"""The data settings that weights were trained with reach the training and the testing that start from them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from slowfast_model.data.clips import DataConfig, make_pathways
from slowfast_model.data.kinetics import KineticsDataConfig
from slowfast_model.data.sampling import full_frame_geometry
from slowfast_model.errors import InputError
from slowfast_model.interop.mmaction2 import DATA_SETTINGS
from slowfast_model.models import get_preset
from slowfast_model.training.config import data_of_weights, resolve_data

DEFAULTS = {f.name: f.default for f in fields(KineticsDataConfig) if f.name not in ("root", "batch_size")}


def test_they_take_the_place_of_defaults_and_of_nothing_else() -> None:
    for data in (DEFAULTS, {}):
        resolved = resolve_data("kinetics", Path("x"), data, DATA_SETTINGS)
        assert resolved == {**data, **DATA_SETTINGS}
    given = resolve_data("kinetics", Path("x"), {**DEFAULTS, "mean": (0.5, 0.5, 0.5)}, DATA_SETTINGS)
    assert (given["mean"], given["std"]) == ((0.5, 0.5, 0.5), DATA_SETTINGS["std"])
    assert resolve_data("kinetics", Path("x"), DEFAULTS) == DEFAULTS
    # A field that is set wins even where it says what the protocol would.
    given = resolve_data("kinetics", Path("x"), {**DEFAULTS, "slow_sampling": "linspace"}, DATA_SETTINGS)
    assert given["slow_sampling"] == "linspace"


def test_the_slow_frames_and_what_differs_from_the_defaults_are_kept_with_the_weights() -> None:
    assert data_of_weights("kinetics", DEFAULTS) == {"slow_sampling": "linspace"}
    assert data_of_weights("kinetics", {**DEFAULTS, "protocol": "paper"}) == {"slow_sampling": "stride"}
    assert data_of_weights("kinetics", {**DEFAULTS, **DATA_SETTINGS}) == DATA_SETTINGS
    assert data_of_weights("kinetics", {**DEFAULTS, "flip_probability": 0.0, "std": (1.0, 1.0, 1.0)}) == {
        "std": [1.0] * 3,
        "slow_sampling": "linspace",
    }


def test_clips_have_them() -> None:
    frames = torch.arange(32, dtype=torch.uint8).view(32, 1, 1, 1).expand(32, 8, 8, 3).contiguous()
    config = DataConfig(root=".", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), slow_sampling="stride")
    slow, fast = make_pathways([(frames, full_frame_geometry((8, 8), 8))], get_preset("slowfast_tiny"), config, 8)
    expected = (torch.arange(32)[None] / 255 - torch.tensor([[0.1], [0.2], [0.3]])) / torch.tensor(
        [[1.0], [2.0], [4.0]]
    )
    torch.testing.assert_close(fast[0, :, :, 0, 0], expected)
    torch.testing.assert_close(slow[0, :, :, 0, 0], expected[:, ::8])


@pytest.mark.parametrize(("name", "value"), [("mean", (0.5,)), ("std", (1.0, 0.0, 1.0)), ("std", (1.0,))])
def test_impossible_ones_are_named(name: str, value: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=rf"data\.{name} is .*: expected 3 numbers"):
        DataConfig(root=".", **{name: value})
