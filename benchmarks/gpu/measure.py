"""Timing a call on a device, and what the device itself can do: copy bandwidth and matrix rate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[..., object]


def tensors_in(value: object) -> list[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors_in(v)] if isinstance(value, (tuple, list)) else []


def sets_past_the_cache(one_set: Sequence, device: torch.device) -> int:
    """How many sets of inputs it takes for each to have left the L2 cache when its turn comes again."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    size = sum(t.nbytes for t in tensors_in(one_set))
    return min(64, 2 + 2 * cache // max(size, 1))


def median_seconds(call: Call, sets: Sequence[Sequence], device: torch.device, rounds: int) -> float:
    """The median over `rounds` of the time of one call, each call with the next of the input sets.

    On a GPU the time is the GPU's: the calls of a round are queued while it sleeps, so that Python is not counted.
    """
    for inputs in sets:
        call(*inputs)
    times = []
    if device.type != "cuda":
        for i in range(rounds):
            started = time.perf_counter()
            call(*sets[i % len(sets)])
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for inputs in sets:
        call(*inputs)
    queueing = time.perf_counter() - started
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(int(2 * queueing * 2e9))  # twice the time, at most about 2 GHz
        begin.record()
        for inputs in sets:
            call(*inputs)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(sets))
    return statistics.median(times)


def copy_bytes_per_second(device: torch.device, quick: bool) -> float:
    """Bytes read and written per second by a copy much larger than any cache."""
    sets = [(torch.empty(2**22 if quick else 2**29, dtype=torch.uint8, device=device).random_(),) for _ in range(2)]
    target = torch.empty_like(sets[0][0])
    seconds = median_seconds(lambda source: target.copy_(source), sets, device, rounds=3 if quick else 15)
    return 2 * target.nbytes / seconds


def matrix_flops_per_second(device: torch.device, quick: bool) -> dict[str, float]:
    """Of a product of two square matrices of random numbers, by dtype; float32 as torch is set (TF32 or not)."""
    side = 256 if quick else 8192
    rates = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        sets = [tuple(torch.randn(side, side, device=device).to(dtype) for _ in range(2)) for _ in range(2)]
        seconds = median_seconds(torch.matmul, sets, device, rounds=3 if quick else 9)
        rates[str(dtype).removeprefix("torch.")] = 2 * side**3 / seconds
    return rates
