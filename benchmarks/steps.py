"""Whole training steps against PyTorch eager: the same exported model, batch and optimiser.

    python -m benchmarks.steps --model binarynet --batch-size 100 --threads 2

The two take turns in one process; the fastest step of each counts, and the ratio is what to read.
Needs the oracle extra; the models are those of ``tests/exports/torch_models.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Print seconds a step and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="binarynet")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--level", default="O1")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    _with_threads(options.threads)
    ours, theirs = _contestants(options)
    turns = [_turn(ours, theirs) for _ in range(options.rounds)]
    fastest = [min(times) for times in zip(*turns, strict=True)]
    ours_s, theirs_s = fastest
    print(
        f"{options.model} batch {options.batch_size}, {options.threads} threads, {options.level}: "
        f"bnnopt {ours_s:.3f} s, PyTorch {theirs_s:.3f} s, ratio {theirs_s / ours_s:.2f}"
    )


def _with_threads(n: int) -> None:
    """Numpy's BLAS reads its threads when it is loaded: start again with them set."""
    wanted = {"OMP_NUM_THREADS": str(n), "OPENBLAS_NUM_THREADS": str(n)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.steps", *sys.argv[1:]])


def _contestants(options: argparse.Namespace) -> tuple[Callable[[], object], Callable[[], object]]:
    import torch

    import bnnopt
    from tests.exports.torch_models import export, make_batch

    torch.set_num_threads(options.threads)
    x, labels = make_batch(options.model, options.batch_size, seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        module = export(options.model, path)
        optimized = bnnopt.optimize(path, batch_size=options.batch_size, level=options.level)
        optimized.save(Path(scratch) / "out")
        session = bnnopt.TrainingSession(Path(scratch) / "out", threads=options.threads)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    data, target = torch.from_numpy(x), torch.from_numpy(labels)

    def theirs() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(data), target).backward()
        optimizer.step()

    return lambda: session.step(x, labels), theirs


def _turn(*contestants: Callable[[], object]) -> list[float]:
    seconds = []
    for contestant in contestants:
        start = time.perf_counter()
        contestant()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
