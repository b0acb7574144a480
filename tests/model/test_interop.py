"""PySlowFast's tensor names, both ways."""

from __future__ import annotations

import pytest
import torch

from slowfast_model.errors import InputError
from slowfast_model.interop.pyslowfast import (
    from_pyslowfast_key,
    to_pyslowfast_key,
    to_pyslowfast_keys,
)
from slowfast_model.models import build_model


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("pathways.slow.stem.conv.weight", "s1.pathway0_stem.conv.weight"),
        ("pathways.fast.stem.bn.running_mean", "s1.pathway1_stem.bn.running_mean"),
        ("pathways.fast.res2.0.shortcut.conv.weight", "s2.pathway1_res0.branch1.weight"),
        ("pathways.slow.res5.2.shortcut.bn.bias", "s5.pathway0_res2.branch1_bn.bias"),
        ("pathways.slow.res4.22.a.conv.weight", "s4.pathway0_res22.branch2.a.weight"),
        ("pathways.slow.res4.5.c.bn.num_batches_tracked", "s4.pathway0_res5.branch2.c_bn.num_batches_tracked"),
        ("pathways.slow.res4.non_local13.theta.bias", "s4.pathway0_nonlocal13.conv_theta.bias"),
        ("pathways.slow.res3.non_local1.bn.running_var", "s3.pathway0_nonlocal1.bn.running_var"),
        ("lateral.stem.conv.weight", "s1_fuse.conv_f2s.weight"),
        ("lateral.res4.bn.running_var", "s4_fuse.bn.running_var"),
        ("head.projection.bias", "head.projection.bias"),
    ],
)
def test_names(ours: str, theirs: str) -> None:
    assert to_pyslowfast_key(ours) == theirs
    assert from_pyslowfast_key(theirs) == ours


@pytest.mark.parametrize("preset", ["slow_r50_4x16", "slowfast_r50_8x8", "slowfast_r50_nl_4x16"])
def test_whole_state_dicts_make_the_round_trip(preset: str) -> None:
    with torch.device("meta"):
        state = build_model(preset, head="detection").state_dict()
    again = {from_pyslowfast_key(key): value for key, value in to_pyslowfast_keys(state).items()}
    assert list(again) == list(state)
    assert all(again[key] is state[key] for key in state)


@pytest.mark.parametrize("key", ["", "head.projection", "s6.pathway0_res0.branch1.weight", "patch_embed.proj.weight"])
def test_unknown_names_are_refused(key: str) -> None:
    with pytest.raises(InputError, match="PySlowFast"):
        from_pyslowfast_key(key)
    with pytest.raises(InputError, match="our network"):
        to_pyslowfast_key(key)
