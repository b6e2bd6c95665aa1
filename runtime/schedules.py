"""Learning rates over time: what to hand to `TrainingSession.step` as `lr`.

`Constant`, `StepDecay` and `Cosine` are functions of the step alone, so a resumed run that hands
them `session.steps_done` goes on as it would have. `Plateau` watches a loss; `state` and `restore`
carry it over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnnopt.errors import UsageError


def _check(name: str, value: float, fits: bool, expected: str) -> None:
    if not (math.isfinite(value) and fits):
        raise UsageError(f"schedule: {name} is {value!r}, expected {expected}")


@dataclass(frozen=True)
class Constant:
    """The same rate in every step.

    Examples
    --------
    >>> Constant(1e-3)(100)
    0.001
    """

    rate: float

    def __post_init__(self) -> None:
        _check("rate", self.rate, self.rate >= 0, "a finite number, 0 or more")

    def __call__(self, step: int) -> float:
        """The rate of step `step`, 0 at the first."""
        return self.rate


@dataclass(frozen=True)
class StepDecay:
    """rate * factor^(step // every): a cut every so many steps.

    Examples
    --------
    >>> [StepDecay(0.1, every=10, factor=0.5)(step) for step in (0, 9, 10, 25)]
    [0.1, 0.1, 0.05, 0.025]
    """

    rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check("rate", self.rate, self.rate >= 0, "a finite number, 0 or more")
        _check("every", self.every, self.every >= 1, "1 step or more")
        _check("factor", self.factor, 0 < self.factor <= 1, "above 0, at most 1")

    def __call__(self, step: int) -> float:
        """The rate of step `step`, 0 at the first."""
        return self.rate * self.factor ** (step // self.every)


@dataclass(frozen=True)
class Warmup:
    """Rises linearly to the first rate of another schedule in `steps` steps, then follows it.

    Examples
    --------
    >>> [round(Warmup(Constant(0.3), steps=2)(step), 6) for step in range(3)]
    [0.1, 0.2, 0.3]
    """

    then: Callable[[int], float]
    steps: int

    def __post_init__(self) -> None:
        _check("steps", self.steps, self.steps >= 0, "0 or more")

    def __call__(self, step: int) -> float:
        """The rate of step `step`, 0 at the first."""
        if step < self.steps:
            return self.then(0) * (step + 1) / (self.steps + 1)
        return self.then(step - self.steps)


@dataclass(frozen=True)
class Cosine:
    """From `rate` at step 0 to `final` at step `steps` along half a cosine; `final` from then on.

    With `warmup` it first rises linearly, in so many steps. Source: Loshchilov and Hutter,
    arXiv:1608.03983, equation 5 without restarts.

    Examples
    --------
    >>> [round(Cosine(1.0, steps=4)(step), 3) for step in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    rate: float
    steps: int
    final: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        _check("rate", self.rate, self.rate >= 0, "a finite number, 0 or more")
        _check("final", self.final, 0 <= self.final <= self.rate, f"0 to {self.rate:g}")
        _check("steps", self.steps, self.steps >= 1, "1 or more")
        _check("warmup", self.warmup, 0 <= self.warmup < self.steps, f"0 to {self.steps - 1}")

    def __call__(self, step: int) -> float:
        """The rate of step `step`, 0 at the first."""
        if step < self.warmup:
            return self.rate * (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return self.final + (self.rate - self.final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class Plateau:
    """Times `factor` when the loss has not become lower for `patience` observations.

    Wang et al., arXiv:2102.04270, halve the rate after 50 epochs without progress. Lower means by
    more than `threshold`, relative to the best so far.

    Examples
    --------
    >>> schedule = Plateau(0.1, patience=2)
    >>> [schedule.observe(loss) for loss in (1.0, 0.9, 0.9, 0.9, 0.9)]
    [0.1, 0.1, 0.1, 0.05, 0.05]
    """

    rate: float
    patience: int = 50
    factor: float = 0.5
    least: float = 0.0
    threshold: float = 1e-4
    best: float = field(default=math.inf, init=False)
    waited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _check("rate", self.rate, self.rate >= 0, "a finite number, 0 or more")
        _check("patience", self.patience, self.patience >= 1, "1 or more")
        _check("factor", self.factor, 0 < self.factor < 1, "between 0 and 1")
        _check("least", self.least, 0 <= self.least <= self.rate, f"0 to {self.rate:g}")
        _check("threshold", self.threshold, 0 <= self.threshold < 1, "0 to below 1")

    def __call__(self, step: int) -> float:
        """The rate now; it depends on what was observed, not on `step`."""
        return self.rate

    def observe(self, loss: float) -> float:
        """Take down a loss, usually an epoch's mean, and return the rate from here on.

        A loss that is not a number is no progress.
        """
        if loss < self.best - self.threshold * abs(self.best) or self.best == math.inf > loss:
            self.best, self.waited = loss, 0
            return self.rate
        self.waited += 1
        if self.waited >= self.patience:
            self.rate, self.waited = max(self.least, self.rate * self.factor), 0
        return self.rate

    def state(self) -> dict[str, float]:
        """What `restore` needs to go on."""
        return {"rate": self.rate, "best": self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.rate, self.best = float(state["rate"]), float(state["best"])
        self.waited = int(state["waited"])
