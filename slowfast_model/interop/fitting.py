"""Putting another project's tensors into a network of ours, and accounting for every one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn

from slowfast_model.errors import InputError

_NAMES_IN_MESSAGE = 3


@dataclass
class LoadReport:
    """What became of the tensors of a weight file.

    Attributes:
        loaded: our names of the tensors that the file gave.
        missing: our names of those that it did not give; they keep their initial values.
        unexpected: the file's names of tensors that have no place in the network.
        reshaped: "our name: shape in the file -> shape in the network", for the same numbers in another shape.
        mismatched: the same for another number of values: left out, our tensor keeps its initial values.
        notes: what else differs from the original: things that the configuration cannot express, or that the user
            must set.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people: a count per kind, and the names of all that was not simply loaded."""
        lines = [f"loaded: {len(self.loaded)} tensors"]
        for kind in ("missing", "unexpected", "reshaped", "mismatched"):
            names = getattr(self, kind)
            lines.append(f"{kind}: {len(names) or 'none'}")
            lines += [f"  {name}" for name in names]
        return lines + [f"note: {note}" for note in self.notes]


def load_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    to_ours: Callable[[str], str],
    *,
    allow_missing: Sequence[str] = (),
    source: str = "the weights",
) -> LoadReport:
    """Copies tensors into a network.

    Batch norm's ``num_batches_tracked`` may be absent: nothing in these networks depends on it.

    Args:
        model: a network of ours; its dtypes are kept.
        tensors: by the other project's names.
        to_ours: gives our name for one of these, or raises InputError.
        allow_missing: patterns with ``*`` of our names that the file need not give or may give in another shape, and of
            the file's names that need not have a place in the network.
        source: what error messages call the file.

    Raises:
        InputError: tensors are missing, of another shape or without a place, and no pattern allows it; or two names
            mean the same tensor. The network is unchanged.
    """
    report = LoadReport()
    wanted = model.state_dict()
    fitting: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for theirs, tensor in tensors.items():
        try:
            ours = to_ours(theirs)
        except InputError:
            report.unexpected.append(theirs)
            continue
        if ours not in wanted:
            report.unexpected.append(theirs)
            continue
        if ours in names:
            raise InputError(f"{source}: {names[ours]} and {theirs} are both {ours}")
        names[ours] = theirs
        shape = wanted[ours].shape
        change = f"{ours}: {list(tensor.shape)} -> {list(shape)}"
        if tensor.shape == shape:
            fitting[ours] = tensor
        elif _squeezed(tensor.shape) == _squeezed(shape):
            fitting[ours] = tensor.reshape(shape)
            report.reshaped.append(change)
        else:
            report.mismatched.append(change)
    report.loaded = list(fitting)
    report.missing = [n for n in wanted if n not in names and not n.endswith("num_batches_tracked")]
    _require_allowed(report, allow_missing, source)
    model.load_state_dict({**wanted, **fitting})
    return report


def _squeezed(shape: Sequence[int]) -> tuple[int, list[int]]:
    """Shapes of the same value hold the same numbers in the same order, apart from dimensions of size 1."""
    return math.prod(shape), [size for size in shape if size != 1]


def _require_allowed(report: LoadReport, allow_missing: Sequence[str], source: str) -> None:
    problems = []
    for kind, entries in (
        ("missing", report.missing),
        ("of another shape", report.mismatched),
        ("without a place in the network", report.unexpected),
    ):
        refused = [entry for entry in entries if not _is_allowed(entry.partition(":")[0], allow_missing)]
        if refused:
            more = f" and {len(refused) - _NAMES_IN_MESSAGE} more" if len(refused) > _NAMES_IN_MESSAGE else ""
            problems.append(f"{len(refused)} {kind} ({', '.join(refused[:_NAMES_IN_MESSAGE])}{more})")
    if problems:
        raise InputError(
            f"{source}: the weights do not fit the network: {'; '.join(problems)}. Give the configuration that they "
            "were trained with, or name what may be missing (allow_missing)"
        )


def _is_allowed(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
