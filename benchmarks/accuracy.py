"""Fashion-MNIST at -O1 (the bits of -O0), at -O2, and with each lossy pass alone.

    apt-get install dataset-fashion-mnist
    python -m benchmarks.accuracy --model mlp --results mlp.jsonl
    python -m benchmarks.accuracy --model mlp --results mlp.jsonl --table

Every run appends one line to the results, and what is there is not run again, so that the work can
be done in slices. Adam, batch 100, a cosine schedule from 1e-3 to 0, step by step as that of
`bnnopt train`; test accuracy with running statistics.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import bnnopt
from bnnopt.models import build
from bnnopt.models.wang2023 import from_listing
from bnnopt.passes import LEVELS, select

Array = NDArray[Any]
DATA = Path("/usr/share/datasets/fashion-mnist")
BATCH, RATE = 100, 1e-3
SMALL_CNV = "C16,BN,S | C16,MP2,BN,S | C32,BN,S | C32,MP2,BN,S | FC128,BN,S | FC10,BN"
EPOCHS = {"mlp": 10, "cnv": 6}
LOSSY = {p.name for level in LEVELS for p in select(level) if not p.lossless}
# What a pass needs to have anything to do.
NEEDS = {
    "drop-adam-second-moment": {"binary-weight-gradients"},
    "bnn-batch-norm-backward": {"l1-batch-norm"},
}


def main() -> None:
    """Run what the results lack, or print them as tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=EPOCHS, default="mlp")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument(
        "--only", nargs="*", help="these variants, such as O1 float16-state O2+pow2-gradients"
    )
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.results)))
        return
    known = {(run["variant"], run["seed"]) for run in read(options.results)}
    data = load(options.model)
    epochs = options.epochs or EPOCHS[options.model]
    for seed in range(options.seeds):
        for variant in options.only or variants():
            if (variant, seed) not in known:
                run = train(options.model, variant, seed, epochs, data)
                with options.results.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                print(run, flush=True)


def variants() -> list[str]:
    """The reference, all passes, and each lossy one alone."""
    order = [p.name for p in select(LEVELS[-1]) if p.name in LOSSY]
    return ["O1", "O2", *order]


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def load(model: str) -> tuple[Array, Array, Array, Array]:
    """Training and test images in [-1, 1], and their labels."""
    parts = [images_or_labels(f"{part}-{kind}") for part in ("train", "t10k") for kind in KINDS]
    shape = (-1, 784) if model == "mlp" else (-1, 1, 28, 28)
    images = [(a.astype(np.float32) / 127.5 - 1).reshape(shape) for a in parts[::2]]
    labels = [a.astype(np.int64) for a in parts[1::2]]
    return images[0], labels[0], images[1], labels[1]


KINDS = ("images-idx3", "labels-idx1")


def images_or_labels(name: str) -> Array:
    """An IDX file: two zeros, a type, the number of axes, their lengths, then bytes."""
    content = gzip.decompress((DATA / f"{name}-ubyte.gz").read_bytes())
    n_axes = content[3]
    shape = np.frombuffer(content, ">i4", n_axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def network(model: str, seed: int) -> ir.Model:
    """The paper's MLP, or a small convolutional network."""
    if model == "mlp":
        return build("mlp", seed)
    return from_listing("small-cnv", SMALL_CNV, (1, 28, 28), seed, pad=1)


def compiled(path: Path, variant: str) -> bnnopt.Optimized:
    """A level, with passes beside it perhaps, or -O1 with one lossy pass and what it needs."""
    level, *more = variant.split("+")
    if level in LEVELS:
        return bnnopt.optimize(path, batch_size=BATCH, level=level, enable=more)
    others = LOSSY - {variant} - NEEDS.get(variant, set())
    return bnnopt.optimize(path, batch_size=BATCH, level=LEVELS[-1], disable=sorted(others))


def train(
    model: str, variant: str, seed: int, epochs: int, data: tuple[Array, ...]
) -> dict[str, Any]:
    """Test accuracy in percent after each epoch, mean loss of each, and seconds of it all."""
    x, y, x_test, y_test = data
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        ir.save(network(model, seed), Path(scratch) / "net.onnx")
        optimized = compiled(Path(scratch) / "net.onnx", variant)
        optimized.save(Path(scratch) / "out")
        session = bnnopt.TrainingSession(Path(scratch) / "out", threads=1)
    random = np.random.default_rng(seed)
    losses, accuracies = [], []
    per_epoch = len(x) // BATCH
    rate = bnnopt.schedules.Cosine(RATE, steps=epochs * per_epoch)
    for epoch in range(epochs):
        steps = [
            session.step(x[part], y[part], lr=rate(step))
            for step, part in enumerate(batches(random.permutation(len(x))), epoch * per_epoch)
        ]
        losses.append(round(statistics.fmean(steps), 4))
        accuracies.append(round(100 * session.evaluate(x_test, y_test), 2))
    return {
        "model": model,
        "variant": variant,
        "seed": seed,
        "peak_bytes": optimized.report.optimized.peak_bytes,
        "accuracy": accuracies,
        "loss": losses,
        "seconds": round(time.perf_counter() - start),
    }


def batches(order: Array) -> Iterator[Array]:
    """Pieces of full length."""
    for i in range(0, len(order) - BATCH + 1, BATCH):
        yield order[i : i + BATCH]


def table(runs: Iterable[dict[str, Any]]) -> str:
    """Markdown: accuracy at the end with its spread, planned peak, and the curve."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_variant.setdefault(run["variant"], []).append(run)
    lines = [
        "| passes | test accuracy % (lowest to highest) | planned peak | after each epoch |",
        "|---|---|---|---|",
    ]
    for variant, found in by_variant.items():
        last = [run["accuracy"][-1] for run in found]
        curve = [statistics.fmean(a) for a in zip(*(r["accuracy"] for r in found), strict=True)]
        peak = found[0]["peak_bytes"] / 2**20
        name = f"-{variant}" if variant[:2] in LEVELS else variant
        lines.append(
            f"| {name} | {statistics.fmean(last):.2f} "
            f"({min(last):.2f} to {max(last):.2f}) | {peak:.2f} MiB | "
            f"{' '.join(f'{a:.1f}' for a in curve)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
