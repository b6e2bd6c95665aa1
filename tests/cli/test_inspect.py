"""``bnnopt inspect``: a model or a folder, as tables, page and report."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import bnnopt as package
from bnnopt.compiler.pages import PROFILE_FILE
from bnnopt.compiler.pages import page_of_folder as page_of_folder_
from bnnopt.report.page import render_page
from bnnopt.report.page.contents import STACK
from bnnopt.report.page.layers import layers
from bnnopt.report.page.render import FOLDER, LIBRARY
from bnnopt.report.text import CLASS_TITLES
from tests.cli.helpers import MODELS, Cli, read_report, save_model

VOID = {"meta", "br", "link", "i"}
PROFILE = {"nodes": [{"name": "fc1", "op": "BinaryGemm", "seconds": 0.5, "calls": 10}], "steps": 10}


class Page(HTMLParser):
    """Checks that every tag is closed, and collects the cells of the tables and the data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.data: dict[str, Any] = {}
        self._caption = ""
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & dict(attrs).keys() or dict(attrs).get("href") == "data:,"
        if tag not in VOID - {"i"}:
            self.open.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables[self._caption].append([])
        if tag in ("th", "td"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if "caption" in self.open:
            self._caption += text
            self.tables[self._caption] = []
        elif {"td", "th"} & set(self.open):
            self.tables[self._caption][-1][-1] += text
        elif self.open and self.open[-1] == "script" and text.startswith('{"classes"'):
            self.data = json.loads(text)


@pytest.fixture(scope="module")
def page_of_folder(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page") / "out"
    shutil.copytree(compiled, folder)
    (folder / PROFILE_FILE).write_text(json.dumps({**PROFILE, "seen_bytes": 12 << 20}))
    path = folder.parent / "page.html"
    path.write_text(render_page(page_of_folder_(folder)))
    return Page(path)


def test_the_page_says_that_it_is_written_and_nothing_else_is(
    bnnopt: Cli, workspace: Path, compiled: Path
) -> None:
    found = bnnopt("inspect", compiled, "--html", "page.html")
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout.endswith("written: page.html; open it in a browser\n")
    assert [p.name for p in workspace.iterdir()] == ["page.html"]
    assert (workspace / "page.html").stat().st_size < 1e6


def test_the_page_of_a_folder_has_before_and_after(page_of_folder: Page, compiled: Path) -> None:
    report = json.loads((compiled / "report.json").read_text())
    before, after = page_of_folder.data["versions"]
    assert (before["peak"], before["saved"]) == (
        report["baseline"]["peak_bytes"],
        report["baseline"]["saved_bytes"],
    )
    assert (after["peak"], after["saved"]) == (
        report["optimized"]["peak_bytes"],
        report["optimized"]["saved_bytes"],
    )


def test_tensors_add_up_to_the_peak(page_of_folder: Page) -> None:
    for version in page_of_folder.data["versions"]:
        at = version["fullest"]
        alive = [t[2] for t in version["tensors"] if t[5] < 0 or t[3] <= at <= t[4]]
        scratch = sum(n_bytes for node, _, n_bytes in version["scratch"] if node == at)
        assert sum(alive) + scratch + version["gaps"] == version["peak"]


def test_tensors_have_the_pass_that_made_them_so(page_of_folder: Page) -> None:
    before, after = page_of_folder.data["versions"]
    made = {t[0]: (t[6], t[8]) for t in after["tensors"]}
    assert ("sign bits", "sign-pack") in made.values()
    assert {t[8] for t in before["tensors"]} <= {"", "packed-products"}  # both have its kernels


def test_every_pass_is_in_the_table_with_what_it_left(page_of_folder: Page, compiled: Path) -> None:
    report = json.loads((compiled / "report.json").read_text())
    rows = page_of_folder.tables["Pass by pass: -O1"][1:]
    assert [row[0] for row in rows] == [record["name"] for record in report["passes"]]
    skipping = {r["name"] for r in report["passes"] if r["skipped"]}
    assert {row[0] for row in rows if "skipped, and why" in row[5]} == skipping


def test_layers_add_up_to_what_is_kept(compiled: Path) -> None:
    page = page_of_folder_(compiled)
    found = layers(page.before, page.after)
    for side in ("before", "after"):
        total = sum(getattr(layer, f"bytes_{side}") for layer in found)
        assert total == getattr(page, side).profile.plan.saved_bytes


def test_the_profile_of_a_run_is_shown(page_of_folder: Page) -> None:
    rows = {row[0]: row for row in page_of_folder.tables["Predicted and measured"]}
    assert rows["seen while training"][1] == "12.00 MiB"
    head, *rest = page_of_folder.tables["Kept for the backward pass, by layer"]
    times = {row[0]: row[head.index("ms forward")] for row in rest}
    assert times["fc1"] == "50.000"


def test_what_is_large_has_advice(page_of_folder: Page) -> None:
    rows = page_of_folder.tables["The largest at the peak: -O1"][1:]
    by_name = {row[0]: row[-1] for row in rows}
    assert "-O2: " in by_name["fc1.weight.adam_m"]
    assert "--optimizer sgd" in by_name["fc1.weight.adam_m"]


@pytest.mark.slow
def test_the_page_of_a_model_has_all_levels(bnnopt: Cli, workspace: Path) -> None:
    bnnopt("inspect", MODELS / "relu-mini.onnx", "-b", "8", "--html", "page.html")
    versions = Page(workspace / "page.html").data["versions"]
    assert [v["label"] for v in versions] == ["before any pass", "-O1", "-O2", "-O3"]


@pytest.mark.slow
def test_optimize_writes_the_page_that_inspect_writes(
    bnnopt: Cli, workspace: Path, compiled: Path
) -> None:
    bnnopt("optimize", MODELS / "mlp.onnx", "-b", "20", "--html", "a.html")
    bnnopt("inspect", compiled, "--html", "b.html")
    first, second = (Page(workspace / f"{name}.html").data for name in "ab")
    assert first == second


def test_a_profile_that_is_none_is_one_line(bnnopt: Cli, workspace: Path, compiled: Path) -> None:
    shutil.copytree(compiled, "out")
    (workspace / "out" / PROFILE_FILE).write_text("[]")
    found = bnnopt("inspect", "out", "--html", "page.html")
    assert found.exit_code == 2
    assert "out/profile.json: not a profile of bnnopt train --profile" in found.stderr


def test_the_library_is_the_one_that_is_declared() -> None:
    text = (FOLDER / LIBRARY).read_bytes()
    assert text.startswith(b"// https://d3js.org v7.9.0 ")
    assert (FOLDER / "d3.LICENSE").read_text().startswith("Copyright 2010-2023 Mike Bostock")


def test_every_class_has_a_place_in_the_picture() -> None:
    assert {kind.value for kind in STACK} == set(CLASS_TITLES)


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
