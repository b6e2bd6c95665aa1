"""What is known of an operator is written down once: no other file has a table of names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from bnnopt.ops import OPERATORS

ROOT = Path(__file__).parents[2]
ROOMS = ("bnnopt", "passes", "runtime")
NAMES = {*OPERATORS, *(schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain)}
HOMES = (
    "bnnopt/ops/",
    "runtime/kernels/compiled/",
    "bnnopt/plan/check.py",  # independent on purpose
    "runtime/kernels/operands.py",  # what compiled kernels read and write: independent as well
)
# Names to the code that reads or differentiates such a node, and the number of such tables.
RULES = {
    "bnnopt/autodiff/gradients.py": 1,
    "bnnopt/autodiff/imported_rules.py": 2,  # one for each domain
    "passes/packed_products.py": 1,
}
# Families of kernels that one function makes; spellings that the front end recognises.
MADE = ("runtime/kernels/reference/", "runtime/kernels/tiling.py", "bnnopt/frontend/")


def tables(source: str) -> Iterator[tuple[int, list[str]]]:
    """Line and names of each set, list, tuple or dict with the names of two operators or more."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            items = [key for key in node.keys if key is not None]
        elif isinstance(node, (ast.Set, ast.List, ast.Tuple)):
            items = node.elts
        else:
            continue
        found = [i.value for i in items if isinstance(i, ast.Constant) and i.value in NAMES]
        if len(found) > 1:
            yield node.lineno, found


def files() -> list[Path]:
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    relative = {path.relative_to(ROOT) for path in paths}
    links = {Path("bnnopt", room) for room in ("passes", "runtime", "models")}
    return sorted(path for path in relative if not links & {*path.parents})


@pytest.mark.parametrize("path", files(), ids=str)
def test_no_table_of_operator_names(path: Path) -> None:
    name = path.as_posix()
    found = list(tables((ROOT / path).read_text()))
    if name in RULES:
        assert len(found) == RULES[name], found
    elif not name.startswith((*HOMES, *MADE)):
        assert not found, found


@pytest.mark.parametrize(
    "source",
    [
        'A = frozenset({"Conv", "Gemm"})',
        'x.op_type in ("Relu", "Clip")',
        'D = {"Add": 1, "Sub": 2}',
    ],
)
def test_the_control_finds_one(source: str) -> None:
    assert len(list(tables(source))) == 1
    assert not list(
        tables(source.replace('"Conv', '"My').replace('"Relu', '"My').replace('"Add', '"My'))
    )
