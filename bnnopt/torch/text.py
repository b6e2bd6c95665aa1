"""A comparison with PyTorch as a table for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from bnnopt.tables import Column, Listing, Row
from bnnopt.torch.checking import Checked


def render_check(found: Checked, title: str) -> RenderableType:
    """Both gradients of each parameter, and the verdict."""
    columns = [
        Column("gradient of"),
        Column("norm", is_figure=True),
        Column("PyTorch", is_figure=True),
        Column("cosine", is_figure=True),
    ]
    rows = [
        Row([row.name, f"{row.ours:.4g}", f"{row.right:.4g}", f"{row.cosine:.6f}"])
        for row in found.rows
    ]
    losses = Text(f"loss: {found.loss:.6g}, PyTorch {found.right_loss:.6g}")
    outcome = f"FAIL: {found.defect}" if found.defect else "PASS: loss and gradients of PyTorch"
    return Group(Listing(title, columns, rows), Text(), losses, Text(outcome, "bold"))
