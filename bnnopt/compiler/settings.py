"""The options of ``bnnopt optimize``: their defaults, their types, and what is no option."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, TypedDict

from bnnopt.autodiff import LOSSES, OPTIMIZERS, Bop, LossOptions
from bnnopt.errors import UsageError, did_you_mean
from bnnopt.passes import Pass, select

LOSS_NAMES = (*LOSSES, "none")
SIGN_ZEROS = ("+1", "keep")
N_SEEDS = 1 << 32  # of the hash behind dropout


@dataclass(frozen=True)
class Settings:
    """The options of ``bnnopt optimize``; see `bnnopt.optimize`."""

    batch_size: int | None = None
    level: str = "O1"
    loss: str | None = None
    label_smoothing: float = 0.0
    class_weights: Sequence[float] = ()
    ignore_index: int | None = None
    optimizer: str | None = None
    momentum: float = 0.9
    gamma: float = Bop.gamma
    tau: float = Bop.tau
    learning_rate: float | None = None
    freeze: Sequence[str] = ()
    train: Sequence[str] = ()
    last: int | None = None
    ste: Sequence[str] = ()
    sign_zero: str | None = None
    passes: Sequence[str] = ()
    disable: Sequence[str] = ()
    enable: Sequence[str] = ()
    budget_bytes: int | None = None
    seed: int = 0
    calibrate: str | None = None
    prune_stored: float | None = None
    prune_weights: float | None = None
    prune_end: int = 1000

    @property
    def loss_options(self) -> LossOptions:
        """What changes a cross-entropy."""
        weights = tuple(self.class_weights)
        return LossOptions(self.label_smoothing, weights, self.ignore_index)

    def selected(self, level: str) -> list[Pass]:
        """The passes of a level, but for those that are named, left out or added."""
        stored = self.prune_stored
        also = [] if stored is None else [f"prune-stored{{sparsity={stored}}}"]
        return select(level, self.passes, self.disable, [*self.enable, *also])


class Options(TypedDict, total=False):
    """The fields of `Settings` by name, so that an editor shows them and a checker checks them.

    A lone text stands for a sequence of one. A test holds the two together.
    """

    batch_size: int | None
    level: str
    loss: str | None
    label_smoothing: float
    class_weights: Sequence[float]
    ignore_index: int | None
    optimizer: str | None
    momentum: float
    gamma: float
    tau: float
    learning_rate: float | None
    freeze: Sequence[str]
    train: Sequence[str]
    last: int | None
    ste: Sequence[str]
    sign_zero: str | None
    passes: Sequence[str]
    disable: Sequence[str]
    enable: Sequence[str]
    budget_bytes: int | None
    seed: int
    calibrate: str | None
    prune_stored: float | None
    prune_weights: float | None
    prune_end: int


def with_options(settings: Settings, options: Mapping[str, object]) -> Settings:
    """The settings with `options` in place, each of the right type.

    Raises
    ------
    UsageError
        If there is no such option, or it takes something else.
    """
    types = {entry.name: str(entry.type) for entry in fields(Settings)}
    changes: dict[str, Any] = {}
    for name, value in options.items():
        if name not in types:
            hint = did_you_mean(name, types) or f"; expected one of {', '.join(types)}"
            raise UsageError(f"optimize: there is no option {name!r}{hint}")
        changes[name] = _converted(name, value, types[name])
    return replace(settings, **changes)


def _converted(name: str, value: object, expected: str) -> object:
    """A value of the type that `Settings` declares; a lone text stands for a sequence of one."""
    if value is None and "None" in expected:
        return None
    if expected == "Sequence[str]":
        values = (value,) if isinstance(value, str) else value
        if isinstance(values, Sequence) and all(isinstance(v, str) for v in values):
            return tuple(values)
    elif expected == "Sequence[float]":
        if isinstance(value, Sequence) and all(isinstance(v, Real) for v in value):
            return tuple(map(float, value))
    elif isinstance(value, bool):
        pass  # is an int to Python, but no number of anything
    elif expected.startswith("int") and isinstance(value, Integral):
        return int(value)
    elif expected.startswith("float") and isinstance(value, Real):
        return float(value)
    elif expected.startswith("str") and isinstance(value, str):
        return value
    raise UsageError(f"optimize: {name} is {value!r}, expected {expected}")


def check(settings: Settings) -> None:
    """Refuse what makes no sense.

    Raises
    ------
    UsageError
        Naming the option, as the command line does.
    """
    choices = {
        "--loss": (settings.loss, LOSS_NAMES),
        "--optimizer": (settings.optimizer, OPTIMIZERS),
        "--sign-zero": (settings.sign_zero, SIGN_ZEROS),
    }
    for option, (found, expected) in choices.items():
        if found is not None and found not in expected:
            hint = did_you_mean(found, expected)
            raise UsageError(f"{option} {found}: expected {', '.join(expected)}{hint}")
    if not (0 < settings.gamma <= 1 and 0 <= settings.tau < math.inf):
        raise UsageError(
            f"--gamma {settings.gamma}, --tau {settings.tau}: expected above 0 to 1, and 0 or more"
        )
    if not 0 <= settings.label_smoothing < 1:
        raise UsageError(
            f"--label-smoothing {settings.label_smoothing}: expected a number from 0 to below 1"
        )
    if not all(0 <= weight < math.inf for weight in settings.class_weights):
        raise UsageError(
            f"--class-weights {','.join(map(str, settings.class_weights))}: expected numbers of 0 "
            "or more"
        )
    if not 0 <= settings.momentum < 1:
        raise UsageError(f"--momentum {settings.momentum}: expected a number from 0 to below 1")
    rate = settings.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"--lr {rate}: expected a number above 0")
    stored = settings.prune_stored
    if stored is not None and not 0 < stored < 1:
        raise UsageError(f"--prune-stored {stored}: expected a number between 0 and 1")
    if settings.prune_weights is not None and not 0 < settings.prune_weights < 1:
        raise UsageError(
            f"--prune-weights {settings.prune_weights}: expected a number between 0 and 1"
        )
    if settings.prune_end < 1:
        raise UsageError(f"--prune-end {settings.prune_end}: expected a number of steps")
    if not 0 <= settings.seed < N_SEEDS:
        raise UsageError(f"--seed {settings.seed}: expected a number from 0 to {N_SEEDS - 1}")
    settings.selected(settings.level)
