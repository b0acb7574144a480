"""YUV 4:2:0 frames as a decoder leaves them, and what they are in RGB: integer arithmetic that every backend shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from slowfast_ops._arguments import described

# (Kr, Kb): the shares of red and blue in luma. Of ITU-R BT.601, BT.709 and BT.2020 (non-constant luminance).
MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def as_tensor(name: str, value: Any) -> Tensor:
    """A strided tensor as it is; a NumPy array as a view."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise ValueError(f"{name} must be a strided tensor, got {described(value)}")
        return value
    try:
        return torch.from_numpy(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a uint8 tensor or NumPy array: {error}") from None


@dataclass(frozen=True, eq=False)
class YUVFrames:
    """Decoded frames in YUV 4:2:0: half the bytes of RGB. `gather_frames` converts just the pixels that it reads.

    Args:
        luma: uint8 [T, H, W] (or a batch [N, T, H, W]), any strides. NumPy arrays are taken without a copy.
        chroma: uint8 [T, 2, ceil(H/2), ceil(W/2)] (or [N, T, 2, ...]), U and then V, any strides: interleaved chroma
            [T, ceil(H/2), ceil(W/2), 2], as in NV12, is `.permute(0, 3, 1, 2)` of it.
        matrix: "bt601", "bt709" or "bt2020", how luma and chroma were made from RGB.
        full_range: whether luma is in 0..255 and chroma in 0..255, instead of 16..235 and 16..240.

    Raises:
        ValueError: a wrong dtype, shape, device or matrix; luma and chroma that do not fit each other.
    """

    luma: Any
    chroma: Any
    matrix: str = "bt601"
    full_range: bool = False

    def __post_init__(self) -> None:
        for name in ("luma", "chroma"):
            object.__setattr__(self, name, as_tensor(name, getattr(self, name)))
        luma, chroma = self.luma, self.chroma
        if luma.dtype != torch.uint8 or luma.dim() not in (3, 4):
            raise ValueError(f"luma must be uint8 [T, H, W] or [N, T, H, W], got {described(luma)}")
        *leading, height, width = luma.shape
        expected = [*leading, 2, (height + 1) // 2, (width + 1) // 2]
        if chroma.dtype != torch.uint8 or list(chroma.shape) != expected:
            raise ValueError(f"chroma of luma {list(luma.shape)} must be uint8 {expected}, got {described(chroma)}")
        if chroma.device != luma.device:
            raise ValueError(f"chroma is on {chroma.device}, luma on {luma.device}; expected one device")
        if not isinstance(self.matrix, str) or self.matrix not in MATRICES:
            raise ValueError(f"matrix={self.matrix!r}: expected one of {', '.join(MATRICES)}")
        if not isinstance(self.full_range, bool):
            raise ValueError(f"full_range={self.full_range!r}: expected True or False")

    def __len__(self) -> int:
        """The frames of one clip, the clips of a batch."""
        return self.luma.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.luma.shape[-2], self.luma.shape[-1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> YUVFrames:
        """The same frames on another device."""
        luma = self.luma.to(device, non_blocking=non_blocking)
        return replace(self, luma=luma, chroma=self.chroma.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> YUVFrames:
        """The same frames in pinned memory, from which a copy to a GPU need not wait. A DataLoader calls this."""
        return replace(self, luma=self.luma.pin_memory(), chroma=self.chroma.pin_memory())

    def rgb(self) -> Tensor:
        """uint8 [T, H, W, 3] (or [N, T, H, W, 3]), contiguous: what `gather_frames` takes these frames for.

        A pixel (y, x) has the chroma of (y // 2, x // 2). See `coefficients` for the arithmetic.
        """
        return to_rgb(self.luma, self.chroma, coefficients(self.matrix, self.full_range))


def coefficients(matrix: str, full_range: bool) -> tuple[int, int, int, int, int, int]:
    """(black, luma, red_v, green_u, green_v, blue_u): the conversion to RGB, with 13 fractional bits.

    With p(factor, value) = floor(factor * 8 * value / 2^16), y = p(luma, Y - black), u = U - 128 and v = V - 128, the
    channels are y + p(red_v, v), y + p(green_u, u) + p(green_v, v) and y + p(blue_u, u), clamped to [0, 255].

    This is the arithmetic of FFmpeg's swscale on x86 (yuv420p to rgb24, frames of even height), to the bit: rounding
    down makes frames about a grey level darker than exact arithmetic would, but the same as those that other readers
    get from FFmpeg, and that published weights were trained on. All factors have 15 bits and a sign.
    """
    kr, kb = MATRICES[matrix]
    kg = 1 - kr - kb
    black, luma, chroma = (0, 1.0, 1.0) if full_range else (16, 255 / 219, 255 / 224)
    red_v, blue_u = 2 * (1 - kr) * chroma, 2 * (1 - kb) * chroma
    factors = (luma, red_v, -blue_u * kb / kg, -red_v * kr / kg, blue_u)
    y, rv, gu, gv, bu = (round(factor * 2**13) for factor in factors)
    return black, y, rv, gu, gv, bu


def to_rgb(luma: Tensor, chroma: Tensor, colour: Sequence[int]) -> Tensor:
    """uint8 [..., H, W], [..., 2, ceil(H/2), ceil(W/2)] -> uint8 [..., H, W, 3], by the integers of `coefficients`."""
    black, luma_factor, red_v, green_u, green_v, blue_u = colour
    height, width = luma.shape[-2:]
    y = _product(luma_factor, luma, black)
    u, v = chroma.unbind(-3)
    terms = (_product(red_v, v, 128), _product(green_u, u, 128) + _product(green_v, v, 128), _product(blue_u, u, 128))
    whole = [t.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width] for t in terms]
    return torch.stack([(y + t).clamp(0, 255).to(torch.uint8) for t in whole], -1)


def _product(factor: int, plane: Tensor, zero: int) -> Tensor:
    return (factor * 8 * (plane.to(torch.int32) - zero)) >> 16
