"""Tables of tensor names: ours and another project's, as pairs of templates with the fields that both have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from slowfast_model.errors import InputError

PATTERNS = {
    "block": r"\d+",
    "layer": "conv|bn",
    "leaf": "weight|bias|running_mean|running_var|num_batches_tracked",
}
"""What the fields that are spelled alike on both sides look like."""


class KeyTable:
    """Translates tensor names both ways.

    Args:
        project: the other project, for error messages.
        templates: a kind of tensor a line: our name and the other's, with fields in braces.
        spellings: field -> {our value: the other's}, for the fields that are spelled differently; the others are in
            `PATTERNS`. A field of the other's template that ours lacks is dropped, so that such a table is one-way.
    """

    def __init__(
        self, project: str, templates: Sequence[tuple[str, str]], spellings: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.project = project
        self.templates = templates
        self.spellings = spellings
        self.patterns = tuple([self._to_regex(pair[side], side) for pair in templates] for side in (0, 1))

    def to_theirs(self, key: str) -> str:
        """The other project's name of the tensor that our state dict calls ``key``; InputError if there is none."""
        return self._rename(key, 0)

    def to_ours(self, key: str) -> str:
        """Our name of the tensor that the other project's state dict calls ``key``; InputError if there is none."""
        return self._rename(key, 1)

    def _rename(self, key: str, source: int) -> str:
        for pattern, templates in zip(self.patterns[source], self.templates, strict=True):
            match = pattern.fullmatch(key)
            if match:
                fields = {field: self._respell(field, value, source) for field, value in match.groupdict().items()}
                return templates[1 - source].format(**fields)
        whose = ("our", f"a {self.project}")[source]
        raise InputError(f"{key!r} is not the name of a tensor of {whose} network that we know")

    def _to_regex(self, template: str, source: int) -> re.Pattern[str]:
        def group(field: re.Match[str]) -> str:
            name = field[1]
            if name not in self.spellings:
                return f"(?P<{name}>{PATTERNS[name]})"
            values = self.spellings[name].items()
            return f"(?P<{name}>{'|'.join(re.escape(pair[source]) for pair in values)})"

        return re.compile(re.sub(r"\\{(\w+)\\}", group, re.escape(template)))

    def _respell(self, field: str, value: str, source: int) -> str:
        pairs = [(pair[source], pair[1 - source]) for pair in self.spellings.get(field, {}).items()]
        return dict(pairs).get(value, value)
