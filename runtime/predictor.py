"""A trained network that predicts: the smaller folder that ``bnnopt export --packed`` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ArtifactError, UsageError, did_you_mean
from bnnopt.runtime.artifact import check_files, read_artifact, read_program
from bnnopt.runtime.executor import Executor
from bnnopt.runtime.feeding import Data, fitted_inputs, index_bounds
from bnnopt.runtime.files import StrPath
from bnnopt.runtime.format import (
    CONSTANTS_FILE,
    EVALUATION,
    Artifact,
    Program,
    ValueSpec,
    normalizations,
    program_file,
)
from bnnopt.runtime.library import check_threads, default_threads, set_threads
from bnnopt.runtime.native import arena_of
from bnnopt.runtime.program_check import check_runnable
from bnnopt.runtime.tensors import read_tensors
from bnnopt.runtime.turns import Turns, in_turn

Array = NDArray[np.generic]
_SIGNS = "signs"  # metadata: shapes of the constants that are kept as bits
_FEWEST = 64  # elements
PredictBatch = Callable[[tuple[Array, ...], int, int], Array]
"""(inputs of a batch, its samples, the place of an output) to that output."""


class Predictor:
    """A network with its weights inside, without a training step.

    Parameters
    ----------
    folder : path
        Written by ``bnnopt export --packed``.
    threads : int, optional
        Of the compiled kernels, as of `TrainingSession`.

    Raises
    ------
    ArtifactError
        If the folder is not one of bnnopt's, or is damaged.
    UsageError
        If it is one with a training step, or does not take so many threads.

    Attributes
    ----------
    notes : mapping of str to str
        Those of the checkpoint that the weights are from.

    Examples
    --------
    >>> y = Predictor("packed").predict(x)
    """

    def __init__(self, folder: StrPath, threads: int | None = None) -> None:
        folder = os.fsdecode(folder)
        self.about: Artifact = read_artifact(folder, trains=False)
        check_threads(threads)
        file = program_file(EVALUATION)
        check_files(folder, self.about, [CONSTANTS_FILE, file])
        self._program = read_program(folder, EVALUATION)
        path = os.path.join(folder, CONSTANTS_FILE)
        constants, self.notes = with_signs(*read_tensors(path), path)
        buffers: dict[str, Mapping[str, Array]] = {"persistent": {}, "constant": constants}
        check_runnable(self._program, buffers, os.path.join(folder, file), trains=False)
        arena = arena_of(self._program.arena_bytes, folder)
        self._specs = [self._program.values[i] for i in self._program.roles["data"]]
        self._index_bounds = index_bounds(self._program)
        self._executor = Executor(self._program, {}, constants, arena)
        self._threads, self._turns = threads or default_threads(), Turns("predictor")
        self._folder = folder

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be copied or pickled: it is memory that kernels have addresses of."""
        raise UsageError(
            "a predictor cannot be copied or sent to another process; open one there with "
            f"Predictor({self._folder!r})"
        )

    @property
    def batch_size(self) -> int:
        """Samples that are predicted at once, at most."""
        return self._program.batch_size

    @property
    def inputs(self) -> Mapping[str, ValueSpec]:
        """The model's inputs by name: dtype and shape, an axis of ``-k`` is k times the batch."""
        return {spec.name: spec for spec in self._specs}

    @property
    def takes_bytes(self) -> bool:
        """Whether x is uint8, images as they are stored, which the network normalises itself."""
        return bool(normalizations(self._program))

    @property
    def outputs(self) -> Mapping[str, ValueSpec]:
        """The network's outputs by name, in the order of the model file."""
        return outputs_of(self._program)

    @in_turn
    def predict(self, x: Data, output: str | None = None) -> Array:
        """The network's output for any number of samples.

        Parameters
        ----------
        x : (n, ...) float32 or uint8, or a mapping of the names of inputs to arrays
        output : str, optional
            Its name, of those in `outputs`; the first if not given.

        Returns
        -------
        ndarray
            (n, ...), as the model's output.

        Raises
        ------
        UsageError
            If there is no such output, a shape does not fit, or the output is not one a sample.
        """
        place = place_of(output, self._program)
        data = fitted_inputs(x, self._specs, "predict", self._index_bounds)
        return in_batches(data, self._program, self._program.fixed_batch, self._predict, place)

    def _predict(self, data: tuple[Array, ...], batch: int, output: int) -> Array:
        set_threads(self._threads)
        return np.array(self._executor.run({"data": data}, batch)[output])


def outputs_of(program: Program) -> dict[str, ValueSpec]:
    """The outputs of a program by name, in their order."""
    return {program.values[i].name: program.values[i] for i in program.outputs}


def place_of(output: str | None, program: Program) -> int:
    """Where an output stands among those of the network; the first place without a name.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    names = [program.values[i].name for i in program.outputs]
    if output is None:
        return 0
    if output not in names:
        hint = did_you_mean(output, names)
        raise UsageError(f"predict: no output {output!r}; expected {', '.join(names)}{hint}")
    return names.index(output)


def is_signs(array: Array) -> bool:
    """Whether a constant is kept as bits: rows of -1 and +1 in float32, and not a handful."""
    is_float = array.dtype == np.float32 and array.ndim > 1 and array.size >= _FEWEST
    return bool(is_float and (np.abs(array) == 1).all())


def without_signs(constants: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """Constants as they are written, those of -1 and +1 as bits, and the metadata that say so."""
    from bnnopt.runtime.kernels.reference.packing import sign_pack

    signs = {name: list(array.shape) for name, array in constants.items() if is_signs(array)}
    kept = {name: sign_pack(a) if name in signs else a for name, a in constants.items()}
    return kept, {_SIGNS: json.dumps(signs)}


def with_signs(
    tensors: Mapping[str, Array], metadata: Mapping[str, str], path: str
) -> tuple[dict[str, Array], dict[str, str]]:
    """What `without_signs` was given, and the rest of the metadata.

    Raises
    ------
    ArtifactError
        If the metadata do not fit the tensors.
    """
    from bnnopt.runtime.kernels.reference.packing import sign_unpack

    notes, constants = dict(metadata), dict(tensors)
    try:
        for name, (_, *shape) in json.loads(notes.pop(_SIGNS)).items():
            constants[name] = sign_unpack(constants[name], shape=shape)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: is damaged ({error!r}); export it again") from None
    return constants, notes


def in_batches(
    data: tuple[Array, ...],
    program: Program,
    is_fixed: bool,
    predict: PredictBatch,
    place: int = 0,
) -> Array:
    """Predict any number of samples by a program for so many at once.

    The last batch is filled up where the program takes no smaller one: with running statistics,
    samples do not see one another.

    Raises
    ------
    UsageError
        If the output is not one a sample.
    """
    output, n = program.values[program.outputs[place]], program.batch_size
    if output.shape[:1] not in ((-1,), (n,)):
        raise UsageError(f"predict: output {output.name!r} has no axis of samples")
    parts = []
    for start in range(0, len(data[0]), n):
        batch = tuple(array[start : start + n] for array in data)
        count = len(batch[0])
        if is_fixed and count < n:
            batch = tuple(_filled(array, n) for array in batch)
        parts.append(predict(batch, len(batch[0]), place)[:count])
    if not parts:
        return np.empty((0, *output.shape_at(1)[1:]), output.dtype)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _filled(array: Array, n: int) -> Array:
    filler = np.zeros((n - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, filler])
