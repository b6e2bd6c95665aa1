"""``compare`` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.helpers import MODELS, Cli


@pytest.fixture
def two(bnnopt: Cli, workspace: Path) -> dict[str, dict[str, object]]:
    """Folders ``O0`` and ``O2``, and their reports."""
    reports = {}
    for level in ("O0", "O2"):
        model = MODELS / "resnet-e-mini.onnx"
        found = bnnopt("optimize", model, "-b", "8", f"-{level}", "-o", level, "--json", "-")
        reports[level] = json.loads(found.stdout)
    return reports


@pytest.mark.slow
def test_the_difference_is_that_of_the_reports(bnnopt: Cli, two: dict[str, dict]) -> None:
    found = bnnopt("compare", "O0", "O2", "--json", "-")
    content = json.loads(found.stdout)
    assert (content["a"], content["b"]) == (two["O0"], two["O2"])
    for kind in ("peak_bytes", "saved_bytes", "arena_bytes", "persistent_bytes"):
        after, before = (two[level]["optimized"][kind] for level in ("O2", "O0"))
        assert content["difference"][kind] == after - before < 0
    total = sum(content["difference"]["classes"].values())
    assert total == content["difference"]["peak_bytes"]


@pytest.mark.slow
def test_the_table_names_both_and_says_which_is_smaller(bnnopt: Cli, two: dict[str, dict]) -> None:
    found = bnnopt("compare", "O0", "O2")
    assert found.exit_code == 0
    assert "l1-batch-norm" in found.stdout
    ratio = two["O0"]["optimized"]["peak_bytes"] / two["O2"]["optimized"]["peak_bytes"]
    last = found.stdout.strip().splitlines()[-1]
    assert last.startswith("O2 plans ")
    assert last.endswith(f"{ratio:.2f}x smaller")
    assert max(map(len, found.stdout.splitlines())) <= 80
    assert "both plan a peak of" in bnnopt("compare", "O2", "O2").stdout


@pytest.mark.slow
def test_a_report_file_will_do(bnnopt: Cli, two: dict[str, dict], workspace: Path) -> None:
    (workspace / "r.json").write_text(json.dumps(two["O2"]))
    assert bnnopt("compare", "O0", "r.json", "--json", "-").exit_code == 0


@pytest.mark.slow
def test_two_levels_of_a_model(bnnopt: Cli, workspace: Path) -> None:
    mlp = MODELS / "mlp.onnx"
    sides = [f"{mlp}@O0", f"{mlp}@O1"]
    found = bnnopt("compare", *sides, "-b", "4", "--html", "page.html", "--json", "r.json")
    assert found.exit_code == 0
    content = json.loads(Path("r.json").read_text())
    for kind, level in (("a", "O0"), ("b", "O1")):
        bnnopt("optimize", mlp, "-b", "4", f"-{level}", "--json", "alone.json")
        assert content[kind] == json.loads(Path("alone.json").read_text())
    page = Path("page.html").read_text()
    assert all(side in page for side in sides)


@pytest.mark.slow
def test_a_model_needs_a_level_and_a_folder_takes_no_options(
    mistake: Callable[..., str], two: dict[str, dict]
) -> None:
    mlp = MODELS / "mlp.onnx"
    line = mistake("compare", mlp, mlp)
    assert f"at which level? expected {mlp}@O1, or a folder" in line
    assert f"expected {mlp}@O1" in mistake("compare", f"{mlp}@", mlp)
    assert "'O7'" in mistake("compare", f"{mlp}@O7", f"{mlp}@O1", "-b", "4")
    assert "--batch-size: is for a model; O0 is a folder" in mistake(
        "compare", "O0", "O2", "-b", "4"
    )


def test_what_is_no_report_is_one_line(mistake: Callable[..., str], workspace: Path) -> None:
    (workspace / "r.json").write_text("[1]")
    assert "not a report" in mistake("compare", "r.json", "r.json")
    assert "cannot be read" in mistake("compare", "no.json", "no.json")
    (workspace / "empty").mkdir()
    assert "not a bnnopt folder" in mistake("compare", "empty", "empty")
