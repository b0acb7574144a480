"""Clip sampling: PySlowFast's frames exactly, AVA's key frames, and crops that gather_frames can take."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slowfast_model.data.sampling import (
    clip_frame_indices,
    clip_length,
    full_frame_geometry,
    key_frame_times,
    random_clip_start,
    random_geometry,
    short_side_size,
    uniform_clip_start,
    view_geometry,
)

SIZES = st.tuples(st.integers(1, 2000), st.integers(1, 2000))


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict:
    return json.loads((shared_data / "reference/data/temporal.json").read_text())


def test_view_starts_are_pyslowfasts(reference: dict) -> None:
    for source_frames, length, view, num_views, offset, start, end, _ in reference["get_start_end_idx"]:
        ours = uniform_clip_start(source_frames, length, view, num_views, to_end=offset)
        assert (ours, ours + length - 1) == (start, end)


def test_frames_of_test_views_are_pyslowfasts(reference: dict) -> None:
    for case in reference["decode_all"]:
        length = clip_length(case["T"], case["tau"], case["fps"])
        start = uniform_clip_start(case["frames"], length, case["clip"], case["clips"], to_end=case["offset"])
        assert [start, start + length - 1] == case["start_end"]
        assert clip_frame_indices(start, length, case["T"], case["frames"]).tolist() == case["index"]


def test_frames_of_random_clips_are_pyslowfasts(reference: dict) -> None:
    for case in reference["random"]:
        length = clip_length(case["T"], case["tau"], case["fps"])
        position = random.Random(case["python_random_seed"]).random()
        start = random_clip_start(case["frames"], length, position)
        assert [start, start + length - 1] == case["start_end"]
        assert clip_frame_indices(start, length, case["T"], case["frames"]).tolist() == case["index"]


def test_frames_of_clips_cut_by_the_decoder_are_pyslowfasts(reference: dict) -> None:
    for case in reference["trimmed"]:
        assert clip_frame_indices(0, case["clip_size"], case["T"], case["decoded"]).tolist() == case["index"]


def test_a_clip_is_counted_at_the_target_rate_or_the_videos_own() -> None:
    assert clip_length(32, 2, fps=30) == 64
    assert clip_length(32, 2, fps=15) == 32
    assert clip_length(32, 2, fps=15, target_fps=15) == 64
    assert clip_length(1, 1, fps=3) == 1


def test_a_short_video_repeats_its_last_frame() -> None:
    assert clip_frame_indices(0, 64, 8, source_frames=30).tolist() == [0, 9, 18, 27, 29, 29, 29, 29]


def test_the_key_frame_is_the_first_of_the_second_half() -> None:
    times = key_frame_times(902.0, num_frames=32, sampling_rate=2, fps=30)
    np.testing.assert_allclose(times, 902 + np.arange(-32, 32, 2) / 30)
    assert times[16] == 902
    np.testing.assert_allclose(key_frame_times(10.0, 4, 16, 30) * 30, [268, 284, 300, 316])


@given(source=SIZES, short_side=st.integers(1, 400))
def test_the_short_side_is_exact_and_the_long_side_rounded_down(source: tuple[int, int], short_side: int) -> None:
    height, width = short_side_size(source, short_side)
    assert min(height, width) == short_side
    exact = max(source) / min(source) * short_side
    assert exact - 1.0001 < max(height, width) <= exact + 1e-6
    assert (height <= width) == (source[0] <= source[1]) or height == width


@given(
    source=SIZES,
    crop_size=st.integers(1, 224),
    extra=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    seed=st.integers(0, 1000),
    inverse=st.booleans(),
)
def test_random_crops_lie_inside_the_frame(
    source: tuple[int, int], crop_size: int, extra: tuple[int, int], seed: int, inverse: bool
) -> None:
    short_side = (crop_size + min(extra), crop_size + max(extra))
    geometry = random_geometry(source, crop_size, short_side, np.random.default_rng(seed), inverse=inverse)
    top, left, height, width = geometry.crop
    assert geometry.output == (height, width) == (crop_size, crop_size)
    assert 0 <= top <= geometry.resize[0] - height
    assert 0 <= left <= geometry.resize[1] - width
    assert short_side[0] <= min(geometry.resize) <= short_side[1]


def test_random_crops_reach_every_place_and_scale() -> None:
    rng = np.random.default_rng(0)
    geometries = [random_geometry((240, 320), 224, (256, 258), rng) for _ in range(3000)]
    assert {min(g.resize) for g in geometries} == {256, 257, 258}
    assert {g.crop[0] for g in geometries if g.resize[0] == 256} == set(range(33))
    assert 0.45 < np.mean([g.flip for g in geometries]) < 0.55


def test_inverse_jitter_favours_small_frames() -> None:
    rng = np.random.default_rng(0)
    sides = [min(random_geometry((300, 300), 224, (256, 320), rng, inverse=True).resize) for _ in range(4000)]
    assert np.mean(1 / np.array(sides)) == pytest.approx((1 / 256 + 1 / 320) / 2, rel=0.003)


def test_spatial_views_are_left_centre_right_or_top_centre_bottom() -> None:
    wide = [view_geometry((240, 427), 256, 256, view, 3) for view in range(3)]
    assert wide[0].resize == (256, 455)
    assert [g.crop for g in wide] == [(0, 0, 256, 256), (0, 100, 256, 256), (0, 199, 256, 256)]
    high = [view_geometry((427, 240), 256, 224, view, 3) for view in range(3)]
    assert [g.crop for g in high] == [(0, 16, 224, 224), (116, 16, 224, 224), (231, 16, 224, 224)]
    assert view_geometry((240, 427), 256, 224, 0, 1).crop == (16, 116, 224, 224)


def test_the_full_frame_keeps_everything() -> None:
    geometry = full_frame_geometry((360, 640), 256)
    assert geometry.resize == geometry.output == (256, 455)
    assert geometry.crop == (0, 0, 256, 455)
    assert not geometry.flip
