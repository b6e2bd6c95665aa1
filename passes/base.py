"""The contract of a pass, and what it reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class Skip:
    """Why a pass left something as it was: the node or value, and the reason."""

    node: str
    reason: str


@dataclass
class Trace:
    """What a pass did not do, and why."""

    skipped: list[Skip] = field(default_factory=list)

    def skip(self, what: ir.Node | ir.Value, reason: str) -> int:
        """Record that `what` was left alone; the result is the number of rewrites, 0."""
        self.skipped.append(Skip(str(what.name), reason))
        return 0


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
    maps_kernels : bool
        Whether it chooses kernels that round in their own way: then the reference is mapped to the
        same kernels before it is compared.
    """

    name: ClassVar[str]
    level: ClassVar[int] = 1
    lossless: ClassVar[bool] = True
    maps_kernels: ClassVar[bool] = False

    @abstractmethod
    def run(self, step: TrainingStep, trace: Trace) -> int:
        """Rewrite `step` and return the number of rewrites; 0 means that it is untouched."""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (type(self).__doc__ or "").strip().splitlines()[0]
