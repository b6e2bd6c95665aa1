"""``bnnopt fleet init``: an app that Flower reads, and what cannot be."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.cli.helpers import Cli


def test_an_app(bnnopt: Cli, compiled: Path, workspace: Path) -> None:
    arguments = ("--folder", compiled, "--strategy", "sign-majority", "--rounds", "3")
    found = bnnopt("fleet", "init", "My app", *arguments, "--valid", "v.npz")
    assert (found.exit_code, found.stderr) == (0, "")
    assert "a device sends 60.93 KiB a round, of 1.54 MiB in all" in found.stdout
    project = tomllib.loads((workspace / "My app" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-app"
    app = project["tool"]["flwr"]["app"]
    assert app["components"]["clientapp"] == "fleet_app.client:app"
    assert app["config"]["folder"] == str(compiled.resolve())
    assert app["config"]["valid"] == str(workspace / "v.npz")
    assert (app["config"]["rounds"], app["config"]["strategy"]) == (3, "sign-majority")
    assert {path.name for path in (workspace / "My app" / "fleet_app").iterdir()} == {
        *("__init__.py", "client.py", "server.py")
    }
    again = bnnopt("fleet", "init", "My app", *arguments)
    assert (again.exit_code, "is not empty" in again.stderr) == (2, True)


def test_a_strategy_that_is_not_known(bnnopt: Cli, compiled: Path, workspace: Path) -> None:
    found = bnnopt("fleet", "init", "app", "--folder", compiled, "--strategy", "binary-avrage")
    assert found.exit_code == 2
    assert "did you mean 'binary-average'" in found.stderr
    assert not (workspace / "app").exists()
