"""The zoo in C: 20 steps of what `bnnopt emit` writes against the runtime on portable kernels.

    python -m benchmarks.emit                     every network at -O0, -O1 and -O2
    python -m benchmarks.emit --only mlp --only har

Losses, state and the output behind them have to be the same bits, and the arena the bytes that the
plan has. The program is compiled with ``-std=c99 -O2 -Wall -Wextra -Werror``. Bytes are those of
the arena, of the state, of constants, and of the kernels' and the step's code (``size``). Where the
runtime diverges on such small batches at a rate, a smaller one is taken. The 18-layer networks have
8 channels and images of 64 x 64: with smaller ones bi-real-18 diverges at -O2 at any rate. Needs a
C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

import bnnopt
from bnnopt.errors import BnnoptError, DivergedError
from bnnopt.models import build, names
from tests.emit.harness import FULL, Program, Trace, of_program, of_session
from tests.zoo import EIGHTEEN

LEVELS = ("O0", "O1", "O2")
STEPS, BATCH = 20, 4
RATES = (1e-4, 1e-6, 1e-8)
SIZES = {"size": 64, "classes": 10, "width": 8}


def row(name: str, level: str, folder: Path, steps: int) -> list[object]:
    """Of one network at one level: the cells."""
    ir.save(build(name, 0, **(SIZES if name in EIGHTEEN else {})), folder / "model.onnx")
    out = folder / "out"
    bnnopt.optimize(folder / "model.onnx", batch_size=BATCH, level=level).save(out)
    try:
        program = Program(out, folder / "csrc", FULL)
        want, rate = trained(out, steps)
    except BnnoptError as refusal:
        return [name, level, f"refused: {refusal}", *[""] * 5]
    sizes = [*program.emitted[:3], code_bytes(folder / "csrc" / "bnn_model.so")]
    try:
        is_equal = of_program(out, program, steps, rate) == want
    except AssertionError as failed:
        return [name, level, steps, f"a step failed: {failed}", *sizes]
    return [name, level, steps, "equal" if is_equal else "DIFFERS", *sizes]


def trained(folder: Path, steps: int) -> tuple[Trace, float]:
    """The runtime's steps at the largest rate that it takes, and the rate."""
    for rate in RATES[:-1]:
        with contextlib.suppress(DivergedError):
            return of_session(folder, steps, rate), rate
    return of_session(folder, steps, RATES[-1]), RATES[-1]


def code_bytes(library: Path) -> int:
    """Of the section of instructions."""
    command = ["size", "-A", str(library)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return next(int(line.split()[1]) for line in done.stdout.splitlines() if ".text" in line)


def table(only: list[str], steps: int) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| network | level | steps | bits | arena | state | constants | code |"
    yield "|---|---|--:|---|--:|--:|--:|--:|"
    for name in only or names():
        for level in LEVELS:
            with tempfile.TemporaryDirectory() as scratch:
                cells = row(name, level, Path(scratch), steps)
            yield (
                "| " + " | ".join(f"{c:,}" if isinstance(c, int) else str(c) for c in cells) + " |"
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="A network; may be repeated.")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    for line in table(options.only, options.steps):
        print(line, flush=True)


if __name__ == "__main__":
    main()
