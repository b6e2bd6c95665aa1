"""Step times that a budget predicts, against steps that run.

    python -m benchmarks.predicted_times [--networks CNV] [--steps 5]

A prediction is the time of a step over that of one that computes nothing twice. For each network
of `benchmarks.budget` and each level: all values computed again that a pass would, half of them,
and none. Sessions take turns, on one thread; the fastest step of each counts, in processor time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

import bnnopt
from benchmarks.budget import NETWORKS
from bnnopt.compiler.budget import Trials
from bnnopt.compiler.budget.choices import leaving, left_names
from bnnopt.compiler.building import build_forward
from bnnopt.models import build
from bnnopt.passes import Pass, kernel_passes, select
from bnnopt.runtime import TrainingSession
from bnnopt.settings import Settings


def main() -> None:
    """Print a table, and how far the predictions lie off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    print("| network | level | computed again | predicted | measured | predicted / measured |")
    print("|" + "---|" * 6)
    ratios = [r for name in options.networks for r in _network(name, options.steps)]
    print(f"predicted / measured: {min(ratios):.2f} to {max(ratios):.2f}")


def _network(name: str, n_steps: int) -> Iterator[float]:
    model, sizes, batch = NETWORKS[name]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        ir.save(build(model, 0, **sizes), path)
        built = build_forward(path, Settings(batch_size=batch), lambda _: None)
        trials = Trials(built.reference, kernel_passes())
        every = [str(v.name) for node in built.reference.graph for v in node.outputs if v.name]
        for level in ("O1", "O2"):
            kept = left_names(trials(leaving(select(level), every)))
            names = {"nothing": kept, "half": kept[::2], "all": []}
            sets = {title: leaving(select(level), left) for title, left in names.items()}
            seconds = _seconds(path, batch, list(sets.values()), n_steps)
            for (title, passes), measured in zip(sets.items(), seconds, strict=True):
                predicted, found = trials(passes).point.time, measured / seconds[0]
                print(
                    f"| {name} | `-{level}` | {title} | {predicted:.2f} | {found:.2f} | "
                    f"{predicted / found:.2f} |",
                    flush=True,
                )
                yield predicted / found


def _seconds(path: Path, batch: int, sets: Sequence[Sequence[Pass]], n_steps: int) -> list[float]:
    """Processor time of the fastest step with each of the sets."""
    sessions = []
    for i, passes in enumerate(sets):
        folder = path.with_name(str(i))
        bnnopt.optimize(path, batch_size=batch, passes=[p.spec for p in passes]).save(folder)
        sessions.append(TrainingSession(folder, threads=1))
    spec = sessions[0]._inputs[0]
    random = np.random.default_rng(0)
    x = random.standard_normal(spec.shape_at(batch), np.float32)
    y = random.integers(0, 10, batch)
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(n_steps + 1):
        for found, session in zip(times, sessions, strict=True):
            start = time.process_time()
            session.step(x, y, lr=1e-4)
            found.append(time.process_time() - start)
    return [min(found[1:]) for found in times]


if __name__ == "__main__":
    main()
