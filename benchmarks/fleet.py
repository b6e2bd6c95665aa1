"""A fleet on one machine, by each of Flower's engines, and the same network trained in one place.

    python -m benchmarks.fleet FOLDER --data train --valid test --devices 10 --rounds 20
    python -m benchmarks.fleet FOLDER ... --split dirichlet --alpha 0.3 --strategy fedavg
    python -m benchmarks.fleet FOLDER ... --engine process

``loopback`` starts a SuperLink and SuperNodes, ``simulation`` is Flower's (``flwr[simulation]``),
``process`` runs the apps in this process, one device after the other, and ``central`` trains on all
data at once, as many samples as all devices together. Prints the server's JSON lines: accuracy,
bytes each way, seconds. Needs ``bnnopt[flower]``.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet_grid import Devices, identity
from benchmarks.fleet_processes import fleet, simulate
from bnnopt.fleet import RunOptions, write_app
from bnnopt.fleet.server import serve
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.data import Dataset, open_data
from bnnopt.runtime.data.normalization import choose
from bnnopt.runtime.training import as_dataset, evaluate

Options = Mapping[str, Any]


def loopback(home: Path, options: Options, devices: int, seconds: float) -> str:
    """What Flower said of a run over the network."""
    with fleet(home, devices) as running:
        write_app(home / "app", RunOptions.of(options), "a benchmark")
        return running.run(home / "app", seconds)


def simulation(home: Path, options: Options, devices: int, seconds: float) -> str:
    """What Flower said of a run by its simulation engine."""
    write_app(home / "app", RunOptions.of(options), "a benchmark")
    return simulate(home, home / "app", devices, seconds)


def process(home: Path, options: Options, devices: int, seconds: float) -> str:
    """Devices and server in this process."""
    logging.disable()
    grid: Any = Devices(options, devices)
    with identity():
        serve(grid, RunOptions.of(options))
    return ""


def central(home: Path, options: Options, devices: int, seconds: float) -> str:
    """One session on the data of all devices, with a line for what they see in a round."""
    given = RunOptions.of(options)
    session = TrainingSession(given.folder)
    data, valid = _all_data(session, given, devices), _opened(session, given.valid, "test")
    recipe: dict[str, Any] = {"schedule": lambda step: given.lr, "normalization": choose(data)[0]}
    with open(given.log, "a", encoding="utf-8") as file:
        for number in range(1, given.rounds + 1):
            session.fit(data, given.epochs, seed=given.seed + number, **recipe)
            scores = evaluate(session, valid, choose(valid)[0])
            told = {"round": number, "loss": scores.loss, "accuracy": scores.accuracy}
            file.write(json.dumps(told) + "\n")
    return ""


def _all_data(session: TrainingSession, options: RunOptions, devices: int) -> Dataset:
    paths = [options.data.replace("{partition}", str(k)) for k in range(devices)]
    parts = [_opened(session, path, "train") for path in dict.fromkeys(paths)]
    if len(parts) == 1:
        return parts[0]
    (name,) = parts[0].x
    x = np.concatenate([part.x[name][np.arange(len(part))] for part in parts])
    y = np.concatenate([np.asarray(part.y)[np.arange(len(part))] for part in parts])
    return as_dataset((x, y), "all devices")


def _opened(session: TrainingSession, path: str, part: str) -> Dataset:
    spec = next(iter(session.inputs.values()))
    return open_data(path, spec.shape_at(1)[1:], spec.dtype, part)


ENGINES = {f.__name__: f for f in (loopback, simulation, process, central)}


def measured(engine: str, options: Options, devices: int, seconds: float) -> str:
    """The server's lines of a run with these options; what Flower said if there are none."""
    home = Path(tempfile.mkdtemp(prefix="bnnopt-fleet-"))
    log = home / "log.jsonl"
    places = {"log": str(log), "checkpoints": str(home / "state"), "devices": devices}
    try:
        said = ENGINES[engine](home, {**options, **places}, devices, seconds)
        return log.read_text() if log.exists() else said
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", choices=ENGINES, default="loopback")
    for name in ("data", "valid"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--strategy", default="sign-majority")
    parser.add_argument("--split", default="iid")
    for name, default in (("alpha", 0.3), ("lr", 0.001), ("rate", 0.01), ("fraction", 1.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    for name, default in (("devices", 10), ("rounds", 10), ("epochs", 1), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("feedback", "weighted"):
        default = getattr(RunOptions, name)
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default)
    parser.add_argument("--seconds", type=float, default=7200.0)
    options = vars(parser.parse_args())
    engine, devices, seconds = (options.pop(name) for name in ("engine", "devices", "seconds"))
    options["folder"] = str(options["folder"].resolve())
    for name in ("data", "valid"):
        options[name] = str(Path(options[name]).resolve())
    print(measured(engine, options, devices, seconds), end="")


if __name__ == "__main__":
    main()
