"""What each lossy pass saves and costs alone, and the passes of -O3 one after the other.

    python -m benchmarks.ablation --model binarynet --batch-size 100

Planned bytes, and the least cosine of any layer's weight gradient to that of the unrewritten step,
from the same weights on the same random batch, on the native backend. A gradient that is kept as
sign bits counts as its signs.
"""

from __future__ import annotations

import argparse
import tempfile
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
    "state-8bit": ["float16-state"],
    "int8-latents": ["float16-state"],
}
# No lossy passes of a level, and the passes left out beside them. Where one map serves dy and dx
# pow2-gradients leaves a layer alone: without the passes that see to that it has every layer.
ENABLED = {
    "block-filters": (),
    "int4-gradients": (),
    "int8-latents": (),
    "pow2-gradients": (),
    "pow2-gradients, without stream-gradients and in-place": ("stream-gradients", "in-place"),
}


def main() -> None:
    """Print Markdown tables, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="binarynet", help="of the zoo")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--only", nargs="*", metavar="PASS", help="rows of the second table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "net.onnx"
        ir.save(build(options.model), path)
        if options.only is None:
            print(ledger(bnnopt.optimize(path, batch_size=options.batch_size, level=LEVELS[-1])))
        print("| -O1 and | planned peak, MiB | cosine of each weight gradient, first to last |")
        print("|---|---|---|", flush=True)
        for name, chosen in variants().items():
            if options.only is None or name.partition(",")[0] in options.only:
                one = bnnopt.optimize(path, batch_size=options.batch_size, passes=chosen)
                print(row(name, one), flush=True)


def variants() -> dict[str, list[str]]:
    """The passes of each row of the second table."""
    lossless = [p.name for p in select("O1")]
    lossy = [p.name for p in select(LEVELS[-1]) if not p.lossless]
    return {
        **{f"all, -{level}": [p.name for p in select(level)] for level in LEVELS[2:]},
        **{name: [*lossless, *NEEDS.get(name, []), name] for name in lossy},
        **{
            label: [n for n in lossless if n not in left_out] + [*NEEDS.get(name, []), name]
            for label, left_out in ENABLED.items()
            for name in [label.partition(",")[0]]
        },
    }


def ledger(compiled: bnnopt.Optimized) -> str:
    """The passes of a level, one after the other."""
    lines = [
        "| after pass | kept for backward, MiB | planned peak, MiB | numbers |",
        "|---|---|---|---|",
    ]
    for r in compiled.report.passes:
        lines.append(
            f"| {r.name} | {r.saved_bytes / MIB:.2f} | {r.peak_bytes / MIB:.2f} | "
            f"{'bit-equal' if r.lossless else 'lossy'} |"
        )
    return "\n".join([*lines, ""])


def row(name: str, compiled: bnnopt.Optimized) -> str:
    """Planned peak, and the cosines to the reference's weight gradients, in order of the file."""
    with tempfile.TemporaryDirectory() as scratch:
        compiled.save(Path(scratch) / "out")
        found = verify_folder(Path(scratch) / "out", "native", n_steps=1).parameters
    cosines = " ".join(f"{d.cosine:.3f}" for key, d in found.items() if key.endswith("weight"))
    return f"| {name} | {compiled.report.optimized.peak_bytes / MIB:.2f} | {cosines} |"


if __name__ == "__main__":
    main()
