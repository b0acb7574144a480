"""gather_frames: against its reference in float64, against PyTorch's own pipeline, and values computed by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slowfast_ops import gather_frames, outputs_in_shared_memory, slow_frame_indices, use_backend
from slowfast_ops.gather_frames import ops
from tests.ops.op_tester import Target, fills_gpu_memory, only_on_a_gpu, skip_below_gpu_memory
from tests.ops.property_testing import given, settings, st

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last_3d)
# Of the range of the outputs: a few roundings in the arithmetic, and one in the cast.
RELATIVE_ERROR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
IN_GREY_LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


def random_frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def strided(frames: Tensor, strides: str) -> Tensor:
    """The same frames in memory as decoders and other libraries leave them."""
    t, h, w, _ = frames.shape
    if strides == "padded rows":
        result = frames.new_zeros(t, h, w + 5, 3)[:, :, :w]
    elif strides == "planes":
        result = frames.new_zeros(t, 3, h, w).permute(0, 2, 3, 1)
    elif strides == "four channels":
        result = frames.new_zeros(t, h, w, 4)[..., :3]
    elif strides == "every other frame and pixel":
        result = frames.new_zeros(2 * t, h, 2 * w, 3)[::2, :, ::2]
    else:
        result = torch.zeros_like(frames)
    return result.copy_(frames)


STRIDES = ("dense", "padded rows", "planes", "four channels", "every other frame and pixel")


def float64_reference(frames: Any, **options: Any) -> tuple[Tensor, Tensor]:
    with use_backend("reference"):
        return gather_frames(frames, **{**options, "dtype": torch.float64})


def assert_right(frames: Any, target: Target | None = None, **options: Any) -> None:
    """For every dtype: as accurate as it says, in the memory format asked for, the slow frames being fast frames."""
    dtypes = FLOAT_DTYPES if target is None else target.dtypes
    with use_backend("cpu" if target is None else target.backend):
        results = {dtype: gather_frames(frames, dtype=dtype, **options) for dtype in (*dtypes, torch.uint8)}
    exact = float64_reference(frames, **options)[1]
    grey = float64_reference(frames, **{**options, **IN_GREY_LEVELS})[1]
    memory_format = options.get("memory_format", torch.contiguous_format)
    mean, std = options.get("mean", (0.45,) * 3), options.get("std", (0.225,) * 3)
    largest = max(max(m, 1 - m) / s for m, s in zip(mean, std, strict=True))
    for dtype, (slow, fast) in results.items():
        assert fast.dtype == slow.dtype == dtype
        assert fast.shape == exact.shape
        for pathway in (slow, fast):
            batch = pathway if pathway.dim() == 5 else pathway.unsqueeze(0)
            assert batch.is_contiguous(memory_format=memory_format)
        if dtype == torch.uint8:
            # The nearest integer: 0.5 away on a tie, and a little more when float32 arithmetic misjudges one.
            assert (fast.double() - grey).abs().max() <= 0.5 + 1e-4
        else:
            error = (fast.double() - exact).abs().max()
            assert error <= RELATIVE_ERROR[dtype] * largest, (dtype, error)
        positions = slow_frame_indices(fast.shape[-3], options["alpha"], options.get("slow_sampling", "linspace"))
        assert torch.equal(slow, fast[..., positions.to(fast.device), :, :])
        assert slow.data_ptr() != fast.data_ptr() or options["alpha"] == 1


@st.composite
def calls(draw: Callable) -> tuple[list[Tensor], dict]:
    clips, indices, resizes, crops, flips = [], [], [], [], []
    alpha = draw(st.sampled_from([1, 2, 3]))
    picked = alpha * draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    for n in range(draw(st.integers(1, 3))):
        shape = [draw(st.integers(1, 3)), draw(st.integers(1, 30)), draw(st.integers(1, 30)), 3]
        resized = [draw(st.integers(height, 45)), draw(st.integers(width, 45))]
        keeps_size = shape[1] >= height and shape[2] >= width and draw(st.booleans())
        window = shape[1:3] if keeps_size else resized
        clips.append(strided(random_frames(*shape, seed=n), draw(st.sampled_from(STRIDES))))
        indices.append(draw(st.lists(st.integers(0, shape[0] - 1), min_size=picked, max_size=picked)))
        resizes.append(None if keeps_size else tuple(resized))
        top, left = draw(st.integers(0, window[0] - height)), draw(st.integers(0, window[1] - width))
        crops.append((top, left, height, width))
        flips.append(draw(st.booleans()))
    return clips, {
        "indices": indices,
        "alpha": alpha,
        "slow_sampling": draw(st.sampled_from(["linspace", "stride"])),
        "resize": resizes,
        "crop": crops,
        "flip": flips,
        "mean": (0.4, 0.45, 0.5),
        "std": (0.2, 0.225, 0.25),
        "memory_format": draw(st.sampled_from(MEMORY_FORMATS)),
        "antialias": draw(st.booleans()),
    }


@given(call=calls())
@settings(max_examples=150, deadline=None)
def test_matches_reference(call):
    clips, options = call
    assert_right(clips, **options)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"resize": (288, 383), "crop": (31, 70, 224, 221), "flip": True},
        {"resize": (128, 170), "antialias": True, "crop": (3, 0, 112, 170)},
        {"resize": (3, 4), "antialias": True},  # more taps than the output has pixels
        {"crop": (16, 58, 224, 224)},
        {"resize": (300, 340), "crop": (0, 1, 300, 339)},  # one axis only
        {},
    ],
    ids=str,
)
def test_at_the_sizes_of_training(options, memory_format):
    frames = random_frames(9, 256, 340, 3)
    assert_right(frames, indices=[0, 2, 4, 8], alpha=4, memory_format=memory_format, **options)


@pytest.mark.parametrize("antialias", [False, True])
def test_equals_the_float_pipeline_of_pytorch(antialias):
    """PySlowFast's order of operations: normalise everything, interpolate whole frames, crop, flip, pack pathways."""
    frames, indices = random_frames(20, 60, 81, 3), torch.linspace(0, 19, 8).long()
    x = (frames.index_select(0, indices).double() / 255 - 0.45) / 0.225
    x = F.interpolate(x.permute(3, 0, 1, 2), size=(48, 65), mode="bilinear", align_corners=False, antialias=antialias)
    x = x[:, :, 5:45, 11:51].flip(-1)
    slow, fast = gather_frames(
        frames, indices=indices, alpha=4, resize=(48, 65), crop=(5, 11, 40, 40), flip=True, antialias=antialias
    )
    torch.testing.assert_close(fast.double(), x, atol=2e-6, rtol=0)
    torch.testing.assert_close(slow.double(), x[:, [0, 7]], atol=2e-6, rtol=0)


WINDOW = {"resize": (23, 29), "crop": (4, 3, 11, 13)}
# What each path of the GPU kernels is for, as small as it can be: (shapes of the clips, memory layouts, options).
CASES: dict[str, tuple[list, list, dict]] = {
    "clips of different sizes": (
        [(4, 12, 15, 3), (2, 25, 9, 3), (3, 11, 13, 3)],
        ["dense", "padded rows", "every other frame and pixel"],
        {
            "indices": [[3, 0, 1, 1], [1, 0, 0, 1], [2, 1, 0, 2]],
            "alpha": 2,
            "resize": [(14, 18), (23, 29), None],
            "crop": [(2, 5, 11, 13), (4, 3, 11, 13), None],
            "flip": [True, False, True],
        },
    ),
    "planes": ([(2, 12, 15, 3)], ["planes"], {"indices": [1, 0], "alpha": 2, "slow_sampling": "stride", **WINDOW}),
    "four channels": ([(2, 12, 15, 3)], ["four channels"], {"indices": [[1, 0]], "alpha": 1, "flip": True, **WINDOW}),
    "rows that line up": (
        [(3, 10, 40, 3)],
        ["dense"],
        {"indices": [[2, 0]], "alpha": 2, "resize": (12, 44), "crop": (1, 2, 10, 32), "flip": True},
    ),
    "not resized": ([(2, 3, 37, 3)], ["dense"], {"indices": [[1, 1, 0, 1, 0, 0, 1, 0]], "alpha": 2}),
    "one axis": ([(1, 9, 16, 3)], ["dense"], {"indices": [[0]], "alpha": 1, "resize": (9, 24)}),
    "wider than one block": (
        [(1, 2, 500, 3)],
        ["dense"],
        {"indices": [[0]], "alpha": 1, "resize": (2, 700), "flip": True},
    ),
    "taller than one block": ([(1, 70, 6, 3)], ["dense"], {"indices": [[0]], "alpha": 1, "resize": (150, 7)}),
    "more rows than threads stage at once": (
        [(1, 30, 100, 3)],
        ["dense"],
        {"indices": [[0]], "alpha": 1, "resize": (33, 104)},
    ),
    "rows shrunk, columns enlarged": (
        [(2, 50, 11, 3)],
        ["padded rows"],
        {"indices": [[0, 1]], "alpha": 2, "resize": (21, 13), "crop": (1, 0, 19, 12)},
    ),
    "shrunk to a few pixels": ([(1, 3, 9000, 3)], ["dense"], {"indices": [[0]], "alpha": 1, "resize": (2, 9)}),
    "too wide for shared memory": ([(1, 2, 20000, 3)], ["dense"], {"indices": [[0]], "alpha": 1, "resize": (1, 8)}),
    "antialias": (
        [(2, 9, 14, 3), (2, 4, 5, 3)],
        ["dense", "planes"],
        {"indices": [[1, 0], [0, 1]], "alpha": 2, "resize": (4, 6), "flip": [True, False], "antialias": True},
    ),
    "antialias, enlarged": (
        [(1, 3, 4, 3)],
        ["dense"],
        {"indices": [[0]], "alpha": 1, "resize": (5, 8), "antialias": True},
    ),
    "antialias, not resized": ([(1, 3, 4, 3)], ["dense"], {"indices": [[0]], "alpha": 1, "antialias": True}),
    "more clips than one launch takes": (
        [(2, 2, 3, 3)] * 33,
        ["dense"] * 33,
        {"indices": [[n % 2] for n in range(33)], "alpha": 1, "flip": [n % 3 == 0 for n in range(33)]},
    ),
}


def clips_of(case: str, device: str) -> list[Tensor]:
    shapes, layouts, _ = CASES[case]
    return [
        strided(random_frames(*shape, seed=n).to(device), layout)
        for n, (shape, layout) in enumerate(zip(shapes, layouts, strict=True))
    ]


class TestOnEveryTarget:
    """The cases on every backend and stand-in for a GPU, as OpTester does it for ops of floating-point tensors."""

    op = "gather_frames"

    @pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=str)
    @pytest.mark.parametrize("case", CASES)
    def test_matches_reference(self, case: str, memory_format: torch.memory_format, target: Target) -> None:
        normalisation = {"mean": (0.4, 0.45, 0.5), "std": (0.2, 0.225, 0.25)}
        options = {"memory_format": memory_format, **normalisation, **CASES[case][2]}
        assert_right(clips_of(case, target.device), target, **options)

    def test_where_float32_misses_the_first_pixel(self, target: Target) -> None:
        """Columns at which a quotient in float32 is a pixel too large (PyTorch's own are not exact there)."""
        frames, source, resized = random_frames(1, 1, 16004, 3), 16004, 16007
        with use_backend(target.backend):
            _, fast = gather_frames(
                frames.to(target.device),
                indices=[0],
                alpha=1,
                resize=(1, resized),
                crop=(0, 5330, 1, 12),
                **IN_GREY_LEVELS,
            )
        places = source * (2 * torch.arange(5330, 5342) + 1) - resized
        first, rest = places // (2 * resized), (places % (2 * resized))[:, None].double() / (2 * resized)
        expected = frames[0, 0, first] * (1 - rest) + frames[0, 0, first + 1] * rest
        torch.testing.assert_close(fast[:, 0, 0].T.cpu().double(), expected, atol=3e-4, rtol=0)

    def test_indices_outside_are_clamped_on_a_gpu(self, target: Target) -> None:
        """And an error on the CPU; called without api.py, which checks what is on the CPU."""
        frames = random_frames(3, 4, 5, 3).to(target.device)
        rest = [[4, 5, 0, 0], [4, 5], [False], 1, "linspace", [0.0] * 3, [1 / 255] * 3, torch.float32]
        rest += [torch.contiguous_format, False]
        op = ops.gather_frames_triton if target.backend == "triton" else ops.gather_frames
        indices = torch.tensor([[-5, 1, 7]], device=target.device)
        if target.name == "cpu":
            with pytest.raises(RuntimeError, match=r"index -5 outside \[0, 3\)"):
                op([frames], [], [], indices, *rest)
        else:
            _, fast = op([frames], [], [], indices, *rest)
            assert torch.equal(fast[0].round().to(torch.uint8), frames.permute(3, 0, 1, 2))

    @only_on_a_gpu
    @pytest.mark.parametrize("case", ["clips of different sizes", "antialias"])
    def test_captures_in_a_cuda_graph(self, case: str, target: Target) -> None:
        clips, options = clips_of(case, target.device), dict(CASES[case][2])
        options["indices"] = torch.tensor(options["indices"], device=target.device)
        with use_backend(target.backend):
            gather_frames(clips, **options)  # compiles what Triton compiles on first use
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = gather_frames(clips, **options)
            for clip in clips:
                clip.copy_(255 - clip)
            options["indices"].copy_(options["indices"].flip(1))
            graph.replay()
            for actual, expected in zip(captured, gather_frames(clips, **options), strict=True):
                assert torch.equal(actual, expected)

    @only_on_a_gpu
    def test_captures_indices_of_the_host(self, target: Target) -> None:
        clips, options = clips_of("clips of different sizes", target.device), CASES["clips of different sizes"][2]
        with use_backend(target.backend):
            expected = gather_frames(clips, **options)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = gather_frames(clips, **options)
            for _ in range(100):  # would overwrite those of the graph, had their pinned memory been given back
                (torch.tensor(options["indices"]) + 1).pin_memory()
            graph.replay()
        for actual, e in zip(captured, expected, strict=True):
            assert torch.equal(actual, e)

    @only_on_a_gpu
    def test_runs_on_the_current_stream(self, target: Target) -> None:
        clips, options = clips_of("clips of different sizes", target.device), CASES["clips of different sizes"][2]
        with use_backend(target.backend):
            expected = gather_frames(clips, **options)
            torch.cuda.synchronize()
            stale = [torch.zeros_like(clip) for clip in clips]
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(20_000_000)  # a launch on another stream would run before the copies below
                for to, source in zip(stale, clips, strict=True):
                    to.copy_(source)
                actual = gather_frames(stale, **options)
            stream.synchronize()
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)

    @fills_gpu_memory
    @only_on_a_gpu
    def test_offsets_beyond_31_bits(self, target: Target) -> None:
        skip_below_gpu_memory(16)
        frames = torch.zeros(44, 4096, 4096, 3, dtype=torch.uint8, device=target.device)
        frames[-1, -1] = torch.arange(3 * 4096, device=target.device).reshape(-1, 3) % 251
        for memory_format in MEMORY_FORMATS:
            with use_backend(target.backend):
                _, fast = gather_frames(
                    frames, indices=range(44), alpha=1, dtype=torch.uint8, memory_format=memory_format
                )
            assert fast.numel() > 2**31
            assert torch.equal(fast, frames.permute(3, 0, 1, 2))
            del fast


def test_upsampling_by_hand():
    """2 x 2 to 4 x 4: weights of 3/4 and 1/4 inside, the border pixel alone at the edges."""
    red = torch.tensor([[0, 40], [80, 120]], dtype=torch.uint8)
    frames = torch.stack([red, 255 - red, torch.full_like(red, 7)], dim=-1).unsqueeze(0)
    _, fast = gather_frames(frames, indices=[0], alpha=1, resize=(4, 4), **IN_GREY_LEVELS)
    expected = torch.tensor([[0, 10, 30, 40], [20, 30, 50, 60], [60, 70, 90, 100], [80, 90, 110, 120]])
    torch.testing.assert_close(fast[:, 0], torch.stack([expected, 255 - expected, torch.full((4, 4), 7)]).float())
    _, flipped = gather_frames(
        frames, indices=[0], alpha=1, resize=(4, 4), crop=(1, 1, 2, 3), flip=True, dtype=torch.uint8
    )
    assert flipped[0, 0].tolist() == [[60, 50, 30], [100, 90, 70]]


def test_downsampling_by_hand():
    """4 to 2 pixels: the mean of the two nearest; with antialias, a triangle over four pixels, cut at the border."""
    frames = torch.tensor([0, 8, 64, 128], dtype=torch.uint8).reshape(1, 1, 4, 1).expand(1, 1, 4, 3)
    plain = gather_frames(frames, indices=[0], alpha=1, resize=(1, 2), **IN_GREY_LEVELS)[1]
    torch.testing.assert_close(plain[0, 0, 0], torch.tensor([4.0, 96.0]))
    wide = gather_frames(frames, indices=[0], alpha=1, resize=(1, 2), antialias=True, **IN_GREY_LEVELS)[1]
    left = (0.75 * 0 + 0.75 * 8 + 0.25 * 64) / 1.75
    right = (0.25 * 8 + 0.75 * 64 + 0.75 * 128) / 1.75
    torch.testing.assert_close(wide[0, 0, 0], torch.tensor([left, right]))


def test_normalisation_by_hand():
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    _, fast = gather_frames(frames, indices=[0], alpha=1, mean=(0.5, 0.1, 0.0), std=(0.25, 0.5, 2.0))
    torch.testing.assert_close(fast.flatten(), torch.tensor([-2.0, 0.2, 0.5]))


def test_integers_round_to_nearest_even_and_stay_in_range():
    pair = torch.tensor([[0, 1], [1, 2], [254, 255], [255, 255]], dtype=torch.uint8)
    frames = pair.reshape(1, 4, 2, 1).expand(1, 4, 2, 3)
    _, halves = gather_frames(frames, indices=[0], alpha=1, resize=(4, 1), dtype=torch.uint8)
    assert halves[0, 0, :, 0].tolist() == [0, 2, 254, 255]  # 0.5, 1.5, 254.5, 255
    white = torch.full((1, 7, 9, 3), 255, dtype=torch.uint8)
    for antialias in (False, True):
        _, resized = gather_frames(white, indices=[0], alpha=1, resize=(5, 31), dtype=torch.uint8, antialias=antialias)
        assert (resized == 255).all()


def test_uint8_without_resizing_keeps_the_pixels():
    frames = random_frames(3, 6, 7, 3)
    slow, fast = gather_frames(
        frames,
        indices=[2, 0, 1, 1],
        alpha=2,
        crop=(1, 2, 4, 5),
        dtype=torch.uint8,
        memory_format=torch.channels_last_3d,
    )
    assert torch.equal(fast, frames[[2, 0, 1, 1], 1:5, 2:7].permute(3, 0, 1, 2))
    assert torch.equal(slow, fast[:, [0, 3]])


def test_slow_frames_follow_either_rule():
    frames = torch.arange(64, dtype=torch.uint8).reshape(64, 1, 1, 1).expand(64, 1, 1, 3)
    indices = torch.arange(0, 64, 2)
    for slow_sampling, positions in (("linspace", [0, 10, 20, 31]), ("stride", [0, 8, 16, 24])):
        slow, fast = gather_frames(frames, indices=indices, alpha=8, slow_sampling=slow_sampling, dtype=torch.uint8)
        assert fast[0, :, 0, 0].tolist() == indices.tolist()
        assert slow[0, :, 0, 0].tolist() == [2 * p for p in positions]


def test_a_real_clip(shared_data):
    av = pytest.importorskip("av")
    path = sorted((shared_data / "kinetics_mini" / "videos").glob("*.mp4"))[0]
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(container.decode(video=0), 16)]
    frames = torch.stack([torch.from_numpy(frame) for frame in decoded])
    height, width = frames.shape[1:3]
    side = min(height, width)
    resize = (height * 128 // side, width * 128 // side)
    assert_right(frames, indices=range(0, 16, 2), alpha=4, resize=resize, crop=(8, 8, 112, 112), flip=True)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("alpha", [1, 2])
def test_outputs_in_shared_memory(memory_format: torch.memory_format, alpha: int) -> None:
    def call() -> tuple[Tensor, Tensor]:
        frames = random_frames(4, 9, 12, 3)
        return gather_frames(frames, indices=range(4), alpha=alpha, crop=(1, 2, 6, 8), memory_format=memory_format)

    expected = call()
    with outputs_in_shared_memory():
        outputs = call()
    for output, value in zip(outputs, expected, strict=True):
        assert output.is_shared()
        assert not value.is_shared()
        assert output.stride() == value.stride()
        assert torch.equal(output, value)
    assert not call()[1].is_shared()
