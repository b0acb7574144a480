"""lateral_conv_concat and LateralConvConcat, in inference, training, frozen and multi-process forms."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slowfast_ops import lateral_conv_concat, use_backend
from slowfast_ops.lateral_conv_concat import ops
from slowfast_ops.lateral_conv_concat.api import lateral_conv_norm_concat
from tests.ops.op_tester import (
    OpTester,
    Sample,
    Target,
    assert_as_accurate_as_pytorch,
    assert_matches_reference,
    cast,
    fills_gpu_memory,
    only_on_a_gpu,
    only_real_targets,
    outputs_and_gradients,
    skip_below_gpu_memory,
)
from tests.ops.property_testing import given, settings, st


def tensors(*shapes: Sequence[int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), dtype=torch.float64, generator=generator) for shape in shapes]


def shapes(n: int, c: int, t: int, h: int, w: int, fast: int, out: int, kernel: int, alpha: int) -> list[tuple]:
    return [(n, c, t, h, w), (n, fast, alpha * t, h, w), (out, fast, kernel, 1, 1)]


def inference(name: str, *size: int, relu: bool, affine: bool = True, residual: bool = False) -> Sample:
    """tensors: slow, fast, weight, then scale and shift if affine, then residual."""
    alpha, needed = size[-1], shapes(*size)
    needed += [(size[6],)] * 2 * affine + [needed[0]] * residual

    def function(slow: Tensor, fast: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        scale, shift = rest[:2] if affine else (None, None)
        return lateral_conv_concat(
            slow, fast, weight, scale, shift, alpha=alpha, relu=relu, residual=rest[-1] if residual else None
        )

    return Sample(name, function, lambda: tensors(*needed), smooth=not relu and not residual)


def training(name: str, *size: int, relu: bool, affine: bool = True, residual: bool = False) -> Sample:
    """The same with batch statistics; gamma and beta instead of scale and shift."""
    alpha, needed = size[-1], shapes(*size)
    needed += [(size[6],)] * 2 * affine + [needed[0]] * residual

    def function(slow: Tensor, fast: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        gamma, beta = rest[:2] if affine else (None, None)
        return lateral_conv_norm_concat(
            slow, fast, weight, gamma, beta, alpha=alpha, relu=relu, residual=rest[-1] if residual else None
        )[0]

    return Sample(name, function, lambda: tensors(*needed), smooth=not relu and not residual)


@pytest.fixture(autouse=True)
def full_float32():
    """Errors are compared with PyTorch's: cuDNN may or may not use TF32 where it is allowed, so that it is not."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


class LateralTester(OpTester):
    op = "lateral_conv_concat"

    @only_real_targets  # the stand-ins for a GPU have one thread
    def test_same_bits_for_any_number_of_threads(self, sample: Sample, target: Target) -> None:
        super().test_same_bits_for_any_number_of_threads(sample, target)


class TestLateralConvConcat(LateralTester):
    # N, C, T, H, W, Cf, Co, K, alpha
    samples = [
        inference("paper-4x16", 1, 8, 2, 4, 6, 8, 16, 5, 8, relu=True),
        inference("paper-8x8", 1, 4, 3, 5, 5, 4, 8, 7, 4, relu=False),
        inference("residual", 2, 3, 1, 3, 5, 2, 4, 5, 8, relu=True, residual=True),
        inference("no-affine", 1, 2, 2, 3, 3, 3, 5, 3, 2, relu=False, affine=False),
        inference("alpha-1-long-kernel", 1, 2, 3, 2, 3, 3, 4, 7, 1, relu=False),
        inference("odd-sizes", 1, 5, 2, 7, 9, 5, 17, 3, 4, relu=False),
        inference("one-of-everything", 1, 1, 1, 1, 1, 1, 1, 1, 1, relu=False),
        inference("no-clips", 0, 3, 2, 4, 4, 2, 4, 5, 8, relu=True),
    ]


class TestTrainingForm(LateralTester):
    samples = [
        training("paper-4x16", 1, 8, 2, 4, 6, 8, 16, 5, 8, relu=True),
        training("paper-8x8", 1, 4, 3, 5, 5, 4, 8, 7, 4, relu=False),
        training("residual", 2, 3, 1, 3, 5, 2, 4, 5, 8, relu=True, residual=True),
        training("no-affine", 1, 2, 2, 3, 3, 3, 5, 3, 2, relu=False, affine=False),
        training("odd-sizes", 1, 5, 2, 7, 9, 5, 17, 3, 4, relu=False),
    ]


class TestKernels:
    """What the samples are too small, too wide or too plain for, on every target."""

    op = "lateral_conv_concat"

    @pytest.mark.parametrize("form", [inference, training], ids=["inference", "training"])
    def test_matches_reference_with_many_tiles(self, form, layout, target, monkeypatch):
        """More positions, channels and depth than a tile of the GPU kernels has, and Slow channels for several."""
        if target.backend == "triton":
            plan = importlib.import_module("slowfast_ops.lateral_conv_concat.triton_plan")
            monkeypatch.setattr(plan, "NORM_PROGRAMS", 6)
            monkeypatch.setattr(plan, "WEIGHT_PROGRAMS", 6)
        sample = form("many-tiles", 1, 200, 1, 9, 15, 14, 67, 5, 2, relu=False)
        assert_matches_reference(sample, torch.float32, layout, target)

    def test_gradient_of_the_convolution_stored_or_not(self, layout, target, monkeypatch):
        """Triton's kernels store it for wide layers, and else compute it as they read; the others know one way."""
        sample = training("two-clips", 2, 3, 3, 5, 5, 16, 20, 5, 2, relu=True)
        for stored in (False, True) if target.backend == "triton" else (None,):
            if stored is not None:
                plan = importlib.import_module("slowfast_ops.lateral_conv_concat.triton_plan")
                monkeypatch.setattr(plan, "stores_conv_gradient", lambda weight, stored=stored: stored)
            assert_matches_reference(sample, torch.float32, layout, target)

    @pytest.mark.parametrize("form", [inference, training], ids=["inference", "training"])
    def test_matches_reference_with_many_channels(self, form, layout, target):
        """More than 128 columns in every product, in 16 bits: what the widest tiles of the GPU kernels take."""
        dtype = torch.float16 if torch.float16 in target.dtypes else torch.float32
        sample = form("many-channels", 1, 8, 2, 5, 16, 40, 136, 3, 4, relu=False)
        assert_matches_reference(sample, dtype, layout, target)

    @pytest.mark.parametrize("form", [inference, training], ids=["inference", "training"])
    def test_sums_over_more_tiles_than_parts(self, form, target, monkeypatch):
        """The CUDA kernels take 128 rows a tile; the sums of Triton's are split into 6 parts here."""
        frames = 1100
        if target.backend == "triton":
            plan = importlib.import_module("slowfast_ops.lateral_conv_concat.triton_plan")
            monkeypatch.setattr(plan, "NORM_PROGRAMS", 6)
            monkeypatch.setattr(plan, "WEIGHT_PROGRAMS", 6)
            monkeypatch.setattr(plan, "PARTIALS_BLOCK", 2)
            monkeypatch.setattr(plan, "JOIN_BLOCKS", {"BLOCK": 4, "BLOCK_PARTS": 2})
            frames = 200
        sample = form("long", 1, 1, frames, 1, 1, 2, 3, 3, 1, relu=False)
        inputs = cast(sample.tensors(), torch.float32, "contiguous", target.device)
        with use_backend("reference"):
            expected = outputs_and_gradients(sample, [x.double() for x in inputs])
        with use_backend(target.backend):
            actual = outputs_and_gradients(sample, inputs)
        for e, a in zip([*expected[0], *expected[1]], [*actual[0], *actual[1]], strict=True):
            torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("form", [inference, training], ids=["inference", "training"])
    def test_float64(self, form, target):
        """Its kernels have a path of their own, which the interpreter, too, computes in full precision."""
        sample = form("float64", 1, 3, 1, 2, 9, 3, 5, 3, 2, relu=True, residual=True)
        inputs = cast(sample.tensors(), torch.float64, "contiguous", target.device)
        with use_backend("reference"):
            expected = outputs_and_gradients(sample, inputs)
        with use_backend(target.backend):
            actual = outputs_and_gradients(sample, inputs)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)

    def test_only_frames_that_a_tap_reaches_are_read(self, target):
        """K=5, alpha=8: frames 3 to 5 of every eight reach no tap, so that NaN there changes nothing."""
        slow, fast, weight = (x.float().to(target.device) for x in tensors(*shapes(1, 2, 2, 3, 5, 4, 6, 5, 8)))
        with use_backend(target.backend):
            expected = lateral_conv_concat(slow, fast, weight, alpha=8)
            fast[:, :, [3, 4, 5, 11, 12, 13]] = float("nan")
            assert torch.equal(lateral_conv_concat(slow, fast, weight, alpha=8), expected)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_nan_passes_through_the_relus(self, channels_last, target):
        memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        slow, fast, weight = (x.float().to(target.device) for x in tensors(*shapes(1, 2, 1, 2, 2, 2, 3, 1, 1)))
        slow[0, 0, 0, 0, 0] = fast[0, 1, 0, 1, 1] = float("nan")
        slow, fast = (x.contiguous(memory_format=memory_format) for x in (slow, fast))
        with use_backend(target.backend):
            output = lateral_conv_concat(slow, fast, weight, alpha=1, residual=torch.zeros_like(slow))
            mean, var = (torch.full((2,), x, dtype=torch.float64, device=target.device) for x in (0.0, 1.0))
            kernels = ops.triton if target.backend == "triton" else ops.compiled
            normalised = kernels.lateral_norm_concat(slow, fast, mean, var, None, None, None, True, 0.0)
        assert output[0, 0, 0, 0, 0].isnan()
        assert output[0, 2:, 0, 1, 1].isnan().all()
        assert output.isnan().sum() == 4
        assert normalised[0, 3, 0, 1, 1].isnan()
        assert normalised.isnan().sum() == 2

    @pytest.mark.parametrize("mean", [0.0, 1e3])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
    def test_statistics_are_exact_far_from_zero(self, mean, memory_format, target):
        """A variance by E[x^2] - E[x]^2 would lose all its digits at a mean of 1000."""
        fast = (tensors((2, 1, 2, 10, 15))[0] + mean).float().contiguous(memory_format=memory_format).to(target.device)
        slow, weight = torch.zeros_like(fast), torch.ones(2, 1, 1, 1, 1, device=target.device)
        with use_backend(target.backend):
            _, got_mean, got_var = lateral_conv_norm_concat(slow, fast, weight, None, None, alpha=1)
        torch.testing.assert_close(got_mean.double(), fast.double().mean().expand(2), rtol=1e-9, atol=1e-8)
        torch.testing.assert_close(got_var.double(), fast.double().var().expand(2), rtol=1e-6, atol=0)

    def test_positions_past_the_last_add_nothing(self, target):
        """A tile is larger than this frame; in its rest, conv - mean would give infinities in float16."""
        options = {"dtype": torch.float16 if torch.float16 in target.dtypes else torch.float32, "device": target.device}
        fast, weight, noise = (x.to(**options) for x in tensors((1, 2, 1, 1, 3), (2, 2, 1, 1, 1), (1, 2, 1, 1, 3)))
        mean, var = (torch.full((2,), x, dtype=torch.float64, device=target.device) for x in (100.0, 1000.0))
        conv, zero = 100 + noise, torch.zeros_like(noise)
        suffix = "_triton" if target.backend == "triton" else ""
        backward = getattr(torch.ops.slowfast, f"lateral_conv_statistics{suffix}_backward")
        _, grad = backward(zero, 0 * var, var, fast, weight, conv, mean, 1, [True, True])
        expected = (conv.double() - mean[:, None, None, None])[0, :, 0, 0] @ fast.double()[0, :, 0, 0].T * 2000 / 3
        torch.testing.assert_close(grad[..., 0, 0, 0].double(), expected, rtol=2e-3, atol=1.0)

    @fills_gpu_memory
    @only_on_a_gpu
    @pytest.mark.parametrize("large", ["output", "fast"])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
    def test_more_than_2_to_the_31_elements(self, large, memory_format, target):
        """The last rows, whose offsets do not fit 32 bits, against the reference on those rows alone."""
        skip_below_gpu_memory(30)
        slow_channels, frames, fast_channels = (250, 1, 8) if large == "output" else (1, 8, 33)
        options = {"dtype": torch.bfloat16, "device": target.device}
        slow = torch.randn(1, slow_channels, frames, 2900, 2900, **options).contiguous(memory_format=memory_format)
        fast = torch.randn(1, fast_channels, frames, 2900, 2900, **options).contiguous(memory_format=memory_format)
        weight = torch.randn(8, fast_channels, 3, 1, 1, **options)
        results = []
        for backend, rows in ((target.backend, slice(None)), ("reference", slice(-2, None))):
            leaf = fast[..., rows, :].detach().requires_grad_()
            with use_backend(backend):
                output = lateral_conv_concat(slow[..., rows, :], leaf, weight, alpha=1, relu=False)
            assert backend == "reference" or max(output.numel(), fast.numel()) > 2**31
            (grad,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
            results.append([output[..., -2:, :].detach(), grad[..., -2:, :]])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_meta_tensors_give_the_shape():
    slow, fast, weight = (torch.empty(s, device="meta") for s in ((1, 8, 2, 3, 4), (1, 4, 8, 3, 4), (6, 4, 5, 1, 1)))
    assert lateral_conv_concat(slow, fast, weight, alpha=4).shape == (1, 14, 2, 3, 4)


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_only_where_torch_allows_it(allowed):
    pytest.importorskip("triton")
    plan = importlib.import_module("slowfast_ops.lateral_conv_concat.triton_plan")
    torch.backends.cudnn.allow_tf32 = allowed
    assert plan.precision() == ("tf32" if allowed else "ieee")


def composition(slow, fast, weight, scale, shift, *, alpha, relu, residual):
    """What a network without this op writes."""
    lateral = F.conv3d(fast, weight, stride=(alpha, 1, 1), padding=(weight.shape[2] // 2, 0, 0))
    if scale is not None:
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        lateral = F.batch_norm(lateral, zero, one, scale, shift, training=False, eps=0.0)
    slow = slow if residual is None else F.relu(slow + residual)
    return torch.cat([slow, F.relu(lateral) if relu else lateral], dim=1)


def test_hand_computed():
    """One pixel, alpha 2, K 3: output t sums fast frames 2t-1, 2t, 2t+1 with taps 1, 10, 100; frame -1 is padding."""
    slow = torch.tensor([7.0, -8.0]).reshape(1, 1, 2, 1, 1).requires_grad_()
    fast = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 4, 1, 1).requires_grad_()
    weight = torch.tensor([1.0, 10.0, 100.0]).reshape(1, 1, 3, 1, 1).requires_grad_()
    output = lateral_conv_concat(slow, fast, weight, alpha=2)
    assert output.flatten().tolist() == [7, -8, 210, 432]
    output.backward(torch.tensor([1.0, 2.0, 3.0, 5.0]).reshape(output.shape))
    assert slow.grad.flatten().tolist() == [1, 2]
    assert fast.grad.flatten().tolist() == [30, 305, 50, 500]
    assert weight.grad.flatten().tolist() == [5 * 2, 3 * 1 + 5 * 3, 3 * 2 + 5 * 4]


def test_hand_computed_epilogue_and_residual():
    slow = torch.tensor([1.0, 1.0]).reshape(1, 1, 2, 1, 1)
    fast = torch.tensor([2.0, 3.0]).reshape(1, 1, 2, 1, 1)
    weight, scale, shift = torch.ones(1, 1, 1, 1, 1), torch.tensor([-2.0]), torch.tensor([5.0])
    residual = torch.tensor([-4.0, 3.0]).reshape(1, 1, 2, 1, 1)
    output = lateral_conv_concat(slow, fast, weight, scale, shift, alpha=1, residual=residual)
    assert output.flatten().tolist() == [0, 4, 1, 0]


@given(
    size=st.tuples(*[st.integers(1, hi) for hi in (2, 4, 3, 6, 9, 6, 20)]),
    kernel=st.sampled_from([1, 3, 5, 7]),
    alpha=st.sampled_from([1, 2, 4, 8]),
    options=st.tuples(*[st.booleans()] * 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=120, deadline=None)
def test_equals_the_composition(size, kernel, alpha, options, dtype):
    relu, affine, with_residual, channels_last = options
    needed = shapes(*size, kernel, alpha)
    inputs = tensors(*needed, (size[6],), (size[6],), needed[0])
    if channels_last:
        inputs = [x.contiguous(memory_format=torch.channels_last_3d) if x.dim() == 5 else x for x in inputs]
    grad = tensors((size[0], size[1] + size[6], *size[2:5]), seed=2)[0]

    def run(function, to):
        slow, fast, weight, scale, shift, residual = (x.to(to).requires_grad_() for x in inputs)
        scale, shift = (scale, shift) if affine else (None, None)
        residual = residual if with_residual else None
        y = function(slow, fast, weight, scale, shift, alpha=alpha, relu=relu, residual=residual)
        leaves = [x for x in (slow, fast, weight, scale, shift, residual) if x is not None]
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(to))]

    exact, same = run(composition, torch.float64), run(composition, dtype)
    kinks = (relu or with_residual) and dtype != torch.float64
    for i, triple in enumerate(zip(run(lateral_conv_concat, dtype), same, exact, strict=True)):
        if i == 0 or not kinks:
            assert_as_accurate_as_pytorch(*triple, f"result {i}")


@pytest.mark.parametrize("needs", range(1, 32))
def test_gradients_that_are_not_wanted_change_no_other(needs):
    """Every subset of (fast, weight, scale, shift, slow)."""
    values = tensors(*shapes(1, 3, 2, 3, 4, 4, 5, 5, 4), (5,), (5,))
    slow, fast, weight, scale, shift = values
    order = [fast, weight, scale, shift, slow]

    def gradients(subset: list[Tensor]) -> list[Tensor]:
        for x in order:
            x.requires_grad_(any(x is y for y in subset))
        y = lateral_conv_concat(slow, fast, weight, scale, shift, alpha=4)
        return list(torch.autograd.grad(y.square().sum(), subset))

    everything = dict(zip(map(id, order), gradients(order), strict=True))
    wanted = [x for i, x in enumerate(order) if needs >> i & 1]
    for x, grad in zip(wanted, gradients(wanted), strict=True):
        assert torch.equal(grad, everything[id(x)])


SLOW, FAST, WEIGHT = torch.zeros(1, 2, 2, 3, 3), torch.zeros(1, 4, 16, 3, 3), torch.zeros(6, 4, 5, 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slow": SLOW[0]}, r"slow must be a floating point tensor \[N, C, T, H, W\]"),
        ({"fast": FAST.int()}, "fast must be a floating point tensor"),
        ({"weight": WEIGHT[..., 0]}, "weight must be a floating point tensor"),
        ({"fast": FAST[:, :, :15]}, r"fast has 15 frames, expected alpha T = 8 \* 2 = 16"),
        ({"alpha": 4}, r"fast has 16 frames, expected alpha T = 4 \* 2 = 8"),
        ({"alpha": 0}, "alpha=0"),
        ({"weight": WEIGHT[:, :, :4]}, "K=4 taps: K must be odd"),
        ({"weight": WEIGHT[:, :3]}, "with the Cf=4 channels of fast"),
        ({"weight": WEIGHT.expand(6, 4, 5, 3, 1)}, r"weight must be \[Co, Cf, K, 1, 1\]"),
        ({"weight": WEIGHT[:0]}, "weight must have at least one"),
        ({"fast": FAST[..., :2]}, "fast must have the N, H, W of slow"),
        ({"residual": SLOW[:, :1]}, "residual must have the shape of slow"),
        ({"scale": torch.zeros(5)}, r"scale must be \[Co=6\], one per output channel of weight, got float32 \[5\]"),
        (
            {"shift": torch.zeros(6, dtype=torch.int64)},
            r"shift must be a floating point tensor \[Co\], got int64 \[6\]",
        ),
        ({"shift": 0.5}, r"shift must be a floating point tensor \[Co\], got float"),
        ({"slow": None}, r"slow must be a floating point tensor .*, got NoneType"),
        ({"residual": SLOW.to_sparse()}, "residual must be .*, got sparse_coo float32"),
        ({"alpha": "8"}, "alpha='8': expected an integer of at least 1"),
        ({"fast": FAST.double()}, "fast is torch.float64, slow is torch.float32"),
        ({"residual": SLOW.to("meta")}, "residual is on meta, slow on cpu"),
        ({"scale": torch.zeros(6, device="meta")}, "scale is on meta, slow on cpu"),
    ],
)
def test_errors_name_the_argument(changes, message):
    arguments = {"slow": SLOW, "fast": FAST, "weight": WEIGHT, "alpha": 8, **changes}
    for backend in ("cpu", "reference"):
        with use_backend(backend), pytest.raises(ValueError, match=message):
            lateral_conv_concat(**arguments)


def test_autocast_does_not_hide_a_float64_mismatch():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"fast is torch\.float64"):
        lateral_conv_concat(SLOW, FAST.double(), WEIGHT, alpha=8)
