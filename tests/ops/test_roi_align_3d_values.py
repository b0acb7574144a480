"""Values of roi_align_3d and roi_align_3d_pool, stored, torchvision's and computed by hand; their shapes and errors."""

from __future__ import annotations

import contextlib
import importlib.util
import json

import pytest
import torch
from torch._subclasses import FakeTensorMode

from slowfast_ops import RoIAlign3D, RoIAlign3DPool, roi_align_3d, roi_align_3d_pool, use_backend
from tests.ops.property_testing import given, settings, st
from tests.ops.roi_boxes import BOXES, CUBOIDS, INF, NAN, gradient, tubelets, uniform


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_stored_roi_align(shared_data, backend):
    spec = importlib.util.spec_from_file_location("fill", shared_data / "reference" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    cases = json.loads((shared_data / "reference" / "roi" / "roi_align.json").read_text())["cases"]
    assert cases
    for case in cases:
        shape, size = case["shape"], case["size"]
        x = torch.from_numpy(fill.uniform(case["input"], torch.Size(shape).numel())).reshape(shape)
        x = x[:, :, None].requires_grad_()
        rois = torch.tensor(case["rois"], dtype=torch.float64)
        options = {k: case[v] for k, v in (("spatial_scale", "scale"), ("aligned", "aligned"))}
        with use_backend(backend):
            y = roi_align_3d(x, rois, (1, size, size), sampling_ratio=case["sampling_ratio"], **options)
            grad = gradient(y, x, torch.from_numpy(fill.uniform(case["grad"], y.numel())).reshape(y.shape))
        expected = torch.tensor(case["output"], dtype=torch.float64).reshape(case["output_shape"])
        torch.testing.assert_close(y[:, :, 0], expected, rtol=1e-8, atol=1e-9)
        expected = torch.tensor(case["input_grad"], dtype=torch.float64).reshape(shape)
        torch.testing.assert_close(grad[:, :, 0], expected, rtol=1e-8, atol=1e-9)


@pytest.fixture(scope="session")
def torchvision():
    """The peer; absent where the ops are tested under a torch that has no torchvision for it."""
    return pytest.importorskip("torchvision")


coordinate = st.floats(-60, 160, width=32)
extent = st.one_of(st.just(0.0), st.floats(0, 200, width=32), st.sampled_from([7.0, 14.0, 32.0, 56.0, 112.0]))


@given(
    corners=st.lists(st.tuples(coordinate, coordinate, extent, extent), min_size=1, max_size=4),
    frames=st.integers(1, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bins=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    sampling_ratio=st.integers(0, 3),
    aligned=st.booleans(),
    scale=st.sampled_from([1 / 16, 1 / 4, 0.3]),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=120, deadline=None)
def test_every_frame_equals_torchvision(
    torchvision, corners, frames, size, bins, sampling_ratio, aligned, scale, channels_last, dtype
):
    rois = torch.tensor([[i % 2, x, y, x + w, y + h] for i, (x, y, w, h) in enumerate(corners)], dtype=dtype)
    x = uniform((2, 3, frames, *size)).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    expected = torch.stack(
        [torchvision.ops.roi_align(x[:, :, t], rois, bins, scale, sampling_ratio, aligned) for t in range(frames)],
        2,
    )
    weights = uniform(expected.shape, seed=2).to(dtype)
    expected_grad = gradient(expected, x, weights)
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-11}[dtype]  # positions near 200 in float32 have 5 digits left
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            y = roi_align_3d(
                x, rois, (None, *bins), spatial_scale=scale, sampling_ratio=sampling_ratio, aligned=aligned
            )
            torch.testing.assert_close(y, expected, rtol=0, atol=tolerance)
            scale_of_grad = max(1.0, float(expected_grad.abs().max()))
            torch.testing.assert_close(gradient(y, x, weights), expected_grad, rtol=0, atol=tolerance * scale_of_grad)


@pytest.mark.parametrize(("frames", "aligned"), [(8, True), (8, False), (5, True)])
def test_pool_is_the_ava_head(torchvision, frames, aligned):
    x = uniform((2, 20, frames, 14, 14)).requires_grad_()
    rois = torch.tensor([[1, 10, 20, 110, 200], [0, 33.3, 5.5, 180.2, 77.7], [1, 0, 0, 223, 223]], dtype=torch.float64)
    pooled = torch.nn.functional.avg_pool3d(x, (frames, 1, 1)).squeeze(2)
    aligned_bins = torchvision.ops.roi_align(pooled, rois, 7, 1 / 16, 0, aligned)
    expected = torch.nn.functional.max_pool2d(aligned_bins, 7).flatten(1)
    y = roi_align_3d_pool(x, rois, 7, spatial_scale=1 / 16, aligned=aligned)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    weights = uniform(y.shape, seed=3)
    torch.testing.assert_close(gradient(y, x, weights), gradient(expected, x, weights), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rois", [BOXES, CUBOIDS, tubelets(4)], ids=["boxes", "cuboids", "tubelets"])
@pytest.mark.parametrize("size", [(1, 3, 2), (2, 2, 2), (4, 3, 3)])
def test_pool_is_mean_then_max(rois, size):
    x, boxes = uniform((2, 5, 4, 8, 8)), torch.tensor(rois)
    expected = roi_align_3d(x, boxes, size, spatial_scale=1 / 8).mean(2).amax((2, 3))
    torch.testing.assert_close(roi_align_3d_pool(x, boxes, size, spatial_scale=1 / 8), expected)
    if size[0] == 1:
        torch.testing.assert_close(roi_align_3d_pool(x, boxes, size[1:], spatial_scale=1 / 8), expected)


def test_hand_computed_cuboid():
    ramp = torch.arange(6, dtype=torch.float64)
    x = (ramp[:, None, None] * 100 + ramp[:, None] * 10 + ramp).reshape(1, 1, 6, 6, 6)
    # Frames 2 to 5, rows 1 to 2 and columns 3 to 4; a bin is a frame, a row and two columns.
    rois = torch.tensor([[0.0, 4, 3, 1, 12, 5, 3]])
    y = roi_align_3d(x, rois, (4, 2, 1), spatial_scale=1.0, temporal_scale=0.5)
    expected = torch.tensor([[100 * t + 10 * r + 3.5 for r in (1, 2)] for t in (2, 3, 4, 5)], dtype=torch.float64)
    torch.testing.assert_close(y[0, 0, :, :, 0], expected)
    # Half a frame later, linear interpolation lies half way between two frames.
    rois[0, 1] += 1
    rois[0, 4] -= 1
    y = roi_align_3d(x, rois, (3, 2, 1), spatial_scale=1.0, temporal_scale=0.5)
    torch.testing.assert_close(y[0, 0, :, :, 0], (expected[1:] + expected[:-1]) / 2)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_time_bins_of_boxes(sampling_ratio, aligned):
    """t = T keeps every frame, a divisor averages whole frames; other numbers of bins interpolate between frames."""
    x, rois = uniform((2, 3, 6, 8, 8)), torch.tensor(BOXES)
    options = {"spatial_scale": 1 / 8, "sampling_ratio": sampling_ratio, "aligned": aligned}
    frames = roi_align_3d(x, rois, (6, 2, 2), **options)
    torch.testing.assert_close(roi_align_3d(x, rois, (None, 2, 2), **options), frames)
    torch.testing.assert_close(roi_align_3d(x, rois, (3, 2, 2), **options), frames.unflatten(2, (3, 2)).mean(3))
    torch.testing.assert_close(roi_align_3d(x, rois, (1, 2, 2), **options), frames.mean(2, keepdim=True))
    # 4 bins of 1.5 frames have two samples each, at 0.375 and 1.125 frames from their start.
    position = torch.tensor([[1.5 * b + 1.5 * (i + 0.5) / 2 - 0.5 for i in range(2)] for b in range(4)]).clamp(0, 5)
    low = position.floor().long().clamp(max=4)
    part = (position - low).double()[..., None, None]
    expected = (frames[:, :, low] * (1 - part) + frames[:, :, low + 1] * part).mean(3)
    torch.testing.assert_close(roi_align_3d(x, rois, (4, 2, 2), **options), expected)
    # More bins than frames: one sample each.
    position = ((torch.arange(8) + 0.5) * 6 / 8 - 0.5).clamp(0, 5)
    low = position.floor().long().clamp(max=4)
    part = (position - low).double()[:, None, None]
    expected = frames[:, :, low] * (1 - part) + frames[:, :, low + 1] * part
    torch.testing.assert_close(roi_align_3d(x, rois, (8, 2, 2), **options), expected)


def test_constant_features_stay_constant_inside():
    x = torch.full((1, 2, 4, 9, 9), 3.0)
    rois = torch.tensor([[0, 8.0, 8.0, 50.0, 61.0], [0, 0.0, 0.0, 72.0, 72.0]])
    assert torch.allclose(roi_align_3d(x, rois, (3, 5, 4), spatial_scale=1 / 8), torch.tensor(3.0))
    cuboid = torch.tensor([[0, 0.0, 0.0, 0.0, 4.0, 72.0, 72.0]])
    assert torch.allclose(roi_align_3d(x, cuboid, (3, 5, 4), spatial_scale=1 / 8), torch.tensor(3.0))
    assert torch.allclose(roi_align_3d_pool(x, rois, 7, spatial_scale=1 / 8), torch.tensor(3.0))


def test_shifting_features_and_boxes_changes_nothing():
    x = uniform((1, 2, 6, 12, 12))
    rois = torch.tensor([[0, 1.2, 24.0, 20.0, 3.3, 60.0, 70.0]], dtype=torch.float64)
    moved = rois + torch.tensor([0, 2.0, 8.0, 16.0, 2.0, 8.0, 16.0])
    shifted = x.roll((2, 2, 1), (2, 3, 4))
    y = roi_align_3d(x, rois, (2, 3, 3), spatial_scale=1 / 8)
    torch.testing.assert_close(roi_align_3d(shifted, moved, (2, 3, 3), spatial_scale=1 / 8), y)


@pytest.mark.parametrize("bins", [1, 2, 5, 7])
def test_forms_of_the_same_region_agree(bins):
    """A tubelet whose boxes are equal is the box; so is a cuboid over exactly all frames, with aligned sampling."""
    x = uniform((2, 3, 5, 8, 8))
    boxes = torch.tensor(BOXES)
    expected = roi_align_3d(x, boxes, (bins, 3, 2), spatial_scale=1 / 8)
    tubes = boxes[:, None].expand(-1, 5, -1)
    torch.testing.assert_close(roi_align_3d(x, tubes, (bins, 3, 2), spatial_scale=1 / 8), expected)
    time = torch.tensor([[0.0, 20.0]]).expand(len(boxes), 2)
    cuboids = torch.cat([boxes[:, :1], time[:, :1], boxes[:, 1:3], time[:, 1:], boxes[:, 3:]], 1)
    y = roi_align_3d(x, cuboids, (bins, 3, 2), spatial_scale=1 / 8, temporal_scale=0.25)
    torch.testing.assert_close(y, expected)


def test_a_tubelet_aligns_each_frame_with_its_own_box():
    x, tubes = uniform((2, 3, 4, 8, 8)), torch.tensor(tubelets(4))
    expected = [roi_align_3d(x[:, :, t : t + 1], tubes[:, t], (1, 2, 3), spatial_scale=1 / 8) for t in range(4)]
    y = roi_align_3d(x, tubes, (4, 2, 3), spatial_scale=1 / 8)
    torch.testing.assert_close(y, torch.cat(expected, 2))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_wild_boxes_are_bounded(backend, aligned, sampling_ratio):
    x = uniform((1, 2, 3, 5, 5)).requires_grad_()
    options = {"spatial_scale": 0.5, "sampling_ratio": sampling_ratio, "aligned": aligned}
    wild = [[0, 0, 0, NAN, 5], [0, NAN, NAN, NAN, NAN], [0, -INF, -INF, INF, INF], [0, INF, INF, INF, INF]]
    wild += [[0, -1e30, -1e30, 1e30, 1e30], [0, 1e30, 0, -1e30, 5], [0, -3e38, 0, 3e38, 5]]
    with use_backend(backend):
        boxes = torch.tensor(wild)
        y = roi_align_3d(x, boxes, (3, 2, 2), **options)
        assert y.isfinite().all()
        assert gradient(y, x, torch.ones_like(y)).isfinite().all()
        assert not y[:2].any()
        assert torch.equal(y[2], y[4])
        assert roi_align_3d_pool(x, boxes, 2, **options).isfinite().all()
        cuboids = torch.tensor([[0, NAN, 0, 0, 3, 9, 9], [0, -INF, 0, 0, INF, 9, 9], [0, 50, 0, 0, 60, 9, 9]])
        y = roi_align_3d(x, cuboids, (2, 2, 2), **options)
        assert y.isfinite().all()
        assert not y[0].any()
        assert not y[2].any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_large_box_samples_each_pixel_it_covers(backend):
    """The one bin of a box far larger than the image: the mean over all of its samples, most of them zero."""
    x = torch.ones(1, 1, 1, 8, 8, dtype=torch.float64)
    with use_backend(backend):
        y = roi_align_3d(x, torch.tensor([[0.0, -496, -496, 504, 504]]), 1, spatial_scale=1.0)
    # 1000 samples a pixel apart, on pixel centres: 10 of them lie in [-1, 8].
    assert y.item() == pytest.approx((10 / 1000) ** 2)


def test_rois_stay_precise_beside_bfloat16_features():
    x = uniform((1, 2, 2, 60, 60)).bfloat16()
    rois = torch.tensor([[0, 801.3, 703.7, 903.1, 905.9]])
    exact = roi_align_3d(x.double(), rois, (2, 3, 3), spatial_scale=1 / 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = roi_align_3d(x, rois, (2, 3, 3), spatial_scale=1 / 16)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-4)
    coarse = roi_align_3d(x.double(), rois.bfloat16().double(), (2, 3, 3), spatial_scale=1 / 16)
    assert (coarse - exact).abs().max() > 10 * (y.double() - exact).abs().max()


def test_varying_numbers_of_rois_compile_and_export_once():
    def head(x, rois):
        return roi_align_3d_pool(x, rois, 3, spatial_scale=0.125) + roi_align_3d(
            x, rois, (None, 2, 2), spatial_scale=0.125
        ).mean((2, 3, 4))

    x = uniform((2, 3, 4, 6, 6)).float()
    # The first number of RoIs equals no other size: the compiler takes equal sizes for one.
    boxes = {r: torch.tensor(BOXES).repeat(3, 1)[:r] for r in (8, 7, 5, 12)}
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
        for rois in boxes.values():
            leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
            y, expected = compiled(leaf, rois), head(other, rois)
            torch.testing.assert_close(y, expected)
            y.sum().backward()
            expected.sum().backward()
            torch.testing.assert_close(leaf.grad, other.grad)

    class Head(torch.nn.Module):
        def forward(self, x, rois):
            return head(x, rois)

    dynamic = {"x": {0: torch.export.Dim("N")}, "rois": {0: torch.export.Dim("R")}}
    program = torch.export.export(Head(), (x, boxes[8]), dynamic_shapes=dynamic).module()
    for rois in boxes.values():
        torch.testing.assert_close(program(x, rois), head(x, rois))


def test_shapes_without_data():
    """On meta tensors, and on fake ones as the compiler and complexity counters use them."""
    for mode, device in ((contextlib.nullcontext(), "meta"), (FakeTensorMode(), "cpu")):
        with mode:
            x, rois = torch.empty(2, 3, 4, 8, 8, device=device), torch.empty(6, 5, device=device)
            assert roi_align_3d(x, rois, (None, 3, 2), spatial_scale=1 / 8).shape == (6, 3, 4, 3, 2)
            assert roi_align_3d_pool(x, rois, 7, spatial_scale=1 / 8).shape == (6, 3)


def test_modules_are_the_functions():
    x, rois = uniform((2, 3, 4, 6, 6)), torch.tensor(BOXES)
    options = {"spatial_scale": 1 / 8, "sampling_ratio": 2, "aligned": False}
    module = RoIAlign3D((2, 3, 3), **options)
    assert torch.equal(module(x, rois), roi_align_3d(x, rois, (2, 3, 3), **options))
    pool = RoIAlign3DPool(3, **options)
    assert torch.equal(pool(x, rois), roi_align_3d_pool(x, rois, 3, **options))
    assert module.state_dict() == pool.state_dict() == {}
    assert "spatial_scale=0.125" in repr(pool)
    assert "aligned=False" in repr(module)


def test_negative_sampling_ratio_is_adaptive():
    x, rois = uniform((2, 3, 2, 6, 6)), torch.tensor(BOXES)
    expected = roi_align_3d(x, rois, 2, spatial_scale=1 / 8)
    assert torch.equal(roi_align_3d(x, rois, 2, spatial_scale=1 / 8, sampling_ratio=-1), expected)


def test_rois_get_no_gradient():
    x, rois = uniform((2, 3, 2, 6, 6)), torch.tensor(BOXES, requires_grad=True)
    assert not roi_align_3d(x, rois, 2, spatial_scale=1 / 8).requires_grad
    with use_backend("reference"):
        assert not roi_align_3d(x, rois, 2, spatial_scale=1 / 8).requires_grad


X = torch.zeros(2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("x", "rois", "size", "options", "message"),
    [
        (torch.zeros(2, 3, 4, 5), torch.zeros(1, 5), 1, {}, "features must be a floating point tensor"),
        (X.long(), torch.zeros(1, 5), 1, {}, "features must be a floating point tensor"),
        (torch.zeros(2, 3, 4, 0, 6), torch.zeros(1, 5), 1, {}, "at least one frame and one pixel"),
        (X, torch.zeros(1, 6), 1, {}, r"rois must be \[R, 5\]"),
        (X, torch.zeros(1, 4, 7), 1, {}, r"rois must be \[R, 5\]"),
        (
            X,
            torch.zeros(1, 5, dtype=torch.int64),
            1,
            {},
            r"rois must be a floating point tensor \[R, 5\] or .*, got int64 \[1, 5\]",
        ),
        (X, torch.zeros(1, 3, 5), 1, {}, "boxes for 3 frames, features has 4 frames"),
        (X, torch.tensor([[0.0, 0, 0, 1, 1], [2.0, 0, 0, 1, 1]]), 1, {}, r"rois\[1\] has batch index .*2.0.*\[0, 2\)"),
        (X, torch.tensor([[-0.5, 0, 0, 1, 1]]), 1, {}, r"rois\[0\] has batch index"),
        (X, torch.tensor([[NAN, 0, 0, 1, 1]]), 1, {}, r"rois\[0\] has batch index"),
        (X[:0], torch.zeros(1, 5), 1, {}, r"outside \[0, 0\)"),
        (X, torch.eye(4, 5)[None], 1, {}, r"rois\[0\]: a tubelet lies in one clip"),
        (X, torch.zeros(1, 5), (1, 2, 3, 4), {}, "output_size must be"),
        (X, torch.zeros(1, 5), (1, 0, 3), {}, "output_size=0: expected an integer of at least 1"),
        (X, torch.zeros(1, 5), 2.5, {}, "output_size=2.5: expected an integer"),
        (X, torch.zeros(1, 5), (2, "a", 2), {}, "output_size='a': expected an integer"),
        (X, torch.zeros(1, 5), 2, {"sampling_ratio": 1.5}, "sampling_ratio=1.5: expected an integer"),
        (X, torch.zeros(1, 5), 2, {"spatial_scale": "1"}, "spatial_scale='1': expected a positive number"),
        (None, torch.zeros(1, 5), 2, {}, r"features must be a floating point tensor \[N, C, T, H, W\], got NoneType"),
        (X, [[0.0, 0, 0, 1, 1]], 2, {}, r"rois must be a floating point tensor .*, got list"),
        (X, torch.zeros(1, 5).to_sparse(), 2, {}, r"rois must be .*, got sparse_coo float32 \[1, 5\]"),
        (X, torch.zeros(1, 5), 1, {"spatial_scale": 0.0}, "spatial_scale=0.0: expected a positive number"),
        (X, torch.zeros(1, 5), 1, {"temporal_scale": NAN}, "temporal_scale=nan: expected a positive number"),
    ],
)
def test_errors_name_the_argument(x, rois, size, options, message):
    for op in (roi_align_3d, roi_align_3d_pool):
        with pytest.raises(ValueError, match=message):
            op(x, rois, size, **{"spatial_scale": 1.0, **options})


def test_kernel_checks_what_a_compiler_cannot():
    def align(x, rois):
        return roi_align_3d(x, rois, 2, spatial_scale=1.0)

    compiled = torch.compile(align, backend="eager", fullgraph=True)
    with use_backend("cpu"), pytest.raises(RuntimeError, match=r"rois\[0\] has batch index 9, outside \[0, 2\)"):
        compiled(X, torch.tensor([[9.0, 0, 0, 1, 1]]))
