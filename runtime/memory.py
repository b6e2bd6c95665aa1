"""What a session asks the machine for, before it does."""

from __future__ import annotations

import os

from bnnopt.errors import ArtifactError
from bnnopt.units import size


def check_memory(n_bytes: int, what: str) -> None:
    """Refuse what is more than the whole machine has: it would be killed in the middle of a step.

    Raises
    ------
    ArtifactError
        One line with both numbers.
    """
    there = machine_bytes()
    if there is not None and n_bytes > there:
        raise ArtifactError(
            f"{what} needs {size(n_bytes)} of memory, this machine has {size(there)}; optimize "
            "with a smaller --batch-size or a higher level"
        )


def machine_bytes() -> int | None:
    """All memory of the machine; None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
