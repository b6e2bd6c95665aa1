"""A pass as text: its name, and its options in braces, as in ``prune-stored{sparsity=0.98}``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bnnopt.errors import UsageError

_OPTION = r"\s*\w+\s*=\s*[^\s,={}]+\s*"
_SPEC = re.compile(rf"([^\s,={{}}]+)(?:\{{({_OPTION}(?:,{_OPTION})*)?\}})?")
_BOOLEANS = {"true": True, "false": False}


def read_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Name and options of a spec, the options as they are written.

    Raises
    ------
    UsageError
        If it has another form.
    """
    match = _SPEC.fullmatch(spec.strip())
    if match is None:
        raise UsageError(f"pass {spec!r} cannot be read; expected NAME or NAME{{option=value,...}}")
    pairs = [entry.split("=") for entry in match[2].split(",")] if match[2] else []
    return match[1], {option.strip(): value.strip() for option, value in pairs}


def write_spec(name: str, options: Mapping[str, object]) -> str:
    """What `read_spec` reads."""
    given = {option: value for option, value in options.items() if value != ""}
    entries = ",".join(f"{option}={_written(value)}" for option, value in given.items())
    return f"{name}{{{entries}}}" if entries else name


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_option(text: str, like: object) -> object:
    """The value of an option, of the type of its default.

    Raises
    ------
    ValueError
        If the text is no value of this type.
    """
    if not isinstance(like, bool):
        return type(like)(text)  # type: ignore[call-arg]
    if text not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[text]
