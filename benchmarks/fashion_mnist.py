"""A PyTorch module of one's own, trained by bnnopt's commands and by PyTorch, with one recipe.

    apt-get install dataset-fashion-mnist
    pip install -e '.[torch]'
    python -m benchmarks.fashion_mnist --model mlp --results mlp-torch.jsonl
    python -m benchmarks.fashion_mnist --model mlp --results mlp-torch.jsonl --table
    python -m benchmarks.fashion_mnist --model mlp --epoch-time

Each seed makes one module, and both start from its weights: the commands ``optimize``, ``train``
and ``eval`` from the file that ``bnnopt.torch.export`` writes, PyTorch from the module itself.
Adam, batch 100, cosine schedule from 1e-3, pixels from -1 to 1, running statistics at test.
Every run appends one line to the results, and what is there is not run again.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

import bnnopt.torch
from bnnopt.runtime.data import Normalization

Images, Labels = NDArray[np.uint8], NDArray[np.int64]
DATA = Path("/usr/share/datasets/fashion-mnist")
BATCH, RATE = 100, 1e-3
EPOCHS = {"mlp": 10, "cnv": 12}
CONTESTANTS = ("O0", "O1", "O2", "O3", "torch")
NORMALIZE = ("--scale", "127.5", "--mean", "1")


class Sign(torch.autograd.Function):
    """-1 or +1, with the gradient of a clipped identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """The sign; that of 0 is +1."""
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        """dx = dy where abs(x) <= 1."""
        (x,) = ctx.saved_tensors
        return dy * (x.abs() <= 1)


class Signs(nn.Module):
    """`Sign` as a layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The signs of x."""
        return Sign.apply(x)


class BinaryLinear(nn.Linear):
    """A dense layer that multiplies by the signs of its weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y = x sign(w)^T."""
        return functional.linear(x, Sign.apply(self.weight))


class BinaryConv2d(nn.Conv2d):
    """A convolution by the signs of its weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y = conv(x, sign(w))."""
        return functional.conv2d(x, Sign.apply(self.weight), padding=self.padding)


def mlp() -> nn.Module:
    """784-256-256-256-256-10."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n in (784, 256, 256, 256):
        layers += [BinaryLinear(n, 256, bias=False), nn.BatchNorm1d(256), Signs()]
    return nn.Sequential(*layers, BinaryLinear(256, 10, bias=False), nn.BatchNorm1d(10))


def cnv() -> nn.Module:
    """C32, pool | C64, pool | FC256 | FC10, 3 x 3 kernels without padding."""
    layers: list[nn.Module] = []
    for n, m in ((1, 32), (32, 64)):
        layers += [BinaryConv2d(n, m, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(m), Signs()]
    layers += [nn.Flatten(), BinaryLinear(1600, 256, bias=False), nn.BatchNorm1d(256), Signs()]
    return nn.Sequential(*layers, BinaryLinear(256, 10, bias=False), nn.BatchNorm1d(10))


def read(part: str) -> tuple[Images, Labels]:
    """Images (n, 1, 28, 28) and labels (n,)."""
    with gzip.open(DATA / f"{part}-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(DATA / f"{part}-labels-idx1-ubyte.gz") as file:
        return x, np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)


def by_commands(path: Path, level: str, epochs: int, seed: int) -> float:
    """Accuracy in percent of what the commands of README train."""
    out = str(path.parent / level)
    run("optimize", str(path), "-b", str(BATCH), f"-{level}", "-o", out)
    run("train", out, "--data", str(DATA), "--epochs", str(epochs), "--lr", str(RATE),
        "--seed", str(seed), "--quiet", *NORMALIZE)  # fmt: skip
    return 100 * float(json.loads(run("eval", out, "--data", str(DATA), "--json", "-"))["accuracy"])


def run(*arguments: str) -> str:
    """Standard output of a command."""
    command = [sys.executable, "-m", "bnnopt", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def by_torch(module: nn.Module, epochs: int, seed: int) -> float:
    """Accuracy in percent of PyTorch's own training."""
    train_by_torch(module, *read("train"), epochs, seed)
    module.eval()
    x, y = (torch.from_numpy(array.copy()) for array in read("t10k"))
    with torch.no_grad():
        found = torch.cat([module(part / 127.5 - 1).argmax(1) for part in x.split(1000)])
    return 100 * float((found == y).float().mean())


def train_by_torch(
    module: nn.Module, images: Images, labels: Labels, epochs: int, seed: int
) -> None:
    """Train in place."""
    x, y = torch.from_numpy(images.copy()), torch.from_numpy(labels.copy())
    steps = epochs * len(x) // BATCH
    optimizer = torch.optim.Adam(module.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    generator = torch.Generator().manual_seed(seed)
    module.train()
    for _ in range(epochs):
        for indices in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = functional.cross_entropy(module(x[indices] / 127.5 - 1), y[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def train(model: str, contestant: str, seed: int) -> dict[str, Any]:
    """One run: accuracy in percent, and seconds with all that a user waits for."""
    torch.manual_seed(seed)
    module = {"mlp": mlp, "cnv": cnv}[model]()
    start = time.perf_counter()
    if contestant == "torch":
        accuracy = by_torch(module, EPOCHS[model], seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            bnnopt.torch.export(module.train(), torch.zeros(BATCH, 1, 28, 28), path)
            accuracy = by_commands(path, contestant, EPOCHS[model], seed)
    seconds = round(time.perf_counter() - start, 1)
    return {"contestant": contestant, "seed": seed, "accuracy": accuracy, "seconds": seconds}


def epoch_seconds(model: str, rounds: int = 5, n: int = 12_000) -> dict[str, float]:
    """Seconds of processor time of an epoch of `n` samples on one thread, the least of some.

    All of them in turn, so that a busy machine disturbs them alike.
    """
    torch.set_num_threads(1)
    module = {"mlp": mlp, "cnv": cnv}[model]()
    x, y = (array[:n] for array in read("train"))
    runs: dict[str, Callable[[], None]] = {"torch": lambda: train_by_torch(module, x, y, 1, 0)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        bnnopt.torch.export(module.train(), torch.zeros(BATCH, 1, 28, 28), path)
        for level in ("O1", "O2"):
            bnnopt.optimize(path, batch_size=BATCH, level=level).save(Path(folder) / level)
            session = bnnopt.TrainingSession(Path(folder) / level, threads=1)
            runs[level] = functools.partial(_one_more_epoch, session, x, y)
        found = dict.fromkeys(runs, math.inf)
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.process_time()
                run()
                found[name] = min(found[name], time.process_time() - start)
    return found


def _one_more_epoch(session: bnnopt.TrainingSession, x: Images, y: Labels) -> None:
    session.notes = {}  # it starts anew
    session.fit((x, y), 1, normalization=Normalization(127.5, (1.0,)))


def table(runs: list[Mapping[str, Any]]) -> str:
    """A row a contestant: mean, lowest and highest."""
    rows = ["| trained by | test accuracy % (lowest to highest) |", "|---|---|"]
    for contestant in CONTESTANTS:
        found = [r["accuracy"] for r in runs if r["contestant"] == contestant]
        if found:
            name = "PyTorch" if contestant == "torch" else f"-{contestant}"
            spread = f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"
            rows.append(f"| {name} | {spread} |")
    return "\n".join(rows)


def main() -> None:
    """Run what the results lack, or print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=EPOCHS, default="mlp")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--epoch-time", action="store_true", help="Instead of all of that.")
    options = parser.parse_args()
    if options.epoch_time:
        print(epoch_seconds(options.model))
        return
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    runs = [json.loads(line) for line in lines]
    if options.table:
        print(table(runs))
        return
    known = {(r["contestant"], r["seed"]) for r in runs}
    for seed in range(options.seeds):
        for contestant in options.only:
            if (contestant, seed) not in known:
                found = train(options.model, contestant, seed)
                with options.results.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print(found, flush=True)


if __name__ == "__main__":
    main()
