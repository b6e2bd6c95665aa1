"""A page of its own: the memory of a step over time."""

from __future__ import annotations

import html

from bnnopt.analysis import VariableClass
from bnnopt.report.profile import Profile
from bnnopt.report.text import CLASS_TITLES
from bnnopt.units import size

# From the bottom of the picture to its top: what is always there, then what is held, then the rest.
COLOURS = {
    VariableClass.WEIGHTS: "#7f8c8d",
    VariableClass.OPTIMIZER_STATE: "#bdc3c7",
    VariableClass.STATISTICS: "#27ae60",
    VariableClass.RETAINED: "#c0392b",
    VariableClass.MASKS: "#e67e22",
    VariableClass.WEIGHT_GRADIENTS: "#8e44ad",
    VariableClass.TRANSIENT: "#2980b9",
    VariableClass.WORKSPACE: "#f1c40f",
}

WIDTH, HEIGHT, LEFT, FOOT = 1000, 400, 80, 24  # pixels of the picture, and of its two margins
STYLE = """
body { font: 14px/1.5 sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em }
svg { width: 100%; height: auto; font-size: 12px }
table { border-collapse: collapse; margin-top: 1em }
td { padding: 0 1.5em 0 0 }
td:last-child { text-align: right; font-variant-numeric: tabular-nums }
i { display: inline-block; width: 1em; height: 1em; margin-right: .5em; vertical-align: -.15em }
"""


def to_html(profile: Profile) -> str:
    """A page of its own: memory by class over the nodes of the step, as stacked bars."""
    plan, title = profile.plan, html.escape(profile.title)
    legend = "".join(
        f'<tr><td><i style="background: {COLOURS[kind]}"></i>'
        f"{html.escape(CLASS_TITLES[kind.value])}</td><td>{size(n_bytes)}</td></tr>\n"
        for kind, n_bytes in plan.classes.items()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>Planned peak {size(plan.peak_bytes)}: arena {size(plan.arena_bytes)}, weights and "
        f"state {size(plan.persistent_bytes)}. Kept for the backward pass: "
        f"{size(plan.saved_bytes)}.</p>\n"
        f"{_picture(profile)}\n"
        f"<table>\n<caption>In memory at the peak</caption>\n{legend}</table>\n"
        "</body>\n</html>\n"
    )


def _picture(profile: Profile) -> str:
    top = profile.plan.peak_bytes
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {LEFT + WIDTH} {HEIGHT + FOOT}">\n'
        "<title>Bytes in memory at each node of the step, by class</title>\n"
        f'<text x="{LEFT - 6}" y="12" text-anchor="end">{size(top)}</text>\n'
        f'<text x="{LEFT - 6}" y="{HEIGHT}" text-anchor="end">0</text>\n'
        f'<g shape-rendering="crispEdges">\n{_bars(profile, top)}</g>\n'
        f"{_phase_marks(profile)}</svg>"
    )


def _bars(profile: Profile, top: int) -> str:
    """A bar a node, of one piece a class; what is there at all is at least half a pixel."""
    width = WIDTH / len(profile.timeline)
    bars = []
    for position, alive in enumerate(profile.timeline):
        y = float(HEIGHT)
        for kind in COLOURS:
            height = alive[kind] / top * HEIGHT
            y -= height
            if alive[kind]:
                bars.append(
                    f'<rect x="{LEFT + position * width:.2f}" y="{y:.2f}" width="{width:.2f}" '
                    f'height="{max(height, 0.5):.2f}" fill="{COLOURS[kind]}"/>\n'
                )
    return "".join(bars)


def _phase_marks(profile: Profile) -> str:
    """A line and a name where the forward pass begins, and where the rest of the step does."""
    width = WIDTH / len(profile.timeline)
    backward = next((i for i, p in enumerate(profile.phases) if p != "forward"), None)
    marks = [("forward", 0), *([("backward and update", backward)] if backward else [])]
    return "".join(
        f'<line x1="{LEFT + at * width:.2f}" x2="{LEFT + at * width:.2f}" y1="0" '
        f'y2="{HEIGHT + FOOT}" stroke="black"/>\n'
        f'<text x="{LEFT + at * width + 6:.2f}" y="{HEIGHT + 16}">{name}</text>\n'
        for name, at in marks
    )
