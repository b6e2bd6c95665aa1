"""The page in a browser: light, dark and narrow, by pointer and by keys.

Needs Chromium, the extra ``browser`` and, for accessibility, ``axe.min.js`` of the npm package
axe-core where ``BNNOPT_AXE`` says; `.ci/run` brings all three.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bnnopt
from bnnopt.passes import select

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
MODELS = Path(__file__).parents[2] / "models"
LOOKS = [("light", 1180), ("dark", 1180), ("light", 390), ("dark", 390)]
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    optimized = bnnopt.optimize(MODELS / "resnet-e-mini.onnx", batch_size=8, level="O2")
    path.write_text(optimized.to_html())
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a file; nothing may be said on the console, and nothing asked for."""
    contexts, heard = [], list[str]()

    def opened(file: Path, scheme: str = "light", width: int = 1180) -> Any:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: heard.append(request.url))
        page.goto(file.as_uri())
        assert heard.pop(0) == file.as_uri()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert heard == []


def scroll_to(page: Any, target: Any) -> None:
    """Bring it into view, and wait for the event of it: scrolling takes the tip away."""
    target.scroll_into_view_if_needed()
    two_frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.evaluate(two_frames)


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_before_and_after_are_there(file: Path, open_page: Any, scheme: str, width: int) -> None:
    page = open_page(file, scheme, width)
    for kind in ("#timelines", "#maps"):
        titles = page.locator(f"{kind} h3").all_inner_texts()
        assert titles[0].startswith("before any pass")
        assert titles[1].startswith("-O2")
        boxes = [svg.bounding_box() for svg in page.locator(f"{kind} svg").all()]
        assert all(box["width"] > 250 and box["height"] > 200 for box in boxes)
        side_by_side = boxes[0]["y"] == boxes[1]["y"]
        assert side_by_side == (width > 760)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("width", [1180, 390])
def test_pointing_shows_a_tensor(file: Path, open_page: Any, width: int) -> None:
    page = open_page(file, "light", width)
    data = json.loads(page.locator("#data").text_content())
    svg = page.locator("#timelines svg").first
    scroll_to(page, svg)
    box = svg.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.6 * box["height"])
    tip = page.locator(".tip")
    assert tip.is_visible()
    name, *facts = tip.inner_text().split("\n")
    tensor = next(t for t in data["versions"][0]["tensors"] if t[0] == name)
    assert data["classes"][tensor[1]] in facts[0]
    assert tensor[6] in facts[1]
    assert "at node" in facts[-1]
    assert page.locator("#tensor").inner_text().startswith(name)


def test_keys_move_from_node_to_node_and_from_tensor_to_tensor(file: Path, open_page: Any) -> None:
    page = open_page(file)
    page.locator("#timelines svg").last.focus()
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
        said.append(page.locator("#tensor").inner_text().split("\n"))
    nodes = [int(lines[-1].split("at node ")[1].split(":")[0]) for lines in said]
    assert nodes[1:] == [nodes[0] + 1, nodes[0] + 1]
    assert said[1][0] != said[2][0]  # another tensor of the same node


def test_what_is_made_by_a_pass_says_so(file: Path, open_page: Any) -> None:
    page = open_page(file)
    page.locator("#timelines svg").last.focus()
    names = {p.name for p in select("O2")}
    found = set()
    for _ in range(40):
        page.keyboard.press("ArrowUp")
        for line in page.locator("#tensor").inner_text().split("\n"):
            if line.startswith("made so by "):
                found.add(line.removeprefix("made so by "))
    assert found
    assert found <= names


@pytest.mark.parametrize("width", [1180, 390])
def test_every_pass_is_named(file: Path, open_page: Any, width: int) -> None:
    page = open_page(file, "light", width)
    drawn = {text.text_content() for text in page.locator("#waterfall svg text").all()}
    assert {p.name for p in select("O2")} <= drawn


def test_the_sides_and_the_measure_can_be_switched(file: Path, open_page: Any) -> None:
    page = open_page(file)
    before = page.locator("#waterfall svg").get_attribute("aria-label")
    page.get_by_label("what is measured").select_option("saved")
    assert page.locator("#waterfall svg").get_attribute("aria-label") != before
    page.get_by_label("left").select_option("1")
    assert page.locator("#timelines h3").first.inner_text().startswith("-O2")


@pytest.mark.parametrize("width", [1180, 390])
def test_what_a_budget_buys(open_page: Any, tmp_path: Path, width: int) -> None:
    path = tmp_path / "budget.html"
    options: dict[str, Any] = {"batch_size": 8, "budget_bytes": 6 << 20}
    optimized = bnnopt.optimize(MODELS / "resnet-e-mini.onnx", **options)
    assert optimized.report.spending is not None
    path.write_text(optimized.to_html())
    page = open_page(path, "light", width)
    assert page.locator("#budget").is_visible()
    marks = page.locator("#frontier .point")
    assert marks.count() == len(optimized.report.spending.points)
    assert page.locator("#frontier .chosen").count() == 1
    scroll_to(page, marks.first)
    marks.first.hover()
    assert "of the fastest step's time" in page.locator(".tip").inner_text()


def test_it_prints(file: Path, open_page: Any) -> None:
    page = open_page(file, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".controls").first.is_visible()
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_axe_finds_nothing_serious(file: Path, open_page: Any, scheme: str, width: int) -> None:
    if "BNNOPT_AXE" not in os.environ:
        pytest.skip("BNNOPT_AXE does not say where axe.min.js is")
    page = open_page(file, scheme, width)
    assert _serious(page) == []


def test_axe_finds_what_is_serious(open_page: Any, tmp_path: Path) -> None:
    if "BNNOPT_AXE" not in os.environ:
        pytest.skip("BNNOPT_AXE does not say where axe.min.js is")
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<title>x</title><p style="color: #ccc; background: #fff">faint</p><select></select>'
    )
    assert {"color-contrast", "select-name"} <= set(_serious(open_page(bad)))


def _serious(page: Any) -> list[str]:
    page.evaluate(Path(os.environ["BNNOPT_AXE"]).read_text())
    found = page.evaluate("axe.run()")
    return [v["id"] for v in found["violations"] if v["impact"] in SERIOUS]
