"""The folder of a Flower app, for ``flwr run``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from bnnopt.errors import ArtifactError
from bnnopt.fleet.options import RunOptions

PACKAGE = "fleet_app"
CLIENT = '''"""A device: receives, trains, sends; see `bnnopt.fleet`."""

from bnnopt.fleet.client import client_app

app = client_app()
'''
SERVER = '''"""The server: sends, counts, measures; see `bnnopt.fleet`."""

from bnnopt.fleet.server import server_app

app = server_app()
'''
PROJECT = """[project]
name = "{name}"
version = "1.0.0"
description = "Trains {model} on many devices"
license = "Apache-2.0"
dependencies = []  # bnnopt[flower] is found where SuperLink and SuperNodes were started from

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "bnnopt"

[tool.flwr.app.components]
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"

# Of the server; --run-config changes one of them, and of a device --node-config.
[tool.flwr.app.config]
"""


def write_app(path: Path, options: RunOptions, model: str) -> None:
    """Write an app.

    Parameters
    ----------
    path : Path
        A new or empty folder.
    options : RunOptions
        What its configuration says.
    model : str
        For its description.

    Raises
    ------
    ArtifactError
        If there is something at `path`, or it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ArtifactError(f"{path}: is not empty; choose a new folder")
        package = path / PACKAGE
        package.mkdir()
        for name, text in (("__init__", ""), ("client", CLIENT), ("server", SERVER)):
            (package / f"{name}.py").write_text(text, encoding="utf-8")
        (path / "pyproject.toml").write_text(_project(path, options, model), encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from None


def _project(path: Path, options: RunOptions, model: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", path.resolve().name.lower()).strip("-") or "fleet"
    shown = re.sub(r"[^\w .-]+", " ", model)
    head = PROJECT.format(name=name, model=shown, package=PACKAGE)
    return head + "".join(f"{k} = {json.dumps(v)}\n" for k, v in asdict(options).items())
