"""Options that commands share, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bnnopt.settings import Option, options

# Only named in the help; what checks them is heavy to import. A test holds the two together.
BACKENDS = ("native", "onnxruntime")

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
Command = TypeVar("Command", bound=Callable[..., None])


class Names(click.ParamType[Any]):
    """Names, separated by commas; those in braces belong to a name, as options of a pass."""

    name = "NAMES"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a tuple of str."""
        if isinstance(value, tuple):
            return value
        return tuple(n.strip() for n in re.split(r",(?![^{}]*\})", value) if n.strip())


class Size(click.ParamType[Any]):
    """A number of bytes with its unit."""

    name = "SIZE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the bytes as int."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)(B?)", str(value).strip().upper())
        if match is None or match[2] not in UNITS:
            self.fail(f"{value!r}: expected a size such as 64MiB or 500kB", param, ctx)
        if not match[2] and not match[3]:
            self.fail(f"{value!r}: expected a unit, such as {value}MiB or {value}B", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


class Level(click.ParamType[Any]):
    """A level by its number, as in -O1, or by its name."""

    name = "LEVEL"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the name."""
        return f"O{str(value).removeprefix('O')}"


class Numbers(click.ParamType[Any]):
    """Numbers, separated by commas."""

    name = "NUMBERS"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a tuple of float."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected numbers such as 0.5 or 0.49,0.48,0.45", param, ctx)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, listed in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _of_settings(option: Option) -> Callable[[Command], Command]:
    """The option of the command line for one of `Settings`."""
    about, kind = option.about, _KINDS.get(option.name) or _OF_TYPE[option.type]
    return click.option(
        *option.flags,
        option.name,
        type=Names() if about.is_listed else kind,
        is_flag=option.type == "bool",
        multiple=option.type == "Sequence[str]" and not about.is_listed,
        default=option.default,
        show_default=option.default not in (None, (), False),
        metavar=about.metavar,
        help=about.help,
    )


_KINDS: dict[str, click.ParamType[Any]] = {"level": Level(), "budget_bytes": Size()}
_OF_TYPE: dict[str, click.ParamType[Any]] = {
    "bool": click.BOOL,
    "int": click.INT,
    "int | None": click.INT,
    "float": click.FLOAT,
    "float | None": click.FLOAT,
    "str": click.STRING,
    "str | None": click.STRING,
    "Sequence[str]": click.STRING,
    "Sequence[float]": Numbers(),
}

model_options = together(*(_of_settings(option) for option in options() if option.about.is_of_step))
"""Options about how a training step is built."""

optimize_options = together(*(_of_settings(option) for option in options()))
"""All options of `Settings`."""


json_option = click.option(
    "--json", "json_file", metavar="FILE", help="Write the report as JSON; - for standard output."
)

html_option = click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path),
    help="Write a page that shows the memory before and after, in one file.",
)
