"""Two reports side by side: two levels of a model, two batch sizes, two optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bnnopt.report.text import CLASS_TITLES
from bnnopt.tables import BeforeAfter, Column, Listing, Row, before_after
from bnnopt.units import size

_HEAD = ("model", "batch_size", "optimizer", "level")


@dataclass(frozen=True)
class Comparison:
    """Two reports as `Report.to_dict` gives them, with what to call them."""

    name_a: str
    name_b: str
    a: Mapping[str, Any]
    b: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: both reports, and b less a in bytes."""
        mine, other = self.a["optimized"], self.b["optimized"]
        kinds = ("peak_bytes", "saved_bytes", "arena_bytes", "persistent_bytes")
        return {
            "a": self.a,
            "b": self.b,
            "difference": {
                **{kind: other[kind] - mine[kind] for kind in kinds},
                "classes": {
                    kind: other["classes"][kind] - n_bytes
                    for kind, n_bytes in mine["classes"].items()
                },
            },
        }

    def render(self) -> RenderableType:
        """What differs, the classes at both peaks, and the passes of both."""
        return Group(
            self._heads(), Text(), self._memory(), Text(), self._passes(), Text(), self._outcome()
        )

    def _heads(self) -> Listing:
        columns = [Column(""), Column(self.name_a, wraps=True), Column(self.name_b, wraps=True)]
        rows = [Row([key.replace("_", " "), str(self.a[key]), str(self.b[key])]) for key in _HEAD]
        return Listing("What is compared", columns, rows)

    def _memory(self) -> Listing:
        mine, other = self.a["optimized"], self.b["optimized"]
        rows = [
            BeforeAfter(
                title,
                mine["types"][kind],
                mine["classes"][kind],
                other["types"][kind],
                other["classes"][kind],
            )
            for kind, title in CLASS_TITLES.items()
        ]
        totals = [
            BeforeAfter(title, "", mine[kind], "", other[kind])
            for kind, title in (
                ("peak_bytes", "planned peak"),
                ("saved_bytes", "kept for backward"),
                ("arena_bytes", "arena"),
                ("persistent_bytes", "weights and state"),
            )
        ]
        title = f"What is in memory at the peak: {self.name_a}, then {self.name_b}"
        return before_after(title, rows, totals, ("first", "second"))

    def _passes(self) -> Listing:
        by_name = [{p["name"]: p for p in report["passes"]} for report in (self.a, self.b)]
        names = list(dict.fromkeys([*by_name[0], *by_name[1]]))
        columns = [
            Column("pass"),
            Column("peak after,\nfirst", is_figure=True),
            Column("peak after,\nsecond", is_figure=True),
            Column("numbers", optional=True),
        ]
        rows = []
        for name in names:
            records = [passes.get(name) for passes in by_name]
            numbers = next(record["numbers"] for record in records if record is not None)
            cells = [name, *map(_peak, records), numbers]
            rows.append(Row(cells, quiet=all(not r or not r["rewrites"] for r in records)))
        return Listing("Passes", columns, rows)

    def _outcome(self) -> Text:
        mine, other = (r["optimized"]["peak_bytes"] for r in (self.a, self.b))
        if mine == other:
            return Text(f"both plan a peak of {size(mine)}")
        less, more = sorted((mine, other))
        name = self.name_a if mine < other else self.name_b
        return Text(
            f"{name} plans {size(less)}, {size(more - less)} less: {more / less:.2f}x smaller"
        )


def _peak(record: Mapping[str, Any] | None) -> str:
    """The peak after a pass; nothing where it did not run, or found nothing."""
    return size(record["peak_bytes"]) if record is not None and record["rewrites"] else ""
