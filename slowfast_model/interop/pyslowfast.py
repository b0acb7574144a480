"""PySlowFast's names for the tensors of a network, and ours, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from slowfast_model.errors import InputError
from slowfast_model.interop.names import KeyTable
from slowfast_model.models import LateralConfig, ModelConfig, StemConfig

Value = TypeVar("Value")

DATA_SETTINGS = {"slow_sampling": "linspace"}
"""Its data settings that matter to weights, where they are no default of ours (mean and std are)."""

# A kind of tensor a line: our key and PySlowFast's, with the fields that both have.
_TEMPLATES = (
    ("pathways.{pathway}.{level}.{layer}.{leaf}", "s{level}.pathway{pathway}_stem.{layer}.{leaf}"),
    ("pathways.{pathway}.{level}.{block}.{unit}.{leaf}", "s{level}.pathway{pathway}_res{block}.{unit}.{leaf}"),
    (
        "pathways.{pathway}.{level}.non_local{block}.{projection}.{leaf}",
        "s{level}.pathway{pathway}_nonlocal{block}.{projection}.{leaf}",
    ),
    ("lateral.{level}.{fusion}.{leaf}", "s{level}_fuse.{fusion}.{leaf}"),
    ("head.projection.{leaf}", "head.projection.{leaf}"),
)
# The fields whose values are spelled differently; the others (block, layer, leaf) are spelled alike.
_SPELLINGS = {
    "pathway": {"slow": "0", "fast": "1"},
    "level": {"stem": "1", "res2": "2", "res3": "3", "res4": "4", "res5": "5"},
    "unit": {
        **{f"{name}.conv": f"branch2.{name}" for name in "abc"},
        **{f"{name}.bn": f"branch2.{name}_bn" for name in "abc"},
        "shortcut.conv": "branch1",
        "shortcut.bn": "branch1_bn",
    },
    "projection": {**{name: f"conv_{name}" for name in ("theta", "phi", "g", "out")}, "bn": "bn"},
    "fusion": {"conv": "conv_f2s", "bn": "bn"},
}
_TABLE = KeyTable("PySlowFast", _TEMPLATES, _SPELLINGS)


def to_pyslowfast_key(key: str) -> str:
    """PySlowFast's name of the tensor that our state dict calls ``key``.

    Raises:
        InputError: no tensor of ours has this name.
    """
    return _TABLE.to_theirs(key)


def from_pyslowfast_key(key: str) -> str:
    """Our name of the tensor that PySlowFast's state dict calls ``key``.

    Raises:
        InputError: the tensor has no counterpart in our networks.
    """
    return _TABLE.to_ours(key)


def to_pyslowfast_keys(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict of ours under PySlowFast's names."""
    return {to_pyslowfast_key(key): value for key, value in state.items()}


def to_pyslowfast_state(state: Mapping[str, Value], config: ModelConfig) -> dict[str, Value]:
    """A state dict of ours as PySlowFast's network of the same configuration has it: its names, in its order.

    Raises:
        InputError: PySlowFast cannot express the network.
    """
    lateral = config.lateral
    if lateral and lateral != LateralConfig(kernel_size=lateral.kernel_size, channel_ratio=lateral.channel_ratio):
        raise InputError(f"{config.name}: PySlowFast only has time-strided convolutions with batch norm and ReLU")
    for pathway, stem in zip(config.pathways, (StemConfig(), StemConfig((5, 7, 7))), strict=False):
        if pathway.block != "bottleneck" or pathway.stem != stem:
            raise InputError(f"{config.name}: PySlowFast only has bottleneck blocks and stems of stride 4 with pooling")
    return dict(sorted(to_pyslowfast_keys(state).items(), key=lambda item: _place(item[0])))


def _place(key: str) -> tuple[int, ...]:
    """Sorts as PySlowFast builds: stage by stage, pathway by pathway, block by block, the shortcut first.

    Within these the order stays as it is.
    """
    match = re.match(r"s(\d)(?:\.pathway(\d)_(?:stem|res(\d+)|nonlocal(\d+))|_fuse)", key)
    if not match:
        return (9,)  # the head
    stage, pathway, residual, non_local = match.groups()
    return int(stage), int(pathway or 9), int(residual or non_local or 0), bool(non_local), ".branch1" not in key
