"""gather_frames: against its reference in float64, against PyTorch's own pipeline, and values computed by hand."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slowfast_ops import GatherFrames, _native, gather_frames, slow_frame_indices, use_backend
from slowfast_ops.gather_frames import native, ops
from tests.ops.op_tester import Target, only_on_a_gpu, skip_below_gpu_memory
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
    "shrunk to a few pixels": ([(1, 3, 9000, 3)], ["dense"], {"indices": [[0]], "alpha": 1, "resize": (2, 9)}),
    "too wide for shared memory": ([(1, 2, 20000, 3)], ["dense"], {"indices": [[0]], "alpha": 1, "resize": (1, 8)}),
    "antialias": (
        [(2, 9, 14, 3), (2, 4, 5, 3)],
        ["dense", "planes"],
        {"indices": [[1, 0], [0, 1]], "alpha": 2, "resize": (4, 6), "flip": [True, False], "antialias": True},
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

    def test_indices_outside_are_clamped_on_a_gpu(self, target: Target) -> None:
        """And an error on the CPU; called without api.py, which checks what is on the CPU."""
        frames = random_frames(3, 4, 5, 3).to(target.device)
        rest = [[4, 5, 0, 0], [4, 5], [False], 1, "linspace", [0.0] * 3, [1 / 255] * 3, torch.float32]
        rest += [torch.contiguous_format, False]
        op = ops.gather_frames_triton if target.backend == "triton" else ops.gather_frames
        indices = torch.tensor([[-5, 1, 7]], device=target.device)
        if target.name == "cpu":
            with pytest.raises(RuntimeError, match=r"index -5 outside \[0, 3\)"):
                op([frames], indices, *rest)
        else:
            _, fast = op([frames], indices, *rest)
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


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_one_pathway_is_not_made_twice(backend):
    with use_backend(backend):
        for frames in (random_frames(4, 5, 6, 3), random_frames(2, 4, 5, 6, 3)):
            slow, fast = gather_frames(frames, indices=[0, 3], alpha=1)
            assert slow is fast


def test_a_batch_a_list_and_single_clips_agree():
    clips = [random_frames(5, 20, 30, 3, seed=1), random_frames(7, 33, 18, 3, seed=2)]
    options = [
        {"indices": [0, 1, 2, 4], "resize": (24, 36), "crop": (3, 8, 16, 16), "flip": True},
        {"indices": [6, 5, 0, 0], "resize": None, "crop": (9, 1, 16, 16), "flip": False},
    ]
    together = {key: [option[key] for option in options] for key in options[0]}
    for memory_format in MEMORY_FORMATS:
        slow, fast = gather_frames(clips, alpha=2, memory_format=memory_format, **together)
        for n, (clip, option) in enumerate(zip(clips, options, strict=True)):
            one_slow, one_fast = gather_frames(clip, alpha=2, memory_format=memory_format, **option)
            assert torch.equal(slow[n], one_slow)
            assert torch.equal(fast[n], one_fast)
    batch = torch.stack([clips[0], clips[0].flip(1)])
    shared = {"indices": torch.tensor([4, 1]), "resize": (10, 12), "crop": (1, 1, 8, 8)}
    slow, fast = gather_frames(batch, alpha=2, flip=[False, True], **shared)
    from_list = gather_frames(list(batch.unbind(0)), alpha=2, flip=(False, True), **shared)
    assert fast.shape == (2, 3, 2, 8, 8)
    assert torch.equal(slow, from_list[0])
    assert torch.equal(fast, from_list[1])


def test_an_empty_batch_gives_an_empty_batch():
    slow, fast = gather_frames(torch.zeros(0, 4, 5, 6, 3, dtype=torch.uint8), indices=[0, 1], alpha=2)
    assert slow.shape[:2] == fast.shape[:2] == (0, 3)


def test_numpy_arrays_and_integers_are_taken():
    frames = random_frames(4, 6, 7, 3)
    expected = gather_frames(frames, indices=[0, 3], alpha=2, resize=(5, 5))
    height, no = torch.tensor([5]).numpy()[0], torch.tensor([False]).numpy()[0]
    actual = gather_frames(frames.numpy(), indices=torch.tensor([0, 3]).numpy(), alpha=2, resize=(height, 5), flip=no)
    assert torch.equal(actual[1], expected[1])
    assert torch.equal(gather_frames([frames.numpy()], indices=[[0, 3]], alpha=2, resize=[(5, 5)])[0][0], expected[0])


def test_the_module_is_the_function_with_fixed_options():
    frames, window = random_frames(8, 20, 30, 3), {"resize": (24, 36), "crop": (2, 3, 16, 16), "flip": True}
    fixed = {"slow_sampling": "stride", "dtype": torch.bfloat16, "memory_format": torch.channels_last_3d}
    module = GatherFrames(2, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), antialias=True, **fixed)
    expected = gather_frames(
        frames, indices=range(4), alpha=2, mean=(0.5,) * 3, std=(0.2,) * 3, antialias=True, **fixed, **window
    )
    for a, e in zip(module(frames, range(4), **window), expected, strict=True):
        assert torch.equal(a, e)
        assert a.stride() == e.stride()
    assert module.state_dict() == {}
    assert "alpha=2" in repr(module)


def test_memory_beyond_the_outputs_is_small(monkeypatch):
    allocated = []

    def counted(*args, **kwargs):
        allocated.append(torch.empty(*args, **kwargs))
        return allocated[-1]

    monkeypatch.setattr(_native, "_empty", counted)
    slow, fast = gather_frames(
        random_frames(8, 256, 340, 3), indices=range(8), alpha=4, resize=(288, 383), crop=(30, 70, 224, 224)
    )
    outputs = slow.nbytes + fast.nbytes
    assert outputs <= sum(t.nbytes for t in allocated) <= 1.01 * outputs


# Every tensor, the frames included, ends where readable memory ends, and fresh memory is full of huge numbers.
GUARDED_CALLS = """
import ctypes, mmap
import torch
from slowfast_ops import _native, gather_frames

kept = []

def guarded(shape, dtype, memory_format=torch.contiguous_format, **kwargs):
    empty = torch.empty(shape, dtype=dtype, memory_format=memory_format, device="meta")
    if not empty.numel():
        return torch.empty(shape, dtype=dtype)
    size = empty.numel() * empty.element_size()
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.memset(start, 0x7F, pages * mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    kept.append(memory)
    offset = pages * mmap.PAGESIZE - size
    flat = torch.frombuffer(memory, dtype=dtype, count=empty.numel(), offset=offset)
    return flat.as_strided(empty.shape, empty.stride())

_native._empty = guarded
for width in (1, 7, 16, 61):
    frames = guarded((2, 9, width, 3), torch.uint8).copy_(torch.randint(0, 256, (2, 9, width, 3), dtype=torch.uint8))
    for options in ({}, {"resize": (17, 2 * width + 1)}, {"resize": (4, (width + 1) // 2), "antialias": True}):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8):
            for memory_format in (torch.contiguous_format, torch.channels_last_3d):
                for flip in (False, True):
                    gather_frames(
                        frames, indices=[1, 0], alpha=2, flip=flip, dtype=dtype, memory_format=memory_format, **options
                    )
print("whole")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="uses mprotect")
def test_stays_inside_its_memory():
    result = subprocess.run([sys.executable, "-c", GUARDED_CALLS], capture_output=True, text=True)
    assert result.stdout.strip() == "whole", f"status {result.returncode}: {result.stderr[-2000:]}"


CALLS = {
    "one clip": lambda x: gather_frames(x[:, :9], indices=[0, 3], alpha=2, resize=(20, 17), crop=(2, 1, 13, 11)),
    "a list": lambda x: gather_frames(
        [x, x[:3, 2:, :8]],
        indices=[[0, 3, 3, 1], [2, 1, 0, 0]],
        alpha=4,
        slow_sampling="stride",
        resize=[(9, 9), None],
        crop=[(0, 1, 8, 8), (1, 0, 8, 8)],
        flip=[True, False],
        dtype=torch.bfloat16,
        memory_format=torch.channels_last_3d,
        antialias=True,
    ),
    "one pathway": lambda x: gather_frames(x, indices=torch.tensor([1, 2, 3]), alpha=1, flip=True, dtype=torch.uint8),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
class TestAsATorchOperator:
    def frames(self) -> Tensor:
        return random_frames(4, 12, 15, 3)

    def test_opcheck(self, call, monkeypatch):
        recorded = []
        monkeypatch.setattr(ops, "gather_frames", lambda *args: recorded.append(args) or operator(*args))
        operator = torch.ops.slowfast.gather_frames.default
        call(self.frames())
        assert recorded
        for args in recorded:
            torch.library.opcheck(operator, args)

    def test_compiles_fullgraph_dynamic(self, call):
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        for frames in (self.frames(), random_frames(6, 13, 21, 3)):
            for actual, expected in zip(compiled(frames), call(frames), strict=True):
                assert torch.equal(actual, expected)
                assert actual.stride() == expected.stride()

    def test_exports(self, call):
        class Module(torch.nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return call(x)

        shapes = ({0: torch.export.Dim("frames", min=4), 2: torch.export.Dim("width", min=9)},)
        program = torch.export.export(Module(), (self.frames(),), dynamic_shapes=shapes)
        assert any("slowfast.gather_frames" in str(node.target) for node in program.graph.nodes)
        wider = random_frames(5, 12, 33, 3)
        for actual, expected in zip(program.module()(wider), call(wider), strict=True):
            assert torch.equal(actual, expected)

    def test_same_bits_for_any_number_of_threads(self, call, monkeypatch):
        monkeypatch.setattr(native, "MIN_PIXELS_PER_THREAD", 1)
        results = []
        for threads in (1, 2, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(call(self.frames()))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)

    def test_no_gradient_and_no_autocast(self, call):
        with torch.autocast("cpu", torch.bfloat16):
            results = call(self.frames())
        for actual, expected in zip(results, call(self.frames()), strict=True):
            assert not actual.requires_grad
            assert actual.dtype == expected.dtype


def test_the_kernel_checks_what_a_compiler_cannot():
    compiled = torch.compile(
        lambda x, i: gather_frames(x, indices=i, alpha=1), backend="eager", fullgraph=True, dynamic=True
    )
    with use_backend("cpu"), pytest.raises(RuntimeError, match=r"index 4 outside \[0, 4\), the frames of clip 0"):
        compiled(random_frames(4, 2, 2, 3), torch.tensor([0, 4]))
    rest = [[False], 1, "linspace", [0.0] * 3, [1.0] * 3, torch.float32, torch.contiguous_format, False]
    frames, one = random_frames(4, 8, 8, 3), torch.tensor([[0]])
    for clip, indices, geometry, message in (
        (frames, one, [8, 8, 4, 0], "the crop is not inside the resized frame of clip 0"),
        (frames[0], one, [8, 8, 0, 0], r"clip 0 is not uint8 \[T, H, W, 3\]"),
        (frames, one.expand(2, 1), [8, 8, 0, 0], r"indices is not int64 \[N, T'\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.slowfast.gather_frames([clip], indices, geometry, [6, 8], *rest)


CLIP = torch.zeros(4, 8, 10, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (CLIP.float(), {}, r"frames must be uint8 \[T, H, W, 3\], got float32 \[4, 8, 10, 3\]"),
        (CLIP[0], {}, r"frames must be uint8 \[T, H, W, 3\] or \[N, T, H, W, 3\], got uint8 \[8, 10, 3\]"),
        (CLIP.permute(0, 3, 1, 2), {}, r"frames must be uint8 \[T, H, W, 3\], got uint8 \[4, 3, 8, 10\]"),
        (CLIP[:, :0], {}, "frames has no pixels"),
        ([], {}, "frames is an empty list"),
        ([CLIP, CLIP[0]], {}, r"frames\[1\] must be uint8 \[T, H, W, 3\], got uint8 \[8, 10, 3\]"),
        ("clip.mp4", {}, "frames must be a uint8 tensor or NumPy array"),
        (CLIP.numpy()[:, ::-1], {}, "frames must be a uint8 tensor or NumPy array: .*negative"),
        (CLIP, {"indices": []}, "indices is empty"),
        (CLIP, {"indices": [0, 4]}, r"indices must lie in \[0, 4\), the frames of clip 0, got values from 0 to 4"),
        (CLIP, {"indices": [-1, 0]}, r"indices must lie in \[0, 4\), the frames of clip 0, got values from -1 to 0"),
        ([CLIP, CLIP[:2]], {"indices": [1, 2]}, r"\[0, 2\), the frames of clip 1, got values from 1 to 2"),
        (CLIP, {"indices": [0.0, 1.0]}, r"indices must be int64 \[T'\] or \[N, T'\], got float32 \[2\]"),
        (CLIP, {"indices": ["a", "b"]}, "indices must be integers"),
        ([CLIP, CLIP], {"indices": [[0, 1], [0]]}, "indices must be integers"),
        (CLIP, {"indices": [[0, 1], [0, 1]]}, "indices has 2 rows for 1 clips"),
        (CLIP, {"indices": [0, 1, 2]}, "indices picks 3 frames, which alpha=2 does not divide"),
        (CLIP, {"alpha": 0}, "alpha=0: the speed ratio must be at least 1"),
        (CLIP, {"slow_sampling": "nearest"}, "slow_sampling='nearest'"),
        (CLIP, {"resize": (16, 0)}, r"resize=\(16, 0\): height and width must be at least 1"),
        (CLIP, {"resize": (16, 16.5)}, r"resize=\(16, 16.5\): expected \(height, width\), integers in pixels"),
        (CLIP, {"resize": 16}, r"resize=16: expected \(height, width\)"),
        ([CLIP, CLIP], {"resize": [(4, 4)]}, "resize has 1 entries for 2 clips"),
        (CLIP, {"crop": (0, 0, 8)}, r"crop=\(0, 0, 8\): expected \(top, left, height, width\)"),
        (CLIP, {"crop": (0, 0, 8, 0)}, "is not inside the resized frame of clip 0, 8 x 10 pixels"),
        (CLIP, {"crop": (-1, 0, 8, 8)}, r"crop=\(-1, 0, 8, 8\) .* is not inside the resized frame of clip 0, 8 x 10"),
        (CLIP, {"resize": (6, 6), "crop": (0, 0, 6, 7)}, r"crop=\(0, 0, 6, 7\) .* clip 0, 6 x 6 pixels"),
        ([CLIP, CLIP[:, 1:]], {}, "clip 1 comes out at 7 x 10 pixels and clip 0 at 8 x 10"),
        ([CLIP, CLIP], {"flip": [True]}, "flip has 1 entries for 2 clips"),
        (CLIP, {"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\): expected three values"),
        (CLIP, {"std": (0.2, 0.0, 0.2)}, "std=.*: every channel's standard deviation must be positive"),
        (CLIP, {"std": (0.2, float("nan"), 0.2)}, "standard deviation must be positive"),
        (CLIP, {"dtype": torch.int64}, "dtype=torch.int64: expected float32, float64, bfloat16, float16 or uint8"),
        (CLIP, {"memory_format": torch.channels_last}, "memory_format=torch.channels_last: expected"),
    ],
)
def test_errors_name_the_argument(frames, options, message):
    with pytest.raises(ValueError, match=message):
        gather_frames(frames, **{"indices": [0, 1], "alpha": 2, **options})


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
