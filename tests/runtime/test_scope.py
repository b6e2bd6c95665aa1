"""Values of a ``with`` block, also where it is interrupted."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, cast

import pytest

from bnnopt.runtime.scope import scoped


class Interrupted:
    """A variable behind whose first setting Ctrl-C comes."""

    def __init__(self) -> None:
        self.value, self._comes = "before", True

    def get(self) -> str:
        return self.value

    def set(self, value: str) -> None:
        self.value = value
        if self._comes:
            self._comes = False
            raise KeyboardInterrupt


def test_it_holds_inside() -> None:
    variable: ContextVar[int] = ContextVar("variable", default=0)
    with scoped(variable, 1) as one, scoped(variable, 2):
        assert (one, variable.get()) == (1, 2)
    assert variable.get() == 0


def test_an_error_inside_puts_it_back() -> None:
    variable: ContextVar[int] = ContextVar("variable", default=0)
    with pytest.raises(ZeroDivisionError), scoped(variable, 1):
        1 / 0  # noqa: B018
    assert variable.get() == 0


def test_an_interruption_behind_the_setting_puts_it_back() -> None:
    variable = Interrupted()
    with pytest.raises(KeyboardInterrupt), scoped(cast(ContextVar[Any], variable), "inside"):
        pass
    assert variable.value == "before"
