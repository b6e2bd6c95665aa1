"""New classes for a trained network, with and without a replay of the old ones.

    apt-get install dataset-fashion-mnist
    pip install -e '.[torch]'
    python -m benchmarks.incremental --task fashion --results incremental.jsonl
    python -m benchmarks.incremental --task activities --data har.npz --results incremental.jsonl
    python -m benchmarks.incremental --results incremental.jsonl --table

The convolutional network of `benchmarks.fashion_mnist`, or that of `benchmarks.wearable`, is
trained on the first half of the classes. Then all but the last two layers are frozen, and those
are trained on the other half alone; on that and, in half of each batch, latents of 1000 old
samples; and on all data, which is what could be had. Every run appends one line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import bnnopt.torch
from benchmarks import fashion_mnist, wearable
from bnnopt.runtime.data.arrays import from_arrays
from bnnopt.runtime.data.normalization import AS_IT_IS
from bnnopt.runtime.schedules import Cosine
from bnnopt.runtime.training import remember

Array = NDArray[Any]
Samples = tuple[Array, Array]
BATCH, RATE, KEPT, REPLAYED = 100, 1e-3, 1000, 50
EPOCHS = {"fashion": (4, 2), "activities": (8, 4)}  # on old classes, on new ones
WAYS = ("without", "with", "all data")


def fashion(data: Path | None) -> tuple[nn.Module, Samples, Samples]:
    """The network, 60,000 samples to train and 10,000 to test."""
    parts = (fashion_mnist.read(part) for part in ("train", "t10k"))
    train, test = (((x / 127.5 - 1).astype(np.float32), y) for x, y in parts)
    return fashion_mnist.cnv(), train, test


def activities(data: Path | None) -> tuple[nn.Module, Samples, Samples]:
    """The network, windows of 21 people to train and of 9 others to test."""
    assert data is not None, "--data: expected the windows, see benchmarks.wearable"
    x, y, user = wearable.read(data)
    known = user <= wearable.TRAINED_ON
    return wearable.network(), (x[known], y[known]), (x[~known], y[~known])


TASKS = {"fashion": fashion, "activities": activities}


def of_classes(data: Samples, old: bool) -> Samples:
    """The samples of the first half of the classes, or of the others."""
    x, y = data
    chosen = (y < (y.max() + 1) // 2) == old
    return x[chosen], y[chosen]


def fit(session: bnnopt.TrainingSession, data: Samples, epochs: int, seed: int) -> None:
    """Train with a cosine schedule to 0."""
    steps = epochs * -(-len(data[1]) // session.batch_size)
    session.fit(data, epochs, schedule=Cosine(RATE, steps), seed=seed)


def runs(task: str, path: Path | None, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The accuracy of each way."""
    torch.manual_seed(seed)
    module, train, test = TASKS[task](path)
    example = torch.zeros(BATCH, *train[0].shape[1:])
    file = bnnopt.torch.export(module.train(), example, folder / "net.onnx")
    bnnopt.optimize(file, batch_size=BATCH).save(folder / "base")
    base = bnnopt.TrainingSession(folder / "base", threads=1)
    fit(base, of_classes(train, old=True), EPOCHS[task][0], seed)
    base.save(folder / "base.safetensors")
    init = str(folder / "base.safetensors")
    net = bnnopt.optimize(file, batch_size=BATCH, init=init, last=2, freeze_batch_norm=True)
    net.save(folder / "out")
    yield {"way": "old classes alone", **measured(base, test)}
    for way in WAYS:
        session = bnnopt.TrainingSession(folder / "out", threads=1)
        found = with_replay(session, train, seed, folder) if way == "with" else {}
        start = time.perf_counter()
        data = train if way == "all data" else of_classes(train, old=False)
        fit(session, data, EPOCHS[task][1], seed)
        yield {"way": way, **measured(session, test), **found,
               "seconds": time.perf_counter() - start,
               "bytes": session.memory.planned_bytes}  # fmt: skip


def with_replay(
    session: bnnopt.TrainingSession, train: Samples, seed: int, folder: Path
) -> dict[str, Any]:
    """Keep old samples, and mix them in: bytes of one, and of its latents in float32."""
    replay = session.replay(folder / "kept.safetensors")
    x, y = of_classes(train, old=True)
    kept = remember(session, replay, from_arrays({"x": x, "y": y}, "old"), AS_IT_IS, KEPT, seed)
    session.replay(folder / "kept.safetensors", REPLAYED, seed)
    own = kept.n_bytes / len(kept)
    return {"replay_bytes": own, "float_bytes": own * 32, "sample_bytes": x[0].size * 4}


def measured(session: bnnopt.TrainingSession, test: Samples) -> dict[str, float]:
    """Accuracy in percent on old classes, new ones and all."""
    old, new = (100 * session.evaluate(*of_classes(test, old)) for old in (True, False))
    return {"old": old, "new": new, "all": 100 * session.evaluate(*test)}


def table(found: list[Mapping[str, Any]]) -> str:
    """A row a way: means over the seeds."""
    lines = ["| task | last two layers trained on | old classes % | new classes % | all % |"]
    lines.append("|---|---|---|---|---|")
    names = {
        "old classes alone": "(before)",
        "without": "new classes",
        "with": "new classes and replays",
        "all data": "all data",
    }
    for task in TASKS:
        for way, name in names.items():
            own = [r for r in found if (r["task"], r["way"]) == (task, way)]
            if own:
                means = (statistics.mean(r[key] for r in own) for key in ("old", "new", "all"))
                lines.append(f"| {task} | {name} | " + " | ".join(f"{m:.1f}" for m in means) + " |")
    for task in TASKS:
        kept = [r for r in found if r["task"] == task and r["way"] == "with"][:1]
        lines += [f"{task}: a replay of {r['replay_bytes']:.0f} bytes, {r['float_bytes']:.0f} in "
                  f"float32, its sample {r['sample_bytes']}" for r in kept]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Run, or print what was found as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="fashion")
    parser.add_argument("--data", type=Path, help="Windows of activities.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in options.results.read_text().splitlines()]))
        return
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for found in runs(options.task, options.data, seed, Path(folder)):
                with options.results.open("a") as file:
                    row = {"task": options.task, "seed": seed, **found}
                    file.write(json.dumps(row) + "\n")
                print(found, flush=True)


if __name__ == "__main__":
    main()
