"""The page's tables: all figures, readable without the pictures."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bnnopt.report.page.advice import largest
from bnnopt.report.page.contents import STACK, Page
from bnnopt.report.page.layers import layers
from bnnopt.report.text import CLASS_TITLES
from bnnopt.units import size

N_EXAMPLES = 3  # nodes named for each reason


def text(value: object) -> str:
    """Anything as HTML text."""
    return html.escape(str(value))


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], figures: str) -> str:
    """A table of cells that are HTML; `figures` has an ``r`` for each column flush right."""
    kinds = [' class="r"' if mark == "r" else "" for mark in figures]
    heads = "".join(f'<th scope="col"{k}>{text(h)}</th>' for k, h in zip(kinds, head, strict=True))
    body = "".join(f"<tr>{_cells(row, kinds)}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    first, *rest = (f"{kind}>{cell}" for kind, cell in zip(kinds, row, strict=True))
    return f'<th scope="row"{first}</th>' + "".join(f"<td{cell}</td>" for cell in rest)


def overview(page: Page) -> str:
    """The figures of each version."""
    first = page.before.profile.plan.peak_bytes
    rows = [
        [
            text(version.label),
            size(plan.peak_bytes),
            f"{first / plan.peak_bytes:.2f}x",
            size(plan.saved_bytes),
            size(plan.arena_bytes),
            size(plan.persistent_bytes),
        ]
        for version in page.versions
        for plan in (version.profile.plan,)
    ]
    head = ("", "planned peak", "smaller", "kept for backward", "arena", "weights and state")
    return table("Before and after", head, rows, "lrrrrr")


def classes(page: Page) -> str:
    """What is in memory at each version's peak."""
    rows = [
        [
            f'<i class="key k{i}" aria-hidden="true"></i>{text(CLASS_TITLES[kind.value])}',
            *(size(version.profile.plan.classes[kind]) for version in page.versions),
        ]
        for i, kind in enumerate(STACK)
    ]
    head = ("", *(version.label for version in page.versions))
    return table("In memory at the peak", head, rows, "l" + "r" * len(page.versions))


def ledger(label: str, records: Sequence[Mapping[str, Any]]) -> str:
    """What each pass did, and what it left alone and why."""
    rows = []
    peak, saved = None, None
    for record in records:
        rows.append(
            [
                text(record["name"]),
                text(record["numbers"]) if record["rewrites"] else "",
                str(record["rewrites"]),
                size(record["saved_bytes"]) + _change(saved, record["saved_bytes"]),
                size(record["peak_bytes"]) + _change(peak, record["peak_bytes"]),
                _details(record),
            ]
        )
        peak, saved = record["peak_bytes"], record["saved_bytes"]
    head = ("pass", "numbers", "rewrites", "kept for backward", "planned peak", "left alone")
    return table(f"Pass by pass: {label}", head, rows, "llrrrl")


def _change(before: int | None, after: int) -> str:
    return "" if before is None or before == after else f" <small>({size(after - before)})</small>"


def _details(record: Mapping[str, Any]) -> str:
    """What a pass skipped, by reason."""
    reasons: dict[str, list[str]] = {}
    for skip in record["skipped"]:
        reasons.setdefault(skip["reason"], []).append(skip["node"])
    if not reasons:
        return "" if record["rewrites"] else "nothing in the graph that it applies to"
    lines = "".join(f"<li>{text(r)}: {_named(nodes)}</li>" for r, nodes in reasons.items())
    n = len(record["skipped"])
    return f"<details><summary>{n} skipped, and why</summary><ul>{lines}</ul></details>"


def _named(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - N_EXAMPLES} more" if len(nodes) > N_EXAMPLES else ""
    return text(", ".join(nodes[:N_EXAMPLES])) + more


def by_layer(page: Page) -> str:
    """What each layer keeps."""
    measured = page.measured
    rows = []
    for layer in layers(page.before, page.after):
        seconds = measured.seconds.get(layer.name) if measured is not None else None
        rows.append(
            [
                text(layer.name),
                text(layer.operator),
                text(layer.output),
                text(layer.kernel),
                f"{layer.bits(layer.bytes_before):.3g}",
                f"{layer.bits(layer.bytes_after):.3g}",
                size(layer.bytes_before),
                size(layer.bytes_after),
                *([] if measured is None else ["" if seconds is None else f"{1e3 * seconds:.3f}"]),
            ]
        )
    head = ["layer", "operator", "output", "kernel", "bits before", "bits after", "before", "after"]
    figures = "llllrrrr"
    if measured is not None:
        head, figures = [*head, "ms forward"], figures + "r"
    return table("Kept for the backward pass, by layer", head, rows, figures)


def at_the_peak(page: Page) -> str:
    """The largest tensors of the last version, and what would shrink them."""
    rows = [
        [
            text(t.name),
            text(t.kind),
            size(t.n_bytes),
            text(t.kept_as),
            "<br>".join(map(text, t.advice)),
        ]
        for t in largest(page, page.after)
    ]
    head = ("tensor", "class", "bytes", "as", "what would shrink it")
    return table(f"The largest at the peak: {page.after.label}", head, rows, "llrll")


def _lines(advice: Sequence[str]) -> str:
    return "<br>".join(map(text, advice))


def measured(page: Page) -> str:
    """Predicted against measured."""
    plan = page.after.profile.plan
    if page.measured is None:
        return (
            "<p>Nothing is measured yet: <code>bnnopt train FOLDER --data FILE --profile</code> "
            "records the memory and the time of each node, and this page shows them.</p>"
        )
    seen, planned = page.measured.seen_bytes, plan.peak_bytes
    rows = [
        ["planned peak", size(planned), ""],
        ["planned peak if no bitmap finds a zero", size(planned + plan.spill_bytes), ""],
        ["seen while training", size(seen), f"{seen / planned:.3f} of the plan"],
        ["time of all nodes of a step", f"{1e3 * sum(page.measured.seconds.values()):.1f} ms", ""],
    ]
    return table("Predicted and measured", ("", "", ""), rows, "lrr")


def budget(page: Page) -> str:
    """The choices of a budget, by memory."""
    if not page.frontier:
        return ""
    rows = [
        [
            "chosen" if point["is_chosen"] else "",
            size(point["peak_bytes"]),
            size(point["peak_bytes"] + point["process_bytes"]),
            f"{point['cost']:.3f}x",
            str(point["kept_values"]),
            text(point["title"]),
        ]
        for point in page.frontier
    ]
    head = (
        "",
        "planned peak",
        "with the process",
        "step time, predicted",
        "values kept",
        "numbers",
    )
    return table("The choices that no other beats", head, rows, "lrrrrl")
