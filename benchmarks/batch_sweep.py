"""Planned peaks by batch size beside the static sums of Wang et al.; nothing is run.

python -m benchmarks.batch_sweep --model binarynet
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx_ir as ir

import bnnopt
from bnnopt.analysis import PROPOSED, STANDARD, paper_rule_bytes
from bnnopt.models import build
from bnnopt.passes import LEVELS

MIB = 2**20
BATCHES = (1, 10, 40, 100, 200, 400, 1000)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="binarynet", help="of the zoo")
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    options = parser.parse_args()
    levels = " | ".join(f"-{level}" for level in LEVELS)
    print(f"| batch | paper, standard | proposed | ratio | {levels} | ratio |")
    print("|---" * (5 + len(LEVELS)) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "net.onnx"
        ir.save(build(options.model), path)
        for batch in options.batches:
            print(row(path, batch), flush=True)


def row(path: Path, batch: int) -> str:
    """MiB of both, and how many times less."""
    found = {level: bnnopt.optimize(path, batch_size=batch, level=level) for level in LEVELS}
    reference = found["O0"].reference
    paper = [paper_rule_bytes(reference, scheme) for scheme in (STANDARD, PROPOSED)]
    planned = [optimized.report.optimized.peak_bytes for optimized in found.values()]
    cells = [
        str(batch),
        *(f"{n / MIB:.1f}" for n in paper),
        f"{paper[0] / paper[1]:.2f}x",
        *(f"{n / MIB:.1f}" for n in planned),
        f"{planned[0] / planned[-1]:.2f}x",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
