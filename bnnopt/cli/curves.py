"""The curves of a training, drawn with matplotlib (an extra)."""

from __future__ import annotations

import importlib
import io
from typing import Any

from bnnopt.errors import UsageError
from bnnopt.runtime.training import History

FORMATS = (".png", ".svg", ".pdf", ".html")
_COLORS = {"training": "#0072b2", "validation": "#d55e00"}  # Okabe and Ito: told apart by all eyes
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Training</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px sans-serif; max-width: 60rem; margin: auto; padding: 1rem }}
svg {{ width: 100%; height: auto; background: white }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem; text-align: right }}
</style></head><body><h1>Training</h1>
{picture}
<table><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table></body></html>
"""


def draw(history: History, suffix: str) -> bytes:
    """Loss and accuracy over the epochs, as the content of a file of that kind.

    Raises
    ------
    UsageError
        If the kind is not known, or matplotlib is not installed.
    """
    check(suffix)
    if suffix != ".html":
        return _picture(history, suffix.removeprefix("."))
    svg = _picture(history, "svg").decode()
    names = ("epoch", "loss", "accuracy", "valid_loss", "valid_accuracy")
    return _PAGE.format(
        picture=svg[svg.index("<svg") :],
        head="".join(f"<th>{name}</th>" for name in names),
        rows="\n".join(
            "<tr>" + "".join(f"<td>{_cell(getattr(epoch, name))}</td>" for name in names) + "</tr>"
            for epoch in history
        ),
    ).encode()


def check(suffix: str) -> None:
    """Refuse what `draw` cannot write, before the long work.

    Raises
    ------
    UsageError
        If the kind is not known, or matplotlib is not installed.
    """
    if suffix not in FORMATS:
        raise UsageError(f"--curves: {suffix or 'no ending'}, expected {', '.join(FORMATS)}")
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        raise UsageError("--curves needs matplotlib: pip install 'bnnopt[curves]'") from None


def _picture(history: History, kind: str) -> bytes:
    figure: Any = importlib.import_module("matplotlib.figure").Figure(figsize=(9, 3.6))
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for label, key in (("training", name), ("validation", f"valid_{name}")):
            if any(value is not None for value in history[key]):
                axes.plot(history["epoch"], history[key], label=label, color=_COLORS[label])
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150)
    return content.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
