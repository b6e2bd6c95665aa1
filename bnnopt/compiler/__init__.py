"""The compiler: from a file to a folder that a device runs.

All but the settings is loaded when it is first used: for its help the command line needs no more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bnnopt.compiler.settings import Settings

if TYPE_CHECKING:
    from bnnopt.compiler.building import summarize as summarize
    from bnnopt.compiler.pipeline import Optimized as Optimized
    from bnnopt.compiler.pipeline import optimize as optimize

_HOMES = {"Optimized": "pipeline", "optimize": "pipeline", "summarize": "building"}
__all__ = ["Optimized", "Settings", "optimize", "summarize"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'bnnopt.compiler' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bnnopt.compiler.{_HOMES[name]}"), name)
