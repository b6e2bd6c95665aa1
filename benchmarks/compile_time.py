"""What a user waits for before anything trains: commands, and `optimize` by the size of a network.

    python -m benchmarks.compile_time
    python -m benchmarks.compile_time --levels O2 --layers 20 40 80 160

Processor seconds, the least of some rounds: commands as processes of their own, with all imports,
`bnnopt optimize` with all that it writes among them; `optimize` alone in this process, on networks
of the zoo at their papers' sizes, MobileNetV2 as PyTorch exports it if PyTorch is there, and chains
of one binary layer (convolution, batch norm, sign), whose time by node says whether it grows faster
than the network does.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

import bnnopt
from bnnopt.models import build
from bnnopt.models.wang2023 import from_listing

COMMANDS = ("--help", "zoo", "passes")
SIZES = {"mlp": {}, "binarynet": {}, "resnet-e-18": {"size": 224, "classes": 1000}}
BATCHES = {"binarynet": 100, "mlp": 100}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", nargs="*", default=["O1", "O2", "O3"])
    parser.add_argument("--layers", nargs="*", type=int, default=[10, 20, 40, 80, 160])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("| command | processor seconds |\n|---|---|")
    for command in COMMANDS:
        print(f"| `bnnopt {command}` | {command_seconds([command], options.rounds):.2f} |")
    print(
        "\n| network | level | nodes | seconds | ms a node | command |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for path in networks(Path(folder), options.layers):
            for level in options.levels:
                seconds, n = optimize_seconds(path, level, options.rounds)
                batch = str(BATCHES.get(path.stem, 8))
                command = ["optimize", str(path), "-o", f"{folder}/out", "-b", batch, f"-{level}"]
                whole = command_seconds(command, options.rounds)
                numbers = f"{n} | {seconds:.2f} | {1e3 * seconds / n:.1f} | {whole:.2f}"
                print(f"| {path.stem} | `-{level}` | {numbers} |", flush=True)


def command_seconds(command: list[str], rounds: int) -> float:
    """Of a fresh process."""
    found = math.inf
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = [sys.executable, "-m", "bnnopt", *command]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        found = min(found, used)
    return found


def networks(folder: Path, layers: list[int]) -> Iterator[Path]:
    """The files, each written when its turn comes."""
    for name, options in SIZES.items():
        path = folder / f"{name}.onnx"
        ir.save(build(name, **options), path)
        yield path
    if find_spec("torch"):
        yield _mobilenet(folder / "mobilenet_v2.onnx")
    for n in layers:
        path = folder / f"{n} layers.onnx"
        listing = " | ".join(["C16,BN,S"] * n + ["FC10,BN"])
        ir.save(from_listing("chain", listing, (3, 16, 16), seed=0, pad=1), path)
        yield path


def _mobilenet(path: Path) -> Path:
    import torch

    import bnnopt.torch
    from tests.exports.float_networks import make_float_network

    module = make_float_network("mobilenet_v2", 224)
    return bnnopt.torch.export(module.train(), torch.zeros(2, 3, 224, 224), path)


def optimize_seconds(path: Path, level: str, rounds: int) -> tuple[float, int]:
    """The least seconds, and the nodes of the training step."""
    found = math.inf
    for _ in range(rounds):
        start = time.process_time()
        made = bnnopt.optimize(path, batch_size=BATCHES.get(path.stem, 8), level=level)
        found = min(found, time.process_time() - start)
    return found, len(made.training.graph)


if __name__ == "__main__":
    main()
