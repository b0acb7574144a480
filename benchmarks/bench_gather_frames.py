"""gather_frames against what it replaces: from 64 decoded frames of 256 x 340 pixels to the inputs of both pathways.

Two PyTorch compositions are timed beside it: the steps of PySlowFast in their order, and the leanest that was found (it
interpolates raw values in channels_last and normalises only the crop). For frames that a decoder left in YUV 4:2:0, the
peers have swscale (through PyAV) convert the frames that are picked first, one at a time, as readers of videos do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slowfast_ops import YUVFrames, gather_frames, slow_frame_indices

ALPHA, MEAN, STD = 8, 0.45, 0.225
CLIP = {"resize": (288, 382), "crop": (31, 70, 224, 224), "flip": True}
CASES = {
    "training clip, short side 288, crop 224, flip": CLIP,
    "training clip, channels_last_3d": {**CLIP, "memory_format": torch.channels_last_3d},
    "training clip, bfloat16, channels_last_3d": {
        **CLIP,
        "dtype": torch.bfloat16,
        "memory_format": torch.channels_last_3d,
    },
    "training clip, antialias to 128, crop 112": {"resize": (128, 170), "crop": (8, 29, 112, 112), "antialias": True},
    "test view, not resized, crop 256": {"crop": (0, 42, 256, 256)},
}


def op(frames: Tensor | YUVFrames, **options: object) -> tuple[Tensor, Tensor]:
    return gather_frames([frames], alpha=ALPHA, **options)  # type: ignore[arg-type]


def pyslowfast_steps(
    frames: Tensor,
    *,
    indices: Tensor,
    resize: tuple | None = None,
    crop: tuple,
    flip: bool = False,
    antialias: bool = False,
    **output: object,
) -> tuple[Tensor, Tensor]:
    x = torch.index_select(frames, 0, indices).float() / 255.0
    x = (x - torch.tensor([MEAN] * 3)) / torch.tensor([STD] * 3)
    x = x.permute(3, 0, 1, 2)
    if resize is not None:
        x = F.interpolate(x, size=resize, mode="bilinear", align_corners=False, antialias=antialias)
    x = cropped(x, crop, flip)
    return packed(x, **output)  # type: ignore[arg-type]


def lean_steps(
    frames: Tensor,
    *,
    indices: Tensor,
    resize: tuple | None = None,
    crop: tuple,
    flip: bool = False,
    antialias: bool = False,
    **output: object,
) -> tuple[Tensor, Tensor]:
    x = torch.index_select(frames, 0, indices).permute(0, 3, 1, 2)
    if resize is not None:
        x = F.interpolate(x.float(), size=resize, mode="bilinear", align_corners=False, antialias=antialias)
    x = cropped(x, crop, flip).transpose(0, 1)
    x = x * (1 / (255 * STD)) - MEAN / STD
    return packed(x, **output)  # type: ignore[arg-type]


def cropped(x: Tensor, crop: tuple, flip: bool) -> Tensor:
    top, left, height, width = crop
    x = x[..., top : top + height, left : left + width]
    return x.flip(-1) if flip else x


def packed(
    fast: Tensor, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor]:
    """[3, T, h, w] -> a batch of one clip for each pathway, in the format that the network gets."""
    slow = fast.index_select(1, slow_frame_indices(fast.shape[1], ALPHA))
    slow, fast = (x.unsqueeze(0).to(dtype).contiguous(memory_format=memory_format) for x in (slow, fast))
    return slow, fast


@pytest.mark.parametrize("implementation", [op, pyslowfast_steps, lean_steps], ids=["op", "pyslowfast", "lean-pytorch"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_gather_frames(benchmark, case: str, threads: int, implementation: Callable) -> None:
    frames = torch.randint(0, 256, (64, 256, 340, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"indices": torch.linspace(0, 63, 32).long(), **CASES[case]}
    benchmark.group = f"gather_frames: {case}; {threads} thread(s)"
    check_and_measure(benchmark, threads, op(frames, **options), implementation, frames, options)


def check_and_measure(
    benchmark, threads: int, expected: tuple[Tensor, Tensor], implementation: Callable, frames: object, options: dict
) -> None:
    # float32 interpolate computes its coordinates in float32
    tolerance = 2e-2 if options.get("dtype") == torch.bfloat16 else 5e-4
    memory_format = options.get("memory_format", torch.contiguous_format)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for ours, theirs in zip(expected, implementation(frames, **options), strict=True):
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
            assert ours.is_contiguous(memory_format=memory_format)
            assert theirs.is_contiguous(memory_format=memory_format)
        benchmark.pedantic(implementation, (frames,), options, rounds=7, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)


class Decoded:
    """A clip in each of the forms that the implementations start from."""

    def __init__(self) -> None:
        av = pytest.importorskip("av")
        generator = torch.Generator().manual_seed(0)
        luma = torch.randint(0, 256, (64, 256, 340), dtype=torch.uint8, generator=generator)
        chroma = torch.randint(0, 256, (64, 2, 128, 170), dtype=torch.uint8, generator=generator)
        self.yuv = YUVFrames(luma, chroma)
        self.rgb = self.yuv.rgb()
        self.frames = [av.VideoFrame(340, 256, "yuv420p") for _ in range(64)]
        for frame, *planes in zip(self.frames, luma, *chroma.unbind(1), strict=True):
            for plane, values in zip(frame.planes, planes, strict=True):
                padded = np.zeros((plane.height, plane.line_size), np.uint8)
                padded[:, : plane.width] = values.numpy()
                plane.update(padded)


def op_of_yuv(decoded: Decoded, **options: object) -> tuple[Tensor, Tensor]:
    return op(decoded.yuv, **options)


def op_of_rgb(decoded: Decoded, **options: object) -> tuple[Tensor, Tensor]:
    """What the conversion alone costs: RGB frames that were there already."""
    return op(decoded.rgb, **options)


def swscale_then(function: Callable, decoded: Decoded, indices: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    arrays = [decoded.frames[i].to_ndarray(format="rgb24") for i in indices.tolist()]
    return function(torch.from_numpy(np.stack(arrays)), indices=torch.arange(len(arrays)), **options)


def swscale_then_op(decoded: Decoded, **options: object) -> tuple[Tensor, Tensor]:
    return swscale_then(op, decoded, **options)  # type: ignore[arg-type]


def swscale_then_pyslowfast(decoded: Decoded, **options: object) -> tuple[Tensor, Tensor]:
    return swscale_then(pyslowfast_steps, decoded, **options)  # type: ignore[arg-type]


def swscale_then_lean(decoded: Decoded, **options: object) -> tuple[Tensor, Tensor]:
    return swscale_then(lean_steps, decoded, **options)  # type: ignore[arg-type]


OF_YUV = {
    "op": op_of_yuv,
    "op-of-rgb": op_of_rgb,
    "swscale-op": swscale_then_op,
    "swscale-pyslowfast": swscale_then_pyslowfast,
    "swscale-lean-pytorch": swscale_then_lean,
}


@pytest.mark.parametrize("implementation", OF_YUV.values(), ids=OF_YUV.keys())
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_gather_frames_of_yuv(benchmark, case: str, threads: int, implementation: Callable) -> None:
    decoded = Decoded()
    options = {"indices": torch.linspace(0, 63, 32).long(), **CASES[case]}
    benchmark.group = f"gather_frames of YUV 4:2:0: {case}; {threads} thread(s)"
    check_and_measure(benchmark, threads, op(decoded.yuv, **options), implementation, decoded, options)
