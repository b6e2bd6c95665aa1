"""Where the memory of a step goes: the largest buffers, and a picture over time."""

from __future__ import annotations

import html
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from bnnopt.analysis import Buffer, VariableClass, buffers, classify
from bnnopt.plan import MemoryPlan, make_plan
from bnnopt.report import CLASS_TITLES
from bnnopt.tables import Column, Listing, Row, size
from bnnopt.training_step import TrainingStep, phase

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


@dataclass(frozen=True)
class Profile:
    """The memory of one step over time.

    Attributes
    ----------
    title : str
        What was inspected.
    plan : MemoryPlan
        Its plan.
    classes : dict of Buffer to VariableClass
        All buffers.
    timeline : list of dict of VariableClass to int
        Bytes alive at each node, persistent ones included; alignment and gaps count as workspace
        everywhere, so that the fullest moment is the planned peak.
    phases : list of str
        The phase of each node.
    """

    title: str
    plan: MemoryPlan
    classes: dict[Buffer, VariableClass]
    timeline: list[dict[VariableClass, int]]
    phases: list[str]

    @property
    def fullest(self) -> int:
        """Position of the node at which most is alive."""
        totals = [sum(alive.values()) for alive in self.timeline]
        return max(range(len(totals)), key=totals.__getitem__)


def inspect_step(step: TrainingStep, title: str) -> Profile:
    """Profile a step in its present order."""
    plan = make_plan(step)
    classes = classify(step, buffers(step))
    nodes = list(step.graph)
    timeline = []
    for position, node in enumerate(nodes):
        alive = dict.fromkeys(VariableClass, 0)
        for buffer, kind in classes.items():
            if buffer.persistent or buffer.first <= position <= buffer.last:
                alive[kind] += buffer.n_bytes
        alive[VariableClass.WORKSPACE] += plan.workspace.get(node, (0, 0))[1]
        timeline.append(alive)
    gaps = plan.peak_bytes - max(sum(alive.values()) for alive in timeline)
    for alive in timeline:
        alive[VariableClass.WORKSPACE] += gaps
    return Profile(title, plan, classes, timeline, [phase(node) for node in nodes])


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
