"""Training on the device: one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnnopt.errors import DivergedError, UsageError
from bnnopt.runtime.executor import Observer
from bnnopt.runtime.feeding import Data, checked_rate, fitted_labels
from bnnopt.runtime.files import StrPath
from bnnopt.runtime.format import has_half_gradients, normalizes_samples, sums
from bnnopt.runtime.guard import Feeds
from bnnopt.runtime.native import NativeBackend
from bnnopt.runtime.network import OpenNetwork
from bnnopt.runtime.observing import Hits, Injector, PartObserver, together
from bnnopt.runtime.parts import Part, in_parts, joined, lengthened
from bnnopt.runtime.pruning import Pruning
from bnnopt.runtime.turns import in_turn

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


class TrainingSession(OpenNetwork):
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
        ``BNNOPT_NUM_THREADS``).
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
        super().__init__(folder, backend, threads, undo)
        pruning, program = self._artifact.pruning, self._backend.training
        self._pruning = Pruning(**pruning) if pruning is not None else None
        self._is_scaled, self._sums = has_half_gradients(program), sums(program)
        self._replay: Replay | None = None

    @property
    def batch_size(self) -> int:
        """Samples in a full batch, without those that are replayed."""
        replayed = self._replay.mixed if self._replay is not None else 0
        return self._artifact.batch_size * self._artifact.parts - replayed

    @property
    def least_batch(self) -> int:
        """The fewest samples that `step` takes."""
        return self.batch_size if self._fixed_batch else 1

    @property
    def least_training_batch(self) -> int:
        """The fewest samples to learn from: of one, a batch norm behind a dense layer leaves 0."""
        return max(self.least_batch, 1 + normalizes_samples(self._backend.training))

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
            several inputs a mapping of their names to arrays. uint8 where the folder was compiled
            for that: images as they are stored, see `normalize`.
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
            larger than training has a use for or a channel hardly varies in the batch.
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

    def _diverged(self, what: str, rate: float) -> DivergedError:
        is_whole = self._guard.is_whole
        kept = "nothing has changed" if is_whole else "resume from the last checkpoint"
        others = "or scale the data"
        if self._is_scaled:  # gradients that float32 holds, as of a batch of two, may be too large
            others = "scale the data, take a larger batch, or optimize --disable float16-gradients"
        return DivergedError(
            f"step {self._step + 1}: {what}; {kept}; expected finite numbers: lower the learning "
            f"rate, now {rate:g}, {others}",
            is_whole,
        )

    def _checked_batch(self, n: int) -> int:
        full = self.batch_size
        if not 1 <= n <= full or (self._fixed_batch and n != full):
            expected = f"{full}" if self._fixed_batch else f"1 to {full}"
            raise UsageError(
                f"step: x has {n} samples, expected {expected}; optimize with another --batch-size"
            )
        return n
