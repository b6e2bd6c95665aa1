"""Options that commands share, and the types of their values."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from bnnopt.errors import UsageError, did_you_mean
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


def _configure(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Take the defaults of a command's options from a file; what is typed goes before it."""
    if path is None:
        return
    found = _read_config(path)
    known = {option.removeprefix("--"): p for p in context.command.params for option in p.opts}
    for name, value in found.items():
        if name not in known or name == "config":
            hint = did_you_mean(name, known)
            raise UsageError(f"--config {path}: there is no option {name!r}{hint}")
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float) for item in items):
            expected = "expected a text, a number, true, false, or a list of these"
            raise UsageError(f"--config {path}: {name} is {value!r}, {expected}")
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        context.default_map = {**(context.default_map or {}), str(known[name].name): text}


def _read_config(path: str) -> dict[str, Any]:
    """The options of a TOML or YAML file.

    Raises
    ------
    UsageError
        If it cannot be read, or is no table of options.
    """
    is_yaml = path.endswith((".yaml", ".yml"))
    try:
        with open(path, "rb") as file:
            found = _load_yaml(file) if is_yaml else tomllib.load(file)
    except (OSError, ValueError) as error:
        kind = "YAML" if is_yaml else "TOML"
        raise UsageError(f"--config {path}: cannot be read as {kind} ({error})") from None
    if not isinstance(found, dict):
        raise UsageError(f"--config {path}: expected a table of options, such as epochs: 20")
    return {str(name): value for name, value in found.items()}


def _load_yaml(file: IO[bytes]) -> Any:
    """Plain values only: nothing in the file is run."""
    try:
        import yaml
    except ImportError:
        raise UsageError("--config: YAML needs PyYAML; pip install 'bnnopt[yaml]'") from None
    try:
        return yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise ValueError(error) from None


config_option = click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_configure,
    help="A TOML or YAML file with some of these options, such as epochs = 20.",
)


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
