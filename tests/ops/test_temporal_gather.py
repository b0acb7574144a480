"""temporal_gather and slow_frame_indices."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from slowfast_ops import TemporalGather, slow_frame_indices, temporal_gather, use_backend
from slowfast_ops.temporal_gather import ops
from tests.ops.op_tester import (
    OpRecorder,
    OpTester,
    Sample,
    Target,
    fills_gpu_memory,
    only_on_a_gpu,
    skip_below_gpu_memory,
)
from tests.ops.property_testing import given, settings, st


def sample(name: str, shape: tuple[int, ...], indices: list) -> Sample:
    index = torch.tensor(indices, dtype=torch.int64)
    return Sample(
        name,
        lambda x: temporal_gather(x, index),
        lambda: [torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))],
    )


class TestTemporalGather(OpTester):
    op = "temporal_gather"
    samples = [
        sample("slow-frames", (2, 3, 8, 4, 5), [0, 2, 4, 7]),
        sample("repeats-and-unread-frames", (2, 3, 5, 2, 3), [[4, 4, 0, 4], [1, 0, 1, 3]]),
        sample("one-of-everything", (1, 1, 1, 1, 1), [0]),
        sample("one-frame-many-times", (1, 4, 1, 3, 3), [0, 0, 0]),
        sample("no-frames", (2, 3, 4, 3, 3), []),
        sample("no-clips", (0, 3, 4, 3, 3), [1, 2]),
        sample("odd", (3, 7, 9, 5, 11), [8, 0, 3]),
    ]

    def test_indices_outside_are_clamped_on_a_gpu(self, target: Target) -> None:
        """And an error on the CPU; called without api.py, which checks what is on the CPU."""
        x = torch.randn(1, 2, 3, 4, 5, device=target.device).requires_grad_()
        op = ops.temporal_gather_triton if target.backend == "triton" else ops.temporal_gather
        indices = torch.tensor([[-5, 1, 7, 2]], device=target.device)
        if target.name == "cpu":
            with pytest.raises(RuntimeError, match=r"index -5 outside \[0, 3\)"):
                op(x, indices)
        else:
            y = op(x, indices)
            assert torch.equal(y, x[:, :, [0, 1, 2, 2]])
            (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
            assert torch.equal(grad[0, 0, :, 0, 0].cpu(), torch.tensor([1.0, 1.0, 2.0]))

    @fills_gpu_memory
    @only_on_a_gpu
    def test_offsets_beyond_31_bits(self, target: Target) -> None:
        skip_below_gpu_memory(16)
        x = torch.zeros(1, 1, 33, 8192, 8192, dtype=torch.bfloat16, device=target.device)
        x[0, 0, 32, -1] = torch.arange(8192, device=target.device)  # more than 2^31 elements after the first
        for value in (x, x.reshape(1, 8192, 33, 8192, 1), x.reshape(1, 8192, 33, 8192, 1).transpose(1, 3)):
            value = value.detach().requires_grad_()
            with use_backend(target.backend):
                y = temporal_gather(value, [32, 0])
                (grad,) = torch.autograd.grad(y, value, torch.ones_like(y))
            assert torch.equal(y, value[:, :, [32, 0]])
            del y
            assert grad[:, :, [32, 0]].eq(1).all()
            assert not grad[:, :, 1:32].any()


def test_hand_computed():
    x = torch.arange(6, dtype=torch.float32).reshape(1, 1, 6, 1, 1).requires_grad_()
    y = temporal_gather(x, [5, 0, 0])
    assert y.flatten().tolist() == [5, 0, 0]
    y.backward(torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1, 1))
    assert x.grad.flatten().tolist() == [6, 0, 0, 0, 0, 1]


@given(
    shape=st.tuples(*[st.integers(1, 5)] * 5),
    data=st.data(),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_equals_indexing(shape, data, channels_last, dtype):
    n, t = shape[0], shape[2]
    row = st.lists(st.integers(0, t - 1), min_size=3, max_size=3)
    indices = torch.tensor(data.draw(st.lists(row, min_size=n, max_size=n)))
    x = torch.randn(shape).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last_3d)
    expected = torch.stack([x[i][:, indices[i]] for i in range(n)])
    assert torch.equal(temporal_gather(x, indices), expected)


def test_contiguous_cpu_tensors_take_index_select():
    x, indices = torch.randn(2, 3, 4, 5, 6), torch.tensor([3, 0, 3])
    recorder = OpRecorder()
    with recorder:
        y = temporal_gather(x, indices)
        temporal_gather(x.clone().requires_grad_(), indices)
        temporal_gather(x.bfloat16().requires_grad_(), indices[:2])
        assert not recorder.calls
        temporal_gather(x.contiguous(memory_format=torch.channels_last_3d), indices)
        temporal_gather(x.bfloat16().requires_grad_(), indices)  # whose gradients of frame 3 the op sums in float32
        temporal_gather(x, indices.expand(2, 3))
        with use_backend("cpu"):
            temporal_gather(x, indices)
    assert torch.equal(y, x[:, :, indices])
    assert len(recorder.calls) == 4
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 4\)"):
        temporal_gather(x, [4])


def test_identity_and_module_agree():
    x = torch.randn(2, 3, 4, 2, 2)
    assert torch.equal(temporal_gather(x, range(4)), x)
    module = TemporalGather([0, 3])
    assert torch.equal(module(x), x[:, :, [0, 3]])
    assert torch.equal(temporal_gather(x, np.array([0, 3], np.int32)), x[:, :, [0, 3]])
    assert temporal_gather(x, []).shape == (2, 3, 0, 2, 2)
    with pytest.raises(ValueError, match="indices must be int64"):
        TemporalGather([0.5])
    assert module.state_dict() == {}


@pytest.mark.parametrize(
    ("x", "indices", "message"),
    [
        (torch.zeros(2, 3, 4, 5), [0], "x must be a floating point tensor"),
        (torch.zeros(2, 3, 4, 5, 6, dtype=torch.uint8), [0], r"\[N, C, T, H, W\], got uint8 \[2, 3, 4, 5, 6\]"),
        (None, [0], r"x must be a floating point tensor \[N, C, T, H, W\], got NoneType"),
        (
            torch.zeros(2, 3, 4, 5, 6).numpy(),
            [0],
            r"x must be a floating point tensor .*, got ndarray \[2, 3, 4, 5, 6\]",
        ),
        (torch.zeros(2, 3, 4, 5, 6), None, "indices must be integers"),
        (torch.zeros(2, 3, 4, 5, 6), [1.5], r"indices must be int64 .*, got float32 \[1\]"),
        (torch.zeros(2, 3, 4, 5, 6), [2**63], "indices must be integers"),
        (torch.zeros(2, 3, 4, 5, 6), torch.tensor([0.5]), "indices must be int64"),
        (torch.zeros(2, 3, 4, 5, 6), [4], r"indices must lie in \[0, 4\), got values from 4 to 4"),
        (torch.zeros(2, 3, 4, 5, 6), [-1], r"indices must lie in \[0, 4\)"),
        (torch.zeros(2, 3, 4, 5, 6), torch.zeros(3, 2, dtype=torch.int64), "indices has 3 rows for the 2 clips"),
    ],
)
def test_errors_name_the_argument(x, indices, message):
    with pytest.raises(ValueError, match=message):
        temporal_gather(x, indices)


def test_kernel_checks_what_a_compiler_cannot():
    compiled = torch.compile(temporal_gather, backend="eager", fullgraph=True)
    with use_backend("cpu"), pytest.raises(RuntimeError, match="index 9 outside"):
        compiled(torch.zeros(1, 1, 4, 1, 1), torch.tensor([9]))


def test_slow_frames_equal_pyslowfast(shared_data):
    rows = json.loads((shared_data / "reference" / "data" / "pathways.json").read_text())
    assert rows
    for row in rows:
        if row["T"] % row["alpha"]:
            with pytest.raises(ValueError, match="must be a positive multiple of alpha"):
                slow_frame_indices(row["T"], row["alpha"])
        else:
            assert slow_frame_indices(row["T"], row["alpha"]).tolist() == row["slow"]


def test_slow_frames_by_stride_and_errors():
    assert slow_frame_indices(32, 8, "stride").tolist() == [0, 8, 16, 24]
    assert slow_frame_indices(32, 8).tolist() == [0, 10, 20, 31]
    assert slow_frame_indices(8, 8).tolist() == [0]
    for arguments, message in (
        ((30, 8), "must be a positive multiple of alpha=8"),
        ((0, 1), "num_frames=0: expected an integer of at least 1"),
        ((8, 0), "alpha=0"),
        ((8, 2.0), "alpha=2.0: expected an integer of at least 1"),
        ((2**63, 8), "num_frames=9223372036854775808: expected an integer"),
        ((8, 4, "nearest"), "slow_sampling='nearest'"),
    ):
        with pytest.raises(ValueError, match=message):
            slow_frame_indices(*arguments)
