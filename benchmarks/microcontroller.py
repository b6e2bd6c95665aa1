"""Training on a bare Cortex-M4 in QEMU, beside the same training in Python.

    export BNNOPT_KERNELS=portable
    python -m benchmarks.microcontroller sensors --train har_train.npz --test har_test.npz
    python -m benchmarks.microcontroller images --samples 6000 --test-samples 1000

`images` are those of Fashion-MNIST (Debian's dataset-fashion-mnist) if no files are named,
`sensors` windows of six signals and 128 samples. The network is compiled at -O2 for batches of 8
with Adam, emitted, and linked for 1 MiB of flash and 256 KiB of RAM; both take the samples in the
same order at the same rate, and have to be equally right behind each epoch; without the variable
Python rounds as the kernels of this machine do. Needs gcc-arm-none-eabi, libnewlib-arm-none-eabi
and qemu-system-arm. Emulated times mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import bnnopt
from bnnopt.emit import emit, write_samples
from bnnopt.models.layers import dims_of
from bnnopt.models.written import WrittenBuilder
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.data.idx import read_idx_folder
from bnnopt.runtime.data.normalization import HALVES

BATCH = 8
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def images() -> ir.Model:
    """x (N, 1, 28, 28) -> logits (N, 10): a real stem and classifier, two binary convolutions."""
    b = WrittenBuilder((1, 28, 28), 0)
    stem = b.drawn("stem.weight", (8, 1, 5, 5))
    x = b.batch_norm(b.convolved(b.x, stem, "stem", stride=2, pad=2), "norm", gamma=True)
    x = b.max_pool(binary(b, x, "conv1", (12, 8, 3, 3)), "pool")
    x = b.batch_norm(x, "norm1", gamma=True)
    x = binary(b, x, "conv2", (32, 12, 3, 3), stride=2)
    x = b.relu(b.batch_norm(x, "norm2", gamma=True), "relu")
    return b.model(b.dense(b.flatten(x, "flat"), 10, "head", bias=True), "images", "28 x 28 images")


def sensors() -> ir.Model:
    """x (N, 6, 128) -> logits (N, 6): a real stem and classifier, two binary convolutions."""
    b = WrittenBuilder((6, 128), 0)
    stem = b.drawn("stem.weight", (16, 6, 5))
    x = b.batch_norm(b.convolved(b.x, stem, "stem", stride=2, pad=2), "norm", gamma=True)
    x = pooled(b, binary(b, pooled(b, x, "pool"), "conv1", (32, 16, 3)), "pool1")
    x = binary(b, b.batch_norm(x, "norm1", gamma=True), "conv2", (32, 32, 3))
    x = b.relu(b.batch_norm(x, "norm2", gamma=True), "relu")
    x = b.reduced("ReduceMean", x, [2], "mean", keep=False)
    return b.model(b.dense(x, 6, "head", bias=True), "sensors", "windows of six signals")


NETWORKS = {"images": images, "sensors": sensors}


def binary(
    b: WrittenBuilder, x: ir.Value, name: str, shape: tuple[int, ...], stride: int = 1
) -> ir.Value:
    """A convolution of signs with signs."""
    w = b.binarized(b.drawn(f"{name}.weight", shape), f"{name}.sign")
    return b.convolved(b.binarized(x, f"{name}.input"), w, name, stride=stride, pad=1)


def pooled(b: WrittenBuilder, x: ir.Value, name: str) -> ir.Value:
    """2-wide max pool along time."""
    n, c, length = dims_of(x)
    return b.op("MaxPool", [x], name, (n, c, int(length) // 2), kernel_shape=[2], strides=[2])


def data(options: argparse.Namespace) -> Iterator[Arrays]:
    """Training and test samples, drawn from what there is."""
    counts = options.samples, options.test_samples
    files = (("train", options.train), ("test", options.test))
    for (part, file), count in zip(files, counts, strict=True):
        if file is not None:
            arrays = np.load(file)
            x, y = arrays["x"], arrays["y"]
        else:
            found = read_idx_folder(FASHION_MNIST, part)
            x, y = (np.asarray(a) for a in (found.x["x"], found.y))
            x = HALVES(x.reshape(-1, 1, 28, 28))
        chosen = np.random.default_rng(0).permutation(len(x))[:count]
        yield x[chosen].astype(np.float32), y[chosen].astype(np.int64)


def in_python(folder: Path, train: Arrays, test: Arrays, epochs: int) -> Iterator[float]:
    """Accuracy after each epoch; batches in order, a rest is left out."""
    session = TrainingSession(folder)
    x, y = train
    for _ in range(epochs):
        for start in range(0, len(x) - BATCH + 1, BATCH):
            session.step(x[start : start + BATCH], y[start : start + BATCH])
        yield session.evaluate(*test)


def on_the_board(folder: Path, csrc: Path, train: Arrays, test: Arrays, epochs: int) -> str:
    """What the emulated program prints, behind the bytes of its sections."""
    model = emit(folder, csrc).model
    for part, arrays in (("train", train), ("test", test)):
        write_samples(model, [arrays], csrc / f"{part}.bin")
    said = ""
    for target in (["cortex-m.elf", f"EPOCHS={epochs}"], ["run-cortex-m"]):
        done = subprocess.run(
            ["make", "-s", *target], cwd=csrc, check=True, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said += done.stdout
    return said


def main() -> None:
    """Train in Python, then on the board, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--train", help="An .npz file with x and y.")
    parser.add_argument("--test", help="Another.")
    parser.add_argument("--samples", type=int, help="So many of them.")
    parser.add_argument("--test-samples", type=int)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    train, test = data(options)
    with tempfile.TemporaryDirectory() as scratch:
        model, folder = Path(scratch, "model.onnx"), Path(scratch, "out")
        ir.save(NETWORKS[options.network](), model)
        bnnopt.optimize(model, batch_size=BATCH, level="O2").save(folder)
        for accuracy in in_python(folder, train, test, options.epochs):
            print(f"Python: {accuracy:.2%}", flush=True)
        print(on_the_board(folder, Path(scratch, "csrc"), train, test, options.epochs))


if __name__ == "__main__":
    main()
