"""The contract of a pass, and what it reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

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
    level : int
        The lowest ``-O`` level that includes it.
    lossless : bool
        Whether loss, gradients and updates stay bit-equal on the same kernels.
    min_cosine : float
        The bound of a lossy pass: the least cosine between the gradient of a parameter with the
        pass and without it, from the same weights on the same batch. 1 where gradients stay as they
        are (up to rounding) and only the update differs.
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
    level: ClassVar[int] = 1
    lossless: ClassVar[bool] = True
    min_cosine: ClassVar[float] = 1.0
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
    def bound(self) -> float:
        """`min_cosine` as the options have it."""
        return self.min_cosine

    @property
    def numbers(self) -> str:
        """What it does to the numbers, in a few words."""
        if self.lossless:
            return "bit-equal"
        return "another function" if self.changes_function else f"lossy, cos >= {self.bound:g}"
