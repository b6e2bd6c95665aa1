"""The contract of a pass, and what it reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, NoReturn, Self

import onnx_ir as ir

from bnnopt.errors import UsageError, did_you_mean
from bnnopt.passes.infra.spec import read_option, write_spec
from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class Skip:
    """Why a pass left something as it was, or what it chose: the node or value, and the reason."""

    node: str
    reason: str


@dataclass
class Trace:
    """What a pass did not do, and why; and what it chose where there was a choice."""

    skipped: list[Skip] = field(default_factory=list)
    chosen: list[Skip] = field(default_factory=list)

    def skip(self, what: ir.Node | ir.Value, reason: str) -> int:
        """Record that `what` was left alone; the result is the number of rewrites, 0."""
        self.skipped.append(Skip(str(what.name), reason))
        return 0

    def choose(self, what: ir.Value, reason: str) -> None:
        """Record what the choice for a value was made by: the bytes of each way to keep it."""
        self.chosen.append(Skip(str(what.name), reason))


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of the training step. Subclasses are frozen; their fields are their options.

    Attributes
    ----------
    name : str
        As on the command line; the file, the class and the test share it.
    level : int or None
        The lowest ``-O`` level that includes it; None where it has to be named.
    after : mapping of str to str
        The passes that run before it where both run, and what it needs of each.
    lossless : bool
        Whether loss, gradients and updates stay bit-equal on the same kernels.
    min_cosine : float
        The bound of a lossy pass, with the options that it has: the least cosine between the
        gradient of a parameter with the pass and without it, from the same weights on the same
        batch. 1 where gradients stay as they are (up to rounding) and only the update differs.
    changes_storage : bool
        Whether weights and optimiser state may be stored in another type, and state dropped or
        added.
    changes_function : bool
        Whether the network computes another function with it: then the reference is changed in the
        same way before it is compared, and `min_cosine` says nothing about the difference.
    maps_kernels : bool
        Whether it chooses kernels that round in their own way: then the reference is mapped to the
        same kernels before it is compared.
    """

    name: ClassVar[str]
    level: ClassVar[int | None] = 1
    after: ClassVar[Mapping[str, str]] = {}
    lossless: ClassVar[bool] = True
    changes_storage: ClassVar[bool] = False
    changes_function: ClassVar[bool] = False
    maps_kernels: ClassVar[bool] = False

    @abstractmethod
    def run(self, step: TrainingStep, trace: Trace) -> int:
        """Rewrite `step` and return the number of rewrites; 0 means that it is untouched."""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (type(self).__doc__ or "").strip().splitlines()[0]

    @property
    def min_cosine(self) -> float:
        """See the class."""
        return 1.0

    @property
    def spec(self) -> str:
        """Its name and all its options, as the command line takes them."""
        return write_spec(self.name, asdict(self))

    def configured(self, options: Mapping[str, str]) -> Self:
        """The pass with options as a spec has them.

        Raises
        ------
        UsageError
            If there is no such option, or it takes something else.
        """
        own, changes = asdict(self), dict[str, Any]()
        for option, text in options.items():
            if option not in own:
                hint = did_you_mean(option, own) or f"; expected {', '.join(own) or 'none'}"
                raise UsageError(f"pass {self.name} has no option {option!r}{hint}")
            try:
                changes[option] = read_option(text, own[option])
            except ValueError:
                kind = type(own[option]).__name__
                self.refuse(option, text, {"bool": "true or false"}.get(kind, f"a number ({kind})"))
        return replace(self, **changes)

    def refuse(self, option: str, found: object, expected: str) -> NoReturn:
        """Say that an option has a value that makes no sense."""
        raise UsageError(f"pass {self.name}: {option} is {found}, expected {expected}")

    @property
    def numbers(self) -> str:
        """What it does to the numbers, in a few words."""
        if self.lossless:
            return "bit-equal"
        return (
            "another function" if self.changes_function else f"lossy, cos >= {self.min_cosine:.3g}"
        )
