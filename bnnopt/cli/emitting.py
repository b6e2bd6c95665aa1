"""``bnnopt emit``: the training step of a folder as C99."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from bnnopt.cli.terminal import say_line, say_note
from bnnopt.cli.training import normalization_options
from bnnopt.units import size

WEIGHTS = ("auto", "const", "file")
_CHUNK = 1024  # samples at a time


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write."
)
@click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    default=WEIGHTS[0],
    show_default=True,
    help="Where initial weights go: const arrays, a file, or by auto arrays up to 1 MiB.",
)
@click.option(
    "--data", metavar="PATH", help="Also write these samples as train.bin, for the example."
)
@click.option("--valid", metavar="PATH", help="Also write these samples as test.bin.")
@normalization_options
def emit(
    folder: Path, output: Path, weights: str, data: str | None, valid: str | None, **options: Any
) -> None:
    """Write the training step of FOLDER as a C99 program, for where there is no Python.

    One arena, constants in const arrays, the calls of the step one after the other, and the kernels
    that they need; no malloc and no threads. Weights are those of the folder before training.

    \b
    Example:
      bnnopt emit out -o csrc
      bnnopt emit out -o csrc --data train.npz --valid valid.npz
    """
    from bnnopt.cli import running
    from bnnopt.emit import emit as write
    from bnnopt.emit import read_model, write_samples
    from bnnopt.runtime import TrainingSession
    from bnnopt.runtime.training.evaluation import prepared

    found = write(folder, output, weights)
    sizes = found.arena_bytes, found.state_bytes, found.const_bytes
    arena, state, constants = map(size, sizes)
    say_line(f"written: {output}, {arena} of arena, {state} of state, {constants} of constants")
    if found.spill_bytes:
        say_line(f"and up to {size(found.spill_bytes)} where more elements are not 0 than planned")
    if found.initial_file is not None:
        say_line(f"written: {output / found.initial_file}, the initial weights")
    if data is None and valid is None:
        return
    model, session, normalization = read_model(os.fspath(folder)), TrainingSession(folder), None
    for path, part in ((data, "train"), (valid, "test")):
        if path is None:
            continue
        samples = running.samples(session, path, part)
        if normalization is None:
            normalization = running.normalization_of(session, samples, options, say_note)
        batches = ((prepared(x, normalization, session), y) for x, y in samples.batches(_CHUNK))
        n = write_samples(model, batches, output / f"{part}.bin")
        say_line(f"written: {output / part}.bin, {n} samples")
