"""Training over a data set: epochs, validation, checkpoints, and going on after a power cut."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnnopt.errors import ArtifactError, DivergedError, UsageError
from bnnopt.runtime.data import Dataset, Normalization, sampling
from bnnopt.runtime.data.arrays import from_arrays
from bnnopt.runtime.data.augmentation import Change
from bnnopt.runtime.feeding import as_array
from bnnopt.runtime.schedules import Plateau
from bnnopt.runtime.training.callbacks import Callback
from bnnopt.runtime.training.checkpoints import Checkpoints
from bnnopt.runtime.training.evaluation import adopt, evaluate, prepared
from bnnopt.runtime.training.history import Epoch, History

if TYPE_CHECKING:
    from bnnopt.runtime.session import TrainingSession

Array = NDArray[Any]
Schedule = Callable[[int], float]
NOTES = "training"
MAX_SKIPPED = 8  # batches in a row that overflow; as many end the training
_DAMAGED = "the checkpoint's training state is damaged; take another one"


@dataclass(frozen=True)
class Recipe:
    """How to train; what a resumed run must not change is in `identity`.

    Attributes
    ----------
    epochs : int
        Until so many are done, those before a resume included.
    schedule : callable, optional
        Steps done to the learning rate; the folder's rate in every step if not given. A `Plateau`
        watches the validation loss, or the loss of training where there is none.
    seed : int
        Of the order of the samples, and of their changes.
    normalization : Normalization, optional
        Of every input; if not given, inputs are fed as they are, and what is fed as bytes is
        normalised as the session does.
    changes : sequence of callable
        Random changes of a batch, before the normalisation.
    clip_weights : float, optional
        Latent weights of binary layers are cut to this magnitude after each step.
    checkpoint_every : int, optional
        Steps between checkpoints; at the end of each epoch if not given.
    shuffle : bool
        Whether each epoch has an order of its own.
    """

    epochs: int
    schedule: Schedule | None = None
    seed: int = 0
    normalization: Normalization | None = None
    changes: Sequence[Change] = ()
    clip_weights: float | None = None
    checkpoint_every: int | None = None
    shuffle: bool = True

    def identity(self, dataset: Dataset, batch_size: int) -> dict[str, Any]:
        """What decides which samples a step sees, and how; as JSON keeps it."""
        return {
            "samples": len(dataset),
            "batch_size": batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "changes": [change.__name__ for change in self.changes],
            "clip_weights": self.clip_weights,
        }


@dataclass
class Progress:
    """Where a training is; what callbacks look at.

    Attributes
    ----------
    epoch, batch : int
        Of the next step, 0 at the first.
    n_epochs, n_batches : int
        How many there are: in all, and in an epoch.
    loss : float
        Of the step before.
    loss_sum, hits, labels, samples : float and int
        Summed over this epoch: loss times samples, labels at the largest score, labels, samples.
    seconds : float
        Spent on this epoch's steps.
    stop : str
        Why training ends after this step; empty while it goes on.
    """

    n_epochs: int
    n_batches: int
    session: TrainingSession
    epoch: int = 0
    batch: int = 0
    loss: float = math.nan
    loss_sum: float = 0.0
    hits: int = 0
    labels: int = 0
    samples: int = 0
    seconds: float = 0.0
    stop: str = ""
    history: History = field(default_factory=History)

    @property
    def mean_loss(self) -> float | None:
        """Over this epoch so far."""
        return self.loss_sum / self.samples if self.samples else None

    @property
    def accuracy(self) -> float | None:
        """Over this epoch so far; None where the loss has no scores."""
        return self.hits / self.labels if self.labels else None

    @property
    def images_per_s(self) -> float | None:
        """Samples trained in a second of this epoch."""
        return self.samples / self.seconds if self.seconds > 0 else None

    @property
    def seen_bytes(self) -> int | None:
        """Memory that training took so far; None on a backend that does not plan it."""
        memory = self.session.planned_memory
        return None if memory is None else memory.seen_bytes

    def begin_epoch(self) -> None:
        """Go to the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.hits, self.labels, self.samples, self.seconds = 0.0, 0, 0, 0, 0.0

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON keeps it: floats exactly."""
        names = ("epoch", "batch", "loss_sum", "hits", "labels", "samples", "seconds")
        return {name: getattr(self, name) for name in names} | {"history": self.history.to_list()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises
        ------
        AttributeError, TypeError, ValueError
            If it did not.
        """
        if state.keys() != self.state().keys():
            raise ValueError(f"progress has {', '.join(state)}")
        numbers = {name: value for name, value in state.items() if name != "history"}
        for name, value in numbers.items():
            is_right = type(value) is type(getattr(self, name)) and math.isfinite(value)
            if not is_right or (type(value) is int and value < 0):
                raise ValueError(f"{name} is {value!r}")
        if numbers["batch"] > self.n_batches:
            raise ValueError(f"batch is {numbers['batch']} of {self.n_batches}")
        self.history = History.from_list(state["history"])
        for name, value in numbers.items():
            setattr(self, name, value)


def fit(
    session: TrainingSession,
    data: Dataset,
    recipe: Recipe,
    valid: Dataset | None = None,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train `session` on `data`, from where it is.

    With `checkpoints` the state is kept after every epoch, every so many steps, where a callback
    stops training, and at the end; `resume` goes on from there to the same bits.

    Raises
    ------
    UsageError
        If data do not fit the model.
    ArtifactError
        If a checkpoint cannot be written; those before are there.
    DivergedError
        If a loss or weight is no longer finite, in `MAX_SKIPPED` batches in a row or where the step
        cannot be undone; the last checkpoint is from before that. Fewer are left out: callbacks
        are told.
    """
    return _Run(session, data, recipe, valid, checkpoints, callbacks).run()


class _Run:
    """One call of `fit`."""

    def __init__(
        self,
        session: TrainingSession,
        data: Dataset,
        recipe: Recipe,
        valid: Dataset | None,
        checkpoints: Checkpoints | None,
        callbacks: Sequence[Callback],
    ) -> None:
        if data.y is None and session.takes_labels:
            raise UsageError(f"{data.source}: has no targets; expected an array named y beside x")
        self._session, self._data, self._recipe, self._valid = session, data, recipe, valid
        self._checkpoints, self._callbacks = checkpoints, callbacks
        self._progress = Progress(recipe.epochs, _n_batches(session, data), session)
        self._skipped = 0  # batches in a row
        self._normalization = adopt(recipe.normalization, session)

    def run(self) -> History:
        """All epochs that are left."""
        progress = self._progress
        self._go_on(self._session.notes.get(NOTES))
        for callback in self._callbacks:
            callback.on_train_begin(progress)
        while progress.epoch < progress.n_epochs and not progress.stop:
            self._epoch()
        for callback in self._callbacks:
            callback.on_train_end(progress)
        return progress.history

    def _epoch(self) -> None:
        progress, recipe = self._progress, self._recipe
        order = sampling.order(len(self._data), recipe.seed, progress.epoch, recipe.shuffle)
        while progress.batch < progress.n_batches and not progress.stop:
            self._step(sampling.batch(order, progress.batch, self._session.batch_size))
        if progress.batch == progress.n_batches:
            self._end_epoch()
        elif self._checkpoints is not None:
            self._checkpoints.save(self._session, self._notes())

    def _step(self, indices: NDArray[np.int64]) -> None:
        progress, start = self._progress, time.perf_counter()
        x = self._data.inputs(indices)
        for change in self._recipe.changes:
            assert isinstance(x, np.ndarray), "changes are for one input"
            random = sampling.randomness(self._recipe.seed, progress.epoch, progress.batch)
            x = change(x, random)
        x = prepared(x, self._normalization, self._session)
        rate = self._recipe.schedule(self._session.steps_done) if self._recipe.schedule else None
        try:
            found = self._session.scored_step(x, self._data.targets(indices), rate)
        except DivergedError as error:
            self._skip(error)
            return
        self._skipped = 0
        self._clip_weights()
        progress.loss = found.loss
        progress.loss_sum += found.loss * len(indices)
        progress.hits, progress.labels = progress.hits + found.hits, progress.labels + found.labels
        progress.samples += len(indices)
        progress.batch += 1
        progress.seconds += time.perf_counter() - start
        every = self._recipe.checkpoint_every
        if self._checkpoints is not None and every and self._session.steps_done % every == 0:
            self._checkpoints.save(self._session, self._notes())
        for callback in self._callbacks:
            callback.on_step_end(progress)

    def _skip(self, error: DivergedError) -> None:
        """Go on behind a batch that overflows, as trainers in mixed precision do."""
        self._skipped += 1
        if not error.is_undone or self._skipped == MAX_SKIPPED:
            raise error
        self._progress.batch += 1
        for callback in self._callbacks:
            callback.on_batch_skipped(self._progress, error)

    def _clip_weights(self) -> None:
        bound = self._recipe.clip_weights
        if bound is not None:
            self._session.clip_latents(bound)

    def _end_epoch(self) -> None:
        progress = self._progress
        valid = self._scores()
        epoch = Epoch(
            progress.epoch + 1,
            self._session.steps_done,
            progress.mean_loss,
            progress.accuracy,
            valid[0],
            valid[1],
            progress.images_per_s,
            progress.seen_bytes,
        )
        progress.history.epochs.append(epoch)
        if isinstance(self._recipe.schedule, Plateau):
            watched = epoch.loss if epoch.valid_loss is None else epoch.valid_loss
            self._recipe.schedule.observe(math.inf if watched is None else watched)
        for callback in self._callbacks:
            callback.on_epoch_end(progress, epoch)
        progress.begin_epoch()
        if self._checkpoints is not None:
            self._checkpoints.save(self._session, self._notes())
            if _is_best(progress.history):
                self._checkpoints.save_best(self._session, self._notes())

    def _scores(self) -> tuple[float | None, float | None]:
        if self._valid is None:
            return None, None
        scores = evaluate(self._session, self._valid, self._recipe.normalization)
        return scores.loss, scores.accuracy

    def _notes(self) -> dict[str, str]:
        """What goes into a checkpoint beside the session's own state."""
        schedule = self._recipe.schedule
        notes = {
            "progress": self._progress.state(),
            "recipe": self._recipe.identity(self._data, self._session.batch_size),
            "normalization": self._normalization._asdict(),
            "schedule": schedule.state() if isinstance(schedule, Plateau) else None,
        }
        return {NOTES: json.dumps(notes)}

    def _go_on(self, notes: str | None) -> None:
        """Go to where the session's checkpoint was taken; a session without stays at the start."""
        if notes is None:
            return
        found = read_notes(notes)
        expected = self._recipe.identity(self._data, self._session.batch_size)
        for name, value in expected.items():
            if found["recipe"].get(name) != value:
                raise UsageError(
                    f"the checkpoint was trained with {name} {found['recipe'].get(name)}, now it "
                    f"is {value}; go on with the same, or start anew without --resume"
                )
        try:
            self._progress.restore(found["progress"])
            if isinstance(self._recipe.schedule, Plateau) and found["schedule"] is not None:
                self._recipe.schedule.restore(found["schedule"])
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ArtifactError(f"{_DAMAGED}: {error}") from None


def as_dataset(data: Dataset | tuple[ArrayLike, ArrayLike], what: str) -> Dataset:
    """Arrays (x, y) as a data set; a data set as it is.

    Raises
    ------
    UsageError
        If it is neither, or the arrays do not fit together.
    """
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, tuple) or len(data) != 2:
        raise UsageError(f"{what} is {type(data).__name__}, expected (x, y) or a Dataset")
    x, y = (as_array(part, what) for part in data)
    return from_arrays({"x": x, "y": y}, what)


def read_notes(text: str) -> dict[str, Any]:
    """What `fit` wrote into a checkpoint.

    Raises
    ------
    ArtifactError
        If it is not that.
    """
    try:
        found = json.loads(text)
        Normalization.from_fields(found["normalization"])
        if all(isinstance(found[name], dict) for name in ("progress", "recipe")):
            return {"schedule": None, **found}
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise ArtifactError(_DAMAGED)


def left_out(session: TrainingSession, data: Dataset) -> int:
    """Samples that each epoch goes without: those of a last batch that is too small to learn from.

    Too small is one that something ties to its full size, or one sample before a batch norm over
    samples. Another order leaves out others.
    """
    rest = len(data) % session.batch_size
    return rest if rest < session.least_training_batch else 0


def _n_batches(session: TrainingSession, data: Dataset) -> int:
    """Batches of an epoch: the last may be smaller, but not too small; see `left_out`.

    Raises
    ------
    UsageError
        If there is none.
    """
    n_batches = -(-(len(data) - left_out(session, data)) // session.batch_size)
    if not n_batches:
        least = session.least_training_batch
        raise UsageError(
            f"{data.source}: has {len(data)} samples, expected {least} or more; "
            "optimize with a smaller --batch-size"
        )
    return n_batches


def _is_best(history: History) -> bool:
    """Whether the last epoch has the lowest validation loss of all."""
    losses = history["valid_loss"]
    return losses[-1] is not None and losses[-1] == min(x for x in losses if x is not None)
