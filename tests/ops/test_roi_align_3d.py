"""roi_align_3d and roi_align_3d_pool on every backend and device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slowfast_ops import roi_align_3d, roi_align_3d_pool, use_backend
from tests.ops.op_tester import CPU, OpTester, Sample, Target, only_on_a_gpu
from tests.ops.roi_boxes import BOXES, CUBOIDS, INF, NAN, gradient, tubelets, uniform


def sample(name: str, shape, rois: list, size, pool: bool = False, columns: int = 5, **options) -> Sample:
    boxes = torch.tensor(rois).reshape(-1, columns) if not rois else torch.tensor(rois)
    boxes_on = {"cpu": boxes}
    if torch.cuda.is_available():
        boxes_on["cuda"] = boxes.cuda()  # here, since a CUDA graph cannot capture the copy
    options = {"spatial_scale": 1 / 8, **options}
    op = roi_align_3d_pool if pool else roi_align_3d
    return Sample(
        name,
        lambda x: op(x, boxes_on[x.device.type], size, **options),
        lambda: [uniform(shape)],
        smooth=not pool,
        gradcheck=bool(rois),
    )


def assert_equals_reference(target: Target, op: Callable, x: Tensor, rois: Tensor, size, **options) -> None:
    """Output and gradient, to a few rounding errors of float32."""
    results = []
    for backend in (target.backend, "reference"):
        leaf = x.to(target.device).requires_grad_()
        with use_backend(backend):
            y = op(leaf, rois.to(target.device), size, **{"spatial_scale": 1.0, **options})
            results.append((y, gradient(y, leaf, torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y))))
    for ours, theirs in zip(*results, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class TestRoIAlign3D(OpTester):
    op = "roi_align_3d"
    samples = [
        sample("boxes-frame-by-frame", (2, 3, 4, 7, 9), BOXES, (4, 3, 2)),
        sample("boxes-in-time-bins", (2, 17, 3, 6, 5), BOXES, (2, 2, 3), aligned=False),
        sample("boxes-more-bins-than-frames", (2, 1, 2, 5, 5), BOXES, (3, 2, 2), sampling_ratio=2),
        sample("cuboids", (2, 18, 4, 6, 7), CUBOIDS, (2, 3, 2), temporal_scale=0.5),
        sample("cuboids-fixed-samples", (2, 2, 5, 6, 7), CUBOIDS, (3, 2, 2), sampling_ratio=2, aligned=False),
        sample("tubelets", (2, 3, 3, 7, 6), tubelets(3)[:2], (3, 2, 3)),
        sample("tubelets-in-time-bins", (2, 16, 3, 6, 6), tubelets(3)[1:3], (2, 2, 2), sampling_ratio=1),
        sample("more-bins-than-pixels", (2, 2, 1, 2, 3), BOXES, (1, 5, 6)),
        sample("many-channels", (1, 40, 1, 4, 5), BOXES[:1], (1, 2, 2)),
        sample("one-of-everything", (1, 1, 1, 1, 1), [BOXES[0]], 1),
        sample("no-rois", (2, 3, 2, 4, 4), [], (2, 2, 2)),
        sample("no-clips", (0, 3, 2, 4, 4), [], (2, 2, 2)),
        sample("no-channels", (2, 0, 2, 4, 4), BOXES, (2, 2, 2)),
    ]

    @pytest.mark.parametrize("op", [roi_align_3d, roi_align_3d_pool])
    def test_many_rois(self, target: Target, op: Callable) -> None:
        """More RoIs than a block looks at together, with one of the other clip in each batch, at different places."""
        count = 150 if target.backend == "triton" else 270
        rois = torch.rand(count, 5, generator=torch.Generator().manual_seed(3)) * 2
        rois[:, 0] = 0
        rois[[5, count - 12], 0] = 1
        rois[:, 3:] += rois[:, 1:3]
        assert_equals_reference(target, op, uniform((2, 2, 1, 3, 3)).float(), rois, (1, 1, 2))

    @pytest.mark.parametrize(
        ("shape", "box", "bins"),
        [
            ((22, 13), [-5.0, 2.0, 99.0, 176.0], (8, 9)),
            ((24, 16), [1.0, 30.0, 120.0, 150.0], (3, 20)),
            ((2, 271), [0.0, 0.0, 2168.0, 16.0], (1, 66)),
        ],
        ids=["rows", "rows-of-16-bytes", "parts-of-rows"],
    )
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("op", [roi_align_3d, roi_align_3d_pool])
    def test_more_pixels_and_bins_than_a_tile_has(
        self, target: Target, op: Callable, channels_last: bool, shape, box, bins
    ) -> None:
        rois = torch.tensor([[0.0, *box]])
        for dtype in {torch.float32, torch.float64} & set(target.dtypes):
            x = uniform((1, 4, 1, *shape)).to(dtype)
            if channels_last:
                x = x.to(memory_format=torch.channels_last_3d)
            assert_equals_reference(target, op, x, rois, (1, *bins), spatial_scale=1 / 8)

    @pytest.mark.parametrize("aligned", [True, False])
    def test_wild_boxes(self, target: Target, aligned: bool) -> None:
        wild = [[0, 0, 0, NAN, 5], [0, -INF, -INF, INF, INF], [0, INF, 0, INF, 5], [0, 1e30, 0, -1e30, 5]]
        wild += [[0, -3e38, 0, 3e38, 5], [0, 6, 6, 2, 2]]
        x = uniform((1, 2, 2, 3, 4)).float()
        for ratio in (0, 2):
            options = {"spatial_scale": 0.5, "sampling_ratio": ratio, "aligned": aligned}
            assert_equals_reference(target, roi_align_3d, x, torch.tensor(wild), (1, 2, 2), **options)
        cuboids = torch.tensor([[0, NAN, 0, 0, 3, 9, 9], [0, -INF, 0, 0, INF, 9, 9], [0, 50, 0, 0, 60, 9, 9]])
        assert_equals_reference(target, roi_align_3d, x, cuboids, (2, 1, 2), spatial_scale=0.5, aligned=aligned)

    @pytest.mark.parametrize("scale", [1 / 16, 0.3, 1 / 7])
    def test_lengths_that_are_whole_pixels(self, target: Target, scale: float) -> None:
        """Where one bit decides on one more adaptive sample, all backends round as PyTorch does."""
        lengths = torch.arange(1, 9) * 4 / scale  # bins of exactly or nearly 1, 2, 3, ... pixels
        rois = torch.stack([torch.zeros(8), 3 + 0 * lengths, 0.1 * lengths, 3 + lengths, 1.1 * lengths], 1)
        assert_equals_reference(
            target, roi_align_3d, uniform((1, 1, 1, 9, 40)).float(), rois, (1, 4, 4), spatial_scale=scale
        )

    def test_a_roi_on_no_clip_is_zero(self, target: Target) -> None:
        """Where the values of the RoIs cannot be checked, since that would wait for the device."""
        x = uniform((2, 3, 2, 4, 4)).float().to(target.device)
        rois = torch.tensor([[2.0, 0, 0, 3, 3], [-1, 0, 0, 3, 3], [NAN, 0, 0, 3, 3], [1, 0, 0, 3, 3]]).to(target.device)
        suffix = "_triton" if target.backend == "triton" else ""
        arguments = ((2, 2, 2), 1.0, 1.0, 0, True)
        align, pool = (getattr(torch.ops.slowfast, f"{name}{suffix}") for name in ("roi_align_3d", "roi_align_3d_pool"))
        if target == CPU:
            with pytest.raises(RuntimeError, match=r"rois\[0\] has batch index 2, outside"):
                align(x, rois, *arguments)
            return
        x.requires_grad_()
        for y in (align(x, rois, *arguments), pool(x, rois, *arguments)[0]):
            assert not y[:3].any()
            assert y[3].all()
            grad = gradient(y, x, torch.ones_like(y))
            assert not grad[0].any()
            assert grad[1].any()

    @only_on_a_gpu
    def test_replays_with_other_boxes(self, target: Target) -> None:
        """A captured forward and backward of both ops, replayed with boxes that were not known at capture."""

        def step(x: Tensor, rois: Tensor) -> tuple[Tensor, ...]:
            y = roi_align_3d(x, rois, (None, 2, 3), spatial_scale=1 / 8)
            pooled = roi_align_3d_pool(x, rois, 3, spatial_scale=1 / 8)
            grad = torch.autograd.grad([y, pooled], x, [torch.ones_like(y), torch.ones_like(pooled)])
            return y.detach(), pooled.detach(), *grad

        x = uniform((2, 40, 4, 7, 9)).float().cuda().requires_grad_()
        first, second = torch.tensor(BOXES).cuda(), torch.tensor(BOXES).flip(0).cuda() + 3 * torch.eye(4, 5).cuda()
        second[:, 0] = torch.tensor([0, 0, 0, 1])
        static = first.clone()
        with use_backend(target.backend):
            expected = step(x, second)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step(x, static)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = step(x, static)
            static.copy_(second)
            graph.replay()
        for ours, theirs in zip(captured, expected, strict=True):
            assert torch.equal(ours, theirs)

    @only_on_a_gpu
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_past_2_to_the_31_elements(self, target: Target, channels_last: bool) -> None:
        """The last clip, channel, frame and pixels of a tensor that int32 offsets cannot reach."""
        shape = (2, 264, 128, 180, 180)
        if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
            pytest.skip("needs 24 GB of GPU memory")
        memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=memory_format).fill_(1)
        x[1, -8:, -2:, -20:, -20:] = torch.rand(8, 2, 20, 20, device="cuda").bfloat16()
        corner = x[1:, -8:, -2:, -20:, -20:].float()
        rois = torch.tensor([[1.0, 126, 161, 161, 128, 179, 179]], device="cuda")
        shift = torch.tensor([1.0, 126, 160, 160, 126, 160, 160], device="cuda")
        size, options = (2, 3, 3), {"spatial_scale": 1.0}
        with use_backend("reference"):
            expected = roi_align_3d(corner, rois - shift, size, **options)
            pooled = roi_align_3d_pool(corner, rois - shift, size, **options)
        x.requires_grad_()
        with use_backend(target.backend):
            y = roi_align_3d(x, rois, size, **options)
            torch.testing.assert_close(y[:, -8:].float(), expected, rtol=2**-7, atol=1e-3)
            torch.testing.assert_close(
                roi_align_3d_pool(x, rois, size, **options)[:, -8:].float(), pooled, rtol=2**-7, atol=1e-3
            )
            grad = gradient(y, x, torch.ones_like(y))
        assert grad[1, -1, -2:, -20:, -20:].float().sum().item() == pytest.approx(y[0, 0].numel(), rel=0.02)
        assert not grad[0].any()


class TestRoIAlign3DPool(OpTester):
    op = "roi_align_3d_pool"
    samples = [
        sample("pool-boxes", (2, 19, 4, 7, 9), BOXES, 3, pool=True),
        sample("pool-boxes-whole-frames", (2, 72, 4, 5, 4), BOXES, (2, 2, 3), pool=True),
        sample(
            "pool-boxes-overlapping", (1, 3, 2, 9, 8), [[0.0, 5 * i, 7 * i, 40, 60] for i in range(5)], 2, pool=True
        ),
        sample("pool-boxes-time-bins", (2, 3, 5, 6, 6), BOXES, (3, 2, 2), pool=True, sampling_ratio=2),
        sample("pool-cuboids", (2, 3, 4, 6, 7), CUBOIDS, (2, 3), pool=True, temporal_scale=0.5, aligned=False),
        sample("pool-tubelets", (2, 3, 3, 7, 6), tubelets(3)[1:3], (3, 2), pool=True),
        sample("pool-boxes-in-parts-of-packets", (1, 3, 2, 6, 6), [[0.0, 0, 0, 40, 20]], 1, pool=True),
        sample("pool-no-rois", (2, 3, 2, 4, 4), [], 2, pool=True),
        sample("pool-no-clips", (0, 3, 2, 4, 4), [], 2, pool=True),
    ]

    @pytest.mark.parametrize("bins", [4, 9])
    def test_gradient_of_a_tie_goes_to_the_first_bin(self, target: Target, bins: int) -> None:
        for backend in (target.backend, "reference"):
            x = torch.zeros(1, 2, 1, bins, bins, device=target.device, requires_grad=True)
            with use_backend(backend):
                rois = torch.tensor([[0.0, 0, 0, bins, bins]], device=target.device)
                y = roi_align_3d_pool(x, rois, bins, spatial_scale=1.0)
                grad = gradient(y, x, torch.ones_like(y))
            expected = torch.zeros_like(x)
            expected[..., 0, 0] = 1
            assert torch.equal(grad, expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_propagates_nan(self, target: Target, dtype: torch.dtype) -> None:
        x = torch.zeros(2, 20, 2, 4, 4, dtype=dtype)
        x[0, 17, 1, 2, 2] = NAN
        rois = torch.tensor([[0.0, 0, 0, 4, 4], [1, 0, 0, 4, 4]], device=target.device)
        with use_backend(target.backend):
            y = roi_align_3d_pool(x.to(target.device), rois, 4, spatial_scale=1.0)
        assert y[0, 17].isnan()
        assert y.isnan().sum() == 1

    @pytest.mark.parametrize("rois", [BOXES, CUBOIDS, tubelets(2)[:2]], ids=["boxes", "cuboids", "tubelets"])
    def test_gradients_in_float32(self, target: Target, rois: list) -> None:
        """As in float64 (the samples above), while no two bins are nearly equal."""
        x = uniform((2, 3, 2, 6, 7)).float()
        for size in ((3, 2), (2, 1, 2)):
            assert_equals_reference(target, roi_align_3d_pool, x, torch.tensor(rois), size, spatial_scale=1 / 8)

    def test_negative_features(self, target: Target) -> None:
        """A maximum below zero, and the zeros of bins outside the image, which are larger."""
        x, rois = uniform((1, 2, 1, 5, 5)).float() - 2, torch.tensor([[0.0, 0, 0, 5, 5], [0, -9, 0, 5, 5]])
        assert_equals_reference(target, roi_align_3d_pool, x, rois, (2, 3))
