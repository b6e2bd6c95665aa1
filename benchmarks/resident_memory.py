"""Resident memory of training steps, measured beside what was planned.

    python -m benchmarks.resident_memory --model binarynet --batch-size 100

For every level and backend a fresh process opens the folder and runs some steps on random data, as
a contestant of `benchmarks.steps`. Growth is counted from the moment when all libraries are
imported and the batch is read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.steps import MIB, Process

BACKENDS = {"native": "bnnopt", "onnxruntime": "bnnopt on onnxruntime"}  # contestants


def main() -> None:
    """Compile the model at every level, measure, and print a table."""
    import onnx_ir as ir

    import bnnopt
    from bnnopt.models import build
    from bnnopt.passes import LEVELS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="binarynet", help="of the zoo, or an ONNX file")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--levels", nargs="*", default=LEVELS)
    parser.add_argument("--backends", nargs="*", default=list(BACKENDS))
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(ort_training=None)
    options = parser.parse_args()
    print(f"{'level':6}{'backend':13}{'planned MiB':>12}{'growth MiB':>12}{'s/step':>8}  losses")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(options.model)
        if path.suffix != ".onnx":
            path = Path(scratch) / f"{options.model}.onnx"
            ir.save(build(options.model), path)
        for level in options.levels:
            folder = Path(scratch) / level
            ways = {"batch_size": options.batch_size, "optimizer": options.optimizer}
            optimized = bnnopt.optimize(path, level=level, **ways)
            optimized.save(folder / "out")
            write_batch(folder, path, options.batch_size)
            planned = optimized.report.optimized.peak_bytes / MIB
            del optimized
            for backend in options.backends:
                print(f"{level:6}{backend:13}{planned:12.1f}{measured(folder, backend, options)}")


def write_batch(folder: Path, path: Path, batch: int) -> None:
    """Random images and labels as the contestants read them."""
    import onnx_ir as ir

    shape = ir.load(path).graph.inputs[0].shape
    assert shape is not None
    classes = json.loads((folder / "out" / "artifact.json").read_text())["classes"]
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, *[int(n) for n in shape[1:]]), np.float32)
    np.savez(folder / "batch.npz", x=x, labels=random.integers(0, classes, batch))


def measured(folder: Path, backend: str, options: argparse.Namespace) -> str:
    """Growth, the fastest step and the losses of a process of its own."""
    with contextlib.closing(Process(BACKENDS[backend], folder, options)) as process:
        if not process.ready():
            return "  failed"
        steps = [process.step() for _ in range(options.steps)]
        fastest, losses = min(step["wall"] for step in steps), [step["loss"] for step in steps]
        return f"{process.finish() / MIB:12.1f}{fastest:8.2f}  {losses}"


if __name__ == "__main__":
    main()
