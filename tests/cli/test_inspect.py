"""``bnnopt inspect``: a model or a folder, as tables, page and report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bnnopt as package
from bnnopt.report.html import COLOURS
from bnnopt.report.text import CLASS_TITLES
from tests.cli.helpers import MODELS, Cli, read_report, save_model

VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that every tag is closed, and collects the colours of the rectangles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.colours: set[str | None] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "rect":
            self.colours.add(dict(attrs)["fill"])


def present(report: dict[str, dict[str, dict[str, int]]]) -> set[str]:
    return {name for name, n in report["optimized"]["classes"].items() if n}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["model", "folder"])
def test_page(bnnopt: Cli, source: str, workspace: Path, compiled: Path) -> None:
    path = compiled if source == "folder" else MODELS / "resnet-e-mini.onnx"
    options = [] if source == "folder" else ["-b", "8"]
    found = bnnopt("inspect", path, "--html", "page.html", "--json", "-", *options)
    assert (found.exit_code, found.stderr) == (0, "")
    text = (workspace / "page.html").read_text()
    page = Page(text)
    for kind, colour in COLOURS.items():
        assert (colour in page.colours) or kind.value not in present(json.loads(found.stdout))
        assert CLASS_TITLES[kind.value] in text
    assert len(page.colours) >= 5
    ElementTree.fromstring(text.partition("\n")[2])  # also well-formed as XML
    assert [p.name for p in workspace.iterdir()] == ["page.html"]


def test_every_class_has_a_colour_and_a_title() -> None:
    assert {kind.value for kind in COLOURS} == set(CLASS_TITLES)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_a_name_is_not_taken_as_html(bnnopt: Cli, workspace: Path) -> None:
    path = save_model(workspace / "<b>&.onnx", "y = MatMul (x, w)")
    bnnopt("inspect", path, "-b", "4", "--html", "page.html")
    assert "<h1>&lt;b&gt;&amp;.onnx</h1>" in (workspace / "page.html").read_text()


def test_model(bnnopt: Cli, workspace: Path) -> None:
    found = bnnopt("inspect", MODELS / "mlp.onnx", "-b", "20", "--json", "r.json")
    report = read_report((workspace / "r.json").read_text())
    assert (report["level"], report["passes"]) == ("O0", [])
    assert f"{report['optimized']['peak_bytes'] / 2**20:.2f} MiB" in found.stdout
    assert all(title in found.stdout for title in CLASS_TITLES.values())
    assert "fc1.weight.adam_m" in found.stdout


def test_model_takes_the_options_of_a_step(bnnopt: Cli) -> None:
    options = ["--optimizer", "sgd", "--momentum", "0", "--json", "-"]
    found = bnnopt("inspect", MODELS / "mlp.onnx", "-b", "20", *options)
    assert read_report(found.stdout)["optimized"]["classes"]["optimizer_state"] == 0


def test_folder(bnnopt: Cli, compiled: Path) -> None:
    text = bnnopt("inspect", compiled, "--json", "-").stdout
    assert text == (compiled / "report.json").read_text().rstrip("\n") + "\n"
    report = read_report(text)
    shown = bnnopt("inspect", compiled).stdout
    assert f"{report['optimized']['peak_bytes'] / 2**20:.2f} MiB" in shown
    assert f"{report['optimized']['saved_bytes'] / 2**10:.2f} KiB" in shown


def test_folder_agrees_with_the_compiler(compiled: Path) -> None:
    again = package.optimize(MODELS / "mlp.onnx", batch_size=20).report.to_dict()
    assert json.loads((compiled / "report.json").read_text()) == again
