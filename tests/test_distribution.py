"""What a source distribution holds: the project, and nothing of a user's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What lies about in a checkout after the commands of the documentation, and what people keep there.
PERSONAL = (
    *("out/artifact.json", "out2/weights.safetensors", "out.checkpoints/epoch-1.safetensors"),
    *("bnnopt-demo/page.html", "network/constants.safetensors", "data/train-images", ".env"),
    *("digits.onnx", "train.npz", "answers.npz", "page.html", "report.json", "bnnopt.toml"),
    *("notes.txt", "NOTES.md", "state.pt", "models/mine.onnx", "docs/mine.npz", "bnnopt/notes.txt"),
)
LINKS = {"bnnopt/passes", "bnnopt/runtime", "bnnopt/models"}  # for type checkers


def tracked() -> list[str]:
    """The files that belong to the project."""
    command = ["git", "-C", str(ROOT), "ls-files"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("not a checkout")
    return [name for name in found.stdout.splitlines() if (ROOT / name).exists()]


@pytest.mark.slow
def test_nothing_of_a_user_is_in_it(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core")
    names, checkout = tracked(), tmp_path / "checkout"
    for name in (*names, *PERSONAL):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(ROOT / name, checkout / name, follow_symlinks=False)
    for name in PERSONAL:
        assert name not in names
        (checkout / name).write_text("private")
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert held == {*names, "PKG-INFO"} - LINKS
