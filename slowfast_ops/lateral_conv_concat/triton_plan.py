"""What the launchers of triton.py decide: compile-time facts about the tensors, sizes of tiles, how sums are split."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from slowfast_ops.lateral_conv_concat import native, triton_backward, triton_forward, triton_norm

BLOCK_C = 64  # channels of a tile that is copied or normalised
PARTIALS_BLOCK = 1024
# Programs that a sum over all positions is split among: several per processor of the largest GPU, and the same number
# on every GPU, so that the bits do not depend on it.
PROGRAMS = 512


def positions(x: Tensor) -> int:
    return x.shape[3] * x.shape[4]


def sizes(slow: Tensor, facts: dict[str, Any]) -> tuple[int, int, int]:
    """position_groups, slow_frames and width; `slow` is any tensor of its T, H and W."""
    return positions(slow) // (facts["ALIGN"] if facts["UNIT"] == 2 else 1), slow.shape[2], slow.shape[4]


def weight_sizes(weight: Tensor) -> dict[str, int]:
    return {"FAST_CHANNELS": weight.shape[1], "TAPS": weight.shape[2]}


def facts(*tensors: Tensor | None, weight: Tensor | None = None) -> dict[str, Any]:
    """UNIT, ALIGN and EVEN of triton_forward.py; for `weight`, whose strides are known, ALIGN holds for its address."""
    given = [x for x in tensors if x is not None]
    even = all(x.shape[3] == 1 or x.stride(3) == x.shape[4] * x.stride(4) for x in given)
    unit = 1 if all(x.stride(1) == 1 for x in given) else 2 if even and all(x.stride(4) == 1 for x in given) else 0
    if unit == 0:
        return {"UNIT": 0, "ALIGN": 1, "EVEN": even}
    axes = ([0, 2, 4] if even else [0, 2, 3, 4]) if unit == 1 else [0, 1, 2]
    dividends = [x.stride(axis) for x in given for axis in axes] + [positions(given[0])] * (unit == 2)
    dividends += [x.data_ptr() // x.element_size() for x in (*given, weight) if x is not None]
    align = math.gcd(16, *dividends)
    return {"UNIT": unit, "ALIGN": align, "EVEN": even}


def depth_order(weight: Tensor, fast: Tensor | None) -> tuple[Tensor, bool]:
    """The weight with its depth adjacent in memory, and whether the taps come innermost there.

    A channels-last tile of fast is read along the channels, so that they must come innermost; for others the order in
    which a contiguous weight lies is as good.
    """
    if fast is not None and fast.stride(1) != 1 and weight.is_contiguous():
        return weight, True
    return native.depth_major(weight), False


def precision() -> str:
    """What torch's own convolution does with float32."""
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def split(tiles: int, groups: int) -> tuple[int, int]:
    """(parts, tiles of each) of a sum over tiles for each of `groups` blocks of its result."""
    tiles_per_part = max(1, triton.cdiv(tiles, max(1, PROGRAMS // groups)))
    return triton.cdiv(tiles, tiles_per_part), tiles_per_part


# ---- sizes of tiles: enough accumulators to use the tensor cores well, few enough to stay in registers


def _block(size: int, most: int) -> int:
    """The smallest power of two that holds `size`, at least 16, which tl.dot needs, and at most `most`."""
    return min(most, max(16, triton.next_power_of_2(size)))


def conv_blocks(slow: Tensor, weight: Tensor) -> dict[str, int]:
    wide, narrow = slow.element_size() == 8, slow.element_size() == 2
    o = _block(weight.shape[0], 256 if narrow else 16 if wide else 64)
    return {
        "BLOCK_P": _block(positions(slow), 128 if narrow and o <= 64 else 64),
        "BLOCK_O": o,
        "BLOCK_D": 1 if wide else _block(weight.shape[1] * weight.shape[2], 64 if narrow and o <= 128 else 32),
        "num_warps": 8 if o > 128 else 4,
    }


def fast_blocks(grad: Tensor, weight: Tensor) -> dict[str, int]:
    wide, narrow = grad.element_size() == 8, grad.element_size() == 2
    return {
        "BLOCK_P": _block(positions(grad), 64),
        "BLOCK_F": _block(weight.shape[1], 128 if narrow else 16 if wide else 64),
        "BLOCK_O": 1 if wide else _block(weight.shape[0], 64 if narrow else 32),
    }


def weight_blocks(grad: Tensor, weight: Tensor) -> dict[str, int]:
    wide, narrow = grad.element_size() == 8, grad.element_size() == 2
    return {
        "BLOCK_P": 1 if wide else _block(positions(grad), 64 if narrow else 32),
        "BLOCK_O": _block(weight.shape[0], 16 if wide else 64),
        "BLOCK_D": _block(weight.shape[1] * weight.shape[2], 16 if wide else 64),
    }


def norm_blocks(conv: Tensor) -> dict[str, int]:
    return {"BLOCK_P": _block(positions(conv), 64), "BLOCK_C": BLOCK_C}


JOIN_BLOCKS = {"BLOCK": 64, "BLOCK_PARTS": 64}


# ---- for compiling without a GPU


def compile_configurations() -> Iterator[tuple[Any, dict, dict, dict]]:
    """(kernel, signature, constants, options) of what the launchers ask for, for compiling without a GPU.

    The first and the last lateral connection of the paper's networks, and others in between.
    """
    for dtype, unit, fast_channels, taps, precision in (
        (torch.bfloat16, 1, 8, 5, "ieee"),
        (torch.bfloat16, 1, 128, 7, "ieee"),
        (torch.float16, 2, 64, 5, "ieee"),
        (torch.float32, 1, 32, 5, "tf32"),
        (torch.float32, 2, 32, 5, "ieee"),
    ):
        frame = torch.empty(1, 2 * fast_channels, 1, 56, 56, dtype=dtype, device="meta")
        weight = torch.empty(2 * fast_channels, fast_channels, taps, 1, 1, dtype=dtype, device="meta")
        common: dict[str, Any] = {
            "UNIT": unit,
            "ALIGN": 8,
            "EVEN": True,
            "WIDE": False,
            "PRECISION": precision,
            "RELU": True,
            "KEPT": 2,
            "SCALED": False,
            "SLOW_CHANNELS": 8 * fast_channels,
            "CHANNELS": weight.shape[0],
            "TAPS_INNER": unit == 2,
            **weight_sizes(weight),
            **{f"{x}_{'c' if unit == 1 else 'w'}": 1 for x in ("slow", "fast", "residual", "output", "conv", "grad")},
            **{f"{x}_{'c' if unit == 1 else 'w'}": 1 for x in ("kept", "grad_conv")},
        }
        for kernel, blocks, absent in (
            (triton_forward.forward_kernel, {**conv_blocks(frame, weight), "BLOCK_C": BLOCK_C}, ()),
            (triton_forward.statistics_forward_kernel, conv_blocks(frame, weight), ()),
            (triton_norm.norm_forward_kernel, norm_blocks(frame), ()),
            (triton_norm.norm_backward_kernel, norm_blocks(frame), ()),
            (triton_backward.fast_backward_kernel, fast_blocks(frame, weight), ("scale_ptr",)),
            (triton_backward.weight_backward_kernel, weight_blocks(frame, weight), ()),
            (triton_backward.join_weight_backward_kernel, JOIN_BLOCKS, ("scale_ptr", "grad_scale_ptr")),
        ):
            yield _configuration(kernel, dtype, {**common, **blocks, **dict.fromkeys(absent)})
    joins = {"BLOCK": PARTIALS_BLOCK, "BLOCK_P": 64, "WIDE": False}
    yield _configuration(triton_forward.join_statistics_kernel, torch.bfloat16, joins)
    yield _configuration(triton_norm.join_norm_backward_kernel, torch.bfloat16, joins)


def _configuration(kernel: Any, dtype: torch.dtype, values: dict[str, Any]) -> tuple[Any, dict, dict, dict]:
    element = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
    statistics = ("mean_ptr", "var_ptr", "grad_mean_ptr", "grad_var_ptr")
    vectors = ("scale_ptr", "shift_ptr", "gamma_ptr", "beta_ptr", "grad_scale_ptr", "grad_shift_ptr")
    types = dict.fromkeys(statistics, "*fp64") | dict.fromkeys((*vectors, "grad_gamma_ptr", "grad_beta_ptr"), "*fp32")
    types["partials_ptr"] = "*fp32" if "weight" in kernel.fn.__name__ else "*fp64"
    signature = {}
    for name in kernel.arg_names:
        if name in values:
            continue
        if name.endswith("_ptr"):
            signature[name] = types.get(name, element)
        else:
            signature[name] = "i64" if name == "eps_bits" or name[-2:] in ("_n", "_c", "_t", "_h", "_w") else "i32"
    constants = {name: value for name, value in values.items() if name in kernel.arg_names}
    options = {"num_warps": values["num_warps"]} if "num_warps" in values else {}
    return kernel, signature, constants, options
