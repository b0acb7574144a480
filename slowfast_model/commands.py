"""What the commands share: typed dataclasses parsed by jsonargparse, and errors as one line with exit status 2."""

from __future__ import annotations

import re
import sys
import types
import typing
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from os import PathLike
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from slowfast_model.errors import InputError

Config = TypeVar("Config")


class _Parser(ArgumentParser):
    def format_help(self, *args: Any) -> str:
        """Shows options the way they are usually typed, with hyphens (underscores work as well), and types plainly."""
        text = re.sub(r"<class '(.*?)'>", r"\1", super().format_help(*args))
        return re.sub(r"--[a-z][\w.]*", lambda option: option[0].replace("_", "-"), text)


def parse_arguments(
    config_class: type[Config],
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    defaults_from: str | PathLike[str] | None = None,
    sections: Mapping[str, tuple[type, set[str]]] | None = None,
    positional: str | None = None,
) -> Config:
    """Parses the command line into a dataclass.

    Every field is an option, spelled with hyphens or underscores (nested ones with dots); a bool field is a flag
    (``--resume``, ``--resume=false``), a list takes several values (``--scales 224 256``). ``--config run.yaml`` reads
    fields from a file, ``--print_config`` prints them.

    Args:
        config_class: a dataclass whose docstring documents the fields; fields without a default are required.
        prog: how the command is called, for the help text.
        argv: the arguments; ``sys.argv[1:]`` by default.
        defaults_from: a yaml file that replaces the dataclass's defaults.
        sections: field -> (dataclass, names to leave out): the field becomes a dict of that dataclass's fields, set
            with ``--field.name value``.
        positional: a field that is given by its place and not by its name; one line of the docstring documents it.

    Where the dataclass has a field ``config`` of its own, ``--config`` is that, and no file is read.

    Raises:
        InputError: an unknown or ill-typed field, or an unreadable config file; the message names it.
    """
    files: list[str | PathLike[Any]] = [defaults_from] if defaults_from else []
    parser = _Parser(prog=prog, description=description, exit_on_error=False, default_config_files=files)
    hints = typing.get_type_hints(config_class)
    if "config" not in hints:
        parser.add_argument("--config", action="config", help="read fields from this yaml file")
    if positional:
        documented = re.search(rf"^ *{positional}: (.+)$", config_class.__doc__ or "", flags=re.MULTILINE)
        parser.add_argument(positional, type=hints[positional], help=documented and documented[1])
    sections = sections or {}
    parser.add_class_arguments(config_class, skip={*sections, *([positional] if positional else [])})
    for name, (section_class, left_out) in sections.items():
        parser.add_class_arguments(section_class, name, skip=left_out, instantiate=False)
    flags = {name for name, hint in hints.items() if hint is bool}
    lists = {name for name, hint in hints.items() if list in [typing.get_origin(h) for h in _members(hint)]}
    try:
        parsed = parser.parse_args(_normalise(sys.argv[1:] if argv is None else argv, flags, lists))
        values = vars(parser.instantiate(parsed))
    except ArgumentError as error:
        raise InputError(_one_line(str(error))) from None
    if "config" not in hints:
        del values["config"]
    return config_class(**{**values, **{name: vars(values[name]) for name in sections}})


def option_value(argv: Sequence[str], name: str) -> str | None:
    """The value of an option on a command line that has not been parsed yet; "" for a flag, None if it is not there."""
    arguments = _normalise(argv)
    for argument, following in zip(reversed(arguments), ["--", *reversed(arguments)], strict=False):
        option, equals, value = argument.partition("=")
        if option == f"--{name}":
            return value if equals else "" if following.startswith("--") else following
    return None


def run_command(main: Callable[[], object]) -> None:
    """Runs a command's main function: wrong input ends as ``error: ...`` on stderr with exit status 2.

    Anything else that goes wrong is a bug and keeps its traceback.
    """
    try:
        main()
    except InputError as error:
        # An error of a loader's worker process comes with its traceback; its message is the last line.
        message = str(error).strip().splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: ")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _normalise(argv: Sequence[str], flags: Iterable[str] = (), lists: Iterable[str] = ()) -> list[str]:
    """Hyphens to underscores in option names; a flag without a value gets ``true``, a list's values become one."""
    arguments: list[str] = []
    position = 0
    while position < len(argv):
        argument, position = argv[position], position + 1
        option, equals, value = argument.partition("=")
        if option.startswith("--"):
            name = option[2:].replace("-", "_")
            following = argv[position] if position < len(argv) else "--"
            if name in flags and not equals and following.lower() not in ("true", "false"):
                equals, value = "=", "true"
            if name in lists and not equals and not following.startswith(("[", "--", "null")):
                values = list(takewhile(lambda text: not text.startswith("--"), argv[position:]))
                equals, value, position = "=", f"[{','.join(values)}]", position + len(values)
            argument = f"--{name}{equals}{value}"
        arguments.append(argument)
    return arguments


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type, itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _one_line(message: str) -> str:
    """jsonargparse's message, which names the field, without its line breaks and Python's spelling of types."""
    message = re.sub(r"<class '(.*?)'>", r"\1", message).replace("typing.", "").replace("NoneType", "null")
    message = re.sub(r"Literal\[(.*?)\]", lambda names: names[1].replace(", ", " or "), message)
    message = re.sub(r'Parser key "(.*?)":\s*', r"\1: ", message)
    union = re.search(r"Does not validate against .*?Subtypes: \[(.*?)\]\s.*Given value: ", message, flags=re.DOTALL)
    if union:
        members = re.split(r", (?![^\[]*\])", union[1])  # at the commas that are not inside of tuple[int, int]
        message = message.replace(union[0], f"expected {' or '.join(members)}, got ")
    message = re.sub(r"Expected an? (.*?)\. Got value: ", r"expected \1, got ", message)
    return " ".join(message.split())
