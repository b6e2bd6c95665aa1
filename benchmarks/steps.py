"""Whole training steps of one model against other frameworks: seconds and resident memory.

    python -m benchmarks.steps --model resnet-e-18 --size 224 --batch-size 8 --threads 2

Each contestant sets up in a process of its own; then they take turns, step by step, and the
fastest step of each counts: read the ratios. Memory is the growth of a process from its imports to
its peak. On a machine that others use, compare processor time on one thread: ``--threads 1
--cpu-time``.

Models are those of ``tests/exports/torch_models.py``, ``float_networks.py`` and
``small_networks.py``, and ``resnet-e-18`` and ``bi-real-18`` of the zoo. Needs the oracle extra.
onnxruntime-training, which trains float networks only, needs an environment of its own:
``--ort-training`` names an interpreter that has it (onnxruntime-training-cpu 1.19.2, onnx,
numpy < 2 and torch). ``--jax`` names one with jax, which runs the MLP.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from benchmarks.contestant import CONTESTANTS

ZOO = ("resnet-e-18", "bi-real-18")
MIB = 2**20
EAGER, ORT_TRAINING, JAX = "PyTorch eager", "onnxruntime-training", "jax.jit"


class Process:
    """A contestant at work in its own interpreter."""

    def __init__(self, name: str, folder: Path, options: argparse.Namespace) -> None:
        own = {ORT_TRAINING: options.ort_training, JAX: getattr(options, "jax", None)}
        python = own.get(name, sys.executable)
        threads = str(options.threads)
        libraries = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        kept = _on_processors(name, options.threads)
        script = str(Path(__file__).with_name("contestant.py"))
        self.name = name
        self._log = (folder / f"{name}.log").open("w+")
        self._process = subprocess.Popen(
            [*kept, python, script, name, str(folder), threads],
            env={**os.environ, **libraries, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip

    def ready(self) -> bool:
        """Wait until it is set up; False, after its last words, if that failed."""
        if self._answer():
            return True
        print(self._last_words())
        return False

    def step(self) -> dict[str, float]:
        """Run one step: its seconds, ``wall`` and ``processor``, and ``loss`` if it says that.

        A contestant that fails (PyTorch's batch norm refuses one sample) ends the program with its
        last words.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not answer:
            raise SystemExit(self._last_words())
        return answer

    def finish(self) -> int:
        """End it: how much its resident memory grew, in bytes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return int(self._answer()["growth_bytes"])

    def close(self) -> None:
        """Stop it, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        return f"{self.name}: {self._log.read().strip().splitlines()[-1]}"

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # not what a library prints
                answer: dict[str, float] = json.loads(line)
                return answer
        return {}


def _on_processors(name: str, n: int) -> list[str]:
    """How a command is kept to n processors, where nothing else says how many threads it takes."""
    return ["taskset", "--cpu-list", f"0-{n - 1}"] if name == JAX else []


def main() -> None:
    """Print seconds a step, resident memory, and their ratios to PyTorch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="binarynet")
    parser.add_argument("--size", type=int, default=224, help="of the images, if variable")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--level", default="O1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    parser.add_argument("--only", help="contestants, separated by commas")
    parser.add_argument("--ort-training", metavar="PYTHON")
    parser.add_argument("--jax", metavar="PYTHON", help="an interpreter with jax; the MLP alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        planned = prepare(folder, options)
        print(
            f"{options.model}, batch {options.batch_size}, {options.threads} threads, "
            f"{options.level}: planned peak {planned / MIB:.1f} MiB"
        )
        with contestants(folder, options) as running:
            show(running, options)


def prepare(folder: Path, options: argparse.Namespace) -> int:
    """Write the model, a batch, the compiled folder and artifacts; return the planned peak."""
    import onnx_ir as ir

    import bnnopt
    from bnnopt.models import build
    from tests.exports.float_networks import FLOAT_NETWORKS, make_float_network, sample_shape
    from tests.exports.small_networks import SMALL_NETWORKS
    from tests.exports.torch_models import export, input_shape, write

    name, size, path = options.model, options.size, folder / "model.onnx"
    model, shape = {"name": name}, (3, size, size)
    if name in ZOO:
        ir.save(build(name, size=size, classes=10), path)
        model["is_zoo"] = True
    elif name in FLOAT_NETWORKS or name in SMALL_NETWORKS:
        shape, model["size"] = sample_shape(name, size), size
        write(make_float_network(name, size), path, shape)
    else:
        export(name, path)
        shape = input_shape(name)
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (options.batch_size, *shape)).astype(np.float32)
    np.savez(folder / "batch.npz", x=x, labels=random.integers(0, 10, options.batch_size))
    if name == "mlp":
        tensors = ir.load(path).graph.initializers.values()
        arrays = {t.name: t.const_value.numpy() for t in tensors if "running" not in str(t.name)}
        np.savez(folder / "weights.npz", **arrays)
    (folder / "model.json").write_text(json.dumps(model))
    optimized = bnnopt.optimize(path, batch_size=options.batch_size, level=options.level)
    optimized.save(folder / "out")
    return optimized.report.optimized.peak_bytes


@contextmanager
def contestants(folder: Path, options: argparse.Namespace) -> Iterator[list[Process]]:
    """Those that can be set up, one after the other."""
    names = options.only.split(",") if options.only else list(CONTESTANTS)
    if JAX in names and (getattr(options, "jax", None) is None or options.model != "mlp"):
        names.remove(JAX)
    if ORT_TRAINING in names and not _has_artifacts(folder, options.ort_training):
        names.remove(ORT_TRAINING)
    with ExitStack() as stack:
        running = []
        for name in names:
            process = Process(name, folder, options)
            stack.callback(process.close)
            if process.ready():
                running.append(process)
        yield running


def _has_artifacts(folder: Path, python: str | None) -> bool:
    """Whether onnxruntime-training could make its own step; it has no gradient of Sign."""
    if python is None:
        return False
    script = str(Path(__file__).with_name("contestant.py"))
    command = [python, script, "make-artifacts", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{ORT_TRAINING}: {done.stderr.strip().splitlines()[-1]}")
    return done.returncode == 0


def show(running: list[Process], options: argparse.Namespace) -> None:
    """Let them take turns and print the table."""
    clock = "processor" if options.cpu_time else "wall"
    rounds = [[process.step()[clock] for process in running] for _ in range(options.rounds + 1)]
    seconds = {
        process.name: min(times[1:])  # the first step is a warm-up
        for process, times in zip(running, zip(*rounds, strict=True), strict=True)
    }
    growth = {process.name: process.finish() for process in running}
    print(f"{'':24}{'ms/step':>10}{'speed':>8}{'MiB':>9}{'memory':>8}   (against {EAGER})")
    for name in seconds:
        speed = seconds[EAGER] / seconds[name] if EAGER in seconds else float("nan")
        memory = growth[EAGER] / growth[name] if EAGER in growth else float("nan")
        print(
            f"{name:24}{1e3 * seconds[name]:10.1f}{speed:8.2f}"
            f"{growth[name] / MIB:9.1f}{memory:8.2f}"
        )


if __name__ == "__main__":
    main()
