"""What ``optimize`` found: the JSON contract, and the same as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bnnopt.frontend import Binarized
from bnnopt.passes import PassRecord
from bnnopt.plan import MemoryPlan

SCHEMA = 1

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
    classes: dict[str, int]

    @classmethod
    def of(cls, plan: MemoryPlan) -> Footprint:
        """The figures of a plan."""
        return cls(
            plan.peak_bytes,
            plan.saved_bytes,
            plan.arena_bytes,
            plan.persistent_bytes,
            {kind.value: n_bytes for kind, n_bytes in plan.classes.items()},
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
    paper_rule : tuple of int
        The paper's static sum, with 32-bit and with 1-bit retained activations.
    """

    model: str
    batch_size: int
    level: str
    optimizer: str
    baseline: Footprint
    passes: Sequence[PassRecord]
    optimized: Footprint
    paper_rule: tuple[int, int]
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
            "baseline": {key: baseline[key] for key in ("peak_bytes", "saved_bytes", "classes")},
            "passes": [asdict(record) for record in self.passes],
            "optimized": asdict(self.optimized),
            "paper_rule": {
                "standard_bytes": self.paper_rule[0],
                "optimized_bytes": self.paper_rule[1],
            },
            "ratio": self.ratio,
            "binarized": [{"name": b.name, "ste": b.ste, "zero": b.zero} for b in self.binarized],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)


def size(n_bytes: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.2f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"


def render(report: Report, explain: bool) -> RenderableType:
    """The ledger, the classes and the totals; with `explain` also what was skipped and why."""
    parts: list[RenderableType] = [_ledger(report), _classes(report), _totals(report)]
    if explain:
        parts.append(_skips(report))
    return Group(*parts)


def _ledger(report: Report) -> Table:
    table = Table(
        title=f"{report.model}, batch {report.batch_size}, {report.optimizer}, "
        f"-{report.level}: memory after each pass"
    )
    table.add_column("pass", no_wrap=True)
    table.add_column("rewrites", justify="right")
    table.add_column("saved", justify="right", no_wrap=True)
    table.add_column("planned peak", justify="right", no_wrap=True)
    table.add_column("numbers", no_wrap=True)
    base = report.baseline
    table.add_row("(none)", "", size(base.saved_bytes), size(base.peak_bytes), "reference")
    for record in report.passes:
        numbers = "bit-equal" if record.lossless else "lossy"
        table.add_row(
            record.name,
            str(record.rewrites),
            size(record.saved_bytes),
            size(record.peak_bytes),
            numbers if record.rewrites else "",
            style=None if record.rewrites else "dim",
        )
    return table


def _classes(report: Report) -> Table:
    table = Table(title="What is alive at the peak")
    table.add_column("variable class")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, title in CLASS_TITLES.items():
        before, after = report.baseline.classes[name], report.optimized.classes[name]
        table.add_row(title, size(before), size(after))
    table.add_section()
    table.add_row(
        "planned peak", size(report.baseline.peak_bytes), size(report.optimized.peak_bytes)
    )
    return table


def _totals(report: Report) -> Text:
    base, new = report.baseline, report.optimized
    kept = base.saved_bytes / new.saved_bytes if new.saved_bytes else float("inf")
    lines = [
        f"peak {size(base.peak_bytes)} -> {size(new.peak_bytes)} ({report.ratio:.2f}x), "
        f"saved for backward {size(base.saved_bytes)} -> {size(new.saved_bytes)} ({kept:.1f}x)",
        f"of the peak: arena {size(new.arena_bytes)}, persistent {size(new.persistent_bytes)}",
        f"the paper's static sum: {size(report.paper_rule[0])} -> {size(report.paper_rule[1])}",
        f"binarized: {len(report.binarized)} tensors",
        *(f"note: {note}" for note in report.notes),
    ]
    return Text("\n".join(lines))


def _skips(report: Report) -> Table:
    table = Table(title="What was left alone, and why")
    for column in ("pass", "node or value", "reason"):
        table.add_column(column, overflow="fold")
    for record in report.passes:
        for skip in record.skipped:
            table.add_row(record.name, skip.node, skip.reason)
    return table
