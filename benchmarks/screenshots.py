"""The pictures of the page in ``docs/images``: BinaryNet, batch 100, ``-O2``.

Run it with the extra ``browser``, Pillow and Chromium::

    python -m benchmarks.screenshots
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir
from PIL import Image
from playwright.sync_api import sync_playwright

import bnnopt
from bnnopt.models import build

IMAGES = Path(__file__).parents[1] / "docs" / "images"
QUALITY = 80


def main() -> None:
    """Write the pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        model = Path(folder) / "binarynet.onnx"
        ir.save(build("binarynet", 0), model)
        page = model.with_suffix(".html")
        page.write_text(bnnopt.optimize(model, batch_size=100, level="O2").to_html())
        path = shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for scheme, width, names in (
            ("light", 1180, ("over-time", "by-pass", "arena")),
            ("dark", 1180, ("over-time",)),
            ("light", 390, ("over-time",)),
        ):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}
            )
            view = context.new_page()
            view.goto(page.as_uri())
            for name in names:
                save(view, name, IMAGES / f"{name}-{scheme}-{width}.webp")


def save(view: Any, name: str, path: Path) -> None:
    """One section of the page, with a tensor pointed at where there is a timeline."""
    section = view.locator(f"section[aria-labelledby={name}]")
    section.scroll_into_view_if_needed()
    if name == "over-time":
        box = view.locator("#timelines svg").first.bounding_box()
        view.mouse.move(box["x"] + 0.42 * box["width"], box["y"] + 0.45 * box["height"])
    shot = Image.open(
        io.BytesIO(view.screenshot() if name == "over-time" else section.screenshot())
    )
    if name == "by-pass":
        shot = shot.crop((0, 0, shot.width, min(shot.height, 690)))
    shot.save(path, "WEBP", quality=QUALITY)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
