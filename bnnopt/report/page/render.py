"""Puts the page together: one file, with its style, its pictures' code and its data."""

from __future__ import annotations

import json
from pathlib import Path

from bnnopt import __version__
from bnnopt.report.page import tables
from bnnopt.report.page.contents import STACK, Page
from bnnopt.report.text import CLASS_TITLES
from bnnopt.units import size

FOLDER = Path(__file__).parent
LIBRARY = "d3.min.js"  # D3 7.9.0, ISC licence: d3.LICENSE


def render_page(page: Page) -> str:
    """The page as HTML."""
    parts = {
        "title": tables.text(page.title),
        "about": tables.text(page.about),
        "version": __version__,
        "headline": _headline(page),
        "style": _read("style.css"),
        "overview": tables.overview(page),
        "classes": tables.classes(page),
        "passes": "".join(tables.ledger(v.label, v.passes) for v in page.versions if v.passes)
        or "<p>No pass has run.</p>",
        "largest": tables.at_the_peak(page),
        "layers": tables.by_layer(page),
        "measured": tables.measured(page),
        "budget": tables.budget(page),
        "data": _data(page),
        "library": _read(LIBRARY),
        "charts": _read("charts.js"),
    }
    pieces = _read("page.html").split("@@")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _headline(page: Page) -> str:
    before, after = (v.profile.plan.peak_bytes for v in (page.before, page.after))
    return (
        f'<span class="was">{size(before)}</span> <span aria-label="to">&rarr;</span> '
        f"<b>{size(after)}</b> <span>{before / after:.2f}x smaller</span>"
    )


def _data(page: Page) -> str:
    """JSON that can stand inside of a script element."""
    found = {
        "classes": [CLASS_TITLES[kind.value] for kind in STACK],
        "versions": [{**v.to_dict(), "passes": _ledger(v.passes)} for v in page.versions],
        "base": [page.before.profile.plan.peak_bytes, page.before.profile.plan.saved_bytes],
        "frontier": list(page.frontier),
    }
    return json.dumps(found, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


def _ledger(passes: object) -> list[list[object]]:
    """Name, lossless, what it does to the numbers, rewrites, peak, kept, skipped, of each pass."""
    assert isinstance(passes, list | tuple)
    keys = ("name", "lossless", "numbers", "rewrites", "peak_bytes", "saved_bytes")
    return [[*(record[key] for key in keys), len(record["skipped"])] for record in passes]


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
