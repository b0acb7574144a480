"""The shared PySlowFast values: weights rebuilt from their names, and our presets that express a configuration."""

from __future__ import annotations

import functools
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from slowfast_model.interop.pyslowfast import to_pyslowfast_key
from slowfast_model.models import (
    ModelConfig,
    NonLocalConfig,
    VideoNetwork,
    build_model,
    get_preset,
    slowfast_config,
)

# PySlowFast's configuration: our preset, or its variant.
PRESETS: dict[str, str | ModelConfig] = {
    "Kinetics/SLOWFAST_4x16_R50": "slowfast_r50_4x16",
    "Kinetics/SLOWFAST_8x8_R50": "slowfast_r50_8x8",
    "Kinetics/SLOWFAST_NLN_4x16_R50": "slowfast_r50_nl_4x16",
    "Kinetics/SLOWFAST_NLN_8x8_R50": "slowfast_r50_nl_8x8",
    "Kinetics/c2/SLOWFAST_4x16_R50": "slowfast_r50_4x16",
    "Kinetics/c2/SLOWFAST_8x8_R50": "slowfast_r50_8x8",
    "Kinetics/c2/SLOWFAST_8x8_R101_50_50": "slowfast_r101_8x8",
    "Kinetics/c2/SLOWFAST_8x8_R101_50_101": slowfast_config(8, 8, alpha=4, depth=101, all_temporal=("fast",)),
    "Kinetics/c2/SLOWFAST_8x8_R101_101_101": slowfast_config(8, 8, alpha=4, depth=101, all_temporal=("slow", "fast")),
    "Kinetics/c2/SLOWFAST_16x8_R101_50_50": "slowfast_r101_16x8",
    # PySlowFast's default pooling here, not the paper's
    "Kinetics/c2/SLOWFAST_NLN_16x8_R101_50_50": slowfast_config(
        16, 8, alpha=4, depth=101, non_local={"res4": NonLocalConfig((6, 13, 20), pool=(1, 2, 2))}
    ),
    "Kinetics/SLOW_4x16_R50": "slow_r50_4x16",
    "Kinetics/SLOW_8x8_R50": "slow_r50_8x8",
    "Kinetics/SLOW_NLN_4x16_R50": "slow_r50_nl_4x16",
    "Kinetics/SLOW_NLN_8x8_R50": "slow_r50_nl_8x8",
    "Kinetics/c2/SLOW_4x16_R50": "slow_r50_4x16",
    "Kinetics/c2/SLOW_8x8_R50": "slow_r50_8x8",
    "AVA/SLOWFAST_32x2_R50_SHORT": "slowfast_r50_8x8",
    "AVA/SLOW_8x8_R50_SHORT": "slow_r50_4x16",  # 4x16 in spite of its name
    "AVA/c2/SLOWFAST_32x2_R50": "slowfast_r50_8x8",
    "AVA/c2/SLOWFAST_32x2_R101_50_50": "slowfast_r101_nl_8x8",
    "AVA/c2/SLOWFAST_32x2_R101_50_50_v2.1": "slowfast_r101_nl_8x8",
    "AVA/c2/SLOWFAST_64x2_R101_50_50": "slowfast_r101_nl_16x8",
    "AVA/c2/SLOW_8x8_R50": "slow_r50_4x16",
    "Charades/SLOWFAST_16x8_R50": "slowfast_r50_16x8",
    "SSv2/SLOWFAST_16x8_R50": "slowfast_r50_16x8",
}


class Reference:
    """Access to the reference folder of the shared data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fill = _load_module(folder / "fill.py")
        self.index: dict[str, Any] = self.read("index.json")["configs"]

    @functools.cache  # noqa: B019 (one instance lives as long as the test session)
    def read(self, name: str) -> Any:
        return json.loads((self.folder / "models" / name).read_text())

    def config(self, name: str) -> ModelConfig:
        """Our configuration for PySlowFast's ``name``."""
        entry, preset = self.index[name], PRESETS[name]
        config = get_preset(preset) if isinstance(preset, str) else preset
        if entry["aligned"] is not None:
            config = replace(config, head=replace(config.head, roi_aligned=entry["aligned"]))
        elif entry["head_act"] != config.head.activation:
            config = replace(config, head=replace(config.head, activation=entry["head_act"]))
        return config

    def head(self, name: str) -> str:
        return "detection" if self.index[name]["detection"] else "classification"

    def filled_model(self, name: str) -> VideoNetwork:
        """The network in float64 with the weights behind the reference values, dropout off, trained at 64 x 64."""
        config = self.config(name)
        config = replace(config, crop_size=64, head=replace(config.head, dropout=0.0))
        with torch.device("meta"):
            model = build_model(config, num_classes=self.index[name]["num_classes"], head=self.head(name))
        state = {key: self.tensor(to_pyslowfast_key(key), value) for key, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        return model

    @functools.cache  # noqa: B019
    def _parameter(self, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(self.fill.parameter(key, shape))

    def tensor(self, key: str, like: torch.Tensor) -> torch.Tensor:
        if key.endswith("num_batches_tracked"):
            return torch.zeros((), dtype=torch.int64)
        return self._parameter(key, tuple(like.shape)).clone()

    def pathways(self, case: dict[str, Any]) -> list[torch.Tensor]:
        """The clips of one case of an out_*.json file."""
        given = case["input"]
        clip = torch.from_numpy(self.fill.clip(given["name"], given["n"], given["t"], given["h"], given["w"]))
        return [clip] if case["slow_index"] is None else [clip[:, :, case["slow_index"]], clip]


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
