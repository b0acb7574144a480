"""gather_frames of YUV 4:2:0 planes: equal to gather_frames of the same frames in RGB, which equal swscale's."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slowfast_ops import GatherFrames, YUVFrames, gather_frames, use_backend
from slowfast_ops.gather_frames import native, ops
from slowfast_ops.gather_frames.yuv import MATRICES
from tests.ops.op_tester import TRITON_INTERPRETER, Target, fills_gpu_memory, skip_below_gpu_memory
from tests.ops.property_testing import given, settings, st
from tests.ops.test_gather_frames import FLOAT_DTYPES, MEMORY_FORMATS, float64_reference, random_frames

COLOURS = [(matrix, full_range) for matrix in MATRICES for full_range in (False, True)]
LAYOUTS = ("dense", "NV12", "odd strides", "every other pixel", "gaps in chroma")
# Chroma whose pairs of pixels are not all aligned, for one reason each: its address, and the strides of frames, planes,
# rows and pixels of 2 frames of 10 x 44 pixels. A pair has 2 bytes in a plane, and 4 in NV12.
MISALIGNED = {
    "address": (1, (240, 120, 24, 1)),
    "frames": (0, (241, 120, 24, 1)),
    "planes": (0, (240, 121, 24, 1)),
    "rows": (0, (240, 120, 23, 1)),
    "address of NV12": (2, (240, 1, 48, 2)),
    "frames of NV12": (0, (242, 1, 48, 2)),
    "rows of NV12": (0, (240, 1, 46, 2)),
}


def yuv_frames(t: int, h: int, w: int, layout: str = "dense", colour: int = 0) -> YUVFrames:
    """Random planes in memory as decoders and other libraries leave them, in the colour with this number."""
    luma, chroma = random_frames(t, h, w, seed=1), random_frames(t, 2, (h + 1) // 2, (w + 1) // 2, seed=2)
    if layout == "NV12":
        chroma = chroma.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    elif layout == "odd strides":  # of rows, planes and frames, with chroma at an odd address
        luma = luma.new_zeros(t, h + 1, w + 3)[:, 1:, 3:].copy_(luma)
        wider = chroma.new_zeros(t, 2, chroma.shape[2] + 2, chroma.shape[3] | 1)
        chroma = wider.flatten()[1:].as_strided(chroma.shape, wider.stride()).copy_(chroma)
    elif layout == "every other pixel":
        luma = luma.new_zeros(2 * t, h, 2 * w)[::2, :, ::2].copy_(luma)
        chroma = chroma.new_zeros(t, 2, chroma.shape[2], 3 * chroma.shape[3])[..., ::3].copy_(chroma)
    elif layout == "gaps in chroma":  # as far between two pixels as in NV12, but with U and V apart
        chroma = chroma.new_zeros(t, 2, chroma.shape[2], 4 * ((chroma.shape[3] + 1) // 2))[..., ::2][
            ..., : chroma.shape[3]
        ].copy_(chroma)
    elif layout in MISALIGNED:
        address, strides = MISALIGNED[layout]
        chroma = chroma.new_zeros(address + t * strides[0])[address:].as_strided(chroma.shape, strides).copy_(chroma)
    return YUVFrames(luma, chroma, *COLOURS[colour % len(COLOURS)])


# What each path of the kernels is for, as small as it can be: ((shape, layout) of the clips, options).
CASES: dict[str, tuple[list[tuple], dict]] = {
    "clips of different sizes": (
        [((4, 12, 15), "dense"), ((2, 25, 9), "NV12"), ((3, 11, 13), "odd strides")],
        {
            "indices": [[3, 0], [1, 0], [2, 1]],
            "alpha": 2,
            "resize": [(14, 18), (23, 29), None],
            "crop": [(2, 5, 11, 13), (4, 3, 11, 13), None],
            "flip": [True, False, True],
        },
    ),
    "one pixel": ([((1, 1, 1), "dense")], {"indices": [0], "alpha": 1, "resize": (2, 3)}),
    "not resized": ([((2, 7, 11), "NV12")], {"indices": [1, 0], "alpha": 2, "crop": (1, 3, 5, 7)}),
    "flipped": (
        [((2, 8, 6), "every other pixel")],
        {"indices": [1, 1], "alpha": 1, "crop": (3, 1, 4, 5), "flip": True},
    ),
    "words of luma, planes": (
        [((2, 10, 44), "dense")],
        {"indices": [1, 0], "alpha": 2, "resize": (12, 48), "crop": (1, 3, 10, 40)},
    ),
    "words of luma, pairs": (
        [((2, 10, 44), "NV12")],
        {"indices": [0, 1], "alpha": 2, "resize": (12, 45), "crop": (1, 2, 10, 43), "flip": True},
    ),
    "words of luma, bytes": (
        [((2, 10, 44), "odd strides"), ((2, 9, 43), "gaps in chroma")],
        {"indices": [0, 1], "alpha": 2, "resize": (7, 50), "crop": (0, 9, 7, 41)},
    ),
    "words of luma, misaligned chroma": (
        [((2, 10, 44), layout) for layout in MISALIGNED],
        {"indices": [0, 1], "alpha": 2, "crop": (3, 1, 4, 20)},
    ),
    "more rows than threads stage at once": (  # and just as much shared memory as they need
        [((1, 30, 42), "dense")],
        {"indices": [0], "alpha": 1, "resize": (33, 45), "crop": (1, 3, 32, 40)},
    ),
    "rows in several batches": ([((1, 30, 100), "NV12")], {"indices": [0], "alpha": 1, "resize": (33, 104)}),
    "gaps in luma": ([((1, 4, 30), "every other pixel")], {"indices": [0], "alpha": 1, "crop": (1, 5, 3, 25)}),
    "wider than one block": ([((1, 2, 500), "NV12")], {"indices": [0], "alpha": 1, "resize": (2, 700), "flip": True}),
    "taller than one block": ([((1, 40, 6), "dense")], {"indices": [0], "alpha": 1, "resize": (70, 7)}),
    "shrunk": ([((1, 30, 90), "dense")], {"indices": [0], "alpha": 1, "resize": (11, 31), "crop": (2, 1, 9, 30)}),
    "too wide for shared memory": ([((1, 2, 20000), "dense")], {"indices": [0], "alpha": 1, "resize": (1, 8)}),
    "antialias": (
        [((2, 9, 14), "dense"), ((2, 4, 5), "odd strides")],
        {"indices": [[1, 0], [0, 1]], "alpha": 2, "resize": (4, 6), "flip": [True, False], "antialias": True},
    ),
    "antialias, words of luma": (
        [((1, 13, 60), "dense"), ((1, 13, 60), "NV12"), ((1, 13, 61), "odd strides")],
        {"indices": [0], "alpha": 1, "resize": (5, 24), "crop": (1, 5, 4, 18), "antialias": True},
    ),
    "antialias, as much shared memory as is needed": (
        [((1, 20, 21), "dense")],
        {"indices": [0], "alpha": 1, "resize": (8, 16), "crop": (0, 3, 8, 12), "antialias": True},
    ),
    "antialias, the row's end": (
        [((1, 20, 9), "dense")],
        {"indices": [0], "alpha": 1, "resize": (8, 4), "antialias": True},
    ),
    "more clips than one launch takes": (
        [((2, 2, 3), "dense")] * 33,
        {"indices": [[n % 2] for n in range(33)], "alpha": 1, "flip": [n % 3 == 0 for n in range(33)]},
    ),
}
IN_ALL_DTYPES = ("clips of different sizes", "antialias")  # with Triton


def clips_of(case: str, device: str = "cpu") -> list[YUVFrames]:
    return [on_device(yuv_frames(*shape, layout, n), device) for n, (shape, layout) in enumerate(CASES[case][0])]


def on_device(frames: YUVFrames, device: str) -> YUVFrames:
    """With the strides kept, which `.to` does not do for those with gaps."""

    def moved(planes: Tensor) -> Tensor:
        length = 1 + sum((size - 1) * stride for size, stride in zip(planes.shape, planes.stride(), strict=True))
        start = planes.storage_offset()
        memory = planes.as_strided((start + length,), (1,), 0).to(device)
        return memory.as_strided(planes.shape, planes.stride(), start)

    return YUVFrames(moved(frames.luma), moved(frames.chroma), frames.matrix, frames.full_range)


class TestOnEveryTarget:
    """The cases on every backend and stand-in for a GPU, as OpTester does it for ops of floating-point tensors."""

    op = "gather_frames"

    @pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=str)
    @pytest.mark.parametrize("case", CASES)
    def test_matches_reference(self, case: str, memory_format: torch.memory_format, target: Target) -> None:
        options: dict[str, Any] = {"mean": (0.4, 0.45, 0.5), "std": (0.2, 0.225, 0.25), "memory_format": memory_format}
        options |= CASES[case][1]
        clips = clips_of(case, target.device)
        with use_backend(target.backend):
            results = gather_frames(clips, **options)
        for result, exact in zip(results, float64_reference(clips, **options), strict=True):
            assert (result.double() - exact).abs().max() <= 3e-6  # as assert_right allows in float32
        # RGB frames are tested with all dtypes. Triton's interpreter needs a second for a few rows, and its compiler
        # half a second for each dtype and each of the ways in which sizes are multiples of 16.
        if target is TRITON_INTERPRETER or (target.backend == "triton" and case not in IN_ALL_DTYPES):
            return
        for dtype in (*target.dtypes, torch.uint8):
            with use_backend(target.backend):
                results = gather_frames(clips, dtype=dtype, **options)
                of_rgb = gather_frames([clip.rgb() for clip in clips], dtype=dtype, **options)
            for ours, theirs in zip(results, of_rgb, strict=True):
                assert torch.equal(ours, theirs)

    @fills_gpu_memory
    def test_offsets_beyond_31_bits(self, target: Target) -> None:
        """Of frames, and of V behind U, with nothing between them that is touched."""
        if target.device == "cuda":
            skip_below_gpu_memory(4)
        clip, far = yuv_frames(2, 4, 6).to(torch.device(target.device)), 2**31
        memory = torch.empty(far + 128, dtype=torch.uint8, device=target.device)
        luma = memory.as_strided(clip.luma.shape, (far, 6, 1)).copy_(clip.luma)
        frames_apart = memory[32:].as_strided(clip.chroma.shape, (far, 6, 3, 1)).copy_(clip.chroma)
        planes_apart = memory[64:].as_strided(clip.chroma.shape, (6, far, 3, 1)).copy_(clip.chroma)
        for antialias in (False, True):
            options = {"indices": [1], "alpha": 1, "resize": (4, 5), "antialias": antialias}
            with use_backend(target.backend):
                expected, *results = [
                    gather_frames(frames, **options)[1]
                    for frames in (clip, YUVFrames(luma, frames_apart), YUVFrames(luma, planes_apart))
                ]
            for result in results:
                assert torch.equal(result, expected)


@st.composite
def calls(draw: Callable) -> tuple[list[YUVFrames], dict]:
    clips, resizes, crops, flips = [], [], [], []
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    for _ in range(draw(st.integers(1, 2))):
        shape = [2, draw(st.integers(1, 30)), draw(st.integers(1, 80))]
        resized = [draw(st.integers(height, 45)), draw(st.integers(width, 90))]
        keeps_size = shape[1] >= height and shape[2] >= width and draw(st.booleans())
        window = shape[1:] if keeps_size else resized
        clips.append(yuv_frames(*shape, draw(st.sampled_from(LAYOUTS)), draw(st.integers(0, 5))))
        resizes.append(None if keeps_size else tuple(resized))
        top, left = draw(st.integers(0, window[0] - height)), draw(st.integers(0, window[1] - width))
        crops.append((top, left, height, width))
        flips.append(draw(st.booleans()))
    return clips, {
        "indices": draw(st.lists(st.integers(0, 1), min_size=4, max_size=4)),
        "alpha": draw(st.sampled_from([1, 2])),
        "resize": resizes,
        "crop": crops,
        "flip": flips,
        "dtype": draw(st.sampled_from([*FLOAT_DTYPES, torch.uint8])),
        "memory_format": draw(st.sampled_from(MEMORY_FORMATS)),
        "antialias": draw(st.booleans()),
    }


@given(call=calls())
@settings(max_examples=200, deadline=None)
def test_has_the_bits_of_rgb_frames(call):
    clips, options = call
    with use_backend("cpu"):
        for ours, of_rgb in zip(
            gather_frames(clips, **options), gather_frames([clip.rgb() for clip in clips], **options), strict=True
        ):
            assert torch.equal(ours, of_rgb)


def test_same_bits_for_any_number_of_threads(monkeypatch):
    """Also where a thread begins inside a frame, and so with a row that another one has converted as well."""
    monkeypatch.setattr(native, "MIN_PIXELS_PER_THREAD", 1)
    clips, options = clips_of("clips of different sizes"), CASES["clips of different sizes"][1]
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(gather_frames(clips, **options))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def converted(y: int, u: int, v: int, *colour: Any) -> list[int]:
    """A pixel in RGB, by gather_frames."""
    frames = YUVFrames(torch.full((1, 1, 1), y).byte(), torch.tensor([u, v]).byte().reshape(1, 2, 1, 1), *colour)
    pixel = gather_frames(frames, indices=[0], alpha=1, dtype=torch.uint8)[1].flatten().tolist()
    assert frames.rgb().flatten().tolist() == pixel
    return pixel


def test_colours_by_hand():
    for matrix in MATRICES:
        assert converted(16, 128, 128, matrix) == [0, 0, 0]
        assert converted(235, 128, 128, matrix) == [255, 255, 255]
        assert converted(0, 128, 128, matrix) == [0, 0, 0]  # below black
        assert converted(255, 128, 128, matrix) == [255, 255, 255]  # above white
        for grey in (0, 1, 100, 255):
            assert converted(grey, 128, 128, matrix, True) == [grey] * 3
    # y = floor(9539 * 8 * 65 / 2^16) = 75; red 75 + floor(178.8), green 75 + floor(14.9) + floor(-91.05) and blue
    # 75 + floor(-76.7), the last two below zero.
    assert converted(81, 90, 240) == [253, 0, 0]
    # Full range: red 76 + floor(178.7); green 76 + floor(14.5) + floor(-91.1); blue 76 + floor(-75.3).
    assert converted(76, 85, 255, "bt601", True) == [254, 0, 0]
    # y = 203, which red and blue leave upwards: floor(-1747 * 8 * 112 / 2^16) = -24, floor(-59.7) = -60.
    assert converted(191, 240, 240, "bt709") == [255, 119, 255]


@pytest.mark.parametrize(("matrix", "full_range"), COLOURS)
def test_colours_are_those_of_the_standard(matrix, full_range):
    """From RGB by the definition of luma and chroma, and back: rounded down at most three times, and never up."""
    kr, kb = MATRICES[matrix]
    rgb = torch.rand(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 240 + 8
    y = rgb @ torch.tensor([kr, 1 - kr - kb, kb], dtype=torch.float64)
    u, v = (rgb[:, 2] - y) / (2 - 2 * kb), (rgb[:, 0] - y) / (2 - 2 * kr)
    if not full_range:
        y, u, v = 16 + y * 219 / 255, u * 224 / 255, v * 224 / 255
    planes = [plane.round() for plane in (y, u + 128, v + 128)]
    back = YUVFrames(
        planes[0].byte().reshape(1000, 1, 1),
        torch.stack(planes[1:], 1).byte().reshape(1000, 2, 1, 1),
        matrix,
        full_range,
    ).rgb()
    # Rounding y, u and v by up to half a step moves a channel by up to 1.7 grey levels.
    error = back.reshape(1000, 3) - rgb
    assert error.max() <= 1.7
    assert error.min() >= -3 - 1.7


@pytest.mark.parametrize("width", [2, 93, 340])
@pytest.mark.parametrize(("matrix", "full_range"), COLOURS)
def test_equals_swscale(matrix, full_range, width):
    av = pytest.importorskip("av")
    frames = yuv_frames(1, 6, width)
    frames = YUVFrames(frames.luma, frames.chroma, matrix, full_range)
    frame = av.VideoFrame(width, 6, "yuv420p")
    for plane, values in zip(frame.planes, (frames.luma[0], *frames.chroma[0]), strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = values.numpy()
        plane.update(padded.tobytes())
    frame.colorspace = {"bt601": 5, "bt709": 1, "bt2020": 9}[matrix]  # AVColorSpace
    frame.color_range = 2 if full_range else 1  # AVColorRange
    theirs = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    ours = gather_frames(frames, indices=[0], alpha=1, dtype=torch.uint8)[1][:, 0].permute(1, 2, 0)
    # On other processors swscale rounds in other places.
    tolerance = 0 if platform.machine() in ("x86_64", "AMD64") else 3
    assert (ours.int() - theirs.int()).abs().max() <= tolerance


def test_a_batch_a_list_and_single_clips_agree():
    clips = [yuv_frames(3, 9, 11), yuv_frames(3, 9, 11, "NV12")]
    batch = YUVFrames(torch.stack([clip.luma for clip in clips]), torch.stack([clip.chroma for clip in clips]))
    options = {"indices": [2, 0], "alpha": 2, "resize": (10, 12), "crop": (1, 1, 8, 8)}
    results = gather_frames(batch, flip=[False, True], **options)
    for result, of_list in zip(results, gather_frames(clips, flip=[False, True], **options), strict=True):
        assert result.shape[0] == 2
        assert torch.equal(result, of_list)
    for n, clip in enumerate(clips):
        for result, single in zip(results, GatherFrames(2)(clip, [2, 0], flip=n == 1, **WINDOW), strict=True):
            assert torch.equal(result[n], single)
    assert len(batch) == 2
    assert len(clips[0]) == 3
    assert batch.size == clips[0].size == (9, 11)
    assert torch.equal(batch.rgb(), torch.stack([clip.rgb() for clip in clips]))
    empty = YUVFrames(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, 3, 2, 2, 2, dtype=torch.uint8))
    assert gather_frames(empty, indices=[0], alpha=1)[1].shape[0] == 0


WINDOW = {"resize": (10, 12), "crop": (1, 1, 8, 8)}


def test_numpy_arrays_are_taken_without_a_copy():
    luma, chroma = np.full((1, 2, 2), 100, np.uint8), np.full((1, 1, 1, 2), 128, np.uint8)
    frames = YUVFrames(luma, chroma.transpose(0, 3, 1, 2), full_range=True)
    luma[:] = 50
    assert (gather_frames(frames, indices=[0], alpha=1, dtype=torch.uint8)[1] == 50).all()


def test_moves_to_another_device():
    frames = YUVFrames(*(yuv_frames(2, 4, 6).to("meta").__dict__[name] for name in ("luma", "chroma")), "bt709", True)
    moved = frames.to(torch.device("meta"))
    assert (moved.luma.device.type, moved.chroma.device.type, moved.matrix, moved.full_range) == (
        "meta",
        "meta",
        "bt709",
        True,
    )
    with use_backend("reference"):
        slow, fast = gather_frames(moved, indices=torch.zeros(2, dtype=torch.int64, device="meta"), alpha=2)
    assert (slow.shape, fast.shape) == ((3, 1, 4, 6), (3, 2, 4, 6))


@pytest.mark.needs_cuda
def test_pins_both_planes():
    frames = yuv_frames(2, 4, 6).pin_memory()
    assert frames.luma.is_pinned()
    assert frames.chroma.is_pinned()


def call(luma: Tensor, chroma: Tensor) -> tuple[Tensor, Tensor]:
    frames = YUVFrames(luma, chroma, "bt709", full_range=True)
    return gather_frames([frames, frames], indices=[[0, 3], [1, 2]], alpha=2, resize=(20, 17), crop=(2, 1, 13, 11))


def planes(t: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    frames = yuv_frames(t, h, w)
    return frames.luma, frames.chroma


class TestAsATorchOperator:
    def test_opcheck(self, monkeypatch):
        recorded = []
        operator = torch.ops.slowfast.gather_frames.default
        monkeypatch.setattr(ops, "gather_frames", lambda *args: recorded.append(args) or operator(*args))
        call(*planes(4, 12, 16))
        assert recorded
        for args in recorded:
            torch.library.opcheck(operator, args)

    def test_compiles_fullgraph_dynamic(self):
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in ((4, 12, 16), (6, 13, 21)):
            for actual, expected in zip(compiled(*planes(*shape)), call(*planes(*shape)), strict=True):
                assert torch.equal(actual, expected)

    def test_exports(self):
        class Module(torch.nn.Module):
            def forward(self, luma: Tensor, chroma: Tensor) -> tuple[Tensor, Tensor]:
                return call(luma, chroma)

        frames = torch.export.Dim("frames", min=4)
        program = torch.export.export(Module(), planes(4, 12, 16), dynamic_shapes=({0: frames}, {0: frames}))
        assert any("slowfast.gather_frames" in str(node.target) for node in program.graph.nodes)
        longer = planes(7, 12, 16)
        for actual, expected in zip(program.module()(*longer), call(*longer), strict=True):
            assert torch.equal(actual, expected)

    def test_the_kernel_checks_its_arguments(self):
        luma, chroma = planes(2, 4, 6)
        rest = [torch.tensor([[0]]), [4, 6, 0, 0], [4, 6], [False], 1, "linspace", [0.0] * 3, [1.0] * 3, torch.float32]
        rest += [torch.contiguous_format, False]
        integers = [16, 9539, 13075, -3209, -6660, 16525]
        for planes_of_chroma, colour, message in (
            ([chroma[:, :, :1]], integers, r"chroma of clip 0 is not uint8 \[T, 2, ceil\(H/2\), ceil\(W/2\)\]"),
            ([chroma[:1]], integers, "chroma of clip 0"),
            ([chroma], [], "chroma and colour for each clip"),
            ([], [], r"clip 0 is not uint8 \[T, H, W, 3\]"),
        ):
            with pytest.raises(RuntimeError, match=message):
                torch.ops.slowfast.gather_frames([luma], planes_of_chroma, colour, *rest)


LUMA, CHROMA = torch.zeros(4, 8, 11, dtype=torch.uint8), torch.zeros(4, 2, 4, 6, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LUMA.float(), CHROMA), r"luma must be uint8 \[T, H, W\] or \[N, T, H, W\], got float32 \[4, 8, 11\]"),
        ((LUMA[0], CHROMA[0]), r"luma must be uint8 .*, got uint8 \[8, 11\]"),
        ((LUMA, CHROMA.short()), r"chroma of luma \[4, 8, 11\] must be uint8 \[4, 2, 4, 6\], got int16 \[4, 2, 4, 6\]"),
        ((LUMA, CHROMA[..., :5]), r"must be uint8 \[4, 2, 4, 6\], got uint8 \[4, 2, 4, 5\]"),
        ((LUMA, CHROMA[:3]), r"must be uint8 \[4, 2, 4, 6\], got uint8 \[3, 2, 4, 6\]"),
        ((LUMA, CHROMA.permute(0, 2, 3, 1)), r"must be uint8 \[4, 2, 4, 6\], got uint8 \[4, 4, 6, 2\]"),
        ((LUMA[None], CHROMA), r"must be uint8 \[1, 4, 2, 4, 6\], got"),
        ((LUMA, CHROMA.to("meta")), "chroma is on meta, luma on cpu; expected one device"),
        ((LUMA, CHROMA, "bt470"), "matrix='bt470': expected one of bt601, bt709, bt2020"),
        ((LUMA, CHROMA, "bt601", 2), "full_range=2: expected True or False"),
        (("clip.mp4", CHROMA), "luma must be a uint8 tensor or NumPy array"),
    ],
)
def test_errors_of_frames_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        YUVFrames(*arguments)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            [YUVFrames(LUMA, CHROMA), random_frames(4, 8, 11, 3)],
            r"frames\[0\] is YUVFrames, others of the list are RGB",
        ),
        ([YUVFrames(LUMA[None], CHROMA[None])], r"frames\[0\] must be YUVFrames of one clip, luma \[T, H, W\]"),
        (YUVFrames(LUMA[:, :0], CHROMA[:, :, :0]), "frames has no pixels"),
        (
            [YUVFrames(LUMA, CHROMA), YUVFrames(LUMA, CHROMA).to("meta")],
            r"frames\[1\] is on meta, frames\[0\] on cpu; expected one device",
        ),
    ],
)
def test_errors_of_gather_frames_name_the_argument(frames, message):
    with pytest.raises(ValueError, match=message):
        gather_frames(frames, indices=[0], alpha=1)
