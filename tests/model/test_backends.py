"""The networks on the ops give what they give on the ops' definitions in PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slowfast_model.models import build_model, get_preset, list_presets
from slowfast_ops import use_backend

# The deeper ones repeat the blocks of R50, and take a minute.
PRESETS = [name for name in list_presets() if "r101" not in name and "r152" not in name]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_on_the_ops_equals_the_definitions(preset: str) -> None:
    config = get_preset(preset)
    config = replace(config, num_frames=max(4, 2 * config.alpha))
    torch.manual_seed(0)
    clips = [
        torch.randn(1, pathway.in_channels, frames, 64, 64)
        for pathway, frames in zip(config.pathways, config.pathway_frames, strict=True)
    ]
    rois = torch.tensor([[0, 3.0, 5.0, 40.0, 60.0], [0, 20.0, 10.0, 63.0, 30.0]])
    model = build_model(config, num_classes=4, head="detection").eval()
    with torch.no_grad():
        ours = model(clips, rois)
        with use_backend("reference"):
            expected = model(clips, rois)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
