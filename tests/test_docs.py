"""The documents for contributors: their code runs, and what they name is there."""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path

import pytest

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
