"""gather_frames: what it takes and what it refuses, its memory, and its behaviour as an operator of torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from slowfast_ops import GatherFrames, _native, gather_frames, use_backend
from slowfast_ops.gather_frames import native, ops
from tests.ops.test_gather_frames import MEMORY_FORMATS, random_frames


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
            torch.ops.slowfast.gather_frames([clip], [], [], indices, geometry, [6, 8], *rest)


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
        (CLIP, {"alpha": 0}, "alpha=0: expected an integer of at least 1"),
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
        ([CLIP, CLIP], {"flip": [True, "no"]}, r"flip=\[True, 'no'\]: expected True or False"),
        (CLIP, {"flip": None}, "flip=None: expected True or False"),
        (CLIP, {"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\): expected three numbers"),
        (CLIP, {"mean": (0.5, 0.5, float("nan"))}, r"mean=\(0.5, 0.5, nan\): expected three numbers"),
        (CLIP, {"std": 0.2}, "std=0.2: expected three numbers"),
        (CLIP, {"std": (0.2, 0.0, 0.2)}, "std=.*: every channel's standard deviation must be positive"),
        (CLIP, {"std": (0.2, float("nan"), 0.2)}, "expected three numbers"),
        (CLIP, {"alpha": None}, "alpha=None: expected an integer"),
        (CLIP.to_sparse(), {}, "frames must be a strided tensor, got sparse_coo uint8"),
        (CLIP, {"dtype": torch.int64}, "dtype=torch.int64: expected float32, float64, bfloat16, float16 or uint8"),
        (CLIP, {"memory_format": torch.channels_last}, "memory_format=torch.channels_last: expected"),
    ],
)
def test_errors_name_the_argument(frames, options, message):
    with pytest.raises(ValueError, match=message):
        gather_frames(frames, **{"indices": [0, 1], "alpha": 2, **options})
