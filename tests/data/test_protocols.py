"""The two protocols: PySlowFast's frames, crops and scores exactly, the paper's by their definition; what wins when."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slowfast_model.data.ava import AvaDataConfig
from slowfast_model.data.clips import make_pathways
from slowfast_model.data.kinetics import KineticsDataConfig, KineticsDataset
from slowfast_model.data.sampling import full_frame_geometry
from slowfast_model.data.video_list import VideoList
from slowfast_model.models import build_model, get_preset
from slowfast_model.training.tasks import TASKS
from slowfast_model.training.weights import ModelDescription

MODEL = get_preset("slowfast_tiny")


def frame_numbers(
    frames: int, fps: float, num_frames: int, rate: int, view: tuple[int, int] | float, **options: Any
) -> list[int]:
    """Which frames of a video a data set asks for: of clip (number, of how many), or of a random one at a position."""
    clip, views = view if isinstance(view, tuple) else (0, 1)
    config = KineticsDataConfig(root="x", temporal_views=views, **options)
    data = KineticsDataset(
        VideoList([("a.mp4", 0)], Path("x")),
        config,
        replace(MODEL, num_frames=num_frames, sampling_rate=rate, alpha=1),
        views=None if isinstance(view, float) else (views, 1),
    )

    def read(times: np.ndarray) -> tuple[np.ndarray, None]:
        return np.floor(times * fps + 1e-6).astype(int), None

    video = SimpleNamespace(fps=fps, duration=frames / fps, read=read)
    data.cache = SimpleNamespace(open=lambda path: nullcontext(video))  # type: ignore[assignment]
    return data.read(0, clip, position=view if isinstance(view, float) else None).tolist()


def test_clips_of_the_pyslowfast_protocol_are_the_reference_ones(shared_data: Path) -> None:
    reference = json.loads((shared_data / "reference/data/temporal.json").read_text())
    for case in reference["decode_all"]:
        taken = frame_numbers(
            case["frames"],
            case["fps"],
            case["T"],
            case["tau"],
            (case["clip"], case["clips"]),
            protocol="pyslowfast",
            **({"views_to_end": True} if case["offset"] else {}),
        )
        assert taken == case["index"], case
    for case in reference["random"]:
        position = random.Random(case["python_random_seed"]).random()
        assert frame_numbers(case["frames"], case["fps"], case["T"], case["tau"], position) == case["index"]


VIDEOS = {
    "frames": st.integers(1, 2000),
    "fps": st.sampled_from([10.0, 24.0, 25.0, 30000 / 1001, 30.0, 60.0]),
    "num_frames": st.sampled_from([8, 16, 32, 64]),
    "rate": st.integers(1, 8),
    "views": st.integers(1, 12),
}


@given(**VIDEOS, data=st.data())
def test_clips_of_the_paper_are_strides_of_raw_frames_over_the_whole_video(
    frames: int, fps: float, num_frames: int, rate: int, views: int, data: st.DataObject
) -> None:
    view = data.draw(st.integers(0, views - 1))
    taken = frame_numbers(frames, fps, num_frames, rate, (view, views), protocol="paper")
    room = max(0, frames - num_frames * rate)
    start = room // 2 if views == 1 else view * (room // (views - 1))
    assert taken == [min(start + k * rate, frames - 1) for k in range(num_frames)]


@given(**VIDEOS, position=st.floats(0, 1, exclude_max=True))
def test_random_clips_of_the_paper_are_strides_inside_the_video(
    frames: int, fps: float, num_frames: int, rate: int, views: int, position: float
) -> None:
    taken = frame_numbers(frames, fps, num_frames, rate, position, protocol="paper")
    assert np.diff(np.minimum(taken, frames - 1)).max(initial=0) <= rate
    if frames >= num_frames * rate:
        assert taken == list(range(taken[0], taken[0] + num_frames * rate, rate))
        assert taken[-1] < frames


@given(**VIDEOS, data=st.data())
def test_clips_of_the_pyslowfast_protocol_follow_their_formula(
    frames: int, fps: float, num_frames: int, rate: int, views: int, data: st.DataObject
) -> None:
    """At other lengths and rates than the reference's, against the formula in exact arithmetic."""
    view = data.draw(st.integers(0, views - 1))
    taken = frame_numbers(frames, fps, num_frames, rate, (view, views))
    span = max(1.0, rate * num_frames / 30 * fps)
    start = max(frames - span, 0) * view / views
    exact = np.clip(np.linspace(start, start + span - 1, num_frames), 0, frames - 1)
    # float32 decides on which side of a whole number a value falls that is one.
    assert all(int(x - 2e-4) <= n <= int(x + 2e-4) for n, x in zip(taken, exact.tolist(), strict=True))


def test_a_field_that_is_set_wins_over_the_protocol() -> None:
    paper = KineticsDataConfig(root="x", protocol="paper").rules
    assert (paper.slow_sampling, paper.target_fps, paper.short_side_jitter) == ("stride", "video", "uniform")
    assert (paper.views_to_end, paper.whole_strides, paper.score_positions) == (True, True, False)
    theirs = KineticsDataConfig(root="x").rules
    assert (theirs.slow_sampling, theirs.target_fps, theirs.short_side_jitter) == ("linspace", 30.0, "uniform")
    assert (theirs.views_to_end, theirs.whole_strides, theirs.score_positions) == (False, False, True)
    own = {"slow_sampling": "linspace", "target_fps": 25.0, "short_side_jitter": "inverse", "views_to_end": False}
    mixed = KineticsDataConfig(root="x", protocol="paper", **own).rules
    assert mixed == replace(paper, **own)
    assert [AvaDataConfig(root="x", protocol=p).rules.short_side_jitter for p in ("pyslowfast", "paper")] == [
        "inverse",
        "uniform",
    ]
    assert AvaDataConfig(root="x", short_side_jitter="uniform").rules.short_side_jitter == "uniform"
    # In a video of 50 frames a second, of which 25 count, a stride of 2 is one of 4.
    assert frame_numbers(100, 50.0, 8, 2, (0, 1), protocol="paper", target_fps=25.0, views_to_end=False) == list(
        range(0, 32, 4)
    )


@pytest.mark.parametrize(("frames", "alpha"), [(32, 8), (32, 4), (64, 4), (16, 2), (8, 8)])
def test_slow_frames_are_the_protocols(shared_data: Path, frames: int, alpha: int) -> None:
    cases = json.loads((shared_data / "reference/data/pathways.json").read_text())
    expected = {
        "pyslowfast": next(case["slow"] for case in cases if (case["T"], case["alpha"]) == (frames, alpha)),
        "paper": list(range(0, frames, alpha)),
    }
    model = replace(MODEL, num_frames=frames, alpha=alpha)
    clip = torch.arange(frames, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).contiguous()
    for protocol, numbers in expected.items():
        config = KineticsDataConfig(root="x", protocol=protocol, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        slow, fast = make_pathways([(clip.numpy(), full_frame_geometry((8, 8), 8))], model, config, 8)
        assert (slow[0, 0, :, 0, 0] * 255).round().int().tolist() == numbers
        assert (fast[0, 0, :, 0, 0] * 255).round().int().tolist() == list(range(frames))


@pytest.mark.parametrize("protocol", ["pyslowfast", "paper"])
def test_test_crops_are_scored_as_the_protocol_says(protocol: str) -> None:
    model = build_model(replace(MODEL, crop_size=64), num_classes=5).double().eval()
    with torch.no_grad():  # far from uniform, or the two ways would hardly differ
        for parameter in model.head.parameters():
            parameter.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    fast = torch.randn(2, 3, MODEL.num_frames, 96, 96, generator=generator, dtype=torch.float64)
    pathways = [fast[:, :, :: MODEL.alpha], fast]
    data = SimpleNamespace(config=KineticsDataConfig(root="x", protocol=protocol))
    description = ModelDescription(model.config, "classification", 5, {})
    module = TASKS["kinetics"].module(model, description, data)
    batch = {"pathways": pathways, "labels": torch.zeros(2), "indices": torch.arange(2), "views": torch.zeros(2)}
    with torch.no_grad():
        module.validation_step([batch], 0)
        maps = [x.mean(2) for x in model.features(pathways)]  # [N, C, 3, 3]; the training crop's are 2 x 2
    windows = [(y, x) for y in (0, 1) for x in (0, 1)] if protocol == "pyslowfast" else [(0, 0)]
    side = 2 if protocol == "pyslowfast" else 3
    scores = []
    for y, x in windows:
        pooled = torch.cat([m[:, :, y : y + side, x : x + side].mean((2, 3)) for m in maps], 1)
        scores.append((pooled @ model.head.projection.weight.T + model.head.projection.bias).softmax(1))
    expected = torch.stack(scores).mean(0)
    found = module.scores.video_scores()
    np.testing.assert_allclose(np.stack([found[0], found[1]]), expected.detach(), rtol=0, atol=1e-6)
