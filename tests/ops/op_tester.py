"""OpTester: what every op must satisfy, written once. An op's test file gives samples and gets all checks.

Errors are judged against the reference in float64, and allowed to be at most twice those that the same reference makes
when it computes in the tested dtype (plus a floor of a few rounding errors of that dtype).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slowfast_ops import use_backend


@dataclass(frozen=True)
class Sample:
    """One call of a public function: `function(*tensors)`, where `tensors` are its floating-point inputs in float64.

    Everything else (indices, RoIs, options) is bound inside `function`; tensors that take no gradient and keep their
    dtype (RoIs, say) are bound there as well.
    """

    name: str
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    tensors: Callable[[], Sequence[Tensor]]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    gradcheck: bool = True
    # Kinks (a ReLU, a max) make a gradient in low precision jump: then only float64 gradients are compared there.
    smooth: bool = True
    tags: frozenset = field(default_factory=frozenset)

    def __str__(self) -> str:
        return self.name


def outputs_and_gradients(sample: Sample, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """All outputs of a call, and the gradients of every input for fixed, position-dependent output gradients."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    result = sample.function(*leaves)
    outputs = [result] if isinstance(result, Tensor) else [r for r in result if r is not None]
    weighted = [o for o in outputs if o.requires_grad]
    gradients: list[Tensor] = []
    if weighted:
        weights = [torch.linspace(-1, 1, o.numel(), dtype=torch.float64).reshape(o.shape).to(o) for o in weighted]
        gradients = list(torch.autograd.grad(weighted, leaves, weights, allow_unused=True))
        gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return [o.detach() for o in outputs], gradients


MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


def cast(tensors: Sequence[Tensor], dtype: torch.dtype, layout: str, device: str = "cpu") -> list[Tensor]:
    """The sample's tensors in a dtype and a memory layout: contiguous, channels_last_3d or sliced (strided)."""
    result = []
    for t in tensors:
        t = t.to(dtype=dtype, device=device)
        if t.dim() == 5 and layout == "channels_last_3d":
            t = t.to(memory_format=torch.channels_last_3d)
        elif t.dim() == 5 and layout == "sliced" and t.numel():
            larger = torch.full([s + 1 for s in t.shape], float("nan"), dtype=dtype, device=device)
            larger[:, 1:, :-1, 1:, :-1][: t.shape[0]].copy_(t)
            t = larger[: t.shape[0], 1:, :-1, 1:, :-1]
        result.append(t)
    return result


FLOORS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def assert_as_accurate_as_pytorch(ours: Tensor, same_dtype: Tensor, exact: Tensor, what: str) -> None:
    """|ours - exact| <= 2 |same_dtype - exact| + floor, where the maximum is taken over the tensor."""
    assert ours.shape == exact.shape, f"{what}: shape {list(ours.shape)}, expected {list(exact.shape)}"
    assert ours.dtype == same_dtype.dtype, f"{what}: dtype {ours.dtype}, expected {same_dtype.dtype}"
    if exact.numel() == 0:
        return
    scale = exact.double().abs().max().clamp(min=1e-3)
    ours_error = (ours.double() - exact.double()).abs().max()
    theirs = (same_dtype.double() - exact.double()).abs().max()
    bound = 2 * theirs + FLOORS[ours.dtype] * scale
    assert ours_error <= bound, f"{what}: error {ours_error:.3e} > {bound:.3e} (PyTorch's own {theirs:.3e})"


class OpRecorder(TorchDispatchMode):
    """Remembers every slowfast:: op that runs, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "slowfast":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Function(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


@dataclass(frozen=True)
class Target:
    """Where an op runs: a backend on a device, or one of the two stand-ins for a GPU."""

    name: str
    backend: str
    device: str
    dtypes: tuple[torch.dtype, ...]

    def __str__(self) -> str:
        return self.name


WIDE = (torch.float32, torch.float64, torch.bfloat16)
CPU = Target("cpu", "cpu", "cpu", WIDE)
# csrc/cuda compiled by g++: requests go to "cpu", whose kernels the `target` fixture replaces by the CUDA ones.
CUDA_ON_CPU = Target("cuda-on-cpu", "cpu", "cpu", (*WIDE, torch.float16))
# bfloat16 arithmetic is wrong in the interpreter (not on a GPU), so only float32 and float16 show something there.
TRITON_INTERPRETER = Target("triton-interpreter", "triton", "cpu", (torch.float32, torch.float16))
CUDA = Target("cuda", "cuda", "cuda", (*WIDE, torch.float16))
TRITON = Target("triton", "triton", "cuda", (*WIDE, torch.float16))


def only_real_targets(test: Callable) -> Callable:
    """Marks a check of the torch integration, which a stand-in for a GPU adds nothing to."""
    test.only_real_targets = True  # type: ignore[attr-defined]
    return test


def only_on_a_gpu(test: Callable) -> Callable:
    """Marks a check that only a GPU can make; elsewhere it is skipped (a failure when FAIL_WITHOUT_CUDA=1)."""
    test.only_on_a_gpu = True  # type: ignore[attr-defined]
    return test


def skip_below_gpu_memory(gib: int) -> None:
    """Skips the test on a GPU with less free memory than this; mark it `fills_gpu_memory`, to be the only one."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of free GPU memory; there are {free / 2**30:.1f}")


def assert_matches_reference(
    sample: Sample, dtype: torch.dtype, layout: str, target: Target, *, gradients: bool = True
) -> None:
    """Outputs, and gradients if asked for, are as accurate as PyTorch's own in this dtype; outputs keep the layout."""
    inputs = cast(sample.tensors(), dtype, layout, target.device)
    with use_backend("reference"):
        exact = outputs_and_gradients(sample, [t.double() for t in inputs])
        same_dtype = outputs_and_gradients(sample, inputs)
    with use_backend(target.backend):
        ours = outputs_and_gradients(sample, inputs)
    for i, triple in enumerate(zip(ours[0], same_dtype[0], exact[0], strict=True)):
        assert_as_accurate_as_pytorch(*triple, f"{dtype} output {i}")
        if triple[0].dim() == 5 and triple[0].numel() and layout in MEMORY_FORMATS:
            assert triple[0].is_contiguous(memory_format=MEMORY_FORMATS[layout]), f"strides {triple[0].stride()}"
    if gradients:
        for i, triple in enumerate(zip(ours[1], same_dtype[1], exact[1], strict=True)):
            assert_as_accurate_as_pytorch(*triple, f"{dtype} gradient of input {i}")


fills_gpu_memory = pytest.mark.xdist_group("GPU memory")


class OpTester:
    """Subclasses set `op` and `samples`; conftest.py parametrises the checks over samples, targets and memory layouts.

    `function` of a sample must move what it binds (indices, RoIs) to the device of its tensors.
    """

    op: str
    samples: list[Sample]

    def test_matches_reference(self, sample: Sample, layout: str, target: Target) -> None:
        for dtype in target.dtypes:
            if dtype not in sample.dtypes:
                continue
            # A kink makes a gradient in low precision jump.
            gradients = sample.smooth or dtype == torch.float64
            assert_matches_reference(sample, dtype, layout, target, gradients=gradients)

    @only_real_targets
    def test_gradcheck(self, sample: Sample, target: Target) -> None:
        if not sample.gradcheck:
            return
        inputs = [t.requires_grad_() for t in cast(sample.tensors(), torch.float64, "contiguous", target.device)]
        with use_backend(target.backend):
            assert torch.autograd.gradcheck(sample.function, inputs, fast_mode=sum(t.numel() for t in inputs) > 300)

    @only_real_targets
    def test_opcheck(self, sample: Sample, layout: str, target: Target) -> None:
        inputs = cast(sample.tensors(), torch.float32, layout, target.device)
        recorder = OpRecorder()
        with use_backend(target.backend), recorder:
            outputs_and_gradients(sample, inputs)
        assert recorder.calls, "no slowfast op ran"
        for op, args, kwargs in recorder.calls:
            differentiable = not op.__name__.split(".")[0].endswith("backward")
            args = tuple(
                a.detach().clone().requires_grad_(differentiable and a.is_floating_point())
                if isinstance(a, Tensor)
                else a
                for a in args
            )
            torch.library.opcheck(op, args, kwargs)

    @only_real_targets
    def test_compiles_fullgraph_dynamic(self, sample: Sample, target: Target) -> None:
        inputs = cast(sample.tensors(), torch.float32, "contiguous", target.device)
        torch._dynamo.reset()
        compiled = Sample(
            sample.name,
            torch.compile(sample.function, fullgraph=True, dynamic=True, backend="aot_eager"),
            sample.tensors,
        )
        with use_backend(target.backend):
            expected = outputs_and_gradients(sample, inputs)
            actual = outputs_and_gradients(compiled, inputs)
        for e, a in zip([*expected[0], *expected[1]], [*actual[0], *actual[1]], strict=True):
            torch.testing.assert_close(a, e)

    @only_real_targets
    def test_exports(self, sample: Sample, target: Target) -> None:
        inputs = tuple(cast(sample.tensors(), torch.float32, "contiguous", target.device))
        with use_backend(target.backend):
            program = torch.export.export(_Function(sample.function), inputs)
            expected, actual = sample.function(*inputs), program.module()(*inputs)
        assert any("slowfast" in str(node.target) for node in program.graph.nodes), "the op was decomposed"
        torch.testing.assert_close(actual, expected)

    @only_real_targets
    def test_autocast_gives_the_reference_dtypes(self, sample: Sample, target: Target) -> None:
        inputs = cast(sample.tensors(), torch.float32, "contiguous", target.device)
        with torch.autocast(target.device, torch.bfloat16):
            with use_backend(target.backend):
                ours = outputs_and_gradients(sample, inputs)
            with use_backend("reference"):
                reference = outputs_and_gradients(sample, inputs)
        assert [t.dtype for t in [*ours[0], *ours[1]]] == [t.dtype for t in [*reference[0], *reference[1]]]

    @only_real_targets
    def test_same_bits_for_any_number_of_threads(self, sample: Sample, target: Target) -> None:
        inputs = cast(sample.tensors(), torch.float32, "contiguous", target.device)
        results = []
        with use_backend(target.backend):
            for threads in (1, 2, 2, 3):
                torch.set_num_threads(threads)
                results.append(outputs_and_gradients(sample, inputs))
        for other in results[1:]:
            for a, b in zip([*results[0][0], *results[0][1]], [*other[0], *other[1]], strict=True):
                assert torch.equal(a, b)

    @only_real_targets
    def test_double_backward_is_an_error(self, sample: Sample, target: Target) -> None:
        if not sample.gradcheck:
            return
        inputs = [t.requires_grad_() for t in cast(sample.tensors(), torch.float64, "contiguous", target.device)]
        with use_backend(target.backend):
            result = sample.function(*inputs)
            outputs = [result] if isinstance(result, Tensor) else [r for r in result if r is not None]
            first = torch.autograd.grad(
                sum((o.square()).sum() for o in outputs if o.requires_grad), inputs, create_graph=True
            )
            with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
                sum(g.sum() for g in first if g.requires_grad).backward()

    @only_on_a_gpu
    def test_captures_in_a_cuda_graph(self, sample: Sample, target: Target) -> None:
        inputs = cast(sample.tensors(), torch.float32, "contiguous", target.device)
        with use_backend(target.backend), torch.no_grad():
            expected = sample.function(*inputs)  # also compiles what Triton compiles on first use
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                sample.function(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = sample.function(*inputs)
            graph.replay()
        torch.testing.assert_close(captured, expected, rtol=0, atol=0)

    @only_on_a_gpu
    def test_runs_on_the_current_stream(self, sample: Sample, target: Target) -> None:
        inputs = cast(sample.tensors(), torch.float32, "contiguous", target.device)
        with use_backend(target.backend), torch.no_grad():
            expected = sample.function(*inputs)
            torch.cuda.synchronize()
            stale = [torch.full_like(t, float("nan")) for t in inputs]
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(20_000_000)  # a launch on another stream would run before the copies below
                for to, source in zip(stale, inputs, strict=True):
                    to.copy_(source)
                actual = sample.function(*stale)
            stream.synchronize()
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    @only_on_a_gpu
    def test_runs_under_deterministic_algorithms(self, sample: Sample, target: Target) -> None:
        inputs = cast(sample.tensors(), torch.float32, "contiguous", target.device)
        torch.use_deterministic_algorithms(True)
        try:
            with use_backend(target.backend):
                first, second = (outputs_and_gradients(sample, inputs) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
        for a, b in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
            assert torch.equal(a, b)
