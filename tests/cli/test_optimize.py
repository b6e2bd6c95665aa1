"""``bnnopt optimize``: tables, report, folder, and what each option does to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnnopt as package
from bnnopt.passes import select
from tests.cli.conftest import Mistake
from tests.cli.helpers import FILES, MODELS, Cli, read_report, save_model

MLP = MODELS / "mlp.onnx"
RELU = MODELS / "relu-mini.onnx"
NAMES = [entry.name for entry in select("O1")]


@pytest.fixture
def tiny(workspace: Path) -> Path:
    """One dense layer."""
    return save_model(workspace / "tiny.onnx", "y = MatMul (x, w)")


@pytest.fixture(scope="module")
def known() -> dict[Any, dict[str, Any]]:
    """Reports by command line."""
    return {}


@pytest.fixture
def optimized(bnnopt: Cli, known: dict[Any, dict[str, Any]]) -> Any:
    """The report of one run; the same command line is run only once."""

    def run(*arguments: str | Path, model: Path = MLP) -> dict[str, Any]:
        if (model, arguments) not in known:
            found = bnnopt("optimize", model, "-b", "20", "--json", "-", *arguments)
            assert (found.exit_code, found.stderr) == (0, "")
            known[model, arguments] = read_report(found.stdout)
        return known[model, arguments]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_tables_folder_and_report(bnnopt: Cli, file: str, workspace: Path) -> None:
    found = bnnopt("optimize", MODELS / file, "-o", "out", "-b", "8", "--json", "report.json")
    assert (found.exit_code, found.stderr) == (0, "")
    lines = found.stdout.splitlines()
    assert lines[0].rstrip() == f"{file}: batch size 8, adam, -O1"
    assert lines[-1] == "written: out"
    report = read_report((workspace / "report.json").read_text())
    assert (report["model"], report["batch_size"], report["level"]) == (file, 8, "O1")
    assert report["optimizer"] == "adam"
    assert [entry["name"] for entry in report["passes"]] == NAMES
    assert (workspace / "out" / "report.json").read_text() == (
        workspace / "report.json"
    ).read_text().rstrip("\n")
    onnx.checker.check_model(str(workspace / "out" / "training.onnx"))
    assert sorted(p.name for p in workspace.iterdir()) == ["out", "report.json"]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_optimizing_helps(optimized: Any, file: str) -> None:
    report = optimized(model=MODELS / file)
    assert report["ratio"] > 1.1
    assert report["optimized"]["saved_bytes"] < report["baseline"]["saved_bytes"]
    assert all(entry["lossless"] for entry in report["passes"])
    assert len(report["binarized"]) == {"mlp.onnx": 9, "relu-mini.onnx": 0}.get(file, 8)
    activations = report["paper_rule"]["classes"]["activations"]
    fewer = activations["optimized_bytes"] < activations["standard_bytes"]
    assert fewer is bool(report["binarized"])


def test_figures_in_the_tables_are_those_of_the_report(bnnopt: Cli, workspace: Path) -> None:
    found = bnnopt("optimize", MLP, "-b", "20", "--json", "r.json")
    report = read_report((workspace / "r.json").read_text())
    for entry in report["passes"]:
        line = next(x for x in found.stdout.splitlines() if x.startswith(f"{entry['name']} "))
        assert f" {entry['rewrites']} " in line
        assert f"{entry['peak_bytes'] / 2**20:.2f} MiB" in line
        assert ("bit-equal" in line) is (entry["rewrites"] > 0)
    assert f"{report['ratio']:.2f}x smaller" in found.stdout
    assert "kept for backward: from the forward to the backward pass" in found.stdout
    assert "note: ONNX Sign is read with sign(0) = +1" in found.stdout


@pytest.mark.slow
def test_json_on_standard_output_is_nothing_else(bnnopt: Cli, workspace: Path) -> None:
    found = bnnopt("optimize", MLP, "-b", "20", "-o", "out", "--json", "-", "--explain")
    assert found.stderr == ""
    read_report(found.stdout)
    assert (workspace / "out" / "artifact.json").exists()


def test_without_a_folder_nothing_is_written(bnnopt: Cli, workspace: Path) -> None:
    found = bnnopt("optimize", MLP, "-b", "20")
    assert found.stdout.endswith("written: nothing; -o FOLDER writes the training step\n")
    assert list(workspace.iterdir()) == []


def test_report_replaces_a_file_and_follows_a_link(bnnopt: Cli, workspace: Path) -> None:
    (workspace / "old.json").write_text("old")
    (workspace / "link.json").symlink_to("old.json")
    bnnopt("optimize", MLP, "-b", "20", "--json", "link.json")
    assert (workspace / "link.json").is_symlink()
    read_report((workspace / "old.json").read_text())


def test_report_to_a_device_is_not_a_replacement(bnnopt: Cli) -> None:
    found = bnnopt("optimize", MLP, "-b", "20", "--json", "/dev/null")
    assert found.exit_code == 0
    assert Path("/dev/null").is_char_device()


def test_again_into_the_same_folder(bnnopt: Cli, tiny: Path, workspace: Path) -> None:
    for level in ("0", "1"):
        found = bnnopt("optimize", tiny, "-b", "20", "-o", "out", "-O", level)
        assert found.exit_code == 0
    assert read_report((workspace / "out" / "report.json").read_text())["level"] == "O1"
    assert sorted(p.name for p in workspace.iterdir()) == ["out", "tiny.onnx"]


@pytest.mark.slow
def test_the_static_sum_of_cnv_is_the_published_one(bnnopt: Cli) -> None:
    """134.07 -> 32.17 MiB counts pooling masks before alone; 129.09 -> 32.92 on both sides."""
    assert bnnopt("zoo", "cnv", "-o", "cnv.onnx").exit_code == 0
    options = ("-b", "100", "-O2", "--disable", "drop-adam-second-moment", "--json", "-")
    paper = read_report(bnnopt("optimize", "cnv.onnx", *options).stdout)["paper_rule"]
    totals = [
        round(found[total] / 2**20, 2)
        for found in (paper, paper["masks_before_alone"])
        for total in ("standard_bytes", "optimized_bytes")
    ]
    assert totals == [129.09, 32.92, 134.07, 32.17]


# Levels and passes -----------------------------------------------------------------------------


def test_level_0_is_the_reference(optimized: Any) -> None:
    report = optimized("-O0")
    assert (report["level"], report["passes"], report["ratio"]) == ("O0", [], 1.0)
    assert report["baseline"]["classes"] == report["optimized"]["classes"]
    assert report["paper_rule"]["standard_bytes"] == report["paper_rule"]["optimized_bytes"]


def test_level_1_is_the_default(optimized: Any) -> None:
    assert optimized("-O1") == optimized("-O", "1") == optimized()


def test_passes(optimized: Any) -> None:
    report = optimized("--passes", "mask-pack, sign-pack")
    assert [entry["name"] for entry in report["passes"]] == ["sign-pack", "mask-pack"]


def test_disable(optimized: Any) -> None:
    report = optimized("--disable", "mask-pack,sign-pack")
    left = [name for name in NAMES if name not in ("mask-pack", "sign-pack")]
    assert [entry["name"] for entry in report["passes"]] == left


def test_explain_names_the_kernels_of_all_levels(bnnopt: Cli) -> None:
    """Those of a step that counts, too: its rates are made from the number of the step."""
    text = bnnopt("optimize", MLP, "-b", "20", "-O2", "--explain").stdout
    assert "bnn_gemm_weight_grad_b1" in text


@pytest.mark.slow
def test_explain(bnnopt: Cli, optimized: Any) -> None:
    report = optimized(model=RELU)
    skipped = [s for entry in report["passes"] for s in entry["skipped"]]
    assert skipped
    text = bnnopt("optimize", RELU, "-b", "20", "--explain").stdout
    assert "What was left alone, and why" in text
    assert "nothing in the graph that it applies to" in text
    flat = " ".join(text.split())
    for skip in skipped:
        assert skip["node"] in flat
        assert all(word in flat for word in skip["reason"].split())
    assert "Kernels of the native backend" in text
    kernels = {line.split()[-1] for line in text.splitlines() if line.startswith("relu1 ")}
    assert kernels == {"bnn_relu_f32"}
    (left,) = [line for line in text.splitlines() if line.startswith("on numpy: ")]
    assert left.startswith("on numpy: 0 of ")
    plain = bnnopt("optimize", RELU, "-b", "20").stdout
    assert "left alone" not in plain
    assert "Kernels" not in plain


# Budget ----------------------------------------------------------------------------------------


def test_budget_fits_without_passes(optimized: Any) -> None:
    assert optimized("--budget", "1GiB")["level"] == "O0"


@pytest.mark.slow
def test_budget_fits_with_passes(optimized: Any) -> None:
    free, reference = (needed(optimized(level)) for level in ("-O1", "-O0"))
    assert free < reference - 1
    for budget in (free, reference - 1):
        assert optimized("--budget", f"{budget}B")["level"] == "O1"
    assert optimized("--budget", f"{reference}B")["level"] == "O0"


def needed(report: Any) -> int:
    """What a budget has to be: the plan, and what the process takes beside it."""
    return int(report["optimized"]["peak_bytes"] + report["optimized"]["process_bytes"])


@pytest.mark.slow
def test_budget_that_nothing_fits(mistake: Mistake, optimized: Any) -> None:
    least = needed(optimized("-O3"))
    arguments = ("optimize", MLP, "-b", "20", "-o", "out", "--json", "r.json", "--budget")
    line = mistake(*arguments, f"{least - (1 << 20)}B", exit_code=3)
    assert "1.00 MiB too much; take a smaller --batch-size" in line
    mistake(*arguments, "0B", exit_code=3)
    smallest = line.partition("smallest plan needs ")[2].partition(" (")[0]
    assert optimized("--budget", smallest)["level"] == "O3"


def test_budget_with_passes_runs_those_only(optimized: Any, mistake: Mistake) -> None:
    report = optimized("--budget", "1GiB", "--passes", "sign-pack")
    assert [entry["name"] for entry in report["passes"]] == ["sign-pack"]
    mistake("optimize", MLP, "-b", "20", "--budget", "1MB", "--passes", "in-place", exit_code=3)


@pytest.mark.parametrize("size", ["64MiB", "64 mib", "67108864B", "67.108864MB", "65536KiB", "1g"])
def test_budget_units(optimized: Any, size: str) -> None:
    assert optimized("--budget", size)["level"] == "O0"


# The training step -----------------------------------------------------------------------------


def test_freeze(optimized: Any) -> None:
    state = optimized()["optimized"]["classes"]["optimizer_state"]
    frozen = optimized("--freeze", "fc1.*", "--freeze", "bn?.bias")
    fewer = 784 * 256 + 4 * 256 + 10
    assert frozen["optimized"]["classes"]["optimizer_state"] == state - 2 * 4 * fewer


def test_ste(optimized: Any) -> None:
    assert {b["ste"] for b in optimized()["binarized"]} == {"clipped"}
    assert {b["ste"] for b in optimized("--ste", "identity")["binarized"]} == {"identity"}
    mixed = optimized("--ste", "sign*=approx-sign")["binarized"]
    assert {b["ste"] for b in mixed if b["name"].startswith("sign")} == {"approx-sign"}
    assert {b["ste"] for b in mixed if not b["name"].startswith("sign")} == {"clipped"}


def test_sign_zero(bnnopt: Cli, optimized: Any) -> None:
    default, kept = optimized(), optimized("--sign-zero", "keep")
    assert {b["zero"] for b in default["binarized"]} == {"+1"}
    assert {b["zero"] for b in kept["binarized"]} == {"0"}
    assert kept["optimized"]["saved_bytes"] > default["optimized"]["saved_bytes"]
    assert "sign(0) = +1;" not in bnnopt("optimize", MLP, "-b", "20", "--sign-zero", "keep").stdout


@pytest.mark.parametrize(("momentum", "states"), [("0", 0), ("0.9", 1)])
def test_sgd(optimized: Any, momentum: str, states: int) -> None:
    report = optimized("--optimizer", "sgd", "--momentum", momentum)
    adam = optimized()["optimized"]["classes"]["optimizer_state"]
    assert report["optimizer"] == "sgd"
    assert report["optimized"]["classes"]["optimizer_state"] == adam * states // 2


def test_the_moments_of_adam(bnnopt: Cli, mistake: Mistake, tiny: Path) -> None:
    arguments = ["optimize", tiny, "-b", "4", "-O0", "-o", "out"]
    assert bnnopt(*arguments, "--beta1", "0.5", "--beta2", "0.75").exit_code == 0
    steps = [n for n in onnx.load("out/training.onnx").graph.node if n.op_type == "AdamStep"]
    for node in steps:
        found = {a.name: a.f for a in node.attribute}
        assert (found["beta1"], found["beta2"]) == (0.5, 0.75)
    assert steps
    assert "--beta2 1.0: expected a number from 0 to below 1" in mistake(*arguments, "--beta2", "1")


LOSSES: dict[str, Any] = {
    "cross-entropy": np.arange(20) % 10,
    "squared-hinge": np.arange(20) % 10,
    "mse": np.eye(10, dtype=np.float32)[np.arange(20) % 10],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "optimizer", "rate"),
    [
        ("cross-entropy", "sgd", "0.05"),
        ("squared-hinge", "adam", "0.002"),
        ("mse", "sgd", "0.05"),
    ],
)
def test_training_lowers_the_loss(bnnopt: Cli, loss: str, optimizer: str, rate: str) -> None:
    options = ["--loss", loss, "--optimizer", optimizer, "--lr", rate]
    bnnopt("optimize", MLP, "-b", "20", "-o", "out", *options)
    session = package.TrainingSession("out")
    x = np.random.default_rng(0).standard_normal((20, 784)).astype(np.float32)
    losses = [session.step(x, LOSSES[loss]) for _ in range(6)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.98 * losses[0]


@pytest.mark.slow
def test_training_lowers_the_loss_of_every_model(small: Path) -> None:
    session = package.TrainingSession(small)
    shape = (784,) if "mlp" in (small / "artifact.json").read_text() else (3, 32, 32)
    n = session.batch_size  # of two samples, batch norm leaves little but rounding
    x = np.random.default_rng(0).standard_normal((n, *shape)).astype(np.float32)
    losses = [session.step(x, np.arange(n) % 10) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_learning_rate_is_the_default_of_a_step(bnnopt: Cli, tiny: Path) -> None:
    x, y = np.ones((20, 3), np.float32), np.zeros(20, np.int64)
    after: dict[str, Any] = {}
    for rate in ("0.01", "0.1"):
        bnnopt("optimize", tiny, "-b", "20", "-o", "out", "--lr", rate, "--optimizer", "sgd")
        session = package.TrainingSession("out")
        before: Any = session.parameters()["w"]
        session.step(x, y)
        after[rate] = session.parameters()["w"] - before
    np.testing.assert_allclose(after["0.1"], 10 * after["0.01"], rtol=1e-3)
    assert np.abs(after["0.01"]).max() > 0


def test_a_graph_with_its_own_loss(bnnopt: Cli, workspace: Path) -> None:
    body = "h = MatMul (x, w) s = Mul (h, h) y = ReduceSum <keepdims = 0> (s)"
    path = save_model(workspace / "own.onnx", body, result="float")
    assert bnnopt("optimize", path, "-b", "20", "-o", "out", "--loss", "none").exit_code == 0
    session = package.TrainingSession("out")
    losses = [session.step(np.ones((20, 3), np.float32)) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]


def test_a_number_of_another_optimizer_is_said(bnnopt: Cli) -> None:
    command = ("optimize", MODELS / "mlp.onnx", "-b", "4", "-O", "0", "--optimizer", "sgd")
    found = bnnopt(*command, "--beta1", "0.5", "--momentum", "0")
    notes = [line for line in found.stdout.splitlines() if "such number" in line]
    assert notes == ["note: --beta1 0.5: sgd has no such number; it changes nothing"]
    assert "such number" not in bnnopt(*command, "--momentum", "0.5").stdout
