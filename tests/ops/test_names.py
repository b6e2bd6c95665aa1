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
HOMES = ("bnnopt/ops/", "bnnopt/plan/check.py")  # the checker is independent on purpose
# A table of rows: name to kernel, in the file of the kernel's family.
KERNEL_TABLES = ("runtime/kernels/reference/", "runtime/kernels/compiled/")
# Tables from a name to the code for it, and spellings of one idiom; how many in each file.
RULES = {
    "bnnopt/autodiff/gradients.py": 1,
    "bnnopt/autodiff/imported_rules.py": 2,  # one for each domain
    "bnnopt/frontend/binarization.py": 3,
    "bnnopt/frontend/composed/elementwise.py": 1,
    "bnnopt/frontend/composed/losses.py": 1,
    "bnnopt/frontend/composed/normalization.py": 1,
    "bnnopt/frontend/composed/randomness.py": 1,
    "bnnopt/frontend/composed/recurrent.py": 4,  # with the activations that ONNX names in them
    "bnnopt/frontend/composed/shaping.py": 1,
    "bnnopt/frontend/constants.py": 2,  # what may go on for long when it is evaluated
    "bnnopt/frontend/hints.py": 2,
    "bnnopt/frontend/normalize.py": 1,
    "bnnopt/frontend/quantization.py": 1,
    "bnnopt/frontend/straight_through.py": 3,
    "bnnopt/frontend/training_artifacts.py": 1,  # operators that onnxruntime-training adds, too
    "bnnopt/frontend/whole.py": 2,  # a product or a quotient with a number
    "bnnopt/report/page/contents.py": 1,  # words for readers
    "passes/packed_products.py": 1,
    "runtime/kernels/chains.py": 3,  # products, norms, gradients
    "runtime/kernels/compiled/binary_products.py": 1,  # operators of one C function
    "runtime/kernels/compiled/convolution.py": 2,
    "runtime/kernels/compiled/optimizers.py": 1,
    "runtime/kernels/compiled/updates.py": 1,
    "runtime/kernels/operands.py": 7,  # which operand is which, read on the device before a run
    "runtime/kernels/reference/filter_blocks.py": 3,  # products, norms, gradients
    "runtime/kernels/reference/optimizers.py": 2,
    "runtime/kernels/reference/updates.py": 2,
    "runtime/kernels/tiling/__init__.py": 3,
}


def tables(source: str, has_rows: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Line and names of each set, list, tuple or dict with the names of two operators or more.

    But for `KERNELS`, in a file that has rows of a kernel table.
    """
    tree = ast.parse(source)
    rows = [n.value for n in tree.body if isinstance(n, ast.AnnAssign) and _is_rows(n)]
    for node in ast.walk(tree):
        if has_rows and node in rows:
            continue
        if isinstance(node, ast.Dict):
            items = [key for key in node.keys if key is not None]
        elif isinstance(node, (ast.Set, ast.List, ast.Tuple)):
            items = node.elts
        else:
            continue
        found = [i.value for i in items if isinstance(i, ast.Constant) and i.value in NAMES]
        if len(found) > 1:
            yield node.lineno, found


def _is_rows(node: ast.AnnAssign) -> bool:
    return isinstance(node.target, ast.Name) and node.target.id == "KERNELS"


def files() -> list[Path]:
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    relative = {path.relative_to(ROOT) for path in paths}
    links = {Path("bnnopt", room) for room in ("passes", "runtime", "models")}
    return sorted(path for path in relative if not links & {*path.parents})


@pytest.mark.parametrize("path", files(), ids=str)
def test_no_table_of_operator_names(path: Path) -> None:
    name = path.as_posix()
    found = list(tables((ROOT / path).read_text(), name.startswith(KERNEL_TABLES)))
    if not name.startswith(HOMES):
        assert len(found) == RULES.get(name, 0), found


@pytest.mark.parametrize(
    "source",
    [
        'A = frozenset({"Conv", "Gemm"})',
        'x.op_type in ("Relu", "Clip")',
        'D = {"Add": 1, "Sub": 2}',
    ],
)
def test_the_control_finds_one(source: str) -> None:
    assert len(list(tables(source, has_rows=True))) == 1
    assert not list(
        tables(source.replace('"Conv', '"My').replace('"Relu', '"My').replace('"Add', '"My'))
    )


def test_only_the_rows_of_a_kernel_table_are_left_out() -> None:
    rows = 'KERNELS: dict[str, int] = {"Add": 1, "Sub": 2}'
    assert not list(tables(rows, has_rows=True))
    assert list(tables(rows))
