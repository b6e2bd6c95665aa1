"""Pieces of C: arrays, and templates with their places filled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources

import numpy as np

from bnnopt.runtime.executor import Array

COLUMNS = 100
_TYPES = {"float32": "float", "float64": "double", "bool": "uint8_t", "float16": "uint16_t"}


def type_of(dtype: np.dtype[np.generic] | str) -> str:
    """The C type of an element: that of its bits for what C99 lacks."""
    name = np.dtype(dtype).name
    return _TYPES.get(name, f"{name}_t")


def array_definition(name: str, array: Array, comment: str) -> str:
    """A const array of the elements, floats exactly."""
    elements = ", ".join(_elements(array.reshape(-1)))
    head = f"/* {comment} */\nstatic const {type_of(array.dtype)} {name}[{max(array.size, 1)}] = {{"
    return "\n".join([head, *_wrapped(elements or "0"), "};"])


def _elements(flat: Array) -> Iterator[str]:
    if flat.dtype == np.float16:
        flat = flat.view(np.uint16)
    if flat.dtype.kind != "f":
        yield from (f"{v}LL" if abs(v) >= 1 << 31 else f"{v}" for v in map(int, flat.tolist()))
        return
    suffix = "f" if flat.dtype == np.float32 else ""
    names = {"nan": "NAN", "inf": "INFINITY", "-inf": "-INFINITY"}
    yield from (names.get(text) or text + suffix for text in flat.astype(str).tolist())


def _wrapped(text: str) -> list[str]:
    """Lines of a list, indented; much faster than textwrap."""
    lines: list[str] = []
    start = 0
    while len(text) - start > COLUMNS - 4:
        end = text.rindex(" ", start, start + COLUMNS - 3)
        lines.append("    " + text[start:end])
        start = end + 1
    return [*lines, "    " + text[start:]]


def filled(template: str, values: Mapping[str, object]) -> str:
    """A template of this package with each ``{{name}}`` replaced.

    Raises
    ------
    KeyError
        If a place has no value.
    """
    text = resources.files(__package__).joinpath("templates", template).read_text()
    return re.sub(r"\{\{(\w+)\}\}", lambda place: str(values[place[1]]), text)
