"""The networks and data of docs/fleet.md, for `benchmarks.fleet`.

    python -m benchmarks.fleet_tasks tasks
    python -m benchmarks.fleet_tasks tasks --people har.npz

The first writes folders ``mlp`` and ``small-cnv``, the second ``har``, ``people`` and ``new.npz``.
``har.npz`` is the file of `benchmarks.wearable`: each of people 1 to 21 is a device, the others
are what the server measures on. The last needs ``bnnopt[torch]``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir

import bnnopt
from benchmarks.accuracy import BATCH, network


def write_images(folder: Path) -> None:
    """The MLP of the zoo and a small convolutional network, for Fashion-MNIST."""
    for name, model in (("mlp", "mlp"), ("small-cnv", "cnv")):
        path = folder / f"{name}.onnx"
        ir.save(network(model, 0), path)
        bnnopt.optimize(path, batch_size=BATCH, level="O2").save(folder / name)


def write_people(folder: Path, har: Path) -> None:
    """The network of `benchmarks.wearable`, a file for each person, and one of nine others."""
    import torch

    import bnnopt.torch
    from benchmarks import wearable

    torch.manual_seed(0)
    x, y, user = wearable.read(har)
    samples = torch.zeros(wearable.BATCH, *x.shape[1:])
    file = bnnopt.torch.export(wearable.network().train(), samples, folder / "har.onnx")
    bnnopt.optimize(file, batch_size=wearable.BATCH, level="O2").save(folder / "har")
    (folder / "people").mkdir()
    known = user <= wearable.TRAINED_ON
    for device, person in enumerate(np.unique(user[known])):
        own = user == person
        np.savez(folder / "people" / f"{device}.npz", x=x[own], y=y[own])
    np.savez(folder / "new.npz", x=x[~known], y=y[~known])


def main() -> None:
    """Write what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_tasks", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=Path, metavar="HAR")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.people:
        write_people(options.folder, options.people)
    else:
        write_images(options.folder)


if __name__ == "__main__":
    main()
