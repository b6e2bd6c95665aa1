"""The zoo's networks of papers: what is kept for the backward pass, and the peak, by level.

    python -m benchmarks.zoo     the table of docs/networks.md

Planned sizes, at the sizes that ``bnnopt zoo NAME`` writes, with Adam.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

import bnnopt
from bnnopt.models import build, names
from bnnopt.units import size

FIRST = "reactnet"  # those before it have tables of their own
LEVELS = ("O1", "O2")


def row(name: str, batch: int, path: Path) -> str:
    """One network, a line of Markdown."""
    model = build(name)
    ir.save(model, path)
    done = [bnnopt.optimize(path, batch_size=batch, level=level).report for level in LEVELS]
    (x,) = model.graph.inputs
    assert x.shape is not None
    shape = " x ".join(map(str, (batch, *tuple(x.shape)[1:])))
    values = [v for k, v in model.graph.initializers.items() if "running" not in k]
    count = sum(v.const_value.size for v in values if v.const_value is not None)
    kept = [done[0].baseline.saved_bytes, *(report.optimized.saved_bytes for report in done)]
    peak = [done[0].baseline.peak_bytes, *(report.optimized.peak_bytes for report in done)]
    cells = [f"`{name}`", shape, f"{count:,}"]
    for sizes in (kept, peak):
        cells += [
            *map(size, sizes),
            f"{sizes[-2] / sizes[0] - 1:+.0%}, {sizes[-1] / sizes[0] - 1:+.0%}",
        ]
    return "| " + " | ".join(cells) + " |"


def table(batch: int) -> Iterator[str]:
    """The lines of a Markdown table."""
    sizes = " | ".join(f"{kind}, `-O0` | `-O1` | `-O2` | " for kind in ("kept", "peak"))
    yield f"| network | input | parameters | {sizes} |"
    yield "|---" * 11 + "|"
    with tempfile.TemporaryDirectory() as scratch:
        for name in names()[names().index(FIRST) :]:
            yield row(name, batch, Path(scratch) / "model.onnx")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    for line in table(parser.parse_args().batch_size):
        print(line, flush=True)


if __name__ == "__main__":
    main()
