"""What keeps a training step from leaving a state that is not finite, or half of one.

Weights are updated as soon as their gradient is there, so a step that breaks off in between has
changed some of them and not others. A copy of everything would be safe, and would cost what the
memory plan saves. So there are three lines of defence:

1. Before the first weight changes, the loss and the running statistics are known. If one of them is
   NaN or infinite, or the step is interrupted until then, the statistics (a copy of them is small)
   are put back, and nothing has changed.
2. If the batch, the rate, the loss or a statistic is then larger than training has any use for, or
   a channel varies far less than it did (black images: batch norm divides the gradient by that),
   weights and state are copied before the first of them changes, and put back if need be.
3. Otherwise an update says that it is NaN or infinite, and, as after an interruption, the step is
   half done: the session goes on from a checkpoint only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bnnopt.errors import DivergedError
from bnnopt.runtime.executor import Array
from bnnopt.runtime.format import Program, statistics, training_norms, updating_steps

FLOAT32 = np.dtype(np.float32)
Feeds = Mapping[str, tuple[Array, ...]]

# What makes a step suspicious: a root mean square of a batch, a learning rate, a magnitude of the
# loss, a norm of running statistics. Trained networks stay below by orders of magnitude.
LARGE_INPUT, LARGE_RATE, LARGE_LOSS, LARGE_STATISTIC = 1e4, 0.5, 1e6, 1e9
COLLAPSE = 1e-2  # and a standard deviation of a channel, as a share of its running one
BLOCK = 1 << 16  # elements that are looked through at once


class Guard:
    """Watches the steps of one session.

    Parameters
    ----------
    program : Program
        The training step.
    persistent : mapping of str to ndarray
        Weights, statistics and state; updated in place by the steps.
    always : bool
        Copy all of them before each step.

    Attributes
    ----------
    is_whole : bool
        Whether the state is that of before a step or of after one.
    first_update : int
        Position of the first step that changes a weight or a state of an optimiser; the number of
        steps if none does.
    """

    def __init__(
        self, program: Program, persistent: Mapping[str, Array], always: bool = False
    ) -> None:
        self.is_whole, self._always = True, always
        self._persistent = persistent
        self.first_update = min(updating_steps(program), default=len(program.steps))
        self._loss = next(
            (program.outputs[0] for s in program.steps[: self.first_update]
             if program.outputs[0] in s.outputs), None
        )  # fmt: skip
        self._statistics = sorted(statistics(program))
        self._flat_statistics = [persistent[name].reshape(-1) for name in self._statistics]
        self._deviations = _deviations(program, self.first_update)
        self._kept: list[tuple[Array, Array]] = []  # a buffer, and what it held before the step
        self._spare: list[Array] = []  # where the step before kept the others, if it kept them
        self._feeds: Feeds = {}
        self._last_loss = 0.0
        self._is_untouched = True

    def begin(self, feeds: Feeds) -> None:
        """Before a step."""
        self.is_whole, self._is_untouched, self._feeds = False, True, feeds
        self._kept = [(array, array.copy()) for array in self._flat_statistics]

    def before_updates(self, values: Sequence[Array]) -> None:
        """Before the first update, with the values of the program so far.

        Raises
        ------
        DivergedError
            If the loss or a running statistic is NaN or infinite.
        """
        if self._loss is not None:
            self.check_loss(float(values[self._loss].reshape(-1)[0]))
        with np.errstate(all="ignore"):
            total = sum(map(_square, self._flat_statistics))
            collapses = any(_collapses(values[i], values[j]) for i, j in self._deviations)
        if not total <= LARGE_STATISTIC**2:  # a sum keeps NaN, wherever it is
            self.check_finite(self._statistics)
            self._keep_others()
        elif collapses:
            self._keep_others()
        self.before_all()

    def before_all(self) -> None:
        """Before the first update, where only the batch and the rate of this step are known."""
        if not self._keeps_all and self._is_suspicious():
            self._keep_others()
        self._is_untouched = False

    def end(self) -> None:
        """After a step."""
        self.is_whole = True
        self._forget()

    def undo(self) -> None:
        """Put back what is kept; the state is whole if that is all that has changed."""
        for array, before in self._kept:
            np.copyto(array, before)
        self.is_whole = self._is_untouched or self._keeps_all
        self._forget()

    def check_loss(self, loss: float) -> None:
        """Look at the loss of this step.

        Raises
        ------
        DivergedError
            If it is NaN or infinite.
        """
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss}")
        self._last_loss = loss

    def check_finite(self, names: Iterable[str] | None = None) -> None:
        """Look through these buffers, or all: statistics first, as they go wrong first.

        Raises
        ------
        DivergedError
            Naming the first that holds NaN or infinity.
        """
        everything = dict.fromkeys([*self._statistics, *self._persistent])
        for name in everything if names is None else names:
            if not is_finite(self._persistent[name]):
                raise DivergedError(f"{name!r} is not finite")

    @property
    def _keeps_all(self) -> bool:
        return len(self._kept) == len(self._persistent)

    def _keep_others(self) -> None:
        others = [array for name, array in self._persistent.items() if name not in self._statistics]
        self._spare = self._spare or [np.empty_like(array) for array in others]
        for array, before in zip(others, self._spare, strict=True):
            np.copyto(before, array)
        self._kept += zip(others, self._spare, strict=True)

    def _forget(self) -> None:
        if not self._keeps_all:
            self._spare = []
        self._kept, self._feeds = [], {}

    def _is_suspicious(self) -> bool:
        rates, data = self._feeds.get("rate", ()), self._feeds.get("data", ())
        if (
            self._always
            or abs(self._last_loss) > LARGE_LOSS
            or any(float(rate) > LARGE_RATE for rate in rates)
        ):
            return True
        with np.errstate(all="ignore"):
            return any(not _square(array) <= LARGE_INPUT**2 * array.size for array in data)


def _deviations(program: Program, end: int) -> list[tuple[int, int]]:
    """Running variances, and the inverse deviations of the batch that are still there at `end`.

    A batch norm gives its inverse deviation last of what it gives by channel.
    """
    read_later = {i for step in program.steps[end:] for i in step.inputs}
    found = []
    for step in training_norms(program):
        outputs = [i for i in step.outputs if i >= 0]
        var = [i for i in outputs if program.values[i].place == "persistent"][-1]
        inverse = [
            i for i in outputs if i in read_later
            and (program.values[i].dtype, program.values[i].shape)
            == (program.values[var].dtype, program.values[var].shape)
        ]  # fmt: skip
        found += [(var, inverse[-1])] if inverse else []
    return found


def _collapses(running_var: Array, inverse_deviation: Array) -> bool:
    """Whether a channel does; the caller lets numpy say nothing of an overflow."""
    quotients = np.square(inverse_deviation) * running_var
    return not float(quotients.max()) <= COLLAPSE**-2  # NaN too


def is_finite(array: Array) -> bool:
    """Whether an array holds neither NaN nor infinity, without a copy of it.

    The square of a wide one says so first; a narrow one is looked through block by block.
    """
    if array.dtype.kind != "f":
        return True
    if array.dtype.itemsize < FLOAT32.itemsize:
        flat = array.reshape(-1)
        starts = range(0, flat.size, BLOCK)
        return all(bool(np.isfinite(flat[i : i + BLOCK]).all()) for i in starts)
    with np.errstate(all="ignore"):
        return math.isfinite(_square(array)) or bool(np.isfinite(array).all())


def _square(array: Array) -> float:
    """The sum of the squares of floats; infinite where it overflows, 0.0 of other types.

    BLAS works it out, without a copy; the caller lets numpy say nothing of an overflow.
    """
    if array.dtype.kind != "f":
        return 0.0
    flat = array.reshape(-1)
    if array.dtype.itemsize < FLOAT32.itemsize:
        flat = flat.astype(FLOAT32)
    return float(flat.dot(flat))
