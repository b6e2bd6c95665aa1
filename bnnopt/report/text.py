"""Reports and profiles as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.text import Text

from bnnopt.analysis import STANDARD, PaperClass
from bnnopt.passes import PassRecord, Skip
from bnnopt.report.profile import Profile
from bnnopt.report.report import Report
from bnnopt.report.spending import Point, Spending
from bnnopt.report.static_sum import StaticSum
from bnnopt.runtime.kernels.selection import NUMPY
from bnnopt.tables import (
    BeforeAfter,
    Column,
    Listing,
    Row,
    before_after,
    definitions,
)
from bnnopt.units import size

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


# Class: its sign in the paper, and the field that holds its bits.
_ROWS = {
    PaperClass.ACTIVATIONS: ("X, retained activations", "binary_x"),
    PaperClass.OUTPUTS: ("dX and Y, one buffer", "outputs"),
    PaperClass.GRADIENTS: ("dY", "dy"),
    PaperClass.WEIGHTS: ("W", "weights"),
    PaperClass.WEIGHT_GRADIENTS: ("dW", "weight_gradients"),
    PaperClass.MOMENTA: ("momenta", "momenta"),
    PaperClass.MASKS: ("pooling masks", "masks"),
    PaperClass.STATISTICS: ("mu, psi, omega, beta", "statistics"),
}
_TYPES = {1: "bool", 16: "float16", 32: "float32"}


def render(
    report: Report, explain: bool = False, kernels: Sequence[tuple[str, str, str]] = ()
) -> RenderableType:
    """The ledger, the classes and the totals; with `explain` also what was skipped and why.

    And, of each node, its operator and its kernel, if `kernels` are given.
    """
    head = f"{report.model}: batch size {report.batch_size}, {report.optimizer}, -{report.level}"
    parts = [_ledger(report), _classes(report), render_static(report.static), _remarks(report)]
    if report.spending is not None:
        parts.insert(2, render_spending(report.spending))
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


def render_spending(spending: Spending) -> RenderableType:
    """The choices that no other beats, and how the one that was made compares to its neighbours."""
    chosen = spending.chosen
    columns = [
        Column(""),
        Column("planned\npeak", is_figure=True),
        Column("with the\nprocess", is_figure=True),
        Column("step time,\npredicted", is_figure=True),
        Column("numbers", wraps=True),
    ]
    rows = [
        Row([_mark(p, chosen), size(p.peak_bytes), size(p.needed_bytes), f"{p.time:.3f}x", p.title])
        for p in spending.points
    ]
    lines = [
        f"{spending.asked}: plan {size(chosen.peak_bytes)} + {size(chosen.process_bytes)} for the "
        f"process, {chosen.title}, {chosen.time:.3f} of the "
        "time of a step that computes nothing twice "
        f"({spending.solver}, {spending.seconds:.1f} s)",
        *_neighbour("smaller", spending.smaller),
        *_neighbour("larger", spending.larger),
    ]
    lines.append("step times are estimates, up to 9 % off where they were measured")
    if spending.solver == "greedy":
        lines.append("for the best choice pip install 'bnnopt[budget]', a solver")
    return Group(Listing("What a budget buys", columns, rows), Text("\n".join(lines)))


def _mark(point: Point, chosen: Point) -> str:
    return "->" if (point.needed_bytes, point.price) == (chosen.needed_bytes, chosen.price) else ""


def _neighbour(word: str, point: Point | None) -> list[str]:
    if point is None:
        return []
    return [f"next {word}: {size(point.needed_bytes)}, {point.title}, {point.time:.3f}x"]


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
        f"after: arena {size(new.arena_bytes)}, weights and state {size(new.persistent_bytes)}; "
        f"the process takes up to {size(report.process_bytes)} more",
        f"binarized tensors: {kinds or 'none'}",
        f"trained: {_weights(report.trained)}",
        *([f"not trained: {_weights(report.frozen)}"] if report.frozen else []),
        *(f"note: {note}" for note in report.notes),
    ]
    return Text("\n".join(lines))


def _weights(elements: Mapping[str, int], most: int = 4) -> str:
    """How many, and the first names."""
    names = [*elements][:most] + ([".."] if len(elements) > most else [])
    return f"{len(elements)} tensors, {sum(elements.values()):,} numbers: {', '.join(names)}"


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


# The paper's static sum -------------------------------------------------------------------------


def render_static(found: StaticSum) -> Listing:
    """The paper's table 2 for this step."""
    bits_before, bits_after = asdict(STANDARD), asdict(found.scheme)
    rows = [
        BeforeAfter(
            title,
            _type(bits_before[field]),
            found.before[kind],
            _type(bits_after[field]),
            found.after[kind],
        )
        for kind, (title, field) in _ROWS.items()
    ]
    totals = [BeforeAfter("total", "", sum(found.before.values()), "", sum(found.after.values()))]
    if found.after[PaperClass.MASKS] < found.before[PaperClass.MASKS]:
        title, after = "total, masks before alone", found.masked_after
        totals.append(BeforeAfter(title, "", found.masked_before, "", after))
    return before_after("The same by the paper's static rule", rows, totals)


def _type(n_bits: int) -> str:
    return _TYPES.get(n_bits, f"{n_bits} bits")


# A profile ---------------------------------------------------------------------------------------


def render_profile(profile: Profile, n_largest: int = 12) -> RenderableType:
    """The classes at the peak, and the largest buffers that are alive then."""
    plan = profile.plan
    columns = [Column(""), Column("bytes", is_figure=True)]
    rows = [Row([CLASS_TITLES[kind.value], size(n)]) for kind, n in plan.classes.items()]
    rows.append(Row(["planned peak", size(plan.peak_bytes)], rule_above=True))
    rows.append(Row(["kept for backward", size(plan.saved_bytes)]))
    return Group(
        Text(profile.title, "bold"),
        Text(),
        Listing("What is in memory at the peak", columns, rows),
        Text(),
        _largest(profile, n_largest),
    )


def _largest(profile: Profile, n_largest: int) -> Listing:
    columns = [
        Column("value"),
        Column("bytes", is_figure=True),
        Column("alive at nodes", is_figure=True),
        Column("class", wraps=True, optional=True),
    ]
    at = profile.fullest
    alive = [b for b in profile.classes if b.persistent or b.first <= at <= b.last]
    rows = []
    for buffer in sorted(alive, key=lambda b: -b.n_bytes)[:n_largest]:
        span = "always" if buffer.persistent else f"{max(buffer.first, 0)}-{buffer.last}"
        kind = CLASS_TITLES[profile.classes[buffer].value]
        rows.append(Row([str(buffer.values[0].name), size(buffer.n_bytes), span, kind]))
    place = f"node {at} of {len(profile.timeline)}, {profile.phases[at]}"
    return Listing(f"Largest buffers at the peak ({place})", columns, rows)
