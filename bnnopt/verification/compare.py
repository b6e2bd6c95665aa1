"""How far two trajectories are apart."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

import numpy as np

from bnnopt.verification.outcome import Difference, Verification
from bnnopt.verification.trajectory import Array, Trajectory

NEGLIGIBLE = 1e-5  # of the largest gradient, in root mean square: what rounding alone may turn


HELD = 0.5  # the cosine to a gradient that float16 maps leave, below which they round it away


def compare(
    reference: Trajectory,
    rewritten: Trajectory,
    min_cosine: float | None,
    rounded: Trajectory | None = None,
) -> Verification:
    """The worst difference of each gradient, and whether all is the same bits.

    `rounded` is the reference with its gradient maps in float16: where that alone turns a gradient
    away, because a map that it comes from is below the least float16, its direction is not judged.
    """
    trained = [name for name in reference.persistent if name in reference.gradients[0]]
    gradients = {
        name: [
            (a[name], b[name])
            for a, b in zip(reference.gradients, rewritten.gradients, strict=True)
        ]
        for name in trained
    }
    same_buffers = reference.persistent.keys() == rewritten.persistent.keys()
    pairs = [
        *zip(reference.losses, rewritten.losses, strict=True),
        *(pair for of_parameter in gradients.values() for pair in of_parameter),
        *((a, rewritten.persistent[n]) for n, a in reference.persistent.items() if same_buffers),
    ]
    sizes = {n: max(_size(a) for a, _ in of_parameter) for n, of_parameter in gradients.items()}
    largest = max(sizes.values(), default=0.0)
    parameters = {}
    for name, of_parameter in gradients.items():
        halves = [step[name] for step in rounded.gradients] if rounded is not None else []
        lost = [_is_lost(*pair, half) for pair, half in zip(of_parameter, halves, strict=False)]
        found = [difference(a, b) for a, b in of_parameter]
        held = [d for d, away in zip_longest(found, lost) if not away]
        parameters[name] = replace(
            min(held or found, key=lambda d: d.cosine),
            max_abs=max(d.max_abs for d in found),
            negligible=sizes[name] < NEGLIGIBLE * largest or not held,
        )
    return Verification(
        parameters=parameters,
        bit_equal=same_buffers and all(_same_bits(a, b) for a, b in pairs),
        min_cosine=min_cosine,
    )


def _size(gradient: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(gradient, dtype=np.float64)))) if gradient.size else 0.0


def _is_lost(gradient: Array, found: Array, rounded: Array) -> bool:
    """Whether float16 rounds a gradient away, and what was found in its place is no larger.

    The least float16 stands for all above its half: what is rounded is up to twice as large. Signs
    say nothing of a size.
    """
    if difference(gradient, rounded).cosine >= HELD:
        return False
    sizes = np.abs(found[found != 0])
    are_signs = sizes.size > 1 and sizes.min() == sizes.max()
    return are_signs or _size(found) <= 2 * max(_size(gradient), _size(rounded))


def _same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def difference(a: Array, b: Array) -> Difference:
    """In float64; the cosine of two zero gradients is 1."""
    if _same_bits(a, b):
        return Difference(0.0, 1.0)
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Difference(float(np.finfo(np.float64).max), 0.0)
    furthest = float(np.max(np.abs(x - y), initial=0))
    return Difference(furthest, _cosine(x, y), reach=_reach(x, y))


def _reach(x: Array, y: Array) -> float:
    """What the signs of x reach, where y has signs of one size and zeros alone."""
    sizes = np.abs(y[y != 0])
    if sizes.size < 2 or sizes.min() != sizes.max():
        return 1.0
    return _cosine(x, np.where(x < 0, -1.0, 1.0) * (y != 0))


def _cosine(x: Array, y: Array) -> float:
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    cosine = float(x @ y) / scale if scale else float(not x.any() and not y.any())
    return float(np.clip(cosine, -1, 1))
