"""The search: the model proposes, the plan of what it proposes decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnnopt.analysis import buffers, kept_values
from bnnopt.compiler.budget.choices import (
    Axis,
    Trial,
    Trials,
    leaving,
    left_names,
    loss_of,
)
from bnnopt.compiler.budget.model import cheapest, is_available, smallest
from bnnopt.errors import BudgetError, UsageError
from bnnopt.passes import Pass, by_loss
from bnnopt.report.spending import Point, Spending, frontier
from bnnopt.units import size

N_ROUNDS = 12  # of model and plan
NEARLY = 1.02  # of a budget
LIMIT_S = 12.0  # seconds after which nothing new is tried
Say = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What may be chosen among.

    Attributes
    ----------
    passes : sequence of Pass
        All that may run.
    n_bytes : int
        The budget.
    may_run_none : bool
        Whether no pass at all is a choice; else all of `passes` run that are lossless.
    """

    passes: Sequence[Pass]
    n_bytes: int
    may_run_none: bool = True

    def holds(self, point: Point) -> bool:
        """Whether the plan of a choice fits, and the process beside it."""
        return point.needed_bytes <= self.n_bytes

    def for_plan(self, trial: Trial) -> int:
        """What is left for the plan of a choice like this one."""
        return self.n_bytes - trial.point.process_bytes


def fit_budget(trials: Trials, budget: Budget, say: Say, exact: bool | None = None) -> Spending:
    """The least lossy choice whose plan fits, and of these the fastest.

    Parameters
    ----------
    trials : Trials
        Of the reference.
    budget : Budget
        What may be chosen.
    say : callable
        Called with a line about what comes next.
    exact : bool, optional
        Whether to solve; if not given, where the solver is installed.

    Raises
    ------
    BudgetError
        If nothing fits, with the smallest figure.
    """
    started = time.monotonic()
    asked = f"--budget {size(budget.n_bytes)}"
    exact = is_available() if exact is None else exact
    if budget.may_run_none and budget.holds(trials(()).point):
        chosen = trials(())
        if exact:
            trials([p for p in budget.passes if p.lossless])  # the next smaller one
    else:
        chosen = _greedy(trials, budget, say)
        for improve in (_least_lossy, _fastest) if exact else ():
            if not _is_late(started):
                improve(trials, budget, chosen, say, started)
                chosen = trials.best(budget.n_bytes)
    solver = "highs" if exact else "greedy"
    seconds = time.monotonic() - started
    return Spending(solver, asked, chosen.point, tuple(frontier(trials.points)), seconds)


def _is_late(started: float, share: float = 1.0) -> bool:
    return time.monotonic() - started >= share * LIMIT_S


def _greedy(trials: Trials, budget: Budget, say: Say) -> Trial:
    """The first set that fits, each lossier than the one before; found by halving."""
    least = trials(budget.passes)
    if not budget.holds(least.point):
        return _nearly(trials, budget, least)
    active = set(least.point.lossy)
    sets = by_loss([p for p in budget.passes if p.lossless or p.name in active])
    low, high = 0, len(sets) - 1
    while low < high:
        middle = (low + high) // 2
        say(f"trying {len(sets[middle])} passes")
        if budget.holds(trials(sets[middle]).point):
            high = middle
        else:
            low = middle + 1
    found = trials(sets[high])
    return found if budget.holds(found.point) else least


def _nearly(trials: Trials, budget: Budget, all_of: Trial) -> Trial:
    """Where all passes miss the budget by little: leave out one after the other, until it fits.

    A pass may cost some bytes of scratch memory at another peak than its own, or in the process.
    """
    left, least = list(budget.passes), all_of
    while least.point.needed_bytes <= NEARLY * budget.n_bytes:
        sets = [[p for p in left if p.name != name] for name in least.point.lossy]
        if not sets:
            break
        left = min(sets, key=lambda passes: trials(passes).point.needed_bytes)
        if trials(left).point.needed_bytes >= least.point.needed_bytes:
            break
        least = trials(left)
        if budget.holds(least.point):
            return least
    raise _nothing_fits(trials, budget)


def _nothing_fits(trials: Trials, budget: Budget) -> BudgetError:
    least = min(trials.points, key=lambda point: point.needed_bytes)
    return BudgetError(beyond(budget.n_bytes, least.peak_bytes, least.process_bytes))


def beyond(budget: int, plan: int, process: int) -> str:
    """What to say where the smallest plan, with the process beside it, does not fit."""
    needed = plan + process
    return (
        f"--budget {size(budget)}: the smallest plan needs {size(needed, up=True)} "
        f"({size(plan)} + {size(process)} for the process), {size(needed - budget)} too much; "
        "take a smaller --batch-size, or --allow-batch"
    )


def _least_lossy(trials: Trials, budget: Budget, greedy: Trial, say: Say, started: float) -> None:
    """Try the cheapest sets of lossy passes, until one fits.

    Among those that cost less than the greedy answer. What one saves is what the plan of all needs
    more without it, at each node: less than it saves alone, so that what the model excludes does
    not fit. Where there is no time left to find out, it is taken for nothing.
    """
    lossless = [p for p in budget.passes if p.lossless]
    pool = [p for p in budget.passes if not p.lossless and loss_of(p) < greedy.point.loss]
    pool = [p for p in pool if p.name in trials(budget.passes).point.lossy]
    all_of = trials([*lossless, *pool])
    if not budget.holds(all_of.point):  # one of them costs memory: see `_nearly`
        pool, all_of = [p for p in pool if p.name in greedy.point.lossy], greedy
    if not pool:
        return
    axis = Axis(all_of.step)
    base = axis.bytes_alive(all_of)
    extra = np.zeros((len(pool), axis.length))
    for i, left_out in enumerate(pool):
        if not _is_late(started, 0.5):
            say(f"trying without {left_out.name}")
            trial = trials([*lossless, *(p for p in pool if p is not left_out)])
            extra[i] = np.maximum(axis.bytes_alive(trial) - base, 0)
    prices = np.array([loss_of(p) for p in pool])
    base -= _slack(base, all_of)
    in_vain: list[set[int]] = []
    while len(in_vain) < N_ROUNDS and not _is_late(started):
        found = cheapest(prices, base, extra, budget.for_plan(all_of), in_vain)
        if found is None:
            return
        say(f"trying {len(found)} lossy passes")
        trial = trials([*lossless, *(pool[i] for i in found)])
        if budget.holds(trial.point):
            return
        in_vain.append(set(found))


def _slack(base: NDArray[np.float64], trial: Trial) -> float:
    """By how much the axis overstates the peak."""
    return max(float(base.max()) - trial.point.peak_bytes, 0.0)


def _fastest(trials: Trials, budget: Budget, known: Trial, say: Say, started: float) -> None:
    """Try versions of the same loss class that compute less twice, until one fits."""
    model = _Values.of(trials, known)
    if model is None:
        return
    room = float(budget.for_plan(known))
    in_vain: list[set[int]] = []
    while len(in_vain) < N_ROUNDS and not _is_late(started):
        found = cheapest(model.prices, model.base, model.extra, room, in_vain)
        if found is None:
            return
        say(f"trying to keep {len(model.names) - len(found)} values")
        over = trials(model.passes(found)).point.needed_bytes - budget.n_bytes
        if over <= 0:
            return
        in_vain.append(set(found))
        room -= over / 2  # fragments of the arena, which the model does not see


def fit_time(trials: Trials, passes: Sequence[Pass], factor: float, say: Say) -> Spending:
    """The smallest plan of a step that takes at most `factor` times the fastest one's time.

    Raises
    ------
    UsageError
        If the solver is not installed, or no step is as fast.
    """
    started = time.monotonic()
    if not is_available():
        raise UsageError("--time-budget: needs a solver; pip install 'bnnopt[budget]'")
    known = trials(passes)
    model = _Values.of(trials, known)
    if model is not None and known.point.time > factor:
        beside = (known.point.time - 1) * trials.least_time - float(model.prices.sum())
        limit = max((factor - 1) * trials.least_time - beside, 0.0)
        while known.point.time > factor + 1e-6 and not _is_late(started):
            found = smallest(model.prices, model.base, model.extra, limit)
            say(f"keeping {len(model.names) - len(found)} values")
            known = trials(model.passes(found))
            if limit == 0:
                break
            limit = max(limit - (known.point.time - factor) * trials.least_time, 0.0)
    if known.point.time > factor + 1e-6:
        raise UsageError(
            f"--time-budget {factor:g}: the passes take {known.point.time:.3f} of the fastest "
            "step's time; give a larger one, or --disable passes"
        )
    asked = f"--time-budget {factor:g}"
    points = tuple(frontier(trials.points))
    return Spending("highs", asked, known.point, points, time.monotonic() - started)


@dataclass(frozen=True)
class _Values:
    """Value by value: what keeping it costs in bytes, and not keeping it in time."""

    names: list[str]
    prices: NDArray[np.float64]
    base: NDArray[np.float64]
    extra: NDArray[np.float64]
    known: Trial

    @classmethod
    def of(cls, trials: Trials, known: Trial) -> _Values | None:
        """The model around a choice; None where no value is computed twice."""
        passes = known.point.passes
        every = [str(v.name) for node in trials.reference.graph for v in node.outputs if v.name]
        kept = trials(leaving(passes, every))
        names = left_names(kept)
        spans = _spans(kept, names)
        if not names:
            return None
        axis = Axis(known.step)
        base = axis.bytes_alive(known)
        places = axis.positions(kept.step)
        extra = np.zeros((len(names), axis.length))
        for row, name in zip(extra, names, strict=True):
            n_bytes, first, last = spans.get(name, (0, 0, 0))  # nobody reads it late
            row[places[first] : places[last] + 1] = n_bytes
        used = {p.name for p in passes}
        own = {f"{name}.bitmap" for name in names if f"{name}.bitmap" in _kept(known)}
        prices = np.array([max(trials.cost_of(name, used, own), 1e-9) for name in names])
        base -= _slack(base, known)
        return cls(names, prices, base, extra, known)

    def passes(self, saved: Sequence[int]) -> tuple[Pass, ...]:
        """The passes that keep all values but those with these numbers."""
        names = [name for i, name in enumerate(self.names) if i not in set(saved)]
        return leaving(self.known.point.passes, names)


def _kept(trial: Trial) -> set[str]:
    return {str(v.name) for v in trial.plan.offsets}


def _spans(trial: Trial, names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Bytes, first and last node of the values that are kept because they were left."""
    kept = {str(value.name) for value in kept_values(trial.step)}
    wanted = set(names) & kept
    last = len(trial.step.graph) - 1
    return {
        str(value.name): (buffer.n_bytes, max(buffer.first, 0), min(buffer.last, last))
        for buffer in buffers(trial.step)
        for value in buffer.values
        if value.name in wanted
    }
