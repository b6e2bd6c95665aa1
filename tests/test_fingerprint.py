"""What compiling gives, held fast: plan, skips and kernels of every network, level and optimiser.

A refactoring changes none of it. To write the table anew after an intended change, and see which
part of which combination moved:

    BNNOPT_UPDATE_GOLDEN=1 python -m pytest -m "slow or not slow" tests/test_fingerprint.py
    git diff tests/fingerprint.txt

Nothing here names a module: files can be moved and renamed freely.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.autodiff import OPTIMIZERS
from bnnopt.errors import UsageError
from bnnopt.passes import LEVELS, PASSES
from bnnopt.plan import make_plan
from bnnopt.runtime.library import library
from tests.zoo import FIRST, build_small

TABLE = Path(__file__).parent / "fingerprint.txt"
ARTIFACTS = Path(__file__).parent / "exports" / "artifacts"
QUICK = ("mlp", "relu-mini", "small artifacts")
WHOLE = ("adam", "bop")  # on every network and at every level; others on the quick ones below -O3
ONCE = [(name, "O2", "adam") for name in ("cnv", "resnet-e-mini")]  # a second each

Case = tuple[str, str, str]  # network, level or a pass alone, optimiser

pytestmark = pytest.mark.skipif(library() is None, reason="the table is that of compiled kernels")


def _cases() -> list[Case]:
    levels = [
        (name, level, rule)
        for name in FIRST
        for level in LEVELS
        for rule in OPTIMIZERS
        if rule in WHOLE or (name in QUICK and level < "O3")
    ]
    imported = [(f"{p.name} artifacts", level, "own") for p in _folders() for level in LEVELS]
    alone = [("resnet-e-mini", p.name, "adam") for p in PASSES]
    return [*levels, *imported, *alone]


def _folders() -> list[Path]:
    return sorted(path for path in ARTIFACTS.iterdir() if path.is_dir())


def _parameters() -> list[object]:
    quick = [c for c in _cases() if (c[0] in QUICK and c[1] != "O3") or c in ONCE]
    quick = [c for c in quick if c[2] in ("adam", "own") or c[:2] == ("mlp", "O2")]
    return [
        pytest.param(case, id="-".join(case), marks=[] if case in quick else [pytest.mark.slow])
        for case in _cases()
    ]


@pytest.mark.parametrize("case", _parameters())
def test_compiling_gives_what_it_gave(case: Case, tmp_path: Path) -> None:
    try:
        found = fingerprint(_compiled(case, tmp_path))
    except UsageError as refusal:  # an optimiser of binary weights, and a network without any
        found = f"refused: {refusal}"
    if os.environ.get("BNNOPT_UPDATE_GOLDEN"):
        _write({**_table(), case: found})
    assert found == _table()[case]


def test_the_table_has_these_combinations_and_no_others() -> None:
    assert list(_table()) == _cases()


@pytest.mark.slow
def test_another_plan_skip_or_kernel_shows(tmp_path: Path) -> None:
    found = fingerprint(_compiled(("mlp", "O1", "adam"), tmp_path))
    others = {
        "order": {"disable": ["immediate-update"]},
        "offsets": {"disable": ["in-place"]},
        "skips": {"disable": ["mask-pack"]},
        "kernels": {"disable": ["packed-products"]},
    }
    for part, options in others.items():
        other = fingerprint(_compiled(("mlp", "O1", "adam"), tmp_path, **options))
        assert _part(other, part) != _part(found, part), part


def fingerprint(optimized: bnnopt.Optimized) -> str:
    """The numbers that a person compares, and a short hash of each list behind them."""
    plan, evaluation = make_plan(optimized.training), make_plan(optimized.evaluation)
    nodes = list(optimized.training.graph)
    skips = [
        (record.name, record.rewrites, skip.node, skip.reason)
        for record in optimized.report.passes
        for skip in (*record.skipped, *record.chosen)
    ]
    rewrites = [(record.name, record.rewrites) for record in optimized.report.passes]
    return (
        f"arena {plan.arena_bytes} persistent {plan.persistent_bytes} saved {plan.saved_bytes} "
        f"evaluation {evaluation.arena_bytes} order {_hash(map(_node, nodes))} "
        f"offsets {_hash(_places(plan.offsets, plan.workspace))} "
        f"skips {_hash([*rewrites, *skips])} kernels {_hash(optimized.kernels())}"
    )


def _node(node: ir.Node) -> tuple[object, ...]:
    ends = [
        [None if v is None else v.name for v in values] for values in (node.inputs, node.outputs)
    ]
    attributes = sorted((name, str(a.value)) for name, a in node.attributes.items())
    return node.op_type, node.name, *ends, attributes


def _places(
    offsets: dict[ir.Value, int], workspace: dict[ir.Node, tuple[int, int]]
) -> list[tuple[object, ...]]:
    values = sorted((str(value.name), offset) for value, offset in offsets.items())
    return [*values, *((node.name, *place) for node, place in workspace.items())]


def _hash(items: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(repr, items)).encode()).hexdigest()[:10]


def _part(line: str, name: str) -> str:
    words = line.split()
    return words[words.index(name) + 1]


def _compiled(case: Case, folder: Path, **options: Any) -> bnnopt.Optimized:
    network, level, optimizer = case
    if network.endswith(" artifacts"):
        model = ARTIFACTS / network.removesuffix(" artifacts")
    else:
        model = folder / f"{network}.onnx"
        ir.save(build_small(network), model)
        options["optimizer"] = optimizer
    which: dict[str, Any] = {"level": level} if level in LEVELS else {"passes": [level]}
    return bnnopt.optimize(model, batch_size=4, **which, **options)


# The table ---------------------------------------------------------------------------------------


@functools.cache
def _lines() -> dict[Case, str]:
    rows = (line.partition(": ") for line in TABLE.read_text().splitlines())
    return {_case(head): found for head, _, found in rows}


def _case(head: str) -> Case:
    network, level, optimizer = head.rsplit(" ", 2)
    return network, level, optimizer


def _table() -> dict[Case, str]:
    return _lines() if TABLE.exists() else {}


def _write(table: dict[Case, str]) -> None:
    known = [case for case in _cases() if case in table]
    TABLE.write_text("".join(f"{' '.join(case)}: {table[case]}\n" for case in known))
    _lines.cache_clear()
