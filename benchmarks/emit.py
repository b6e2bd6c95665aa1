"""The zoo in C: 20 steps of what `bnnopt emit` writes against the runtime on portable kernels.

    python -m benchmarks.emit                     every network at -O0, -O1 and -O2
    python -m benchmarks.emit --only mlp --only har

Losses, state and the output behind them have to be the same bits; a step fails where a bitmap
outgrows its planned place, which the runtime puts elsewhere. The program is compiled with
``-std=c99 -O2 -Wall -Wextra -Werror``. Bytes are those of the arena, of the state, of
constants, and of the kernels' and the step's code (``size``). The 18-layer networks are the small
ones of the tests. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

import bnnopt
from bnnopt.errors import BnnoptError
from bnnopt.models import names
from tests.emit.harness import FULL, Program, of_program, of_session
from tests.zoo import build_small

LEVELS = ("O0", "O1", "O2")
STEPS, BATCH = 20, 4


def row(name: str, level: str, folder: Path) -> list[object]:
    """Of one network at one level: the cells."""
    ir.save(build_small(name), folder / "model.onnx")
    out = folder / "out"
    bnnopt.optimize(folder / "model.onnx", batch_size=BATCH, level=level).save(out)
    try:
        program = Program(out, folder / "csrc", FULL)
    except BnnoptError as refusal:
        return [name, level, f"refused: {refusal}", *[""] * 4]
    rate, want = 1e-4, None
    while want is None:
        try:
            want = of_session(out, STEPS, rate)
        except BnnoptError:  # a batch of 4 may not do for a lossy level
            rate /= 100
    sizes = [*program.emitted[:3], code_bytes(folder / "csrc" / "bnn_model.so")]
    try:
        is_equal = of_program(out, program, STEPS, rate) == want
    except AssertionError as failed:
        return [name, level, f"a step failed: {failed}", *sizes]
    return [name, level, "bit-equal" if is_equal else "DIFFERS", *sizes]


def code_bytes(library: Path) -> int:
    """Of the section of instructions."""
    command = ["size", "-A", str(library)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return next(int(line.split()[1]) for line in done.stdout.splitlines() if ".text" in line)


def table(only: list[str]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| network | level | bits | arena | state | constants | code |"
    yield "|---|---|---|--:|--:|--:|--:|"
    for name in only or names():
        for level in LEVELS:
            with tempfile.TemporaryDirectory() as scratch:
                cells = row(name, level, Path(scratch))
            yield (
                "| " + " | ".join(f"{c:,}" if isinstance(c, int) else str(c) for c in cells) + " |"
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="A network; may be repeated.")
    for line in table(parser.parse_args().only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
