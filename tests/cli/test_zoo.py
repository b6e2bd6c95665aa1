"""``bnnopt zoo`` and ``bnnopt passes``."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from bnnopt.models import ZOO, names
from bnnopt.passes import PASSES
from tests.cli.conftest import Mistake
from tests.cli.helpers import Cli


def test_lists(bnnopt: Cli) -> None:
    found = bnnopt("zoo")
    assert found.stdout.splitlines() == list(names()) == list(ZOO)


@pytest.mark.parametrize("name", ["mlp", "relu-mini", "resnet-e-mini", "cnv"])
def test_writes(bnnopt: Cli, name: str, workspace: Path) -> None:
    found = bnnopt("zoo", name)
    assert (found.exit_code, found.stdout) == (0, f"written: {name}.onnx\n")
    onnx.checker.check_model(onnx.load(workspace / f"{name}.onnx"), full_check=True)
    assert [p.name for p in workspace.iterdir()] == [f"{name}.onnx"]


def test_seed(bnnopt: Cli, workspace: Path) -> None:
    for file, seed in (("a", "0"), ("b", "1"), ("c", "1")):
        bnnopt("zoo", "relu-mini", "-o", file, "--seed", seed)
    a, b, c = ((workspace / file).read_bytes() for file in "abc")
    assert a != b
    assert b == c


def test_mistakes(mistake: Mistake, workspace: Path) -> None:
    (workspace / "file").write_text("")
    assert "no network 'nope' in the zoo: choose one of bi-real-18, " in mistake("zoo", "nope")
    assert "did you mean 'binarynet'?" in mistake("zoo", "binarynett")
    assert "there is no folder" in mistake("zoo", "mlp", "-o", "nowhere/mlp.onnx")
    assert "there is no folder" in mistake("zoo", "mlp", "-o", "file/mlp.onnx")
    assert "is a folder" in mistake("zoo", "mlp", "-o", workspace)
    assert "is a folder" in mistake("zoo", "mlp", "-o", "")
    assert "cannot be written" in mistake("zoo", "mlp", "-o", "/proc/mlp.onnx")
    assert "cannot be written" in mistake("zoo", "mlp", "-o", "x" * 300)
    assert "--seed" in mistake("zoo", "mlp", "--seed", "-1")
    assert "which model?" in mistake("zoo", "-o", "mlp.onnx")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_passes(bnnopt: Cli, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = bnnopt("passes").stdout
    assert all(len(line) <= columns for line in text.splitlines())
    first = [line.split(" ")[0] for line in text.splitlines()]
    names = [entry.name for entry in PASSES]

    def name_of(word: str) -> str:
        return word.partition("{")[0]

    assert [word for word in map(name_of, first) if word in names] == names
    flat = " ".join(text.split())
    assert all(word in flat for entry in PASSES for word in entry.summary.split())
