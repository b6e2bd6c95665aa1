"""Tries to make a training step overflow halfway, and says what it leaves.

    python -m benchmarks.overflow --models mlp cnv har --levels O1 O2

Each attempt opens a network of the zoo, trains three ordinary steps on noise, and then steps on
black, equal or huge images, on one lit pixel, on two samples, with a rate that doubles, or with a
large one for hundreds of steps. ``trained`` is a state that stayed finite, ``undone`` a step that
was refused and changed nothing, ``half`` one after which the session has to resume. The control
trains in the ordinary way: it counts steps before which weights and state were copied.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import DivergedError
from bnnopt.models.zoo import build

Array = NDArray[Any]
BATCH = 32
RATES = {"rate 0.1": 0.1, "rate 0.4": 0.4, "rate 1": 1.0, "rate 9": 9.0}
STEPS = 300
KINDS = ("black", "equal", "one colour", "one pixel", "huge", "two samples", "rate doubles", *RATES)


class Noise:
    """Batches for a session's inputs."""

    def __init__(self, session: TrainingSession) -> None:
        self._random = np.random.default_rng(0)
        self._spec, self._classes = next(iter(session.inputs.values())), session.about.classes

    def batch(self, n: int = BATCH) -> tuple[Array, Array]:
        """So many samples, and labels."""
        x = self._random.standard_normal(self._spec.shape_at(n)).astype(np.float32)
        return x, self._random.integers(0, self._classes, n)


def attempts(kind: str, noise: Noise) -> Iterator[tuple[Array, Array, float | None]]:
    """Batches and rates of one attempt."""
    if kind in RATES or kind == "rate doubles":
        for i in range(STEPS if kind in RATES else 30):
            yield *noise.batch(), RATES.get(kind, 2.0**i)
        return
    x, y = noise.batch(2 if kind == "two samples" else BATCH)
    match kind:
        case "black" | "one pixel":
            x[...] = 0
        case "one colour":
            x[...] = 1.5
        case "equal":
            x[...] = x[:1]
        case "huge":
            x *= 9e3
    if kind == "one pixel":
        x[0].flat[0] = 9e3 * x.size**0.5
    yield x, y, None


def left(folder: Path, kind: str) -> str:
    """What the last step of an attempt leaves."""
    session = TrainingSession(folder)
    noise = Noise(session)
    for _ in range(3):
        session.step(*noise.batch())
    for x, y, rate in attempts(kind, noise):
        before = {name: array.tobytes() for name, array in session._persistent.items()}
        try:
            session.step(x, y, rate)
        except DivergedError as error:
            if not error.is_undone:
                return "half"
            after = {name: array.tobytes() for name, array in session._persistent.items()}
            return "undone" if before == after else "CHANGED"
    is_finite = all(np.isfinite(array).all() for array in session._persistent.values())
    return "trained" if is_finite else "NOT FINITE"


def copies(folder: Path, steps: int = 100) -> int:
    """Of so many ordinary steps, those that copy weights and state."""
    session = TrainingSession(folder)
    noise, guard, found = Noise(session), session._guard, 0
    keep = guard._keep_others

    def counted() -> None:
        nonlocal found
        found += 1
        keep()

    guard._keep_others = counted  # type: ignore[method-assign]
    for _ in range(steps):
        session.step(*noise.batch())
    return found


def main() -> None:
    """Print a line for each attempt."""
    parser = argparse.ArgumentParser(description="Steps that overflow, and what they leave.")
    parser.add_argument("--models", nargs="+", default=["mlp", "cnv", "har", "reactnet"])
    parser.add_argument("--levels", nargs="+", default=["O1", "O2"])
    options = parser.parse_args()
    for name in options.models:
        for level in options.levels:
            with tempfile.TemporaryDirectory() as made:
                path, folder = Path(made) / "model.onnx", Path(made) / "out"
                ir.save(build(name), path)
                bnnopt.optimize(path, batch_size=BATCH, level=level).save(folder)
                print(f"{name} -{level}: {copies(folder)} of 100 ordinary steps copy", flush=True)
                for kind in KINDS:
                    print(f"{name} -{level}: {kind}: {left(folder, kind)}", flush=True)


if __name__ == "__main__":
    main()
