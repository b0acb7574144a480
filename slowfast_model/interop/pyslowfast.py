"""PySlowFast's names for the tensors of a network, and ours, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from slowfast_model.errors import InputError

Value = TypeVar("Value")

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
_PATTERNS = {"block": r"\d+", "layer": "conv|bn", "leaf": "weight|bias|running_mean|running_var|num_batches_tracked"}


def to_pyslowfast_key(key: str) -> str:
    """PySlowFast's name of the tensor that our state dict calls ``key``.

    Raises:
        InputError: no tensor of ours has this name.
    """
    return _rename(key, source=0)


def from_pyslowfast_key(key: str) -> str:
    """Our name of the tensor that PySlowFast's state dict calls ``key``.

    Raises:
        InputError: the tensor has no counterpart in our networks.
    """
    return _rename(key, source=1)


def to_pyslowfast_keys(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict of ours under PySlowFast's names."""
    return {to_pyslowfast_key(key): value for key, value in state.items()}


def from_pyslowfast_keys(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict of PySlowFast's under our names."""
    return {from_pyslowfast_key(key): value for key, value in state.items()}


def _rename(key: str, source: int) -> str:
    for templates in _TEMPLATES:
        match = re.fullmatch(_to_regex(templates[source], source), key)
        if match:
            return templates[1 - source].format(**{f: _respell(f, v, source) for f, v in match.groupdict().items()})
    raise InputError(f"{key!r} is not the name of a tensor of {('our', 'a PySlowFast')[source]} network that we know")


def _to_regex(template: str, source: int) -> str:
    def group(field: re.Match[str]) -> str:
        name = field[1]
        if name not in _SPELLINGS:
            return f"(?P<{name}>{_PATTERNS[name]})"
        values = _SPELLINGS[name].items()
        return f"(?P<{name}>{'|'.join(re.escape(pair[source]) for pair in values)})"

    return re.sub(r"\\{(\w+)\\}", group, re.escape(template))


def _respell(field: str, value: str, source: int) -> str:
    pairs = [(pair[source], pair[1 - source]) for pair in _SPELLINGS.get(field, {}).items()]
    return dict(pairs).get(value, value)
