"""From a compiled folder to a folder of C99."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bnnopt.emit.model import Model, read_model
from bnnopt.emit.program import INITIAL_FILE, Source, header, initial_state, model_source
from bnnopt.emit.project import project_files
from bnnopt.emit.sources import sources_of
from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.files import StrPath, reason_of
from bnnopt.runtime.library import library

WEIGHTS = ("auto", "const", "file")
KERNELS = "kernels"  # the folder of their sources
# Of what the memory holds while calls are noted: two that differ, so that a call that follows from
# it shows.
_SEEDS = (1, 2)


class Emitted(NamedTuple):
    """What was written.

    Attributes
    ----------
    arena_bytes : int
        Of the one arena: the plan of the folder without workspace of further threads.
    state_bytes : int
        Weights, statistics and the optimiser's state that steps change, and the number of steps.
    const_bytes : int
        Of arrays that nothing changes: constants, frozen weights, and the initial state if it is
        not in a file.
    spill_bytes : int
        Beside the arena, for bitmaps that outgrow their place; may be left out.
    batch_size, predict_size : int
        Samples that a step takes, and that are predicted at once.
    state : mapping of str to int
        Where in the state each buffer lies.
    files : sequence of str
        Their names.
    initial_file : str, optional
        That of the initial state, if it is in a file.
    model : Model
        What was emitted.
    """

    arena_bytes: int
    state_bytes: int
    const_bytes: int
    spill_bytes: int
    batch_size: int
    predict_size: int
    state: Mapping[str, int]
    files: list[str]
    initial_file: str | None
    model: Model


def emit(
    folder: StrPath,
    output: StrPath,
    weights: str = "auto",
    checkpoint: StrPath | None = None,
) -> Emitted:
    """Write a folder's training step and network as a C99 program.

    Parameters
    ----------
    folder : path
        Written by ``bnnopt optimize``.
    output : path
        Folder for the program; files that have its names are replaced.
    weights : str
        Where initial weights go: ``const`` arrays, a ``file``, or by ``auto`` arrays up to 1 MiB.
    checkpoint : path, optional
        Begin with its weights, statistics, state of the optimiser and number of steps; as the
        folder has them if not given.

    Raises
    ------
    UsageError
        If something of the folder cannot be emitted; nothing is written then.
    ArtifactError
        If the folder or the checkpoint is not one of bnnopt's or is damaged, or `output` cannot be
        written.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"emit: weights {weights!r}; expected one of {', '.join(WEIGHTS)}")
    if library() is None:
        raise UsageError(
            "emit: bnnopt has no compiled kernels here; install a C compiler and bnnopt again"
        )
    model = read_model(os.fsdecode(folder), weights, checkpoint)
    source, other = (model_source(model, seed) for seed in _SEEDS)
    if source.text != other.text:
        raise UsageError(f"emit: {os.fsdecode(folder)}: {_difference(source, other)}")
    files = _contents(model, source)
    _write(Path(os.fsdecode(output)), files)
    places = {buffer.name: buffer.offset for buffer in model.state}
    sizes = model.arena_bytes, model.state_bytes, source.const_bytes, model.spill_bytes
    batches = model.training.batch_size, model.evaluation.batch_size
    initial_file = INITIAL_FILE if model.in_file else None
    return Emitted(*sizes, *batches, places, [*files], initial_file, model)


def _difference(source: Source, other: Source) -> str:
    """Which statement follows from what the memory holds."""
    pairs = zip(source.text.splitlines(), other.text.splitlines(), strict=False)
    line = next((a for a, b in pairs if a != b), "a statement")
    return f"{line.strip()[:80]} depends on values of a step, which C would not see"


def _contents(model: Model, source: Source) -> dict[str, str | bytes]:
    kernels = sources_of(source.functions)
    prototypes = "".join(f"{prototype};\n" for prototype in kernels.prototypes)
    files: dict[str, str | bytes] = {
        "bnn_model.c": source.text,
        "bnn_model.h": header(model),
        **project_files(model, source, prototypes),
        **{f"{KERNELS}/{name}": text for name, text in kernels.files.items()},
    }
    if model.in_file:
        files[INITIAL_FILE] = initial_state(model)
    return files


def _write(output: Path, files: Mapping[str, str | bytes]) -> None:
    try:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(data)
    except OSError as error:
        raise ArtifactError(f"{output}: cannot be written: {reason_of(error)}") from None
