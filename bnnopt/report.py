"""What ``optimize`` found: the JSON contract, and the same as tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bnnopt.frontend import Binarized
from bnnopt.passes import PassRecord
from bnnopt.passes.base import Skip
from bnnopt.plan import MemoryPlan
from bnnopt.runtime.kernels.selection import NUMPY
from bnnopt.static_sum import StaticSum, render_static
from bnnopt.tables import (
    BeforeAfter,
    Column,
    Listing,
    Row,
    before_after,
    definitions,
    size,
)

SCHEMA = 1
_BASELINE = ("peak_bytes", "saved_bytes", "classes", "types")

CLASS_TITLES = {
    "retained_activations": "retained activations",
    "masks_and_indices": "masks and indices",
    "transient_activations_and_gradients": "transient activations, gradients",
    "weights": "weights",
    "weight_gradients": "weight gradients",
    "optimizer_state": "optimizer state",
    "batch_norm_statistics": "batch-norm statistics",
    "workspace": "workspace and alignment",
}


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


@dataclass(frozen=True)
class Report:
    """The outcome of ``optimize``. All sizes are planned, in bytes.

    Attributes
    ----------
    baseline, optimized : Footprint
        Before any pass, and after all.
    passes : sequence of PassRecord
        The ledger, in order.
    static : StaticSum
        The paper's static sum, before and after.
    """

    model: str
    batch_size: int
    level: str
    optimizer: str
    baseline: Footprint
    passes: Sequence[PassRecord]
    optimized: Footprint
    static: StaticSum
    binarized: Sequence[Binarized]
    notes: Sequence[str]

    @property
    def ratio(self) -> float:
        """Planned peak before over after."""
        return self.baseline.peak_bytes / self.optimized.peak_bytes

    def to_dict(self) -> dict[str, Any]:
        """The stable, documented form; see README, "The report"."""
        baseline = asdict(self.baseline)
        return {
            "schema": SCHEMA,
            "model": self.model,
            "batch_size": self.batch_size,
            "level": self.level,
            "optimizer": self.optimizer,
            "baseline": {key: baseline[key] for key in _BASELINE},
            "passes": [_record_to_dict(record) for record in self.passes],
            "optimized": asdict(self.optimized),
            "paper_rule": self.static.to_dict(),
            "ratio": self.ratio,
            "binarized": [{"name": b.name, "ste": b.ste, "zero": b.zero} for b in self.binarized],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)


def _record_to_dict(record: PassRecord) -> dict[str, Any]:
    lists = {"skipped": record.skipped, "chosen": record.chosen}
    return {**asdict(record), **{key: [asdict(entry) for entry in v] for key, v in lists.items()}}


def render(
    report: Report, explain: bool = False, kernels: Sequence[tuple[str, str, str]] = ()
) -> RenderableType:
    """The ledger, the classes and the totals; with `explain` also what was skipped and why.

    And, of each node, its operator and its kernel, if `kernels` are given.
    """
    head = f"{report.model}: batch size {report.batch_size}, {report.optimizer}, -{report.level}"
    parts = [_ledger(report), _classes(report), render_static(report.static), _remarks(report)]
    if explain:
        parts += [_choices(report), _skips(report)]
    if kernels:
        columns = [Column("node"), Column("operator", optional=True), Column("kernel")]
        parts.append(Listing("Kernels of the native backend", columns, [Row(k) for k in kernels]))
        parts.append(_on_numpy(kernels))
    return Group(Text(head, "bold"), *(line for part in parts for line in (Text(), part)))


def _ledger(report: Report) -> RenderableType:
    columns = [
        Column("pass"),
        Column("rewrites", is_figure=True, optional=True),
        Column("kept for\nbackward", is_figure=True),
        Column("planned\npeak", is_figure=True),
        Column("numbers", optional=True),
    ]
    base = report.baseline
    rows = [Row(["before any pass", "", size(base.saved_bytes), size(base.peak_bytes), ""])]
    rows += [_ledger_row(record) for record in report.passes]
    return Group(
        Listing("Memory after each pass", columns, rows),
        Text(
            "kept for backward: from the forward to the backward pass\n"
            "planned peak: weights, optimizer state and the arena",
            "dim",
        ),
    )


def _ledger_row(record: PassRecord) -> Row:
    return Row(
        [
            record.name,
            str(record.rewrites),
            size(record.saved_bytes),
            size(record.peak_bytes),
            record.numbers if record.rewrites else "",
        ],
        quiet=not record.rewrites,
    )


def _classes(report: Report) -> Listing:
    before, after = report.baseline, report.optimized
    rows = [
        BeforeAfter(
            title, before.types[name], before.classes[name], after.types[name], after.classes[name]
        )
        for name, title in CLASS_TITLES.items()
    ]
    totals = [
        BeforeAfter("planned peak", "", before.peak_bytes, "", after.peak_bytes),
        BeforeAfter("kept for backward", "", before.saved_bytes, "", after.saved_bytes),
    ]
    return before_after("What is in memory at the peak", rows, totals)


def _remarks(report: Report) -> Text:
    """The outcome in one line, and what the user should be told once."""
    base, new = report.baseline, report.optimized
    by_kind = Counter(f"{b.ste}, sign(0) = {b.zero}" for b in report.binarized)
    kinds = "; ".join(f"{n} {kind}" for kind, n in by_kind.items())
    lines = [
        f"planned peak {size(base.peak_bytes)} -> {size(new.peak_bytes)}, "
        f"{report.ratio:.2f}x smaller",
        f"after: arena {size(new.arena_bytes)}, weights and state {size(new.persistent_bytes)}",
        f"binarized tensors: {kinds or 'none'}",
        *(f"note: {note}" for note in report.notes),
    ]
    return Text("\n".join(lines))


def _choices(report: Report) -> Group:
    """By pass: each value that can be kept in more ways than one, and the bytes of each."""
    parts: list[RenderableType] = [Text("What was chosen by bytes", "bold"), Text()]
    for record in report.passes:
        if record.chosen:
            parts.append(_reasons(record.name, record.chosen))
    return Group(*parts if len(parts) > 2 else ())


def _skips(report: Report) -> Group:
    """By pass: each node or value, and below it the reason."""
    parts: list[RenderableType] = [Text("What was left alone, and why", "bold"), Text()]
    for record in report.passes:
        if record.skipped:
            parts.append(_reasons(record.name, record.skipped))
        elif not record.rewrites:
            parts += [Text(record.name, "bold"), Text("  nothing in the graph that it applies to")]
    return Group(*parts)


def _on_numpy(kernels: Sequence[tuple[str, str, str]]) -> Text:
    """How many nodes no C kernel covers, by operator."""
    left = Counter(operator for _, operator, kernel in kernels if kernel == NUMPY)
    names = ", ".join(f"{operator} {n}" for operator, n in sorted(left.items()))
    return Text(f"on numpy: {left.total()} of {len(kernels)} nodes{': ' if left else ''}{names}")


def _reasons(name: str, notes: Sequence[Skip]) -> RenderableType:
    return definitions(name, [(note.node, note.reason) for note in notes])
