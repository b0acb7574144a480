"""LateralConvConcat, the module: steps of training, frozen and synchronised batch norm, autocast, compilation."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_ops import LateralConvConcat
from tests.ops.test_lateral_conv_concat import tensors


def modules(**options) -> tuple[LateralConvConcat, LateralConvConcat]:
    torch.manual_seed(3)
    ours = LateralConvConcat(4, 6, kernel_size=5, alpha=4, **options).double()
    if ours.bn is not None:
        nn.init.normal_(ours.bn.weight)
        nn.init.normal_(ours.bn.bias)
    return ours, copy.deepcopy(ours)


def plain(module: LateralConvConcat, slow: Tensor, fast: Tensor, residual: Tensor | None = None) -> Tensor:
    """The module's submodules called one by one, as an unfused network would."""
    lateral = module.conv(fast)
    lateral = lateral if module.bn is None else module.bn(lateral)
    slow = slow if residual is None else F.relu(slow + residual)
    return torch.cat([slow, F.relu(lateral) if module.relu else lateral], dim=1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"eps": 1e-2, "momentum": 0.3}, {"relu": False}, {"norm": False}], ids=str
)
def test_three_training_steps_then_evaluation_equal_conv_and_batch_norm(options, memory_format):
    ours, theirs = modules(**options)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, theirs)]
    for step in range(3):
        slow, fast, residual = tensors((2, 3, 2, 4, 5), (2, 4, 8, 4, 5), (2, 3, 2, 4, 5), seed=step)
        slow, fast = (x.contiguous(memory_format=memory_format) for x in (slow, fast))
        outputs = ours(slow, fast, residual), plain(theirs, slow, fast, residual)
        torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            (output * tensors(output.shape, seed=step)[0]).mean().backward()
            optimizer.step()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(slow, fast), plain(theirs.eval(), slow, fast), rtol=1e-10, atol=1e-10)


def test_frozen_batch_norm_keeps_its_statistics_and_passes_gradients():
    ours, theirs = modules()
    for module in (ours, theirs):
        module.train()
        module.bn.eval()
        nn.init.uniform_(module.bn.running_var, 0.5, 2.0, generator=torch.Generator().manual_seed(4))
    before = copy.deepcopy(ours.state_dict())
    slow, fast = tensors((2, 3, 2, 4, 5), (2, 4, 8, 4, 5))
    fast.requires_grad_()
    results = []
    for module, function in ((ours, ours), (theirs, lambda s, f: plain(theirs, s, f))):
        output = function(slow, fast)
        results.append([output, *torch.autograd.grad(output.square().sum(), [fast, *module.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


def test_module_parameter_names_are_those_of_a_plain_pair():
    names = ["conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"]
    assert list(LateralConvConcat(8, 16).state_dict()) == names
    assert list(LateralConvConcat(8, 16, norm=False).state_dict()) == ["conv.weight"]


@pytest.mark.parametrize("train", [False, True])
def test_module_compiles_whole(train):
    ours, theirs = modules()
    slow, fast = tensors((2, 3, 2, 4, 5), (2, 4, 8, 4, 5))
    torch._dynamo.reset()
    compiled = torch.compile(ours.train(train), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(slow, fast), plain(theirs.train(train), slow, fast))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("slow_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [False, True])
def test_autocast_dtypes_of_the_module(slow_dtype, train):
    ours, theirs = (m.float().train(train) for m in modules())
    slow, fast = (x.float() for x in tensors((2, 3, 2, 4, 5), (2, 4, 8, 4, 5)))
    slow = slow.to(slow_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = ours(slow, fast), plain(theirs, slow, fast)
    assert output.dtype == expected.dtype == slow_dtype
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.05)


def _synchronized_worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    module = nn.SyncBatchNorm.convert_sync_batchnorm(modules()[0])
    slow, fast = tensors((3, 3, 2, 4, 5), (3, 4, 8, 4, 5))
    part = slice(0, 1) if rank == 0 else slice(1, 3)  # unequal shares
    local = fast[part].clone().requires_grad_()
    output = module(slow[part], local)
    grads = torch.autograd.grad(output.square().sum(), [local, *module.parameters()])
    torch.save([output.detach(), *grads, *module.buffers()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_synchronized_batch_norm_equals_one_process_with_the_whole_batch(tmp_path: Path):
    torch.multiprocessing.spawn(_synchronized_worker, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    module = modules()[0]
    slow, fast = tensors((3, 3, 2, 4, 5), (3, 4, 8, 4, 5))
    fast.requires_grad_()
    output = module(slow, fast)
    grads = torch.autograd.grad(output.square().sum(), [fast, *module.parameters()])
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), output)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), grads[0])
    for i, grad in enumerate(grads[1:], start=2):
        torch.testing.assert_close(parts[0][i] + parts[1][i], grad)
    for part in parts:
        for a, b in zip(part[-3:], module.buffers(), strict=True):
            torch.testing.assert_close(a, b)


def test_converted_module_runs_in_one_process():
    ours, theirs = modules()
    ours = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    slow, fast = tensors((2, 3, 2, 4, 5), (2, 4, 8, 4, 5))
    torch.testing.assert_close(ours(slow, fast), plain(theirs, slow, fast))


def test_module_errors():
    for options, message in (
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"alpha": 1.5}, "alpha=1.5: expected an"),
    ):
        with pytest.raises(ValueError, match=message):
            LateralConvConcat(4, 6, **options)
    module = LateralConvConcat(4, 6)
    with pytest.raises(ValueError, match=r"more than one value per channel.* gives 1"):
        module(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 4, 8, 1, 1))
    module.bn = nn.Identity()
    with pytest.raises(TypeError, match="bn is a Identity"):
        module(*tensors((1, 2, 2, 3, 3), (1, 4, 16, 3, 3)))
