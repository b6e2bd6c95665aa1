"""The graph that each pass makes of a small network, as text that a person can read.

The first line of a file says which network (with its optimiser, if not sgd), and which passes ran
before: ``# fuse-updates on 'binary-adam', after sign-pack, after packed-products``. To add a pass,
write this line. To write the files anew after an intended change, and read the difference:

    BNNOPT_UPDATE_GOLDEN=1 python -m pytest tests/passes/test_golden.py
    git diff tests/passes/golden
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnnopt.passes import PASSES, Pass
from tests.graphs import apply, text_of
from tests.passes.networks import small

FOLDER = Path(__file__).parent / "golden"


@pytest.mark.parametrize("pass_", PASSES, ids=lambda p: p.name)
def test_rewritten_graph_is_the_golden_one(pass_: Pass) -> None:
    file = FOLDER / f"{pass_.name}.txt"
    head = file.read_text().splitlines()[0]
    subject, *earlier = head.split(", after ")
    name, _, optimizer = subject.removeprefix(f"# {pass_.name} on ").strip("'").partition("-")
    step = small(name, optimizer=optimizer or "sgd").with_passes(*earlier)
    count, _ = apply(pass_, step)
    assert count > 0, "the golden text has to show a rewrite"
    found = f"{head}\n{text_of(step)}"
    if os.environ.get("BNNOPT_UPDATE_GOLDEN"):
        file.write_text(found)
    assert found == file.read_text()


def test_every_pass_has_its_test_file_and_its_golden_text() -> None:
    names = {p.name for p in PASSES}
    modules = {f"test_{name.replace('-', '_')}.py" for name in names}
    others = {
        *("test_golden.py", "test_graph_check.py", "test_long_chains.py", "test_lossless.py"),
        "test_manager.py",
        "test_spec.py",
        "test_stages.py",
        "test_subsets.py",
    }
    assert {path.name for path in Path(__file__).parent.glob("test_*.py")} == modules | others
    assert {path.stem for path in FOLDER.glob("*")} == names


def test_file_class_and_name_are_one() -> None:
    for p in PASSES:
        stem = p.name.replace("-", "_")
        assert type(p).__module__ == f"bnnopt.passes.{stem}"
        assert type(p).__name__ == "".join(word.capitalize() for word in stem.split("_"))
        assert p.summary.endswith(".")
