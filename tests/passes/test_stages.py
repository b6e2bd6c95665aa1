"""The order of the passes: it honours what they declare, and what they declare is needed."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bnnopt.cli.commands import LISTING
from bnnopt.passes import PASSES, STAGES, Pass, Trace
from bnnopt.passes.infra.stages import misplaced
from bnnopt.plan import make_plan
from tests.graphs import Network, network_of
from tests.passes.networks import small
from tests.zoo import build_small

PAGE = Path(__file__).parents[2] / "docs" / "passes.md"
BY_NAME = {p.name: p for p in PASSES}
PAIRS = [(later, earlier) for later in PASSES for earlier in later.after]
# Small networks first; the zoo's where those show nothing.
SMALL = ("binary", "residual", "float", "joined", "relu", "dropout", "zeros")
ZOO = ("mlp", "relu-mini", "cnv", "resnet-e-mini")


def test_the_order_is_as_declared() -> None:
    assert misplaced(PASSES) == []
    assert len(BY_NAME) == len(PASSES)


def test_another_order_is_found() -> None:
    (found,) = misplaced([BY_NAME["packed-products"], BY_NAME["sign-pack"]])
    assert found == "packed-products runs before sign-pack, but reads the bits that are kept"


def test_what_is_declared_is_known() -> None:
    assert {earlier for _, earlier in PAIRS} <= BY_NAME.keys()


@functools.cache
def net_of(name: str) -> Network:
    if name in ZOO:
        return network_of(build_small(name), 8, optimizer="adam")
    return small(name, optimizer="adam")


def outcome(net: Network, passes: Sequence[Pass]) -> tuple[object, ...]:
    step = net.step()
    for p in passes:
        p.run(step, Trace())
    plan = make_plan(step)
    return Counter(n.op_type for n in step.graph), plan.arena_bytes, plan.persistent_bytes


@functools.cache
def outcome_in_order(name: str, lossless: bool, rivals: frozenset[str]) -> tuple[object, ...]:
    chosen = [p for p in PASSES if (p.lossless or not lossless) and p.name not in rivals]
    return outcome(net_of(name), chosen)


# They leave a pass nothing to do.
RIVALS = {
    "int8-gradients": frozenset({"int4-gradients"}),
    "pow2-gradients": frozenset({"int4-gradients", "int8-gradients"}),
}


def differs(later: Pass, earlier: str, name: str, lossless: bool) -> bool:
    """Whether the network compiles to something else where `later` runs right before `earlier`."""
    rivals = RIVALS.get(later.name, frozenset())
    passes = [
        p
        for p in PASSES
        if (p.lossless or not lossless) and p is not later and p.name not in rivals
    ]
    places = [i for i, p in enumerate(passes) if p.name == earlier]
    if not places or (lossless and not later.lossless):
        return False
    moved = [*passes[: places[0]], later, *passes[places[0] :]]
    try:
        return outcome(net_of(name), moved) != outcome_in_order(name, lossless, rivals)
    except Exception:  # a graph that the pass does not expect: it needs what comes before it
        return True


@pytest.mark.slow
@pytest.mark.parametrize(("later", "earlier"), PAIRS, ids=lambda p: getattr(p, "name", p))
def test_what_is_declared_is_needed(later: Pass, earlier: str) -> None:
    assert any(
        differs(later, earlier, name, lossless)
        for name in (*SMALL, *ZOO)
        for lossless in (False, True)
    )


# The page, and what `bnnopt passes` reads ---------------------------------------------------------


def row(p: Pass) -> list[str]:
    level = "--enable" if p.level is None else f"-O{p.level}"
    return [p.spec, level, p.numbers, p.summary]


def described(p: Pass) -> str:
    spec, level, numbers, summary = row(p)
    after = "; ".join(f"`{name}`: {reason}" for name, reason in p.after.items())
    return f"| `{spec}` | `{level}` | {numbers} | {summary} | {after} |"


def page() -> str:
    head = PAGE.read_text().partition("\n## ")[0].rstrip()
    parts = [head]
    for number, stage in enumerate(STAGES, 1):
        parts += [f"## {number}. {stage.title}", stage.reason]
        table = ["| pass | level | numbers | what it does | after |", "|---|---|---|---|---|"]
        parts.append("\n".join([*table, *map(described, stage.passes)]))
    return "\n\n".join(parts) + "\n"


def listing() -> str:
    return "[\n" + ",\n".join(json.dumps(row(p)) for p in PASSES) + "\n]\n"


@pytest.mark.parametrize(("path", "made"), [(PAGE, page), (LISTING, listing)])
def test_what_is_written_is_what_the_code_says(path: Path, made: Callable[[], str]) -> None:
    if os.environ.get("BNNOPT_UPDATE_GOLDEN"):
        path.write_text(made())
    assert path.read_text() == made()
