"""What ``optimize`` found: the JSON contract, and the same as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bnnopt.frontend import Binarized
from bnnopt.passes import PassRecord
from bnnopt.plan import MemoryPlan
from bnnopt.report.spending import Spending
from bnnopt.report.static_sum import StaticSum
from bnnopt.units import size

SCHEMA = 1
_BASELINE = ("peak_bytes", "saved_bytes", "classes", "types")


@dataclass(frozen=True)
class Footprint:
    """Planned bytes of one version of the step; see `MemoryPlan`."""

    peak_bytes: int
    saved_bytes: int
    arena_bytes: int
    persistent_bytes: int
    worst_case_bytes: int
    classes: dict[str, int]
    types: dict[str, str]

    @classmethod
    def of(cls, plan: MemoryPlan) -> Footprint:
        """The figures of a plan."""
        return cls(
            plan.peak_bytes,
            plan.saved_bytes,
            plan.arena_bytes,
            plan.persistent_bytes,
            plan.peak_bytes + plan.spill_bytes,
            {kind.value: n_bytes for kind, n_bytes in plan.classes.items()},
            {kind.value: name for kind, name in plan.types.items()},
        )


@dataclass(frozen=True, repr=False)
class Report:
    """The outcome of ``optimize``. All sizes are planned, in bytes.

    Attributes
    ----------
    baseline, optimized : Footprint
        Before any pass, and after all.
    passes : sequence of PassRecord
        The ledger, in order.
    process_bytes : int
        What a process takes beside the plan, about; see `bnnopt.plan.process_bytes`.
    static : StaticSum
        The paper's static sum, before and after.
    trained, frozen : mapping of str to int
        Weights by name, with their elements: those that are trained, and those that are not.
    spending : Spending, optional
        What a budget bought.
    """

    model: str
    batch_size: int
    level: str
    optimizer: str
    baseline: Footprint
    passes: Sequence[PassRecord]
    optimized: Footprint
    process_bytes: int
    static: StaticSum
    binarized: Sequence[Binarized]
    notes: Sequence[str]
    trained: Mapping[str, int]
    frozen: Mapping[str, int]
    spending: Spending | None = None

    def __repr__(self) -> str:
        before, after = size(self.baseline.peak_bytes), size(self.optimized.peak_bytes)
        head = f"{self.model}, batch size {self.batch_size}, {self.optimizer}, -{self.level}"
        return f"<Report of {head}: {before} -> {after}, {self.ratio:.2f}x smaller>"

    def _repr_html_(self) -> str:
        """In a notebook: the ledger, and what is in memory at the peak."""
        from bnnopt.report.notebook import report_as_html  # it needs this module

        return report_as_html(self)

    @property
    def ratio(self) -> float:
        """Planned peak before over after."""
        return self.baseline.peak_bytes / self.optimized.peak_bytes

    def to_dict(self) -> dict[str, Any]:
        """The stable, documented form; see docs/report.md."""
        baseline = asdict(self.baseline)
        return {
            "schema": SCHEMA,
            "model": self.model,
            "batch_size": self.batch_size,
            "level": self.level,
            "optimizer": self.optimizer,
            "baseline": {key: baseline[key] for key in _BASELINE},
            "passes": [_record_to_dict(record) for record in self.passes],
            "optimized": {**asdict(self.optimized), "process_bytes": self.process_bytes},
            "paper_rule": self.static.to_dict(),
            "ratio": self.ratio,
            "binarized": [{"name": b.name, "ste": b.ste, "zero": b.zero} for b in self.binarized],
            "trained": list(self.trained),
            "frozen": list(self.frozen),
            "budget": self.spending.to_dict() if self.spending is not None else None,
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)


def _record_to_dict(record: PassRecord) -> dict[str, Any]:
    lists = {"skipped": record.skipped, "chosen": record.chosen}
    return {**asdict(record), **{key: [asdict(entry) for entry in v] for key, v in lists.items()}}
