"""Straight-through estimators: which one a node gets, from options and from the file."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnnopt.errors import UsageError
from bnnopt.frontend.sampling import GRID, ORIGIN, Array

ESTIMATORS = ("clipped", "identity", "approx-sign", "swish-sign")
WRITTEN = "written"
"""Of a binarisation whose gradient is that of another part of the file."""

Estimator = tuple[str, float]
"""Name, and the bound of the clipped one."""

DEFAULT: Estimator = (ESTIMATORS[0], 1.0)


@dataclass(frozen=True)
class Estimators:
    """What ``--ste`` asks for: `default`, and `overrides` of (pattern of node names, estimator)."""

    default: str | None = None
    overrides: Sequence[tuple[str, str]] = ()

    @classmethod
    def parse(cls, options: Sequence[str]) -> Estimators:
        """From ``--ste`` options: ``NAME``, or ``PATTERN=NAME`` for the nodes that match."""
        default, overrides = cls.default, []
        for option in options:
            pattern, _, name = option.rpartition("=")
            if name not in ESTIMATORS:
                raise UsageError(
                    f"--ste {option}: unknown estimator {name!r}; expected {', '.join(ESTIMATORS)}"
                )
            if pattern:
                overrides.append((pattern, name))
            else:
                default = name
        return cls(default, tuple(overrides))

    def named(self, name: str) -> Estimator | None:
        """What the last option that names this very node asks for."""
        found = [ste for pattern, ste in self.overrides if fnmatch.fnmatchcase(name, pattern)]
        return (found[-1], 1.0) if found else None

    def asked(self, name: str) -> Estimator | None:
        """What the options ask for of the node called `name`: the last one that names it wins."""
        return self.named(name) or ((self.default, 1.0) if self.default is not None else None)


def estimator_of(values: Array | None) -> Estimator | None:
    """The estimator whose integral has these values on `GRID`, but for a constant."""
    if values is None or not np.isfinite(values).all():
        return None
    values = values - values[ORIGIN]
    if np.allclose(values, GRID, atol=1e-5):
        return "identity", 1.0
    clip = float(values.max())
    if clip > 0 and np.allclose(values, np.clip(GRID, -clip, clip), atol=1e-5):
        return "clipped", clip
    inner = np.clip(GRID, -1, 1)
    if np.allclose(values, inner * (2 - np.abs(inner)), atol=1e-5):
        return "approx-sign", 1.0
    with np.errstate(over="ignore"):
        gate = 1 / (1 + np.exp(-5 * GRID))
    if np.allclose(values, 2 * gate * (1 + 5 * GRID * (1 - gate)) - 1, atol=1e-4):
        return "swish-sign", 1.0
    return None
