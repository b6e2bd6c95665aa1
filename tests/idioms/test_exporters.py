"""The table of docs/binarisation.md is what comes of each file: a sample of its cells."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.idioms.exporters import COLUMNS, IDIOMS, line, outcome

pytestmark = pytest.mark.oracle

DOCS = Path(__file__).parents[2] / "docs" / "binarisation.md"
N_COLUMNS = len(COLUMNS)
# Every idiom once, every column thrice; the command that prints the table runs all.
CELLS = [(name, list(COLUMNS)[i % N_COLUMNS]) for i, name in enumerate(IDIOMS)]
CELLS += [("tanh in a function", "TorchScript, 17"), ("gate, detached", "TorchScript, 17")]
QUICK = {CELLS[0], CELLS[-1]}


def documented() -> dict[str, list[str]]:
    lines = DOCS.read_text().splitlines()
    start = lines.index(line("written as", COLUMNS)) + 2
    rows = [row.strip("| ").split(" | ") for row in lines[start : start + len(IDIOMS)]]
    return {name.replace("&#124;", "|"): cells for name, *cells in rows}


def test_the_table_has_these_rows() -> None:
    assert list(documented()) == list(IDIOMS)


@pytest.mark.parametrize(
    ("name", "column"),
    [pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow) for cell in CELLS],
)
def test_a_cell(name: str, column: str, tmp_path: Path) -> None:
    found = outcome(name, column, tmp_path)
    assert found == documented()[name][list(COLUMNS).index(column)]
    assert found != "wrong"
