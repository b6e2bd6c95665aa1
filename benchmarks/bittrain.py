"""BitTrain's networks: what is kept for the backward pass, the peak, sparsity, and equal bits.

    python -m benchmarks.bittrain plan --sizes 32 224 --batches 8 16     bytes at -O0 and -O1
    python -m benchmarks.bittrain steps --networks resnet18 --sizes 224  seconds, equal bits
    python -m benchmarks.bittrain memory --networks resnet18             resident growth
    python -m benchmarks.bittrain train --networks mobilenet_v2          loss curve on Fashion-MNIST

``plan`` has one line for the codecs of -O1 alike, one without ``rebuild-activations``, so that the
bitmap does all it can, both at the density that two batches of random images show at the first
weights, and one at 70 % zeros in every ReLU (``--density`` changes that). Needs the oracle extra;
the networks are those of ``tests/exports/float_networks.py``.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIB = 2**20
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
WITHOUT = ("rebuild-activations",)


def main() -> None:
    """Run one of the four measurements."""
    from tests.exports.float_networks import FLOAT_NETWORKS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("plan", "steps", "memory", "train"))
    parser.add_argument("--networks", nargs="+", default=list(FLOAT_NETWORKS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[32])
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    run = {"plan": plan, "steps": steps, "memory": memory, "train": train}[options.what]
    for name in options.networks:
        for size in options.sizes:
            for batch in options.batches:
                with tempfile.TemporaryDirectory() as scratch:
                    run(name, _export(name, size, Path(scratch)), batch, options)


def _export(name: str, size: int, scratch: Path) -> Path:
    from tests.exports.float_networks import make_float_network, small_size
    from tests.exports.torch_models import write

    size = max(size, small_size(name))
    path = scratch / f"{name}_{size}.onnx"
    write(make_float_network(name, size), path, (3, size, size))
    return path


def _images(path: Path, n: int) -> NDArray[np.float32]:
    size = int(path.stem.rpartition("_")[2])
    return np.random.default_rng(0).standard_normal((n, 3, size, size), np.float32)


# Planned bytes ----------------------------------------------------------------------------------


def plan(name: str, path: Path, batch: int, options: argparse.Namespace) -> None:
    """Print what is kept, and the planned peak, before and after."""
    import bnnopt

    data = path.with_suffix(".npz")
    np.savez(data, x=_images(path, 2 * batch))
    for label, disable in (("-O1", ()), ("-O1, bitmap alone", WITHOUT)):
        chosen: dict[str, Any] = {"calibrate": str(data), "disable": disable}
        report = bnnopt.optimize(path, batch_size=batch, **chosen).report
        before, after = report.baseline, report.optimized
        _line(path, batch, label, before, after)
        if disable:
            _densities(report)
    before, after = at_density(path, batch, options.density)
    _line(path, batch, f"-O1, bitmap alone, {1 - options.density:.0%} zeros", before, after)


def _line(path: Path, batch: int, label: str, before: Any, after: Any) -> None:
    saved, peak = after.saved_bytes / before.saved_bytes, after.peak_bytes / before.peak_bytes
    print(
        f"{path.stem} batch {batch} {label}: kept {before.saved_bytes / MIB:.1f} -> "
        f"{after.saved_bytes / MIB:.1f} MiB ({saved - 1:+.0%}), peak "
        f"{before.peak_bytes / MIB:.1f} -> {after.peak_bytes / MIB:.1f} MiB ({peak - 1:+.0%}), "
        f"of which weights and state {after.persistent_bytes / MIB:.1f}, "
        f"worst case {after.worst_case_bytes / MIB:.1f}",
        flush=True,
    )


def _densities(report: Any) -> None:
    (record,) = [r for r in report.passes if r.name == "bitmap"]
    found = [choice.reason.partition("density ")[2][:4] for choice in record.chosen]
    print("    density with its margin, of each bitmap in order:", " ".join(found))


def at_density(path: Path, batch: int, density: float) -> tuple[Any, Any]:
    """Footprints at -O0 and at -O1 where every ReLU and what is pooled of one has this density."""
    from bnnopt.analysis import DENSITY_KEY, expected_density
    from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
    from bnnopt.frontend import load_forward
    from bnnopt.passes import PASSES, run_passes
    from bnnopt.plan import make_plan
    from bnnopt.report import Footprint
    from bnnopt.training_step import TrainingStep

    options = TrainingOptions("cross-entropy", make_optimizer("adam"))
    reference = build_training_step(load_forward(path, batch), options, path)
    step = TrainingStep(reference.model.clone())
    for node in step.graph:
        sparse = node.inputs[0] if node.op_type == "MaxPool" else node.outputs[0]
        if sparse is not None and expected_density(sparse) is not None:
            node.outputs[0].metadata_props[DENSITY_KEY] = str(density)
    run_passes(step, [p for p in PASSES if p.level == 1 and p.name not in WITHOUT])
    return Footprint.of(make_plan(reference)), Footprint.of(make_plan(step))


# Running ----------------------------------------------------------------------------------------


def _sessions(path: Path, batch: int, **chosen: Any) -> Iterator[Any]:
    """A session at -O0 and one at -O1."""
    import bnnopt

    for level in ("O0", "O1"):
        folder = path.with_name(level)
        bnnopt.optimize(path, batch_size=batch, level=level, **chosen).save(folder)
        yield bnnopt.TrainingSession(folder, threads=2)


def steps(name: str, path: Path, batch: int, options: argparse.Namespace) -> None:
    """Print the fastest step of -O1 over that of -O0, taken in turns, and whether bits agree."""
    images, labels = _images(path, batch), np.arange(batch) % 10
    for label, disable in (("-O1", ()), ("-O1, bitmap alone", WITHOUT)):
        pair = list(_sessions(path, batch, disable=disable))
        seconds: list[list[float]] = [[], []]
        losses: list[list[float]] = [[], []]
        for _ in range(options.steps):
            for i, session in enumerate(pair):
                start = time.perf_counter()
                losses[i].append(session.step(images, labels))
                seconds[i].append(time.perf_counter() - start)
        print(
            f"{path.stem} batch {batch} {label}: {min(seconds[1]):.2f} s, -O0 "
            f"{min(seconds[0]):.2f} s, ratio {min(seconds[1]) / min(seconds[0]):.2f}; same bits: "
            f"{losses[0] == losses[1] and _same_weights(*pair)}; {pair[1].memory}",
            flush=True,
        )


def _same_weights(first: Any, second: Any) -> bool:
    others = second.parameters()
    return all(
        others[key].tobytes() == array.tobytes() for key, array in first.parameters().items()
    )


def memory(name: str, path: Path, batch: int, options: argparse.Namespace) -> None:
    """Print how much the resident set of a process grows that trains, at both levels."""
    import bnnopt
    from benchmarks.resident_memory import measure

    for level in ("O0", "O1"):
        folder = path.with_name(level)
        planned = bnnopt.optimize(path, batch_size=batch, level=level).report.optimized.peak_bytes
        bnnopt.optimize(path, batch_size=batch, level=level).save(folder)
        found = measure(folder, "native", options.steps)
        growth = found["growth_bytes"]
        assert isinstance(growth, int)
        print(
            f"{path.stem} batch {batch} -{level}: planned {planned / MIB:.1f} MiB, resident growth "
            f"{growth / MIB:.1f} MiB",
            flush=True,
        )
    print(f"{path.stem} batch {batch} PyTorch: resident growth {_pytorch(name, path, batch)} MiB")


PYTORCH = """
import sys, threading, time
import numpy as np, torch
from tests.exports.float_networks import make_float_network
name, size, batch, n_steps = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(2)
x = torch.from_numpy(np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32))
y = torch.arange(batch) % 10
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096
base, peak, running = resident(), 0, True
def watch():
    global peak
    while running:
        peak = max(peak, resident())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
model = make_float_network(name, size)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(n_steps):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
running = False
watcher.join()
print(round((peak - base) / 2**20, 1))
"""


def _pytorch(name: str, path: Path, batch: int) -> str:
    import subprocess
    import sys

    size = path.stem.rpartition("_")[2]
    command = [sys.executable, "-c", PYTORCH, name, size, str(batch), "3"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def train(name: str, path: Path, batch: int, options: argparse.Namespace) -> None:
    """Train at both levels on Fashion-MNIST, grey repeated to three channels; compare the curves.

    The images have 28 x 28 pixels; a border, or repeated pixels, make them as large as the input.
    """
    images, labels = _fashion(int(path.stem.rpartition("_")[2]), batch * options.steps)
    curves, pair = [], list(_sessions(path, batch))
    for session in pair:
        starts = range(0, len(images), batch)
        curves.append([session.step(images[i : i + batch], labels[i : i + batch]) for i in starts])
    tenth = max(1, len(curves[0]) // 10)
    first, last = (float(np.mean(part)) for part in (curves[0][:tenth], curves[0][-tenth:]))
    print(
        f"{path.stem} batch {batch}: {len(curves[0])} steps, loss {first:.3f} -> {last:.3f}, "
        f"curves the same bits: {curves[0] == curves[1]}, weights: {_same_weights(*pair)}; "
        f"{pair[1].memory}",
        flush=True,
    )


def _fashion(size: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with gzip.open(FASHION / "train-images-idx3-ubyte.gz") as file:
        grey = np.frombuffer(file.read(16 + n * 784), np.uint8, offset=16).reshape(n, 28, 28)
    with gzip.open(FASHION / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + n), np.uint8, offset=8).astype(np.int64)
    times = size // 28
    border = size - 28 * times
    grey = grey.repeat(times, 1).repeat(times, 2)
    pads = (0, 0), (border // 2, border - border // 2), (border // 2, border - border // 2)
    scaled = np.pad(grey, pads).astype(np.float32) / 127.5 - 1
    return np.repeat(scaled[:, None], 3, 1), labels


if __name__ == "__main__":
    main()
