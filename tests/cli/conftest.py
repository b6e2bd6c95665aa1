"""Running the command line, in this process and in another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bnnopt.cli import main
from tests.cli.helpers import FILES, MODELS, Cli, Outcome, snapshot

Mistake = Callable[..., str]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder, at 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


@pytest.fixture
def bnnopt(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run ``bnnopt`` in this process."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        exit_code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            exit_code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(exit_code, captured.out, captured.err)

    return run


@pytest.fixture
def mistake(bnnopt: Cli, workspace: Path) -> Mistake:
    """Run what has to fail: exit code, one line, and nothing written or changed."""

    def run(*arguments: str | Path, exit_code: int = 2) -> str:
        before = snapshot(workspace)
        found = bnnopt(*arguments)
        assert found.exit_code == exit_code, found
        assert found.stdout == ""
        assert found.stderr.startswith("bnnopt: ")
        assert found.stderr.count("\n") == 1
        assert found.stderr.endswith("\n")
        assert "Traceback" not in found.stderr
        assert snapshot(workspace) == before
        return found.stderr

    return run


@pytest.fixture(scope="session", params=FILES)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder made of each model of the project, for batches of 8; not to be changed."""
    folder = tmp_path_factory.mktemp("small") / "out"
    main(["optimize", str(MODELS / request.param), "-o", str(folder), "-b", "8", "--lr", "0.005"])
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder made of models/mlp.onnx at -O1; copy it before changing it."""
    folder = tmp_path_factory.mktemp("compiled") / "out"
    arguments = ["optimize", str(MODELS / "mlp.onnx"), "-o", str(folder), "-b", "20"]
    subprocess.run([sys.executable, "-m", "bnnopt", *arguments], check=True, capture_output=True)
    return folder
