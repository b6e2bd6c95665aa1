"""Values that hold for this thread inside of a ``with`` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def scoped(variable: ContextVar[T], value: T) -> Iterator[T]:
    """Set a variable, and put back what it was, wherever an interruption comes.

    That may be Ctrl-C right behind the setting, which is why it is inside of the ``try``.
    """
    before = variable.get()
    try:
        variable.set(value)
        yield value
    finally:
        variable.set(before)
