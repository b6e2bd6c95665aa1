"""Memory that is not there is one line, not a process that is killed."""

from __future__ import annotations

import pytest

from bnnopt.errors import ArtifactError
from bnnopt.runtime.memory import allocating, machine_bytes


def test_more_than_the_machine_has() -> None:
    there = machine_bytes()
    assert there is not None
    with (
        pytest.raises(
            ArtifactError, match=r"^out: a step needs .* of memory, this machine has .*;"
        ),
        allocating(there + 1, "out: a step"),
    ):
        raise AssertionError("it is asked for")


def test_more_than_is_free() -> None:
    with (
        pytest.raises(ArtifactError, match=r"needs 5 B of memory, which is not free; optimize"),
        allocating(5, "out: a step"),
    ):
        raise MemoryError


def test_what_is_there() -> None:
    with allocating(machine_bytes() or 1, "out: a step"):
        pass
