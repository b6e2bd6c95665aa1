"""The documents for contributors: their code runs, and what they name is there."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from bnnopt.cli import cli
from bnnopt.passes import PASSES
from tests.graphs import apply, assert_bit_equal, network, ops, run_native

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = r"`((?:bnnopt|passes|runtime|models|tests|docs|benchmarks|\.ci)/[\w./-]*)`"

TWICE_NEGATED = """g (float[batch,6] x) => (float[batch,3] y) {
  a = Neg (x)
  b = Neg (a)
  y = MatMul (b, w)
}"""


def test_the_pass_that_is_whole_does_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "writing-a-pass.md").read_text()
    lines = text.partition("This one is whole:")[2].partition("\n## ")[0]
    module = types.ModuleType("scratch")
    monkeypatch.setitem(sys.modules, "scratch", module)  # dataclasses look their module up
    exec(textwrap.dedent(lines), module.__dict__)
    net = network(TWICE_NEGATED, {"w": (6, 3)})
    step = net.step()
    assert apply(module.DropDoubleNegations(), step) == (1, [])
    assert "Neg" not in ops(step)
    assert_bit_equal(run_native(net, step), run_native(net, net.step()))


def missing(text: str, folder: Path) -> list[str]:
    """The links, and the files of the repository between backticks, that are not there."""
    links = re.findall(r"\]\(((?!http|#)[^)#\s]+)", text)
    places = [place for place in re.findall(PLACES, text) if "..." not in place]
    lost = [link for link in links if not (folder / link).exists()]
    return lost + [place for place in places if not (ROOT / place).exists()]


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.stem)
def test_files_and_links_are_there(page: Path) -> None:
    assert missing(page.read_text(), page.parent) == []


def test_what_is_lost_is_found() -> None:
    text = "[a](nowhere.md) [b](test_docs.py#x) `tests/lost.py` `passes/sign_pack.py` `pass.py`"
    assert missing(text, ROOT / "tests") == ["nowhere.md", "tests/lost.py"]


# Pages that are made from the code ---------------------------------------------------------------


def commands_page() -> str:
    """The help of every command."""
    head = "Made from the commands' own help. Options in a file, and completion: [FAQ](faq.md)."
    parts = [f"# Commands\n\n{head}\n"]
    for name, command in sorted(cli.commands.items()):
        parts.append(f"## bnnopt {name}\n\n```text\n{_help(command, name)}\n```\n")
        for inner, part in sorted(getattr(command, "commands", {}).items()):
            title = f"{name} {inner}"
            parts.append(f"### bnnopt {title}\n\n```text\n{_help(part, title)}\n```\n")
    return "\n".join(parts)


def _help(command: click.Command, name: str) -> str:
    """As the command line shows it, 100 columns wide."""
    context = click.Context(cli, info_name="bnnopt", **cli.context_settings)
    for part in name.split():
        context = click.Context(command, context, info_name=part, terminal_width=100)
    return command.get_help(context).rstrip()


def notes_of_passes() -> str:
    """The docstring of every pass."""
    notes = ((p.name, inspect.cleandoc(type(p).__doc__ or "")) for p in PASSES)
    return "\n".join(f"### {name}\n\n```text\n{text}\n```\n" for name, text in notes)


@pytest.mark.parametrize(
    ("page", "mark", "make"),
    [
        ("commands.md", "", commands_page),
        ("how-passes-work.md", "## What the code says of each\n\n", notes_of_passes),
    ],
)
def test_what_is_made_from_the_code_is_up_to_date(
    page: str, mark: str, make: Callable[[], str]
) -> None:
    path = ROOT / "docs" / page
    head = path.read_text().partition(mark)[0] + mark if mark else ""
    if os.environ.get("BNNOPT_UPDATE_GOLDEN"):
        path.write_text(head + make())
    assert path.read_text() == head + make()


# What a reader types -----------------------------------------------------------------------------


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_works_as_it_is_typed(tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    said = ""
    for lines in blocks("tutorial.md", "sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert "PASS: bit-equal" in said
    assert float(said.rpartition("accuracy ")[2]) > 0.9
    (code,) = blocks("tutorial.md", "python")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "trained.onnx").exists()


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.oracle
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("text/html" in output.get("data", {}) for output in outputs)
