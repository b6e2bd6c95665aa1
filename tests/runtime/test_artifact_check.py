"""What ``artifact.json`` says is taken only where a session can go by it, checksums or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import ArtifactError
from bnnopt.runtime.format import fields_checksum
from tests.graphs import write
from tests.passes.networks import DENSE, DENSE_WEIGHTS

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("net")
    path = write(DENSE, DENSE_WEIGHTS, scratch)
    bnnopt.optimize(path, batch_size=4, optimizer="bop").save(scratch / "out")
    return scratch / "out"


def crafted(whole: Path, folder: Path, edit: Edit) -> Path:
    """A copy that says something else about itself, under the checksum that belongs to that."""
    shutil.copytree(whole, folder)
    about = json.loads((folder / "artifact.json").read_text())
    version = about.pop("format")
    del about["checksum"]
    edit(about)
    about |= {"checksum": fields_checksum(about), "format": version}
    (folder / "artifact.json").write_text(json.dumps(about))
    return folder


EDITS: dict[str, tuple[Edit, str]] = {
    "a field more": (lambda a: a.update(colour=1), "its fields are"),
    "a field less": (lambda a: a.pop("packed"), "its fields are"),
    "another batch": (lambda a: a.update(batch_size=400), "for batches of 4, not 400"),
    "too many parts": (lambda a: a.update(parts=1 << 40), "parts is"),
    "parts that its program knows nothing of": (lambda a: a.update(parts=2), "no batch in 2 parts"),
    "no batch": (lambda a: a.update(batch_size=0), "batch_size is 0"),
    "text for a number": (lambda a: a.update(learning_rate="1"), "learning_rate is '1'"),
    "negative axis": (lambda a: a["persistent"].update(g1=[-5]), "persistent is"),
    "no such type": (lambda a: a["dtypes"].update(g1="object"), "dtypes is"),
    "a type less": (lambda a: a["dtypes"].pop("g1"), "'g1' is no weight"),
    "foreign weight": (lambda a: a["weights"].append("z"), "'z' is no weight"),
    "pruning": (lambda a: a.update(pruning=3), "pruning is 3"),
    "pruned by all": (
        lambda a: a.update(pruning={"sparsity": 1.0, "end": 9, "weights": []}),
        "pruning is",
    ),
    "no loss options": (lambda a: a.update(loss_options={}), "loss_options is"),
    "fewer bits": (lambda a: a["packed"].update(w1=[5, 60]), r"hold the bits of \[5, 60\]"),
    "more than the machine has": (
        lambda a: a["persistent"].update(g1=[1 << 50]),
        r"needs 4096\.00 TiB of memory, this machine has",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_does_not_fit_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    edit, expected = EDITS[name]
    with pytest.raises(ArtifactError, match=expected):
        TrainingSession(crafted(whole, tmp_path / "out", edit))


def test_the_control_opens(whole: Path, tmp_path: Path) -> None:
    TrainingSession(crafted(whole, tmp_path / "out", lambda about: None))
