"""The fields of the configuration dataclasses: checking them, and turning them into plain data and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from slowfast_model.errors import InputError


def require(condition: bool, where: str, value: object, expected: str) -> None:
    """Raises the InputError that names the field ``where``, its value, and what was expected of it."""
    if not condition:
        raise InputError(f"{where} is {value!r}: expected {expected}")


def require_choice(choices: Any, where: str, value: object) -> None:
    """Requires ``value`` to be one of a Literal's."""
    names = typing.get_args(choices)
    require(value in names, where, value, f"one of {', '.join(names)}")


def to_plain(value: Any) -> Any:
    """A dataclass as dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: Any, value: Any, where: str) -> Any:
    """Converts plain data to the annotated type ``kind``; ``where`` is the path for messages."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # X | None is the only union used here
        return None if value is None else from_plain(arguments[0], value, where)
    if origin is typing.Literal:
        require_choice(kind, where, value)
        return value
    if origin is tuple:
        require(isinstance(value, (list, tuple)), where, value, "a list")
        item_kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        require(len(value) == len(item_kinds), where, value, f"{len(item_kinds)} values")
        return tuple(
            from_plain(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(item_kinds, value, strict=True))
        )
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    require(type(value) is kind, where, value, f"a value of type {kind.__name__}")
    return value


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    require(isinstance(value, dict), where, value, f"the fields of {kind.__name__}")
    kinds = typing.get_type_hints(kind)
    unknown = sorted(str(name) for name in value if name not in kinds)
    require(not unknown, where, unknown, f"no fields but {', '.join(kinds)}")
    required = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in value]
    require(not missing, where, sorted(map(str, value)), f"also {', '.join(missing)}")
    return kind(**{name: from_plain(kinds[name], item, f"{where}.{name}") for name, item in value.items()})
