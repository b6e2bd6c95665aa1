"""Figures for people."""

from __future__ import annotations

import math


def size(n_bytes: float, up: bool = False) -> str:
    """Bytes for people, in binary units; never less than they are if rounded `up`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            shown = math.ceil(100 * n_bytes) / 100 if up else n_bytes
            return f"{n_bytes:.0f} B" if unit == "B" else f"{shown:.2f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} TiB"
