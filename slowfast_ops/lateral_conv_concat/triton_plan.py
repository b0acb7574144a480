"""What the launchers of triton.py decide: compile-time facts about the tensors, sizes of tiles, how sums are split."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from slowfast_ops.lateral_conv_concat import triton_backward, triton_forward, triton_norm

PARTIALS_BLOCK = 1024
# Programs that a sum over all rows is split among, of the normalisation's backward and of the weight's: some per
# processor of the largest GPU, and the same number on every GPU, so that the bits do not depend on it.
NORM_PROGRAMS = 512
WEIGHT_PROGRAMS = 264


def positions(x: Tensor) -> int:
    return x.shape[3] * x.shape[4]


def row_count(slow: Tensor) -> int:
    return slow.shape[0] * slow.shape[2] * positions(slow)


def layout(*tensors: Tensor | None) -> tuple[int, int, bool]:
    """LAYOUT of triton_forward.py."""
    given = [x for x in tensors if x is not None]
    even = all(x.shape[3] == 1 or x.stride(3) == x.shape[4] * x.stride(4) for x in given)
    unit = 1 if all(x.stride(1) == 1 for x in given) else 2 if even and all(x.stride(4) == 1 for x in given) else 0
    if unit == 0:
        return 0, 1, even
    axes = ([0, 2, 4] if even else [0, 2, 3, 4]) if unit == 1 else [0, 1, 2]
    dividends = [x.stride(axis) for x in given for axis in axes] + [positions(given[0])] * (unit == 2)
    dividends += [x.data_ptr() // x.element_size() for x in given]
    return unit, math.gcd(16, *dividends), even


def extent(slow: Tensor, layout: tuple[int, int, bool]) -> tuple[int, int, int, int]:
    """`extent` of triton_forward.py; `slow` is any tensor of its N, T, H and W."""
    unit, align, _ = layout
    return positions(slow) // (align if unit == 2 else 1), slow.shape[2], slow.shape[0], slow.shape[4]


def shape(weight: Tensor) -> dict[str, int]:
    return dict(zip(("CHANNELS", "FAST_CHANNELS", "TAPS"), weight.shape[:3], strict=True))


def precision() -> str:
    """What torch's own convolution does with float32."""
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def spacing(some: int, programs: int) -> int:
    """Every which program is one of `some`, for these to be spread over the first three quarters of all programs."""
    return max(1, programs * 3 // (4 * some))


def stores_conv_gradient(weight: Tensor) -> bool:
    """Whether the training form's gradient of conv is stored for its two products, which are wide then."""
    return weight.shape[1] >= 32


def bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def split(tiles: int, groups: int, programs: int) -> tuple[int, int]:
    """(parts, tiles of each) of a sum over tiles for each of `groups` blocks of its result."""
    tiles_per_part = max(1, triton.cdiv(tiles, max(1, programs // groups)))
    return triton.cdiv(tiles, tiles_per_part), tiles_per_part


# ---- sizes of tiles: enough accumulators to use the tensor cores well, few enough to stay in registers. Of the many
# that were tried on an H100 for the shapes of benchmarks/gpu, those that do well for all of a kernel's.


def _block(size: int, most: int) -> int:
    """The smallest power of two that holds `size`, at least 16, which tl.dot needs, and at most `most`."""
    return min(most, max(16, triton.next_power_of_2(size)))


def _depth_block(weight: Tensor, most: int) -> int:
    """The depth of a step: a part of one tap where channels are many, else of all that there is."""
    fast_channels = weight.shape[1]
    return math.gcd(fast_channels, most) if fast_channels % 16 == 0 else _block(fast_channels * weight.shape[2], 64)


def copy_block(slow: Tensor) -> dict[str, int]:
    return {"BLOCK_C": _block(slow.shape[1], 64)}


def forward_blocks(slow: Tensor, weight: Tensor) -> dict[str, int]:
    """Of the convolution beside the copy."""
    if slow.element_size() != 2:
        return statistics_blocks(slow, weight)
    depth = _depth_block(weight, 64)
    return {
        "BLOCK_P": _block(row_count(slow), 64),
        "BLOCK_O": _block(weight.shape[0], 64),
        "BLOCK_D": depth,
        "num_warps": 4,
        "num_stages": 3 if depth == 64 else 4,
    }


def statistics_blocks(slow: Tensor, weight: Tensor) -> dict[str, int]:
    """Of the convolution alone."""
    wide, narrow = slow.element_size() == 8, slow.element_size() == 2
    o = _block(weight.shape[0], 64 if narrow else 16 if wide else 128)
    return {
        "BLOCK_P": _block(row_count(slow), 128 if narrow and o > 16 else 64),
        "BLOCK_O": o,
        "BLOCK_D": 1 if wide else _depth_block(weight, 32),
        "num_warps": 4,
        "num_stages": 4,
    }


def fast_blocks(grad: Tensor, weight: Tensor, alpha: int) -> dict[str, int]:
    wide, narrow = grad.element_size() == 8, grad.element_size() == 2
    f = _block(weight.shape[1] * alpha, 16 if wide else 128)
    return {
        "BLOCK_P": _block(row_count(grad), 64 if wide or (narrow and f > 64) else 128),
        "BLOCK_F": f,
        "BLOCK_O": 1 if wide else _block(weight.shape[0], 64 if narrow else 32),
        "num_warps": 4 if narrow or f < 128 else 8,
        "num_stages": 3,
    }


def weight_blocks(grad: Tensor, weight: Tensor) -> dict[str, int]:
    wide, narrow = grad.element_size() == 8, grad.element_size() == 2
    return {
        "BLOCK_P": 1 if wide else _block(row_count(grad), 64 if narrow else 32),
        "BLOCK_O": _block(weight.shape[0], 16 if wide else 128),
        "BLOCK_D": _block(weight.shape[1] * weight.shape[2], 16 if wide else 128),
        "num_warps": 4,
        "num_stages": 3 if narrow else 2,
    }


def norm_blocks(conv: Tensor) -> dict[str, int]:
    return {"BLOCK_P": _block(row_count(conv), 64), "BLOCK_O": _block(conv.shape[1], 64)}


JOIN_BLOCKS = {"BLOCK": 64, "BLOCK_PARTS": 64}


# ---- for compiling without a GPU


def compile_configurations() -> Iterator[tuple[Any, dict, dict, dict]]:
    """(kernel, signature, constants, options) of what the launchers ask for, for compiling without a GPU.

    The first and the last lateral connection of the paper's networks, and others in between.
    """
    for dtype, unit, fast_channels, taps, alpha, precision in (
        (torch.bfloat16, 1, 8, 5, 8, "ieee"),
        (torch.bfloat16, 1, 128, 7, 4, "ieee"),
        (torch.float16, 2, 64, 5, 8, "ieee"),
        (torch.float32, 1, 32, 5, 8, "tf32"),
        (torch.float32, 2, 32, 5, 8, "ieee"),
    ):
        frame = torch.empty(1, 2 * fast_channels, 1, 56, 56, dtype=dtype, device="meta")
        weight = torch.empty(2 * fast_channels, fast_channels, taps, 1, 1, dtype=dtype, device="meta")
        common: dict[str, Any] = {
            "LAYOUT": (unit, 8, True),
            "WIDE": False,
            "PRECISION": precision,
            "RELU": True,
            "KEPT": 0 if stores_conv_gradient(weight) else 2,
            "SHIFT": False,
            "ALPHA": alpha,
            "SLOW_CHANNELS": 8 * fast_channels,
            **shape(weight),
        }
        copied = {"BLOCK_C": 64}
        unkept = () if common["KEPT"] else ("kept_ptr", "mean_ptr", "grad_mean_ptr", "grad_var_ptr")
        for kernel, blocks, absent in (
            (triton_forward.forward_kernel, {**forward_blocks(frame, weight), **copied}, ()),
            (triton_forward.statistics_forward_kernel, statistics_blocks(frame, weight), ()),
            (triton_norm.norm_forward_kernel, {**norm_blocks(frame), **copied}, ()),
            (triton_norm.norm_backward_kernel, norm_blocks(frame), ()),
            (triton_backward.conv_gradient_kernel, norm_blocks(frame), ()),
            (triton_backward.fast_backward_kernel, fast_blocks(frame, weight, alpha), ("scale_ptr", *unkept)),
            (triton_backward.weight_backward_kernel, weight_blocks(frame, weight), unkept),
            (triton_backward.join_weight_backward_kernel, JOIN_BLOCKS, ("scale_ptr", "grad_scale_ptr")),
        ):
            yield _configuration(kernel, dtype, unit, {**common, **blocks, **dict.fromkeys(absent)})
    joins = {"BLOCK": PARTIALS_BLOCK, "BLOCK_P": 64, "WIDE": False}
    yield _configuration(triton_forward.join_statistics_kernel, torch.bfloat16, 0, joins)
    yield _configuration(triton_norm.join_norm_backward_kernel, torch.bfloat16, 0, joins)


def _configuration(kernel: Any, dtype: torch.dtype, unit: int, values: dict[str, Any]) -> tuple[Any, dict, dict, dict]:
    element = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
    statistics = ("mean_ptr", "var_ptr", "grad_mean_ptr", "grad_var_ptr")
    vectors = ("scale_ptr", "shift_ptr", "gamma_ptr", "beta_ptr", "grad_scale_ptr", "grad_shift_ptr")
    types = dict.fromkeys(statistics, "*fp64") | dict.fromkeys((*vectors, "grad_gamma_ptr", "grad_beta_ptr"), "*fp32")
    types["partials_ptr"] = "*fp32" if "weight" in kernel.fn.__name__ else "*fp64"
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    for place, name in enumerate(kernel.arg_names):
        if name in values:
            signature[name], constants[(place,)] = "constexpr", values[name]
        elif name == "extent":
            signature[name] = ("i32",) * 4
        elif name.endswith("strides"):
            signature[name] = tuple("constexpr" if (unit, axis) in ((1, 1), (2, 4)) else "i64" for axis in range(5))
            constants |= {(place, axis): 1 for axis, kind in enumerate(signature[name]) if kind == "constexpr"}
        elif name.endswith("_ptr"):
            signature[name] = types.get(name, element)
        else:
            signature[name] = "i64" if name == "eps_bits" else "i32"
    options = {name: values[name] for name in ("num_warps", "num_stages") if name in values}
    return kernel, signature, constants, options
