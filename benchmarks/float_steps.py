"""Training steps of float networks against PyTorch, and the slowest nodes of ours.

    python -m benchmarks.float_steps --threads 1 --cpu-time
    python -m benchmarks.float_steps --networks transformer:32 resnet18/64:8 --rounds 20

A network is NAME[/SIZE]:BATCH, of ``tests/exports/float_networks.py`` and ``small_networks.py``. As
in `benchmarks.steps` each contestant is a process of its own, they take turns, and the fastest step
of each counts. Nodes are those of a session in this process, the fastest call of each: its share of
the step, and its rate in Gflop/s, of products, or else in GB/s of its inputs and outputs.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.steps import EAGER, contestants, prepare
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.executor import Observer
from bnnopt.runtime.format import Program, StepSpec
from bnnopt.runtime.parts import Part

FUSED, OURS = "PyTorch fused Adam", "bnnopt"
NETWORKS = (
    *("resnet18/64:8", "resnet18/224:8", "vgg11/64:8", "squeezenet1_1/64:8", "mobilenet_v2/64:8"),
    *("conv1d:32", "lenet:100", "float-mlp:1", "float-mlp:100", "transformer:32"),
)


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--level", default="O1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    parser.add_argument("--nodes", type=int, default=3, help="how many to show")
    parser.add_argument("--by-operator", action="store_true", help="operators, not nodes")
    options = parser.parse_args()
    options.only, options.ort_training = f"{OURS},{EAGER},{FUSED}", None
    print("| network | batch | bnnopt | eager | fused Adam | speed | over fused | slowest nodes |")
    print("|" + "---|" * 8)
    for network in options.networks:
        name, _, batch = network.partition(":")
        options.model, _, size = name.partition("/")
        options.size, options.batch_size = int(size or 0), int(batch or 32)
        print(_row(name, options), flush=True)


def _row(name: str, options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, options)
        ours, eager, fused = _seconds(folder, options)
        slowest = "; ".join(_slowest(folder, options))
    times = " | ".join(f"{1e3 * seconds:.1f} ms" for seconds in (ours, eager, fused))
    return (
        f"| {name} | {options.batch_size} | {times} | {eager / ours:.2f} | {fused / ours:.2f} | "
        f"{slowest} |"
    )


def _seconds(folder: Path, options: argparse.Namespace) -> list[float]:
    """The fastest step of each contestant."""
    clock = "processor" if options.cpu_time else "wall"
    with contestants(folder, options) as running:
        rounds = [[process.step()[clock] for process in running] for _ in range(options.rounds + 1)]
    return [min(times[1:]) for times in zip(*rounds, strict=True)]  # without the warm-up


class Nodes:
    """An observer of a session: the fastest call of each node, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = 0.0

    def begin(self, part: Part) -> Observer:
        """See `bnnopt.runtime.observing.PartObserver`."""
        self._last = time.process_time()
        return self._take

    def _take(self, step: StepSpec, outputs: tuple[np.ndarray, ...]) -> None:
        now = time.process_time()
        fastest = self.seconds.get(step.name, math.inf)
        self.seconds[step.name] = min(fastest, now - self._last)
        self._last = now


def _slowest(folder: Path, options: argparse.Namespace) -> list[str]:
    session, nodes = TrainingSession(folder / "out", threads=options.threads), Nodes()
    session._observers.append(nodes)
    batch = np.load(folder / "batch.npz")
    for _ in range(options.rounds + 1):
        session.step(batch["x"], batch["labels"])
    program: Program = session._backend.training
    total, found = sum(nodes.seconds.values()), Counter[str]()
    for step in program.steps:
        title = step.operator if options.by_operator else _title(step, program, nodes.seconds)
        found[title] += nodes.seconds[step.name]
    slowest = found.most_common(options.nodes)
    return [f"{title} {seconds / total:.0%}" for title, seconds in slowest]


def _title(step: StepSpec, program: Program, seconds: dict[str, float]) -> str:
    """The operator, its shapes and its rate."""
    specs = [program.values[i] for i in (*step.inputs, *step.outputs) if i >= 0]
    shapes = [spec.shape_at(program.batch_size) for spec in specs]
    n_bytes = sum(spec.n_bytes(program.batch_size) for spec in specs)
    amount, unit = _operations(step.operator, shapes), "Gflop/s"
    if not amount:
        amount, unit = n_bytes, "GB/s"
    large = [shape for shape in shapes if len(shape) > 1][:2]
    sizes = ", ".join(" x ".join(map(str, shape)) for shape in large)
    return f"{step.operator} ({sizes}) {1e-9 * amount / seconds[step.name]:.1f} {unit}"


def _operations(operator: str, shapes: list[tuple[int, ...]]) -> int:
    """Twice the products of a convolution or a matrix product; 0 of others."""
    first, second = shapes[0], shapes[1] if len(shapes) > 1 else ()
    if operator == "MatMul":
        return 2 * math.prod(shapes[-1]) * first[-1]
    if operator == "Gemm":
        return 2 * math.isqrt(math.prod(first) * math.prod(second) * math.prod(shapes[-1]))
    if operator == "Conv":
        return 2 * math.prod(shapes[-1]) * math.prod(second[1:])
    if operator == "ConvInputGrad":
        return 2 * math.prod(first) * math.prod(second[1:])
    if operator.startswith("ConvWeightGrad"):
        return 2 * math.prod(second) * math.prod(shapes[-1][1:])
    return 0


if __name__ == "__main__":
    main()
