"""A verification as a table for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from bnnopt.tables import Column, Listing, Row
from bnnopt.verification.outcome import Verification


def render_verification(found: Verification, title: str) -> RenderableType:
    """The differences by parameter, and the verdict."""
    columns = [
        Column("gradient of"),
        Column("max difference", is_figure=True),
        Column("cosine", is_figure=True),
    ]
    rows = [
        Row([name, f"{d.max_abs:.3g}", f"{d.cosine:.6f}"]) for name, d in found.parameters.items()
    ]
    if found.min_cosine is None:
        expected = "expected: all passes that ran are lossless"
        note = "bits of losses, gradients, new weights, statistics, optimizer state"
    else:
        expected = f"lossy passes ran, which allow a cosine of {found.min_cosine:.4f}"
        note = (
            "each step from the same weights; a gradient that is kept as signs counts as those, "
            "and comes no nearer than the reference's own signs"
        )
    verdict = f"bit-equal: {'yes' if found.bit_equal else 'no'} ({expected})"
    outcome = f"FAIL: {found.defect}" if found.defect else f"PASS: {_promise(found)}"
    lines = Text(verdict), Text(note, "dim"), Text(outcome, "bold")
    return Group(Listing(title, columns, rows), Text(), *lines)


def _promise(found: Verification) -> str:
    """What was kept."""
    if found.min_cosine is None:
        return "bit-equal to the reference"
    return "every gradient is as near to the reference's as the lossy passes promise"
