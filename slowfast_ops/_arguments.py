"""Checks of arguments that the public functions share; a ValueError names the argument, its value and what is right.

They run at every call, and torch.compile traces them: so a symbolic integer passes without being given a value.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

INT64_MAX = 2**63 - 1


def described(value: Any) -> str:
    """Dtype and shape of a tensor (and its layout, unless strided), the type of anything else."""
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
    layout = "" if value.layout == torch.strided else f"{value.layout} "
    return f"{layout}{value.dtype} {list(value.shape)}".replace("torch.", "")


def check_floating(name: str, value: Any, *layouts: str) -> None:
    """`value` is a strided floating-point tensor with the dimensions of one of `layouts`, such as "[N, C, T, H, W]"."""
    fits = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
    if not fits or value.dim() not in [layout.count(",") + 1 for layout in layouts]:
        raise ValueError(f"{name} must be a floating point tensor {' or '.join(layouts)}, got {described(value)}")


def checked_integer(name: str, value: Any, least: int) -> int:
    """`value`, an integer of at least `least`."""
    if not isinstance(value, (int, torch.SymInt)):
        try:
            value = operator.index(value)
        except TypeError:
            raise ValueError(f"{name}={value!r}: expected an integer of at least {least}") from None
    if not least <= value <= INT64_MAX:
        raise ValueError(f"{name}={value}: expected an integer of at least {least}, of 64 bits")
    return value


def checked_positive(name: str, value: Any) -> float:
    """`value`, a positive finite number."""
    try:
        fits = bool(0 < value < math.inf)
    except (TypeError, ValueError, RuntimeError):  # of a string; of an array or a tensor with several numbers
        fits = False
    if not fits:
        raise ValueError(f"{name}={value!r}: expected a positive number")
    return float(value)


def checked_indices(indices: Any) -> Tensor:
    """Indices of frames, int64 [T'] or [N, T']: a tensor as it is, or made of a sequence of ints or of rows of them."""
    if not isinstance(indices, Tensor):
        try:
            if any(isinstance(row, Tensor) for row in indices):
                indices = torch.stack([torch.as_tensor(row) for row in indices])
            else:
                indices = torch.as_tensor(indices)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"indices must be integers [T'] or [N, T']: {error}") from None
        if not indices.numel() or indices.dtype == torch.int32:  # an empty list has no dtype of its own
            indices = indices.to(torch.int64)
    if indices.dtype != torch.int64 or indices.dim() not in (1, 2):
        raise ValueError(f"indices must be int64 [T'] or [N, T'], got {described(indices)}")
    return indices
