"""Values that a pass is told to leave as they are: an option with their names in it.

A pass that trades time for memory has such an option, so that a budget can choose value by value.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, unquote

import onnx_ir as ir

REASON = "left as it is, as the option leave says"


def written(names: Iterable[str]) -> str:
    """Names as the option holds them: with bars between, what has a meaning there escaped."""
    return "|".join(quote(name, safe="") for name in names)


def leaves(option: str, value: ir.Value) -> bool:
    """Whether the option names the value."""
    return bool(option) and str(value.name) in map(unquote, option.split("|"))
