"""What a process that trains takes beside its plan, and what ``--budget`` holds back for it.

    python -m benchmarks.process_memory [--models mlp cnv] [--batch-sizes 8 100]

Fresh processes open each folder and run some steps, as contestants of `benchmarks.steps`, with one,
two and four threads. What is held back lies above all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

import onnx_ir as ir

import bnnopt
from benchmarks.resident_memory import write_batch
from benchmarks.steps import MIB, Process
from bnnopt.models import build, names

NOT_IMAGES = ("unet", "transformer")  # a label a pixel, words
LEVELS = ("O0", "O2", "O3")
THREADS = (1, 2, 4)
N_STEPS = 4


def main() -> None:
    """Print a table."""
    every = [name for name in names() if name not in NOT_IMAGES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=every, choices=every)
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[8])
    options = parser.parse_args()
    print("| model | batch | level | plan, MiB | beside it, 1, 2, 4 threads | held back |")
    print("|" + "---|" * 6)
    for name in options.models:
        for batch in options.batch_sizes:
            for level in LEVELS:
                with tempfile.TemporaryDirectory() as scratch:
                    print(_row(name, batch, level, Path(scratch)), flush=True)


def _row(name: str, batch: int, level: str, folder: Path) -> str:
    path = folder / "model.onnx"
    ir.save(build(name), path)
    optimized = bnnopt.optimize(path, batch_size=batch, level=level)
    optimized.save(folder / "out")
    write_batch(folder, path, batch)
    planned, held_back = optimized.report.optimized.peak_bytes, optimized.report.process_bytes
    beside = [_growth(folder, threads) - planned for threads in THREADS]
    mark = "" if max(beside) <= held_back else " (too little)"
    figures = ", ".join(f"{n_bytes / MIB:.2f}" for n_bytes in beside)
    planned_mib, held_back_mib = planned / MIB, held_back / MIB
    return (
        f"| {name} | {batch} | `-{level}` | {planned_mib:.2f} | {figures} | "
        f"{held_back_mib:.2f}{mark} |"
    )


def _growth(folder: Path, threads: int) -> int:
    """Resident growth of a process of its own, in bytes."""
    options = argparse.Namespace(threads=threads, ort_training=None)
    with contextlib.closing(Process("bnnopt", folder, options)) as process:
        assert process.ready(), "the process did not start"
        for _ in range(N_STEPS):
            process.step()
        return process.finish()


if __name__ == "__main__":
    main()
