"""What each pass of -O2 saves and costs: alone, and one after the other.

    python -m benchmarks.ablation --model binarynet --batch-size 100

Planned bytes, and the least cosine of any layer's weight gradient to that of the unrewritten step,
from the same weights on the same random batch, on the native backend. A gradient that is kept as
sign bits counts as its signs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

import bnnopt
from bnnopt.models import build
from bnnopt.passes import LEVELS, select
from bnnopt.verification import verify_folder

MIB = 2**20
NEEDS = {
    "drop-adam-second-moment": ["binary-weight-gradients"],
    "bnn-batch-norm-backward": ["l1-batch-norm"],
}


@dataclass(frozen=True)
class Row:
    """One compiled variant: planned bytes, and cosines by parameter (none if bit-equal)."""

    name: str
    lossless: bool
    peak_bytes: int
    saved_bytes: int
    cosines: dict[str, float]


def main() -> None:
    """Print two Markdown tables, and the cosines by layer at -O2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="binarynet", help="of the zoo")
    parser.add_argument("--batch-size", type=int, default=100)
    options = parser.parse_args()
    order = [p.name for p in select(LEVELS[-1])]
    lossy = {p.name for p in select(LEVELS[-1]) if not p.lossless}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "net.onnx"
        ir.save(build(options.model), path)
        alone = [measure(path, options.batch_size, [*NEEDS.get(n, []), n], n) for n in order]
        up_to = [
            measure(path, options.batch_size, order[: i + 1], name, name in lossy)
            for i, name in enumerate(order)
        ]
    print(table("Alone, with what it needs", alone, lossy))
    print(table("One after the other", up_to, lossy))
    print("| parameter | cosine at -O2 |\n|---|---|")
    for name, cosine in up_to[-1].cosines.items():
        print(f"| {name} | {cosine:.4f} |")


def measure(
    path: Path, batch_size: int, passes: Sequence[str], name: str, verify: bool = True
) -> Row:
    """Compile with `passes` only; compare with the reference where one of them is lossy."""
    optimized = bnnopt.optimize(path, batch_size=batch_size, passes=passes)
    planned = optimized.report.optimized
    lossless = all(record.lossless for record in optimized.report.passes)
    cosines: dict[str, float] = {}
    if (not lossless and verify) or name == "schedule":
        with tempfile.TemporaryDirectory() as scratch:
            optimized.save(Path(scratch) / "out")
            found = verify_folder(Path(scratch) / "out", "native", n_steps=1)
        cosines = {
            key: d.cosine
            for key, d in found.parameters.items()
            if not d.negligible and key.endswith("weight")
        }
    return Row(name, lossless, planned.peak_bytes, planned.saved_bytes, cosines)


def table(title: str, rows: Sequence[Row], lossy: set[str]) -> str:
    """Markdown."""
    lines = [
        f"{title}:\n",
        "| pass | kept for backward, MiB | planned peak, MiB | least cosine of a weight gradient |",
        "|---|---|---|---|",
    ]
    for row in rows:
        note = "bit-equal" if row.name not in lossy else ""
        cosine = f"{min(row.cosines.values()):.4f}" if row.cosines else note
        saved, peak = row.saved_bytes / MIB, row.peak_bytes / MIB
        lines.append(f"| {row.name} | {saved:.2f} | {peak:.2f} | {cosine} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
