"""Lossy passes from end to end: storage of their own, stated bounds, and the budget."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt as package
from bnnopt.errors import ArtifactError
from bnnopt.passes import BrokenGraph, by_loss, least_cosine, run_passes
from bnnopt.passes.int8_gradients import Int8Gradients
from bnnopt.passes.prune_stored import PruneStored
from bnnopt.passes.schedule import Schedule
from bnnopt.passes.sign_pack import SignPack
from bnnopt.verification.trajectory import decoded
from tests.cli.helpers import MODELS, Cli, read_report
from tests.graphs import write
from tests.lossy import DropMomentum, HalfGradients, HalfWeights, NegatedGradients, install
from tests.passes.networks import BINARY, BINARY_WEIGHTS, small

BACKENDS = ("native", "onnxruntime")
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, DropMomentum(), HalfGradients(), HalfWeights())


@pytest.fixture
def model(workspace: Path) -> Path:
    return write(BINARY, BINARY_WEIGHTS, workspace)


def batch(number: int, n: int = 4) -> tuple[Any, Any]:
    rng = np.random.default_rng(number)
    return rng.uniform(-1, 1, (n, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, n)


def optimize(model: Path, folder: str = "", **options: Any) -> package.Optimized:
    found = package.optimize(model, batch_size=4, optimizer="sgd", level="O2", **options)
    if folder:
        found.save(folder)
    return found


@pytest.mark.usefixtures("lossy")
@each_backend
def test_weights_in_another_type_and_state_that_is_gone(model: Path, backend: str) -> None:
    about = optimize(model, "out").about
    assert about.dtypes["w1"] == "float16"
    assert about.dtypes["m1"] == "float32"
    assert not any("momentum" in name for name in about.persistent)
    session = package.TrainingSession("out", backend)
    first = session.parameters()
    assert {array.dtype.name for array in first.values()} == {"float32"}
    losses = [session.step(*batch(0), lr=0.05) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    weights = session.parameters()["w1"]
    assert (weights != first["w1"]).any()
    assert (weights == weights.astype(np.float16)).all()
    assert session.evaluate(*batch(0)) >= 0.5
    assert session.predict(batch(0, 9)[0]).dtype == np.float32


@pytest.mark.usefixtures("lossy")
def test_half_the_bytes(model: Path) -> None:
    """Of weights and momentum; the statistics stay in float32."""
    half = optimize(model, disable=["drop-momentum"]).report.optimized.classes
    full = optimize(model, passes=["schedule"]).report.optimized.classes
    constants = 100  # bytes
    assert half["weights"] - constants < full["weights"] / 2 < half["weights"]
    assert full["optimizer_state"] == 2 * half["optimizer_state"]
    assert full["batch_norm_statistics"] <= half["batch_norm_statistics"]


@pytest.mark.slow
@pytest.mark.usefixtures("lossy")
@each_backend
def test_a_checkpoint_is_resumed_bit_exactly(model: Path, backend: str) -> None:
    optimize(model, "out", disable=["drop-momentum"])
    a, b = (package.TrainingSession("out", backend) for _ in range(2))
    a.step(*batch(0))
    a.save("c.safetensors")
    b.resume("c.safetensors")
    assert a.step(*batch(1)) == b.step(*batch(1))
    optimize(model, "full", passes=["schedule"])
    with pytest.raises(ArtifactError, match=r"float16.*expected float32.*level"):
        package.TrainingSession("full", backend).resume("c.safetensors")


# Bounds ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("lossy")
@each_backend
def test_verify_holds_to_the_bound(bnnopt: Cli, model: Path, backend: str) -> None:
    optimize(model, "out")
    found = bnnopt("verify", "out", "--backend", backend, "--json", "v.json", "--steps", "3")
    assert (found.exit_code, found.stderr) == (0, "")
    assert "bit-equal: no (lossy passes ran, which allow a cosine of 0.9890" in found.stdout
    report = json.loads(Path("v.json").read_text())
    assert report["min_cosine"] == pytest.approx(0.99 * 0.999)
    assert all(d["cosine"] > 0.9999 for d in report["parameters"].values())
    assert max(d["max_abs"] for d in report["parameters"].values()) > 0


@pytest.mark.slow
@each_backend
def test_a_broken_promise_is_a_defect(
    bnnopt: Cli, model: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, NegatedGradients())
    optimize(model, "out")
    found = bnnopt("verify", "out", "--backend", backend)
    assert found.exit_code == 1
    assert found.stderr.count("\n") == 1
    assert "has cosine -1.0000 to the reference's, expected at least 0.9990" in found.stderr


def test_bounds_add_up_as_angles() -> None:
    assert least_cosine([]) is None
    assert least_cosine([SignPack(), Schedule()]) is None
    assert least_cosine([SignPack(), HalfWeights()]) == pytest.approx(0.99)
    assert least_cosine([DropMomentum()]) == 1
    both = least_cosine([PruneStored(0.75), HalfWeights()])
    assert both == pytest.approx(0.25 * 0.99)


def test_sign_bits_count_as_signs() -> None:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (3, 2, 5))
    bits = np.packbits((signs > 0).reshape(3, -1), axis=1, bitorder="little")
    assert (decoded(bits, (3, 2, 5)) == signs).all()
    full = np.ones(3, np.float32)
    assert decoded(full, (3,)) is not full


# Levels and budget -------------------------------------------------------------------------------


def test_passes_shows_bounds(bnnopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HalfWeights().numbers == "lossy, cos >= 0.99"
    monkeypatch.setenv("COLUMNS", "200")
    lines = bnnopt("passes").stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("int8-gradients ")]
    assert line.split(maxsplit=2)[1] == "-O3"
    assert f" {Int8Gradients().numbers} " in line


@pytest.mark.usefixtures("lossy")
def test_the_ledger_shows_bounds(bnnopt: Cli) -> None:
    found = bnnopt("optimize", MODELS / "mlp.onnx", "-b", "4", "-O2", "--json", "r.json")
    assert found.stdout.splitlines()[0].rstrip().endswith("-O2")
    report = read_report(Path("r.json").read_text())
    bounds = {entry["name"]: entry["min_cosine"] for entry in report["passes"]}
    assert bounds["half-weights"] == 0.99
    assert bounds["sign-pack"] == 1
    line = next(x for x in found.stdout.splitlines() if x.startswith("half-weights"))
    assert "lossy, cos >= 0.99" in line


@pytest.mark.usefixtures("lossy")
def test_sets_of_passes_by_loss() -> None:
    every = [DropMomentum(), HalfGradients(), HalfWeights()]
    assert by_loss(every) == [
        [],
        [DropMomentum()],
        [DropMomentum(), HalfGradients()],
        every,
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("lossy")
def test_the_budget_takes_the_least_lossy_set_that_fits(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as large as what these passes save
    monkeypatch.setattr("bnnopt.compiler.budget.choices.process_bytes", lambda step: 0)

    def chosen(budget: int) -> tuple[str, set[str]]:
        options = {"batch_size": 4, "optimizer": "sgd", "budget_bytes": budget}
        report = package.optimize(model, **options).report
        assert report.optimized.peak_bytes <= budget
        return report.level, {r.name for r in report.passes if not r.lossless}

    peaks = {
        names: optimize(model, disable=[n for n in LOSSY if n not in names])
        for names in ((), LOSSY[:1], LOSSY)
    }
    sizes = {names: found.report.optimized.peak_bytes for names, found in peaks.items()}
    assert sizes[()] > sizes[LOSSY[:1]] > sizes[LOSSY]
    assert chosen(sizes[()]) == ("O1", set())
    assert chosen(sizes[LOSSY[:1]]) == ("O2", set(LOSSY[:1]))
    level, lossy = chosen(sizes[LOSSY])
    assert level == "O2"
    assert lossy <= set(LOSSY)
    for name in lossy:  # without it the others do not fit
        others = optimize(model, disable=[n for n in LOSSY if n not in lossy or n == name])
        assert others.report.optimized.peak_bytes > sizes[LOSSY]


LOSSY = ("drop-momentum", "half-gradients", "half-weights")


# The manager -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Undeclared(HalfWeights):
    """Change storage without saying so."""

    changes_storage = False


def test_only_a_pass_that_says_so_may_change_storage() -> None:
    run_passes(small("binary", momentum=0.9).step(), [DropMomentum(), HalfWeights()])
    with pytest.raises(BrokenGraph, match=r"pass 'half-weights'.*'w1' is"):
        run_passes(small("binary").step(), [Undeclared()])
