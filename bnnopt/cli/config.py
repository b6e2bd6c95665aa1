"""Options from a file: ``bnnopt.toml`` where a command is started, or ``--config FILE``.

What stands before the first table is for every command that has such an option; a table with the
name of a command is for that one. What is typed goes before both::

    seed = 7
    [optimize]
    budget = "64MiB"
    [train]
    epochs = 20
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from typing import IO, Any, TypeVar

import click

from bnnopt.errors import UsageError, did_you_mean

FILE = "bnnopt.toml"
Command = TypeVar("Command", bound=Callable[..., Any])


def _of_group(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Take the defaults of all commands from a file."""
    if path is None and not os.path.isfile(FILE):
        return
    assert isinstance(context.command, click.Group)
    commands = context.command.commands
    path = FILE if path is None else path
    entries = _read(path)
    tables = {name: entry for name, entry in entries.items() if isinstance(entry, dict)}
    shared = {name: entry for name, entry in entries.items() if name not in tables}
    for name in tables:
        if name not in commands:
            raise UsageError(f"{path}: there is no command {name!r}{did_you_mean(name, commands)}")
    _check_known(path, shared, {o for command in commands.values() for o in _options(command)})
    found = {}
    for name, command in commands.items():
        own = {n: value for n, value in shared.items() if n in _options(command)}
        found[name] = _defaults(path, command, {**own, **tables.get(name, {})})
    context.default_map = found


def _of_command(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Take the defaults of one command from a file of its own."""
    if path is None:
        return
    entries = _read(path)
    own = entries.pop(str(context.info_name), {})
    flat = {name: entry for name, entry in entries.items() if name not in _commands(context)}
    found = _defaults(path, context.command, {**flat, **own})
    context.default_map = {**(context.default_map or {}), **found}


def _commands(context: click.Context) -> set[str]:
    group = context.parent.command if context.parent is not None else None
    return set(group.commands) if isinstance(group, click.Group) else set()


def _read(path: str) -> dict[str, Any]:
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


def _options(command: click.Command) -> dict[str, click.Parameter]:
    """The options of a command, as they are written behind the dashes."""
    return {
        flag.lstrip("-"): parameter
        for parameter in command.params
        for flag in parameter.opts
        if flag.startswith("-") and parameter.name != "config"
    }


def _check_known(path: str, entries: Mapping[str, Any], known: set[str]) -> None:
    for name in entries:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"--config {path}: there is no option {name!r}{hint}")


def _defaults(path: str, command: click.Command, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries by the names of their parameters."""
    known = _options(command)
    _check_known(path, entries, set(known))
    return {
        str(known[name].name): _value(path, name, known[name], value)
        for name, value in entries.items()
    }


def _value(path: str, name: str, parameter: click.Parameter, value: Any) -> Any:
    """As the command line would have it: a list is given at once with commas, or one by one."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) for item in items):
        expected = "expected a text, a number, true, false, or a list of these"
        raise UsageError(f"--config {path}: {name} is {value!r}, {expected}")
    if isinstance(parameter, click.Option) and parameter.multiple:
        return [str(item) for item in items]
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _option(callback: Any, text: str) -> Callable[[Command], Command]:
    return click.option(
        "--config", metavar="FILE", is_eager=True, expose_value=False, callback=callback, help=text
    )


group_config_option = _option(
    _of_group,
    f"A TOML or YAML file with options of any command; if not given, {FILE} where it is there.",
)
config_option = _option(
    _of_command, "A TOML or YAML file with some of these options, such as epochs = 20."
)
