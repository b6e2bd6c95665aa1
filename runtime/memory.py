"""What a session asks the machine for, before it does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from bnnopt.errors import ArtifactError
from bnnopt.units import size


@contextlib.contextmanager
def allocating(n_bytes: int, what: str) -> Iterator[None]:
    """Where so many bytes are allocated: more than the machine has are refused before.

    Pages are taken when they are written to; it would be killed in the middle of a step.

    Raises
    ------
    ArtifactError
        One line with both numbers.
    """
    there = machine_bytes()
    advice = "optimize with a smaller --batch-size or a higher level"
    if there is not None and n_bytes > there:
        raise ArtifactError(
            f"{what} needs {size(n_bytes)} of memory, this machine has {size(there)}; {advice}"
        )
    try:
        yield
    except MemoryError:
        raise ArtifactError(
            f"{what} needs {size(n_bytes)} of memory, which is not free; {advice}"
        ) from None


def machine_bytes() -> int | None:
    """All memory of the machine; None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
