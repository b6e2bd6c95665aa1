"""A limit on the memory of this process, counted from what it has now."""

from __future__ import annotations

import os
import resource
from pathlib import Path

SPARE = 300 << 20  # bytes beside what a plan says
UNLIMITED = "BNNOPT_FUZZ_UNLIMITED"  # in the environment: sanitizers map terabytes


def used() -> int:
    """Bytes of private memory that the process may write to."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmData")


def allow(planned: int = 0) -> None:
    """From now on at most `planned` bytes more than now, and `SPARE`."""
    if UNLIMITED not in os.environ:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (used() + SPARE + planned, hard))
