"""Every command: help, an example that runs, a place in the docs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bnnopt import (
    __version__,
    autodiff,
    frontend,
    passes,
    runtime,
    settings,
)
from bnnopt.cli import cli
from bnnopt.cli.options import BACKENDS
from tests.cli.helpers import MODELS, ROOT, Cli
from tests.cli.test_training import write_data

COMMANDS = sorted(cli.commands)


def examples(help_text: str) -> list[str]:
    """The lines below ``Example:`` that are commands."""
    _, _, rest = help_text.partition("Example:\n")
    block = rest.split("\n\n")[0]
    return [line.strip() for line in block.splitlines() if line.strip().startswith("bnnopt ")]


def test_there_are_commands() -> None:
    assert {"optimize", "inspect", "verify", "passes", "zoo"} <= set(COMMANDS)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_all_commands(bnnopt: Cli, flag: str) -> None:
    found = bnnopt(flag)
    assert (found.exit_code, found.stderr) == (0, "")
    assert all(f"  {name} " in found.stdout for name in COMMANDS)
    assert "Exit codes: 0 done" in found.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(bnnopt: Cli, command: str) -> None:
    found = bnnopt(command, "--help")
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout.startswith(f"Usage: bnnopt {command}")
    assert cli.commands[command].help
    lines = examples(found.stdout)
    assert lines, "no example"
    assert all(line.startswith(f"bnnopt {command}") for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help(command: str) -> None:
    for parameter in cli.commands[command].params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_example_runs(bnnopt: Cli, command: str, workspace: Path, compiled: Path) -> None:
    (workspace / "models").symlink_to(MODELS)
    if command != "optimize":
        (workspace / "out").symlink_to(compiled)
    for name in ("train.npz", "valid.npz"):
        write_data(workspace / name, 30, 0)
    for line in examples(bnnopt(command, "--help").stdout):
        if "verify out --torch" in line:  # tests/torch has a module to hold it against
            continue
        found = bnnopt(*shlex.split(line)[1:])
        assert found.exit_code == 0, (line, found.stderr)
        assert found.stdout or found.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_mentions_the_command(command: str) -> None:
    assert f"bnnopt {command}" in (ROOT / "docs" / "commands.md").read_text()


def test_version(bnnopt: Cli) -> None:
    assert bnnopt("--version").stdout == f"bnnopt, version {__version__}\n"


def test_names_in_the_help_are_those_that_work() -> None:
    assert settings.OPTIMIZERS == autodiff.OPTIMIZERS
    assert (*autodiff.LOSSES, "none") == settings.LOSSES
    assert tuple(frontend.ESTIMATORS) == settings.ESTIMATORS
    assert BACKENDS == runtime.BACKENDS
    rule = autodiff.Bop()
    assert (settings.Settings.gamma, settings.Settings.tau) == (rule.gamma, rule.tau)


def test_the_help_loads_nothing_heavy() -> None:
    code = "import sys; from bnnopt.cli import cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnx", "onnx_ir"} & set(done.stdout.split())


def test_levels_in_the_help_are_those_that_work(bnnopt: Cli) -> None:
    text = bnnopt("optimize", "--help").stdout
    assert all(f"-{level}: " in text for level in passes.LEVELS)


@pytest.mark.slow
@pytest.mark.parametrize("program", [["bnnopt"], [sys.executable, "-m", "bnnopt"]])
def test_as_a_program(program: list[str]) -> None:
    program = [str(Path(sys.executable).with_name("bnnopt"))] if len(program) == 1 else program
    done = subprocess.run([*program, "zoo"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "binarynet" in done.stdout.splitlines()
    done = subprocess.run([*program, "zoo", "nope"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bnnopt: no network 'nope'")
