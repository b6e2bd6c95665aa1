"""A report in a notebook, which gives tables its own style."""

from __future__ import annotations

from bnnopt.report.page.tables import ledger, table, text
from bnnopt.report.report import Report
from bnnopt.report.text import CLASS_TITLES
from bnnopt.units import size


def report_as_html(report: Report) -> str:
    """The outcome, the ledger, and the classes at the peak before and after."""
    before, after = report.baseline, report.optimized
    rows = [
        [text(title), size(before.classes[name]), size(after.classes[name])]
        for name, title in CLASS_TITLES.items()
    ]
    rows.append(["planned peak", size(before.peak_bytes), size(after.peak_bytes)])
    classes = table("In memory at the peak", ("", "before", "after"), rows, "lrr")
    passes = ledger(f"-{report.level}", report.to_dict()["passes"])
    return f"<p>{text(repr(report)[1:-1])}</p>{classes}{passes}"
