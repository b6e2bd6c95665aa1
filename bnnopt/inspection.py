"""Where the memory of a step goes: the largest buffers, and a picture over time."""

from __future__ import annotations

import html
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from bnnopt.analysis import Buffer, VariableClass, buffers, classify
from bnnopt.plan import MemoryPlan, make_plan
from bnnopt.report import CLASS_TITLES, size
from bnnopt.training_step import TrainingStep, phase

COLOURS = {
    VariableClass.RETAINED: "#c0392b",
    VariableClass.MASKS: "#e67e22",
    VariableClass.TRANSIENT: "#2980b9",
    VariableClass.WEIGHTS: "#7f8c8d",
    VariableClass.WEIGHT_GRADIENTS: "#8e44ad",
    VariableClass.OPTIMIZER_STATE: "#bdc3c7",
    VariableClass.STATISTICS: "#27ae60",
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
        Bytes alive at each node, persistent ones included.
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
    return Profile(title, plan, classes, timeline, [phase(node) for node in nodes])


def render_profile(profile: Profile, n_largest: int = 12) -> RenderableType:
    """The classes at the peak, and the largest buffers that are alive then."""
    plan = profile.plan
    by_class = Table(title=f"{profile.title}: what is alive at the peak")
    by_class.add_column("variable class")
    by_class.add_column("bytes", justify="right")
    for kind, n_bytes in plan.classes.items():
        by_class.add_row(CLASS_TITLES[kind.value], size(n_bytes))
    by_class.add_section()
    by_class.add_row("planned peak", size(plan.peak_bytes))
    by_class.add_row("saved for backward", size(plan.saved_bytes))
    return Group(by_class, _largest(profile, n_largest))


def _largest(profile: Profile, n_largest: int) -> Table:
    table = Table(title="Largest buffers at the peak")
    for column in ("value", "class", "alive at nodes"):
        table.add_column(column, overflow="fold")
    table.add_column("bytes", justify="right")
    fullest = profile.fullest
    alive = [b for b in profile.classes if b.persistent or b.first <= fullest <= b.last]
    for buffer in sorted(alive, key=lambda b: -b.n_bytes)[:n_largest]:
        span = "always" if buffer.persistent else f"{buffer.first} to {buffer.last}"
        kind = CLASS_TITLES[profile.classes[buffer].value]
        table.add_row(str(buffer.values[0].name), kind, span, size(buffer.n_bytes))
    return table


WIDTH, HEIGHT = 1000, 400  # pixels of the picture


def to_html(profile: Profile) -> str:
    """A page of its own: memory by class over the nodes of the step, as stacked bars."""
    legend = "".join(
        f'<li><span style="background:{COLOURS[kind]}"></span>'
        f"{html.escape(CLASS_TITLES[kind.value])}: {size(n_bytes)} at the peak</li>"
        for kind, n_bytes in profile.plan.classes.items()
    )
    plan = profile.plan
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{html.escape(profile.title)}</title><style>body{{font:14px sans-serif;margin:2em}}"
        "li{list-style:none}span{display:inline-block;width:1em;height:1em;margin-right:.5em}"
        f"</style><h1>{html.escape(profile.title)}</h1>"
        f"<p>Planned peak {size(plan.peak_bytes)}, saved for the backward pass "
        f"{size(plan.saved_bytes)}, arena {size(plan.arena_bytes)}.</p>"
        f"{_picture(profile)}<ul>{legend}</ul></html>"
    )


def _picture(profile: Profile) -> str:
    top = max(sum(alive.values()) for alive in profile.timeline)
    step_width = WIDTH / len(profile.timeline)
    bars = []
    for position, alive in enumerate(profile.timeline):
        y = float(HEIGHT)
        for kind in VariableClass:
            height = alive[kind] / top * HEIGHT
            y -= height
            if height >= 0.05:
                bars.append(
                    f'<rect x="{position * step_width:.2f}" y="{y:.2f}" width="{step_width:.2f}" '
                    f'height="{height:.2f}" fill="{COLOURS[kind]}"/>'
                )
    backward = next((i for i, p in enumerate(profile.phases) if p != "forward"), None)
    if backward is not None:
        x = backward * step_width
        bars.append(f'<line x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="{HEIGHT}" stroke="black"/>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" shape-rendering="crispEdges">'
        f"<title>bytes alive at each node; the line is where the backward pass begins</title>"
        f"{''.join(bars)}</svg>"
    )
