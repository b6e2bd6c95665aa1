"""A compiled network that is open: what it is, and what goes in and out of its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.artifact import read_artifact
from bnnopt.runtime.backends import initial_buffers, open_backend, read_initial
from bnnopt.runtime.checkpoint import (
    StateOnDisk,
    check_checkpoint,
    read_state,
    saved_state,
    write_checkpoint,
)
from bnnopt.runtime.feeding import Data, as_array, check_classes, fitted_inputs, index_bounds
from bnnopt.runtime.files import StrPath
from bnnopt.runtime.format import Artifact, ValueSpec, latent_units, normalizations
from bnnopt.runtime.guard import Guard, is_finite
from bnnopt.runtime.kernels.latents import places, widened
from bnnopt.runtime.native import Memory, NativeBackend
from bnnopt.runtime.observing import PartObserver, Profile
from bnnopt.runtime.parameters import stored_form, written_weights
from bnnopt.runtime.predictor import in_batches, outputs_of, place_of
from bnnopt.runtime.tensors import TensorFile
from bnnopt.runtime.turns import Turns, in_turn
from bnnopt.units import size

if TYPE_CHECKING:
    from bnnopt.runtime.data import Normalization

Array = NDArray[np.generic]


class OpenNetwork:
    """A folder's programs on their backend, with weights, statistics and the optimiser's state.

    `bnnopt.runtime.session.TrainingSession` trains it, and says what the arguments are.
    """

    def __init__(
        self,
        folder: StrPath,
        backend: str = "native",
        threads: int | None = None,
        undo: bool = False,
    ) -> None:
        self._folder = os.fsdecode(folder)
        self._artifact = read_artifact(self._folder)
        self._persistent = initial_buffers(self._folder, self._artifact)
        self._step = 0
        self._on_disk = StateOnDisk(
            0, partial(read_initial, os.path.abspath(self._folder), self._artifact)
        )
        self.notes: Mapping[str, str] = {}
        self._turns = Turns("session")
        self._backend = open_backend(
            self._folder, self._artifact, backend, self._persistent, threads
        )
        self._index_bounds = index_bounds(self._backend.training)
        self._units = latent_units(self._backend.training)
        self._guard = Guard(self._backend.training, self._persistent, undo)
        self._observers: list[PartObserver] = []
        self._bad_weight = self._first_not_finite()

    def __repr__(self) -> str:
        about = self._artifact
        head = f"{about.model}, batch size {about.batch_size}, {about.optimizer}, -{about.level}"
        return f"<TrainingSession of {self._folder!r}: {head}, {self._step} steps done>"

    def _repr_html_(self) -> str:
        """In a notebook: the same as a table."""
        from html import escape

        about, memory = self._artifact, self.planned_memory
        rows: dict[str, object] = {
            "model": about.model,
            "batch size": about.batch_size,
            "optimiser": about.optimizer,
            "level": f"-{about.level}",
            "steps done": self._step,
        }
        if memory is not None:
            rows |= {"planned": size(memory.planned_bytes), "seen": size(memory.seen_bytes)}
        cells = (f"<tr><th>{k}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
        return f"<table><caption>{escape(self._folder)}</caption>{''.join(cells)}</table>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be copied or pickled: a session is memory that kernels have addresses of."""
        raise UsageError(
            "a session cannot be copied or sent to another process; open one there with "
            f"TrainingSession({self._folder!r}), and resume from a checkpoint that this one saves"
        )

    @property
    def about(self) -> Artifact:
        """What the folder says about itself."""
        return self._artifact

    @property
    def inputs(self) -> Mapping[str, ValueSpec]:
        """The model's inputs by name: dtype and shape, an axis of ``-k`` is k times the batch."""
        return {spec.name: spec for spec in self._inputs}

    @property
    def takes_bytes(self) -> bool:
        """Whether x is uint8, images as they are stored, which the step normalises itself."""
        return bool(normalizations(self._backend.training))

    @property
    def takes_labels(self) -> bool:
        """Whether `step` takes y; a graph with its own loss does not."""
        return self._labels is not None

    @property
    def steps_done(self) -> int:
        """Steps that the weights have seen."""
        return self._step

    @property
    def memory(self) -> Memory:
        """Peak bytes as planned, in the worst case, and as seen so far; of the native backend.

        Raises
        ------
        UsageError
            If the backend is another one: that allocates by itself.
        """
        memory = self.planned_memory
        if memory is None:
            raise UsageError("memory: only the native backend runs a plan; open with that")
        return memory

    @property
    def planned_memory(self) -> Memory | None:
        """`memory`, or None on a backend that allocates by itself."""
        return self._backend.memory if isinstance(self._backend, NativeBackend) else None

    def kernels(self) -> list[tuple[str, str, str]]:
        """Name, operator and kernel of each node of a step, as this device runs it.

        The kernel is the C functions that it calls, or ``numpy`` where none covers it.

        Raises
        ------
        UsageError
            If the backend is not the native one.
        """
        if not isinstance(self._backend, NativeBackend):
            raise UsageError("kernels: only the native backend has its own; open with that")
        from bnnopt.runtime.kernels.selection import named_kernels

        return named_kernels(self._backend.training)

    def profile(self) -> Profile:
        """Take down the time of each node from here on.

        Raises
        ------
        UsageError
            If the backend is not the native one.
        """
        if not isinstance(self._backend, NativeBackend):
            raise UsageError("profile: only the native backend runs node by node; open with that")
        profile = Profile(self._backend.training)
        self._observers.append(profile)
        return profile

    @property
    def outputs(self) -> Mapping[str, ValueSpec]:
        """The network's outputs by name, in the order of the model file."""
        return outputs_of(self._backend.evaluation)

    @in_turn
    def predict(self, x: Data, output: str | None = None) -> Array:
        """The network's output for any number of samples, with running statistics.

        Parameters
        ----------
        x : (n, ...) float32 or uint8, or a mapping as in `step`
        output : str, optional
            Its name, of those in `outputs`; the first if not given.

        Returns
        -------
        ndarray
            (n, ...), as the model's output.

        Raises
        ------
        UsageError
            If there is no such output, a shape does not fit, or the output is not one a sample. If
            the session has to resume first.
        """
        return self._predict(x, output)

    def _predict(self, x: Data, output: str | None = None) -> Array:
        self._check_whole("predict")
        data, program = self._fitted(x, "predict"), self._backend.evaluation
        place = place_of(output, program)
        return in_batches(data, program, self._fixed_batch, self._backend.predict, place)

    @in_turn
    def evaluate(self, x: Data, y: ArrayLike) -> float:
        """Accuracy: the share of samples whose largest output is at their label.

        Parameters
        ----------
        x : (n, ...) float32 or uint8, or a mapping as in `step`
        y : (n,) int64

        Raises
        ------
        UsageError
            If shapes or labels do not fit, or the output is no score for each class.
        """
        labels = as_array(y, "evaluate: y")
        predictions = self._predict(x)
        if predictions.ndim < 2:
            raise UsageError(
                f"evaluate: the output has shape {list(predictions.shape)}, no classes"
            )
        expected = (*predictions.shape[:1], *predictions.shape[2:])
        if labels.shape != expected or not labels.size:
            raise UsageError(
                f"evaluate: y has shape {list(labels.shape)}, expected {list(expected)}, not empty"
            )
        check_classes(labels, predictions.shape[1], "evaluate: y", self._ignored)
        hits = np.argmax(predictions, axis=1) == labels
        return float(np.mean(hits if self._ignored is None else hits[labels != self._ignored]))

    @in_turn
    def parameters(self) -> dict[str, Array]:
        """Weights and running statistics in float32, under the model file's own names.

        Binary weights that are kept as bits are -1 and +1. After an interrupted step they may be
        those of half of it, which can be looked at and not saved.

        Raises
        ------
        UsageError
            If a step overflowed half-way: the session has to resume first.
        """
        if not self._guard.is_whole and self._first_not_finite() is not None:
            self._check_whole("parameters")
        from bnnopt.runtime.kernels.reference.packing import sign_unpack

        packed = self._artifact.packed
        return {
            name: sign_unpack(self._persistent[name], shape=list(packed[name][1:]))
            if name in packed
            else self._floats(name)
            for name in self._artifact.weights
        }

    def _floats(self, name: str) -> Array:
        """A buffer in float32."""
        array = self._persistent[name]
        return (
            widened(array, self._units[name]) if name in self._units else array.astype(np.float32)
        )

    def stored_weights(self) -> Mapping[str, Array]:
        """Weights and running statistics as the step stores them; no copies.

        Raises
        ------
        UsageError
            If a step broke off half-way: the session has to resume first.
        """
        self._check_whole("stored_weights")
        return {name: self._persistent[name] for name in self._artifact.weights}

    def clip_latents(self, bound: float) -> None:
        """Cut the trained weights of which the network sees the signs to this magnitude."""
        for name in self._artifact.latent:
            array, unit = self._persistent[name], self._units.get(name)
            low, high = (-bound, bound) if unit is None else places(bound, unit)
            np.clip(array, low, high, out=array)

    @in_turn
    def load_parameters(self, values: Mapping[str, ArrayLike]) -> None:
        """Take weights and running statistics from elsewhere; the optimiser's state stays.

        Parameters
        ----------
        values : mapping of str to array
            By the names and in the shapes of `parameters`; of those that are left out nothing
            changes. Weights that are kept as bits take the signs.

        Raises
        ------
        UsageError
            If a name is not known, a shape does not fit or a value is not finite; nothing has
            changed then.
        """
        if not isinstance(values, Mapping):
            kind = type(values).__name__
            raise UsageError(f"load_parameters: values are {kind}, expected arrays by name")
        arrays = {
            name: stored_form(self._persistent, self._artifact, name, value, self._units.get(name))
            for name, value in values.items()
        }
        for name, array in arrays.items():
            np.copyto(self._persistent[name], array)
        self._on_disk = self._on_disk._replace(steps_done=-1)
        self._bad_weight = self._first_not_finite()

    @in_turn
    def normalize(self, normalization: Normalization) -> None:
        """Let x, which is fed as bytes, be normalised by other numbers from here on.

        They are kept in checkpoints; to begin with, bytes become -1 to 1.

        Raises
        ------
        UsageError
            If x is not fed as bytes, or there is not one number for all or for each channel.
        """
        if not self.takes_bytes:
            raise UsageError(
                "normalize: x is fed as floats; normalise it before, or optimize --input uint8"
            )
        normalization.check(self._inputs[0].shape, "normalize")
        numbers = normalization.numbers(len(self._inputs[0].shape))
        for array, values in zip(self.scales.values(), numbers, strict=True):
            if (array != values).any():
                array[...] = values
                self._on_disk = self._on_disk._replace(steps_done=-1)

    @property
    def scales(self) -> Mapping[str, Array]:
        """Factor and shift of what is fed as bytes; no copies."""
        pairs = normalizations(self._backend.training)
        return {name: self._persistent[name] for pair in pairs for name in pair}

    @property
    def trained_weights(self) -> list[str]:
        """The names of the weights that steps change, other than running statistics."""
        return written_weights(self._backend.training, self._artifact, "update")

    @property
    def statistics(self) -> list[str]:
        """The names of the running statistics that steps move."""
        return written_weights(self._backend.training, self._artifact, "forward")

    @in_turn
    def save(self, path: StrPath, notes: Mapping[str, str] | None = None) -> None:
        """Write a checkpoint: weights, statistics, optimiser state and the number of steps.

        The file is complete or absent whatever happens meanwhile.

        Parameters
        ----------
        path : path
            The file, replaced if it is there.
        notes : mapping of str to str, optional
            Texts of the caller's, kept with it; `resume` puts them into the attribute `notes`.

        Raises
        ------
        ArtifactError
            If it cannot be written.
        UsageError
            If half a step is done: the session has to resume first.
        """
        self._check_whole("save")
        checksum = write_checkpoint(path, self._persistent, self._step, notes or {})
        self._on_disk = saved_state(path, self._step, checksum)

    @in_turn
    def resume(self, path: StrPath) -> None:
        """Go on from a checkpoint, bit-exactly.

        Raises
        ------
        ArtifactError
            If the file is missing, damaged, or from another model or optimiser; nothing has
            changed then.
        """
        with TensorFile(path) as file:
            found = check_checkpoint(file, self._persistent)
            self._guard.is_whole = False
            read_state(file, self._persistent)
        self._step, self._bad_weight = found.steps_done, self._first_not_finite()
        self.notes = found.notes
        self._guard.is_whole = True
        self._on_disk = saved_state(path, self._step, found.checksum)

    @property
    def _ignored(self) -> int | None:
        """The label that counts for nothing."""
        ignored: int | None = self._artifact.loss_options["ignore_index"]
        return ignored

    @property
    def _fixed_batch(self) -> bool:
        return self._backend.training.fixed_batch or self._backend.evaluation.fixed_batch

    @property
    def _inputs(self) -> list[ValueSpec]:
        program = self._backend.training
        return [program.values[i] for i in program.roles["data"]]

    def _fitted(self, x: Data, call: str) -> tuple[Array, ...]:
        return fitted_inputs(x, self._inputs, call, self._index_bounds)

    @property
    def _labels(self) -> ValueSpec | None:
        program = self._backend.training
        return next((program.values[i] for i in program.roles["labels"]), None)

    def _first_not_finite(self) -> str | None:
        """The name of a weight or state that no step can start from."""
        bad = (name for name, array in self._persistent.items() if not is_finite(array))
        return next(bad, None)

    def _check_whole(self, call: str) -> None:
        if not self._guard.is_whole:
            raise UsageError(
                f"{call}: the session holds half a step, which broke off; resume from the last "
                "checkpoint, or open the folder again"
            )
