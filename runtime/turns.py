"""Calls that take turns: threads share an object, and no signal handler breaks into a call."""

from __future__ import annotations

import functools
import os
from _thread import LockType, allocate_lock, get_ident  # the threading module takes a millisecond
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from bnnopt.errors import UsageError


class Turns:
    """Who may go on: one call of a process at a time; `what` is the object's kind, for messages."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._lock, self._process = allocate_lock(), os.getpid()
        self.owner: tuple[int, int] | None = None  # process and thread of the present call

    @property
    def lock(self) -> LockType:
        """What a call holds; another one in a forked process, where no other thread is left."""
        if self._process != os.getpid():
            self._lock, self._process = allocate_lock(), os.getpid()
        return self._lock


class TakesTurns(Protocol):
    """An object with turns of its own."""

    _turns: Turns


_Self = TypeVar("_Self", bound=TakesTurns)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_Method = Callable[Concatenate[_Self, _Given], _Result]


def in_turn(method: _Method[_Self, _Given, _Result]) -> _Method[_Self, _Given, _Result]:
    """One call at a time: others wait for it, but one from within (a signal handler) is refused."""

    @functools.wraps(method)
    def run(self: _Self, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        turns, me = self._turns, (os.getpid(), get_ident())
        if turns.owner == me:
            raise UsageError(
                f"{method.__name__}: the {turns.what} is busy with a call that this one "
                "interrupts; call it when that has returned"
            )
        with turns.lock:
            turns.owner = me
            try:
                return method(self, *args, **kwargs)
            finally:
                turns.owner = None

    return run
