"""How often Python looks for garbage while graphs are rewritten."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 50_000  # a young collection; the two older ones after 20 of the one before
ROUNDS = 20


@contextmanager
def rare_collections() -> Iterator[None]:
    """Look for cycles after 50,000 new objects, not 700; as before at the end.

    A graph is a hundred thousand objects and more, all reachable. Python goes through all of them
    whenever a quarter as many are new, which a copy of a graph is: that is a quarter of the time.
    """
    before = gc.get_threshold()
    if before[0]:  # 0: never
        gc.set_threshold(max(before[0], NEW_OBJECTS), *(max(n, ROUNDS) for n in before[1:]))
    try:
        yield
    finally:
        gc.set_threshold(*before)
