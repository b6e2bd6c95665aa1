"""Training on the device: one step at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnnopt.errors import DivergedError, UsageError
from bnnopt.runtime.artifact import read_artifact
from bnnopt.runtime.backends import initial_buffers, open_backend
from bnnopt.runtime.checkpoint import (
    Checkpoint,
    StateOnDisk,
    read_checkpoint,
    saved_state,
    write_checkpoint,
)
from bnnopt.runtime.executor import Observer
from bnnopt.runtime.feeding import (
    Data,
    as_array,
    check_classes,
    checked_rate,
    fitted_inputs,
    fitted_labels,
    index_bounds,
)
from bnnopt.runtime.files import StrPath
from bnnopt.runtime.format import (
    Artifact,
    ValueSpec,
    has_half_gradients,
    normalizes_samples,
    sums,
)
from bnnopt.runtime.guard import Feeds, Guard, is_finite
from bnnopt.runtime.native import Memory, NativeBackend
from bnnopt.runtime.observing import Hits, Injector, PartObserver, Profile, together
from bnnopt.runtime.parameters import stored_form, written_weights
from bnnopt.runtime.parts import Part, in_parts, joined, lengthened
from bnnopt.runtime.predictor import in_batches, outputs_of, place_of
from bnnopt.runtime.pruning import Pruning
from bnnopt.runtime.turns import Turns, in_turn
from bnnopt.units import size

if TYPE_CHECKING:
    from bnnopt.runtime.data import Dataset
    from bnnopt.runtime.replay import Latents, Replay
    from bnnopt.runtime.training import Callback, History

Array = NDArray[np.generic]


class ScoredStep(NamedTuple):
    """What a step gave.

    Attributes
    ----------
    loss : float
        Before the update.
    hits, labels : int
        Labels whose score is the largest, of how many; 0 of 0 where the step's loss is not the
        cross-entropy, or on another backend than the native one.
    """

    loss: float
    hits: int
    labels: int


class TrainingSession:
    """A compiled training step with its weights and optimiser state.

    Threads may share a session: their calls take turns. A forked process may go on with its copy;
    to another process a session cannot be sent.

    Parameters
    ----------
    folder : path
        Written by ``bnnopt optimize``.
    backend : str
        ``native`` (compiled kernels, or numpy's, over the planned arena) or ``onnxruntime``.
    threads : int, optional
        As many as there are processors if not given; at most 4 for the native backend (also
        ``BNNOPT_NUM_THREADS``). Its real matrix products run in numpy's BLAS, on
        ``OMP_NUM_THREADS``.
    undo : bool
        Copy weights and state before each step, so that one that breaks off is always undone; this
        takes ``persistent_bytes`` more memory. If not, see `step`.

    Raises
    ------
    ArtifactError
        If the folder is not one of bnnopt's, or is damaged.
    UsageError
        If the backend is not known or not installed, or does not take so many threads.

    Attributes
    ----------
    notes : mapping of str to str
        What `save` was given for the checkpoint that `resume` read; empty before.

    Examples
    --------
    >>> session = TrainingSession("out")
    >>> loss = session.step(x, y)
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
            0, partial(initial_buffers, os.path.abspath(self._folder), self._artifact)
        )
        self.notes: Mapping[str, str] = {}
        self._turns = Turns("session")
        pruning = self._artifact.pruning
        self._pruning = Pruning(**pruning) if pruning is not None else None
        self._backend = open_backend(
            self._folder, self._artifact, backend, self._persistent, threads
        )
        self._index_bounds = index_bounds(self._backend.training)
        self._is_scaled = has_half_gradients(self._backend.training)
        self._guard = Guard(self._backend.training, self._persistent, undo)
        self._sums = sums(self._backend.training)
        self._observers: list[PartObserver] = []
        self._replay: Replay | None = None
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
    def batch_size(self) -> int:
        """Samples in a full batch, without those that are replayed."""
        replayed = self._replay.mixed if self._replay is not None else 0
        return self._artifact.batch_size * self._artifact.parts - replayed

    @property
    def about(self) -> Artifact:
        """What the folder says about itself."""
        return self._artifact

    @property
    def inputs(self) -> Mapping[str, ValueSpec]:
        """The model's inputs by name: dtype and shape, an axis of ``-k`` is k times the batch."""
        return {spec.name: spec for spec in self._inputs}

    @property
    def takes_labels(self) -> bool:
        """Whether `step` takes y; a graph with its own loss does not."""
        return self._labels is not None

    @property
    def least_batch(self) -> int:
        """The fewest samples that `step` takes."""
        return self.batch_size if self._fixed_batch else 1

    @property
    def least_training_batch(self) -> int:
        """The fewest samples to learn from: of one, a batch norm behind a dense layer leaves 0."""
        return max(self.least_batch, 1 + normalizes_samples(self._backend.training))

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

    @in_turn
    def replay(self, path: StrPath, n: int = 0, seed: int = 0) -> Replay:
        """Mix earlier samples into every batch: see `bnnopt.runtime.replay`.

        Parameters
        ----------
        path : path
            The file that keeps them; there may be none yet, then nothing is mixed in.
        n : int
            Rows of each batch that are earlier samples; `batch_size` is as much smaller.
        seed : int
            Of which ones a step takes.

        Raises
        ------
        UsageError
            If nothing is frozen in front of what is trained, `n` leaves no room for new samples,
            the file was kept by another front, or the backend is not the native one.
        ArtifactError
            If the file is damaged.
        """
        from bnnopt.runtime.replay import Replay

        if not isinstance(self._backend, NativeBackend) or self._artifact.parts > 1:
            raise UsageError("replay: is for the native backend, and for batches in one part")
        if not self.takes_labels:
            raise UsageError("replay: the graph has its own loss; expected labels beside the data")
        self._replay = Replay(self._backend.training, self._persistent, path, n, seed)
        return self._replay

    @in_turn
    def latents(self, x: Data, y: ArrayLike) -> Latents:
        """What the frozen front gives for some samples, at most a batch, for `Replay.remember`.

        Parameters
        ----------
        x, y
            As `step` takes them.

        Raises
        ------
        UsageError
            If shapes or labels do not fit, or `replay` was not called.
        """
        if self._replay is None or not isinstance(self._backend, NativeBackend):
            raise UsageError("latents: call replay first")
        data, about = self._fitted(x, "latents"), self._artifact
        n, ignored = len(data[0]), about.loss_options["ignore_index"]
        labels = fitted_labels(y, self._labels, n, about.classes, ignored)
        return self._replay.latents(self._backend, data, labels)

    @in_turn
    def step(self, x: Data, y: ArrayLike | None = None, lr: float | None = None) -> float:
        """One training step; weights, statistics and optimiser state change in place.

        Parameters
        ----------
        x : (n, ...) float32
            As the model's input; n is at most the batch size of the folder. For a model with
            several inputs a mapping of their names to arrays.
        y : (n,) int64
            Class labels; (n, ...) float32 targets for ``mse``; not given where the graph has its
            own loss.
        lr : float, optional
            Learning rate; the folder's default if not given.

        Returns
        -------
        float
            The loss before the update.

        Raises
        ------
        UsageError
            If a shape, dtype, label, rate or the batch does not fit; nothing has changed then. If
            the session has to resume first.
        DivergedError
            If the loss, a weight or the state would become NaN or infinite. The state of before
            the step is there again, or else the session has to resume; the message says which. It
            is there if `undo` was asked for, if the state lies in a file (as the folder has it, or
            saved or resumed since the last step), and where the batch, rate, loss or statistics are
            larger than training has a use for.
        """
        return self._step_on(x, y, lr)

    @in_turn
    def scored_step(
        self, x: Data, y: ArrayLike | None = None, lr: float | None = None
    ) -> ScoredStep:
        """`step`, and how many labels had the largest score before the update."""
        scores = self._backend.training.scores
        if scores < 0:
            return ScoredStep(self._step_on(x, y, lr), 0, 0)
        found = Hits(scores, self._ignored)
        loss = self._step_on(x, y, lr, found)
        return ScoredStep(loss, found.hits, found.labels)

    def _step_on(
        self, x: Data, y: ArrayLike | None, lr: float | None, *observers: PartObserver
    ) -> float:
        self._check_whole("step")
        data = self._fitted(x, "step")
        batch = self._checked_batch(len(data[0]))
        about = self._artifact
        labels = fitted_labels(
            y, self._labels, batch, about.classes, about.loss_options["ignore_index"]
        )
        rate = checked_rate(about.learning_rate if lr is None else lr)
        if self._bad_weight is not None:
            raise self._diverged(f"{self._bad_weight!r} is not finite", rate)
        if self._replay is not None and self._replay.mixed:
            latents = self._replay.drawn(self._step)
            data, labels = lengthened(data, len(latents)), (joined(labels, latents.labels),)
            observers = (*observers, Injector(self._replay, latents))
        parts = in_parts(data, labels, about.batch_size)
        if labels and self._is_scaled:
            parts = [part.filled(about.batch_size) for part in parts]
        try:
            return self._run_step(parts, rate, [*self._observers, *observers])
        except DivergedError as error:
            raise self._diverged(str(error), rate) from None

    def fit(
        self,
        data: Dataset | tuple[ArrayLike, ArrayLike],
        epochs: int,
        valid: Dataset | tuple[ArrayLike, ArrayLike] | None = None,
        checkpoints: StrPath | None = None,
        callbacks: Sequence[Callback] = (),
        **recipe: Any,
    ) -> History:
        """Train for some epochs; after `resume` from a checkpoint of `fit` it goes on from there.

        Parameters
        ----------
        data, valid : Dataset, or (x, y)
            Opened by `bnnopt.runtime.data.open_data`, or arrays as `step` takes them.
        epochs : int
            Until so many are done, those before a resume included.
        checkpoints : path, optional
            Folder for a checkpoint after each epoch; the two newest and the best stay.
        callbacks : sequence of Callback
            What looks on; see `bnnopt.runtime.training.Callback`.
        **recipe
            ``schedule``, ``seed``, ``normalization`` and the others of
            `bnnopt.runtime.training.Recipe`.

        Returns
        -------
        History
            Loss, accuracy, time and memory of each epoch.

        Raises
        ------
        UsageError
            If the data do not fit the model.
        ArtifactError
            If a checkpoint cannot be written.
        """
        from bnnopt.runtime import training

        return training.fit(
            self,
            training.as_dataset(data, "fit: data"),
            training.Recipe(epochs, **recipe),
            None if valid is None else training.as_dataset(valid, "fit: valid"),
            None if checkpoints is None else training.Checkpoints(checkpoints),
            callbacks,
        )

    @property
    def outputs(self) -> Mapping[str, ValueSpec]:
        """The network's outputs by name, in the order of the model file."""
        return outputs_of(self._backend.evaluation)

    @in_turn
    def predict(self, x: Data, output: str | None = None) -> Array:
        """The network's output for any number of samples, with running statistics.

        Parameters
        ----------
        x : (n, ...) float32, or a mapping as in `step`
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
        x : (n, ...) float32, or a mapping as in `step`
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
            else self._persistent[name].astype(np.float32)
            for name in self._artifact.weights
        }

    def stored_weights(self) -> Mapping[str, Array]:
        """Weights and running statistics as the step stores them; no copies.

        Raises
        ------
        UsageError
            If a step broke off half-way: the session has to resume first.
        """
        self._check_whole("stored_weights")
        return {name: self._persistent[name] for name in self._artifact.weights}

    def latent_weights(self) -> list[Array]:
        """The trained weights of which the network sees the signs; no copies."""
        return [self._persistent[name] for name in self._artifact.latent]

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
        arrays = {
            name: stored_form(self._persistent, self._artifact, name, value)
            for name, value in values.items()
        }
        for name, array in arrays.items():
            np.copyto(self._persistent[name], array)
        self._on_disk = self._on_disk._replace(steps_done=-1)
        self._bad_weight = self._first_not_finite()

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
        checksum = write_checkpoint(path, Checkpoint(self._persistent, self._step, notes or {}))
        self._on_disk = saved_state(path, self._step, checksum, self._persistent)

    @in_turn
    def resume(self, path: StrPath) -> None:
        """Go on from a checkpoint, bit-exactly.

        Raises
        ------
        ArtifactError
            If the file is missing, damaged, or from another model or optimiser; nothing has
            changed then.
        """
        found = read_checkpoint(path, self._persistent)
        self._guard.is_whole = False
        for name, array in self._persistent.items():
            np.copyto(array, found.tensors[name])
        self._step, self._bad_weight = found.steps_done, self._first_not_finite()
        self.notes = found.notes
        self._guard.is_whole = True
        self._on_disk = saved_state(path, self._step, found.checksum, self._persistent)

    def _run_step(
        self, parts: Sequence[Part], rate: float, observers: Sequence[PartObserver]
    ) -> float:
        """A step that is done as a whole, or else undone as far as it can be."""
        guard, roles = self._guard, self._backend.training.roles
        try:
            loss = 0.0
            for name in self._sums:
                self._persistent[name].fill(0)
            for part in parts:
                feeds = part.feeds(rate, self._step + 1, roles)
                if part is parts[0]:
                    guard.begin(feeds)
                observe = together([observer.begin(part) for observer in observers])
                loss += part.share * self._run_part(part, feeds, observe)
            if self._pruning is not None:
                self._pruning.apply(self._persistent, self._step + 1)
            guard.end()
        except BaseException:  # Ctrl-C as well
            guard.undo()
            if not guard.is_whole and self._on_disk.steps_done == self._step:
                guard.is_whole = self._on_disk.restore(self._persistent)
            raise
        self._step += 1
        return loss

    def _run_part(self, part: Part, feeds: Feeds, observe: Observer | None) -> float:
        guard, backend = self._guard, self._backend
        if isinstance(backend, NativeBackend):
            watch = guard if part.is_last else None
            loss = backend.train(feeds, part.batch, watch, observe, updates=part.is_last)
        else:
            loss = backend.train(feeds, part.batch, guard)
        guard.check_loss(loss)
        return loss

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

    def _diverged(self, what: str, rate: float) -> DivergedError:
        kept = "nothing has changed" if self._guard.is_whole else "resume from the last checkpoint"
        return DivergedError(
            f"step {self._step + 1}: {what}; {kept}; expected finite numbers: lower the learning "
            f"rate, now {rate:g}, or scale the data"
        )

    def _checked_batch(self, n: int) -> int:
        full = self.batch_size
        if not 1 <= n <= full or (self._fixed_batch and n != full):
            expected = f"{full}" if self._fixed_batch else f"1 to {full}"
            raise UsageError(
                f"step: x has {n} samples, expected {expected}; optimize with another --batch-size"
            )
        return n
