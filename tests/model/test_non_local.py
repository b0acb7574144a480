"""Non-local blocks against their definition, position by position."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_model.errors import InputError
from slowfast_model.models import NonLocalConfig, PathwayConfig, StageConfig, build_model, get_preset
from slowfast_model.models.non_local import NonLocalBlock
from slowfast_model.models.residual import ResidualStage, join


def expected_output(block: NonLocalBlock, x: Tensor, config: NonLocalConfig) -> Tensor:
    """One query after the other, in float64."""
    pool = [min(size, kernel) for size, kernel in zip(x.shape[2:], config.pool, strict=True)]
    attended = F.max_pool3d(x, pool)
    queries, keys, values = block.theta(x).flatten(2), block.phi(attended).flatten(2), block.g(attended).flatten(2)
    sums = torch.empty_like(queries)
    for n in range(x.shape[0]):
        for position in range(queries.shape[2]):
            affinities = queries[n, :, position] @ keys[n]
            if config.instantiation == "softmax":
                weights = torch.exp(affinities / queries.shape[1] ** 0.5)
                weights = weights / weights.sum()
            else:
                weights = affinities / keys.shape[2]
            sums[n, :, position] = values[n] @ weights
    return x + block.bn(block.out(sums.reshape(x.shape[0], -1, *x.shape[2:])))


@settings(deadline=None, max_examples=20)
@given(
    instantiation=st.sampled_from(["dot_product", "softmax"]),
    pool=st.sampled_from([(1, 1, 1), (1, 2, 2), (2, 2, 2), (4, 1, 3)]),
    size=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    channels_last=st.booleans(),
)
def test_every_position_attends_to_all(
    instantiation: str, pool: tuple[int, int, int], size: tuple[int, int, int], channels_last: bool
) -> None:
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    config = NonLocalConfig((0,), instantiation, pool)
    block = NonLocalBlock(6, config).double().eval()
    nn.init.uniform_(block.bn.running_mean)
    x = torch.randn(2, 6, *size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    output, shortcut = block(x)
    expected = expected_output(block, x, config)
    assert shortcut is None
    if min(size) > 1:  # else strides do not tell the format
        assert output.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(output, x, upstream), torch.autograd.grad(expected, x, upstream))


def test_blocks_follow_the_residual_blocks_that_the_configuration_names() -> None:
    stage = ResidualStage(PathwayConfig(4, (StageConfig(3, non_local=NonLocalConfig((0, 2))),)), 0, in_channels=8)
    assert list(stage) == ["0", "non_local0", "1", "2", "non_local2"]
    x = torch.randn(2, 8, 2, 4, 4)
    expected = x
    for name in stage:
        expected = join(*stage[name](expected))
    torch.testing.assert_close(join(*stage(x)), expected)
    assert (join(*stage(x)) < 0).any()  # no ReLU follows a non-local block


def test_blocks_start_as_the_identity() -> None:
    config = get_preset("slowfast_tiny")
    slow = config.pathways[0]
    stages = (*slow.stages[:2], replace(slow.stages[2], non_local=NonLocalConfig((0,))), slow.stages[3])
    changed = replace(config, pathways=(replace(slow, stages=stages), config.pathways[1]))
    torch.manual_seed(0)
    model, plain = build_model(changed).eval(), build_model(config).eval()
    plain.load_state_dict({key: model.state_dict()[key] for key in plain.state_dict()})
    clips = [torch.randn(1, 3, frames, 32, 32) for frames in config.pathway_frames]
    torch.testing.assert_close(model(clips), plain(clips))
    block = model.pathways["slow"]["res4"]["non_local0"]
    assert not block.bn.weight.any()
    assert not any(module.bias.any() for module in block.children() if isinstance(module, nn.Conv3d))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NonLocalConfig(()), r"non_local.after_blocks is \(\): expected one or more"),
        (lambda: NonLocalConfig((2, 1)), r"non_local.after_blocks is \(2, 1\): .* rising"),
        (lambda: NonLocalConfig((1, 1)), r"non_local.after_blocks is \(1, 1\): .* different"),
        (
            lambda: NonLocalConfig((1,), "gaussian"),
            r"instantiation is 'gaussian': expected one of dot_product, softmax",
        ),
        (lambda: NonLocalConfig((1,), pool=(0, 2, 2)), r"non_local.pool is \(0, 2, 2\)"),
        (lambda: StageConfig(2, non_local=NonLocalConfig((2,))), r"stage.non_local.after_blocks is \(2,\): .*0 to 1"),
    ],
)
def test_impossible_values_are_refused_by_name(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
