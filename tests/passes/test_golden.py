"""The graph that each pass makes of a small network, as text that a person can read.

To write the files anew after an intended change, and read the difference:

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

# Pass: the network (with its optimiser, if not sgd), and the passes that ran before it.
SUBJECTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "binary-weight-gradients": ("dense", ()),
    "drop-adam-second-moment": ("dense-adam", ("binary-weight-gradients",)),
    "pool-before-join": ("joined", ()),
    "redirect-consumers": ("dense", ()),
    "sign-pack": ("dense", ("redirect-consumers",)),
    "recompute-binary-products": ("dense", ("redirect-consumers", "sign-pack")),
    "rebuild-activations": ("float", ()),
    "prune-stored": ("float", ()),
    "mask-pack": ("float", ()),
    "pool-index": ("float", ("mask-pack",)),
    "bitmap": ("relu", ("mask-pack",)),
    "binary-output-int16": ("binary", ("sign-pack", "mask-pack", "pool-index", "packed-products")),
    "packed-products": (
        "dense",
        ("redirect-consumers", "sign-pack", "recompute-binary-products"),
    ),
    "l1-batch-norm": ("dense", ()),
    "bnn-batch-norm-backward": (
        "binary",
        ("sign-pack", "mask-pack", "pool-index", "packed-products", "fuse-batch-norm-signs"),
    ),
    "pool-batch-norm-backward": ("stem", ("l1-batch-norm", "mask-pack", "pool-index")),
    "input-gradient-sums": ("shifted", ()),
    "fuse-batch-norm-signs": ("binary", ("sign-pack", "mask-pack", "packed-products")),
    "float16-activations": ("binary", ("redirect-consumers", "sign-pack", "packed-products")),
    "float16-gradients": ("binary", ("redirect-consumers", "sign-pack", "packed-products")),
    "float16-state": ("dense", ("redirect-consumers", "sign-pack", "packed-products")),
    "immediate-update": ("dense", ()),
    "fuse-updates": ("binary-adam", ("sign-pack", "packed-products", "immediate-update")),
    "stream-gradients": ("binary", ("sign-pack", "packed-products", "immediate-update")),
    "in-place": ("dense", ("immediate-update",)),
    "pow2-gradients": ("binary", ("sign-pack", "packed-products", "stream-gradients")),
    "schedule": ("binary", ("redirect-consumers", "sign-pack", "immediate-update", "in-place")),
}


@pytest.mark.parametrize("pass_", PASSES, ids=lambda p: p.name)
def test_rewritten_graph_is_the_golden_one(pass_: Pass) -> None:
    name, earlier = SUBJECTS[pass_.name]
    network, _, optimizer = name.partition("-")
    step = small(network, optimizer=optimizer or "sgd").with_passes(*earlier)
    count, _ = apply(pass_, step)
    assert count > 0, "the golden text has to show a rewrite"
    file = FOLDER / f"{pass_.name}.txt"
    head = f"# {pass_.name} on {name!r}" + "".join(f", after {e}" for e in earlier) + "\n"
    found = head + text_of(step)
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
