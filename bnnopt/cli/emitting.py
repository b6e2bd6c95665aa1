"""``bnnopt emit``: the training step of a folder as C99."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnnopt.cli.terminal import say_line, say_note
from bnnopt.cli.training import normalization_options
from bnnopt.errors import UsageError
from bnnopt.units import size

if TYPE_CHECKING:
    from bnnopt.emit.model import Model
    from bnnopt.runtime import TrainingSession

_CHUNK = 1024  # samples at a time


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write."
)
@click.option(
    "--weights",
    default="auto",
    metavar="WHERE",
    show_default=True,
    help="Where initial weights go: const (arrays), file, or by auto arrays up to 1 MiB.",
)
@click.option(
    "--checkpoint", metavar="FILE", help="Take its weights; if not given, the newest one's."
)
@click.option(
    "--data",
    metavar="PATH",
    help="Also write these samples, shuffled, as train.bin for the example.",
)
@click.option("--valid", metavar="PATH", help="Also write these samples as test.bin.")
@normalization_options
def emit(
    folder: Path,
    output: Path,
    weights: str,
    checkpoint: str | None,
    data: str | None,
    valid: str | None,
    **options: Any,
) -> None:
    """Write the training step of FOLDER as a C99 program, for where there is no Python.

    One arena, constants in const arrays, the calls of the step one after the other, and the kernels
    that they need; no malloc and no threads. It begins where the checkpoint is.

    \b
    Example:
      bnnopt emit out -o csrc
      bnnopt emit out -o csrc --data train.npz --valid valid.npz
    """
    from bnnopt.cli.running import asks_for_normalization
    from bnnopt.emit import emit as write
    from bnnopt.runtime import TrainingSession
    from bnnopt.runtime.training import load_newest, newest, where_from

    parts = {"train": data, "test": valid}
    needs_session = asks_for_normalization(options) or any(parts.values())
    session = TrainingSession(folder) if needs_session else None
    if session is not None and asks_for_normalization(options) and session.takes_bytes:
        raise UsageError(
            "--scale, --mean, --std, --normalize: the program normalises bytes as it was trained "
            "to; leave them out"
        )
    found_in = newest(folder, checkpoint)
    found = write(folder, output, weights, found_in)
    say_note(f"weights: {where_from(folder, found_in)}")
    sizes = found.arena_bytes, found.state_bytes, found.const_bytes
    arena, state, constants = map(size, sizes)
    say_line(f"written: {output}, {arena} of arena, {state} of state, {constants} of constants")
    if found.spill_bytes:
        say_line(f"and up to {size(found.spill_bytes)} where more elements are not 0 than planned")
    if found.initial_file is not None:
        say_line(f"written: {output / found.initial_file}, the initial weights")
    if session is not None and any(parts.values()):
        load_newest(session, folder, checkpoint)
        _write_samples(found.model, session, output, parts, options)


def _write_samples(
    model: Model,
    session: TrainingSession,
    output: Path,
    parts: Mapping[str, str | None],
    options: Mapping[str, Any],
) -> None:
    """The samples of each part that is given, normalised as in training."""
    from bnnopt.cli import running
    from bnnopt.emit import write_samples
    from bnnopt.runtime.data.normalization import AS_IT_IS
    from bnnopt.runtime.training.evaluation import prepared

    normalization = None
    for part, path in parts.items():
        if path is None:
            continue
        samples = running.samples(session, path, part)
        if normalization is None:
            normalization = running.normalization_of(session, samples, options, say_note)
        batches = samples.batches(_CHUNK, shuffle=part == "train")
        numbers = normalization or AS_IT_IS
        normalized = ((prepared(x, numbers, session), y) for x, y in batches)
        n = write_samples(model, normalized, output / f"{part}.bin")
        say_line(f"written: {output / part}.bin, {n} samples")
