"""A binary network for the sensors of a wearable: trained on some people, then on each new one.

    pip install -e '.[torch]'
    python -m benchmarks.wearable --data har.npz --results wearable.jsonl
    python -m benchmarks.wearable --data har.npz --results wearable.jsonl --table
    python -m benchmarks.wearable --data har.npz --results levels.jsonl --levels --seeds 20

The data are windows of HAPT (UCI, "Smartphone-Based Recognition of Human Activities and Postural
Transitions"): an .npz with x (n, 6, 128) float32, accelerometer and gyroscope at 50 Hz, in time for
each person; y (n,), one of six activities; user (n,), 1 to 30. Trained on people 1 to 21. Of each
of the others the first half of every activity is for personalisation, and the second half measures
before and after: the last layer alone at -O1, while the batch norms in front of it take up the
statistics of the person or keep theirs (--freeze-batch-norm); and all layers at -O1 and -O2. With
--levels there is nothing but the levels, -O3 too, on people 1 to 21: a seed moves the accuracy on
nine others by more than a level does, so that takes many.

The network: 64 real filters, then binary layers of 64, 128 and 128 filters and a dense one of 128,
each with batch norm and signs; Adam, batch 64, cosine schedule from 2e-3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

import bnnopt.torch
from benchmarks.fashion_mnist import BinaryConv2d, BinaryLinear, Signs
from bnnopt.runtime.schedules import Cosine

Array = NDArray[Any]
Samples = tuple[Array, Array]
CLASSES, BATCH, RATE, EPOCHS = 6, 64, 2e-3, 8
TRAINED_ON = 21  # people
OWN_BATCH, OWN_EPOCHS = 16, 15
WAYS: Mapping[str, dict[str, Any]] = {
    "last layer, -O1": {"level": "O1", "last": 1},
    "the same, statistics kept": {"level": "O1", "last": 1, "freeze_batch_norm": True},
    "all layers, -O1": {"level": "O1"},
    "all layers, -O2": {"level": "O2"},
}
OWN_RATE = 5e-4
LEVELS = ("O1", "O2", "O3")


def network() -> nn.Module:
    """Windows (n, 6, 1, 128) to six scores."""
    layers: list[nn.Module] = [
        nn.Conv2d(6, 64, (1, 5), stride=(1, 2), padding=(0, 2), bias=False),
        *(nn.BatchNorm2d(64), Signs()),
    ]
    for n, m in ((64, 64), (64, 128), (128, 128)):
        convolution = BinaryConv2d(n, m, (1, 5), padding=(0, 2), bias=False)
        layers += [convolution, nn.MaxPool2d((1, 2)), nn.BatchNorm2d(m), Signs()]
    layers += [nn.Flatten(), BinaryLinear(128 * 8, 128, bias=False), nn.BatchNorm1d(128), Signs()]
    return nn.Sequential(*layers, nn.Linear(128, CLASSES))


def read(path: Path) -> tuple[Array, Array, Array]:
    """Windows (n, 6, 1, 128), activities and people; each axis with mean 0 and deviation 1."""
    with np.load(path) as file:
        x, y, user = file["x"][:, :, None], file["y"], file["user"]
    known = x[user <= TRAINED_ON]
    mean, std = (np.asarray(f(known, axis=(0, 2, 3), keepdims=True)) for f in (np.mean, np.std))
    return ((x - mean) / std).astype(np.float32), y, user


def halves(x: Array, y: Array) -> tuple[Samples, Samples]:
    """The first half of each activity in time, and the second."""
    first = np.zeros(len(y), bool)
    for activity in np.unique(y):
        places = np.flatnonzero(y == activity)
        first[places[: len(places) // 2]] = True
    return (x[first], y[first]), (x[~first], y[~first])


def session_of(path: Path, out: Path, **options: Any) -> bnnopt.TrainingSession:
    """A session on a folder that is compiled for it."""
    bnnopt.optimize(path, **options).save(out)
    return bnnopt.TrainingSession(out, threads=1)


def fit(
    session: bnnopt.TrainingSession, data: Samples, epochs: int, rate: float, seed: int
) -> None:
    """Train with a cosine schedule to 0."""
    steps = epochs * -(-len(data[1]) // session.batch_size)
    session.fit(data, epochs, schedule=Cosine(rate, steps), seed=seed)


def by_torch(module: nn.Module, data: Samples, seed: int) -> None:
    """Train the module in place, with the recipe of the others."""
    x, y = map(torch.from_numpy, data)
    optimizer = torch.optim.Adam(module.parameters(), RATE)
    steps = EPOCHS * -(-len(y) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    module.train()
    for _ in range(EPOCHS):
        for indices in torch.randperm(len(y), generator=generator).split(BATCH):
            if len(indices) > 1:
                loss = functional.cross_entropy(module(x[indices]), y[indices])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
    module.eval()


def torch_accuracy(module: nn.Module, data: Samples) -> float:
    """In percent."""
    x, y = map(torch.from_numpy, data)
    with torch.no_grad():
        return 100 * float((module(x).argmax(1) == y).float().mean())


def runs(path: Path, seed: int, folder: Path, is_whole: bool) -> Iterator[dict[str, Any]]:
    """All results of a seed, one after the other; of the levels alone if it is not whole."""
    x, y, user = read(path)
    known, new = user <= TRAINED_ON, user > TRAINED_ON
    torch.manual_seed(seed)
    module = network()
    file = bnnopt.torch.export(
        module.train(), torch.zeros(BATCH, *x.shape[1:]), folder / "net.onnx"
    )
    for level in LEVELS[:2] if is_whole else LEVELS:
        session = session_of(file, folder / level, level=level, batch_size=BATCH)
        start = time.perf_counter()
        fit(session, (x[known], y[known]), EPOCHS, RATE, seed)
        seconds = time.perf_counter() - start
        session.save(folder / f"{level}.safetensors")
        accuracy = 100 * session.evaluate(x[new], y[new])
        yield {"run": f"-{level}", "accuracy": accuracy, "seconds": seconds,
               "bytes": session.memory.planned_bytes}  # fmt: skip
    for person in np.unique(user[new]) if is_whole else ():
        yield from personal(file, folder, halves(x[user == person], y[user == person]), int(person))
    if is_whole:
        by_torch(module, (x[known], y[known]), seed)
        yield {"run": "PyTorch", "accuracy": torch_accuracy(module, (x[new], y[new]))}


def personal(
    file: Path, folder: Path, data: tuple[Samples, Samples], person: int
) -> Iterator[dict[str, Any]]:
    """What each way to personalise gives for one person."""
    own, rest = data
    for way, options in WAYS.items():
        init = str(folder / f"{options['level']}.safetensors")
        out = folder / f"{person}"
        session = session_of(file, out, batch_size=OWN_BATCH, init=init, **options)
        before, start = session.evaluate(*rest), time.perf_counter()
        fit(session, own, OWN_EPOCHS, OWN_RATE, person)
        yield {"run": way, "person": person, "windows": len(own[1]), "before": 100 * before,
               "after": 100 * session.evaluate(*rest), "seconds": time.perf_counter() - start,
               "bytes": session.memory.planned_bytes}  # fmt: skip


def table(found: list[Mapping[str, Any]]) -> str:
    """Accuracy of new people, and what personalisation gives: the mean over people and seeds."""
    mean = _mean_of(found)
    lines = ["| trained on 21 people by | accuracy % on 9 others | planned MiB |", "|---|---|---|"]
    for run in ("PyTorch", "-O1", "-O2"):
        memory = "" if run == "PyTorch" else f"{mean(run, 'bytes') / 2**20:.1f}"
        lines.append(f"| {run} | {mean(run, 'accuracy'):.1f} | {memory} |")
    lines += ["", "| personalised by | before | after | lowest after | planned MiB | seconds |"]
    lines.append("|---|---|---|---|---|---|")
    for way in WAYS:
        lowest = min(r["after"] for r in found if r["run"] == way)
        lines.append(
            f"| {way} | {mean(way, 'before'):.1f} | {mean(way, 'after'):.1f} | {lowest:.1f} | "
            f"{mean(way, 'bytes') / 2**20:.1f} | {mean(way, 'seconds'):.1f} |"
        )
    return "\n".join(lines)


def levels(found: list[Mapping[str, Any]]) -> str:
    """Mean of each level and of their differences by seed, with standard errors."""
    lines = ["| level | accuracy % on 9 others | lowest | highest |", "|---|---|---|---|"]
    by_level = {
        level: {r["seed"]: r["accuracy"] for r in found if r["run"] == f"-{level}"}
        for level in LEVELS
    }
    for level, accuracies in by_level.items():
        values = [*accuracies.values()]
        lines.append(
            f"| -{level} | {_with_error(values)} | {min(values):.1f} | {max(values):.1f} |"
        )
    for level in LEVELS[1:]:
        cost = [by_level["O1"][seed] - accuracy for seed, accuracy in by_level[level].items()]
        lines.append(f"\n-O1 less -{level}, by seed: {_with_error(cost)}")
    return "\n".join(lines)


def _with_error(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def _mean_of(found: list[Mapping[str, Any]]) -> Callable[[str, str], float]:
    return lambda run, key: statistics.mean(r[key] for r in found if r["run"] == run)


def main() -> None:
    """Run, or print what was found as tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--levels", action="store_true", help="-O1 to -O3 alone, as means.")
    options = parser.parse_args()
    if options.table and options.levels:
        print(levels([json.loads(line) for line in options.results.read_text().splitlines()]))
        return
    if options.table:
        print(table([json.loads(line) for line in options.results.read_text().splitlines()]))
        return
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for found in runs(options.data, seed, Path(folder), not options.levels):
                with options.results.open("a") as file:
                    file.write(json.dumps({"seed": seed, **found}) + "\n")
                print(found, flush=True)


if __name__ == "__main__":
    main()
