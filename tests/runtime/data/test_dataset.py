"""Samples of files that are larger than the memory: only what a batch needs is read."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnnopt.runtime.data.dataset import take

PAGE = mmap.PAGESIZE
HEADER, ROW, N = 128, 784, 4000


class Asked(mmap.mmap):
    """Notes what it is asked to read."""

    pages: set[int]

    def madvise(self, option: int, *places: int) -> None:
        """See `mmap.mmap.madvise`."""
        super().madvise(option, *places)
        if option == mmap.MADV_WILLNEED:
            start, length = places
            self.pages |= set(range(start // PAGE, -(-(start + length) // PAGE)))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no advice")
@pytest.mark.parametrize("indices", [[], [5], [3999, 17, 16, 18, 17, 2000], range(300)], ids=str)
def test_the_pages_of_a_batch_and_no_others_are_asked_for(indices: Any, tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, HEADER + N * ROW, np.uint8)
    (tmp_path / "x").write_bytes(content.tobytes())
    with (tmp_path / "x").open("rb") as file:
        asked = Asked(file.fileno(), 0, access=mmap.ACCESS_READ)
    asked.pages = set()
    samples: Any = np.ndarray.__new__(np.memmap, (N, ROW), np.uint8, asked, HEADER)
    samples._mmap = asked
    wanted = np.array(indices, np.int64)
    rows = content[HEADER:].reshape(N, ROW)
    np.testing.assert_array_equal(take(samples, wanted), rows[wanted])
    bytes_of = [range(HEADER + i * ROW, HEADER + (i + 1) * ROW) for i in wanted]
    assert asked.pages == {at // PAGE for places in bytes_of for at in places}
