"""``bnnopt fleet``: training on many devices over Flower."""

from __future__ import annotations

import os
from pathlib import Path

import click

from bnnopt.cli.terminal import say_line
from bnnopt.errors import ArtifactError
from bnnopt.units import size


@click.group()
def fleet() -> None:
    """Train on many devices over Flower, with one bit a weight each way.

    \b
    Example:
      bnnopt fleet init app --folder out
    """


@fleet.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--folder",
    required=True,
    type=click.Path(path_type=Path),
    help="What optimize wrote; each device has a copy.",
)
@click.option(
    "--strategy",
    default="sign-majority",
    show_default=True,
    metavar="NAME",
    help="sign-majority, binary-average or fedavg.",
)
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option(
    "--data",
    default="train.npz",
    show_default=True,
    metavar="PATH",
    help="Samples of a device, where it has them; {partition} is its number.",
)
@click.option("--valid", default="", metavar="PATH", help="Samples that the server measures on.")
def init(directory: Path, folder: Path, strategy: str, rounds: int, data: str, valid: str) -> None:
    """Write a Flower app to DIRECTORY, which flwr run starts.

    \b
    Example:
      bnnopt fleet init app --folder out --strategy sign-majority --valid valid.npz
      flwr run app
    """
    from bnnopt.fleet.app import write_app
    from bnnopt.fleet.layout import Layout
    from bnnopt.fleet.options import RunOptions
    from bnnopt.runtime import TrainingSession

    session = TrainingSession(folder)
    place = folder.resolve()
    options = RunOptions.of(
        {"folder": str(place), "checkpoints": f"{place}.fleet", "strategy": strategy},
        {"rounds": rounds, "data": data, "valid": _absolute(valid)},
    )
    layout = Layout.of(session, strategy == "binary-average")
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise ArtifactError(f"{directory}: is a file; choose a new folder")
    write_app(directory, options, session.about.model)
    floats = 4 * (layout.n_signed + layout.n_averaged)
    signs = layout.n_bytes_of_signs + 4 * layout.n_averaged
    sent = floats if strategy == "fedavg" else signs
    say_line(f"written: {directory}; a device sends {size(sent)} a round, of {size(floats)} in all")


def _absolute(path: str) -> str:
    """Each run of an app has a working directory of its own."""
    return str(Path(path).resolve()) if path else ""
