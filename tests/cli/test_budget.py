"""``--budget``, ``--time-budget``, ``--allow-batch``: what is chosen, and nothing is better."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt as package
from bnnopt.compiler.budget import Budget, Trials, fit_budget, model
from bnnopt.compiler.budget.choices import leaving, loss_of
from bnnopt.compiler.building import build_forward
from bnnopt.errors import BudgetError
from bnnopt.passes import kernel_passes, select
from bnnopt.report.spending import Point, frontier
from bnnopt.settings import Settings
from bnnopt.units import size
from bnnopt.verification import verify_folder
from tests.cli.conftest import Mistake
from tests.cli.helpers import MODELS, Cli

MINI = MODELS / "resnet-e-mini.onnx"
MLP = MODELS / "mlp.onnx"


def trials(path: Path, batch_size: int = 8) -> Trials:
    built = build_forward(path, Settings(batch_size=batch_size), lambda line: None)
    return Trials(built.reference, kernel_passes())


def spent(found: Trials, n_bytes: int, exact: bool | None = None) -> Any:
    return fit_budget(found, Budget(select("O2"), n_bytes), lambda line: None, exact)


# The solver, against all sets ------------------------------------------------------------------


def instance(seed: int) -> tuple[Any, Any, Any, float]:
    random = np.random.default_rng(seed)
    n, t = 6, 9
    price, base = random.random(n), 1e8 * random.random(t)
    extra = 1e8 * random.random((n, t)) * (random.random((n, t)) < 0.5)
    return price, base, extra, float(random.uniform(base.max(), base.max() + extra.sum(0).max()))


def subsets(n: int) -> Any:
    return itertools.chain.from_iterable(itertools.combinations(range(n), k) for k in range(n + 1))


@pytest.mark.parametrize("seed", range(20))
def test_no_set_that_fits_is_cheaper(seed: int) -> None:
    price, base, extra, budget = instance(seed)
    in_vain = [{0, 1, 2}, {3}]

    def fits(taken: tuple[int, ...]) -> bool:
        alive = base + sum((extra[i] for i in range(len(price)) if i not in taken), np.zeros(9))
        return bool((alive <= budget).all()) and not any(set(taken) <= s for s in in_vain)

    best = min((float(price[list(s)].sum()) for s in subsets(6) if fits(s)), default=None)
    found = model.cheapest(price, base, extra, budget, in_vain)
    assert (found is None) == (best is None)
    if found is not None:
        assert fits(tuple(found))
        assert price[found].sum() == pytest.approx(best)


@pytest.mark.parametrize("seed", range(10))
def test_no_set_of_that_price_needs_less(seed: int) -> None:
    price, base, extra, _ = instance(seed)

    def peak(taken: Any) -> float:
        return float(
            (base + sum((extra[i] for i in range(6) if i not in taken), np.zeros(9))).max()
        )

    limit = 0.6 * float(price.sum())
    best = min(peak(s) for s in subsets(6) if price[list(s)].sum() <= limit)
    found = model.smallest(price, base, extra, limit)
    assert price[found].sum() <= limit + 1e-6
    assert peak(found) == pytest.approx(best, rel=1e-5)


# The search, against all sets of lossy passes ---------------------------------------------------


@pytest.mark.slow
def test_no_set_of_passes_that_fits_is_less_lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnnopt.compiler.budget.search.LIMIT_S", 600.0)  # a machine may be busy
    every = trials(MINI)
    active = set(every(select("O2")).point.lossy)
    lossless = [p for p in select("O2") if p.lossless]
    lossy = [p for p in select("O2") if p.name in active]
    sets = [every([*lossless, *(lossy[i] for i in s)]).point for s in subsets(len(lossy))]
    least, most = min(p.needed_bytes for p in sets), every(lossless).point.needed_bytes
    for share in (0.0, 0.1, 0.3, 0.6, 0.9):
        budget = int(least + share * (most - least))
        best = min(p.loss for p in sets if p.needed_bytes <= budget)
        found = spent(trials(MINI), budget)
        assert found.chosen.needed_bytes <= budget
        assert found.chosen.loss == pytest.approx(best), (share, found.chosen.title)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8])
def test_never_worse_than_greedy(share: float) -> None:
    least, most = (trials(MINI)(select(level)).point.needed_bytes for level in ("O2", "O0"))
    budget = int(least + share * (most - least))
    exact, greedy = (spent(trials(MINI), budget, exact=e).chosen for e in (True, False))
    assert exact.needed_bytes <= budget
    assert greedy.needed_bytes <= budget
    assert exact.price <= greedy.price


def test_the_loss_class_grows_with_the_bound_and_a_changed_function_is_the_last() -> None:
    lossy = [p for p in select("O2") if not p.lossless]
    keep = [p for p in lossy if not p.changes_function]
    assert sorted(keep, key=loss_of) == sorted(keep, key=lambda p: -p.min_cosine)
    changed = [loss_of(p) for p in lossy if p.changes_function]
    assert min(changed) > sum(map(loss_of, keep))
    assert {loss_of(p) for p in select("O1")} == {0.0}


def point(peak: int, loss: float, time: float) -> Point:
    return Point((), peak, (), loss, time)


def test_the_frontier_has_no_point_that_another_beats() -> None:
    good = [point(1, 2.0, 1.0), point(2, 1.0, 1.0), point(3, 1.0, 0.5)]
    bad = [point(3, 2.0, 1.0), point(2, 1.0, 1.1), point(1, 2.0, 1.0)]
    assert frontier([*bad, *good, good[0]]) == good


# From end to end --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peaks() -> tuple[int, int]:
    every = trials(MINI)
    return every(select("O1")).point.needed_bytes, every(()).point.needed_bytes


@pytest.mark.slow
def test_values_that_are_kept_change_no_bit(peaks: tuple[int, int], tmp_path: Path) -> None:
    budget = peaks[0] + (peaks[1] - peaks[0]) // 2
    optimized = package.optimize(MINI, batch_size=8, budget_bytes=budget)
    chosen = optimized.report.spending.chosen  # type: ignore[union-attr]
    assert chosen.left > 0
    assert chosen.time < trials(MINI)(select("O1")).point.time
    assert (
        optimized.report.optimized.peak_bytes == chosen.peak_bytes <= budget - chosen.process_bytes
    )
    optimized.save(tmp_path / "out")
    about = json.loads((tmp_path / "out" / "artifact.json").read_text())
    assert any("leave=" in spec for spec in about["passes"])
    assert verify_folder(tmp_path / "out", "native").bit_equal


@pytest.mark.slow
def test_it_says_what_was_chosen_and_what_is_next(bnnopt: Cli, peaks: tuple[int, int]) -> None:
    found = bnnopt("optimize", MINI, "-b", "8", "--budget", f"{peaks[0] - 1}B", "--json", "r.json")
    assert "What a budget buys" in found.stdout
    assert "next larger: " in found.stdout
    budget = json.loads(Path("r.json").read_text())["budget"]
    assert budget["solver"] == "highs"
    assert not budget["chosen"]["lossless"]
    points = [p["peak_bytes"] + p["process_bytes"] for p in budget["frontier"]]
    assert points == sorted(points)
    assert budget["chosen"] in budget["frontier"]
    assert f"MiB + {size(budget['chosen']['process_bytes'])} for the process" in found.stdout


@pytest.mark.slow
def test_without_the_solver_it_is_greedy(
    bnnopt: Cli, peaks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnnopt.compiler.budget.search.is_available", lambda: False)
    found = bnnopt("optimize", MINI, "-b", "8", "--budget", f"{peaks[0]}B")
    assert found.exit_code == 0
    assert "(greedy, " in found.stdout
    assert "pip install 'bnnopt[budget]'" in found.stdout


@pytest.mark.slow
def test_a_time_budget_takes_the_smallest_that_is_as_fast() -> None:
    options: dict[str, Any] = {"batch_size": 8, "level": "O1"}
    whole = package.optimize(MINI, **options).report.optimized.peak_bytes
    every = trials(MINI)
    slowest = every(select("O1")).point.time
    found = package.optimize(MINI, time_budget=(1 + slowest) / 2, **options).report
    assert found.spending is not None
    assert found.spending.chosen.time <= (1 + slowest) / 2
    assert whole < found.optimized.peak_bytes < every(()).point.peak_bytes
    assert package.optimize(MINI, time_budget=2.0, **options).report.optimized.peak_bytes == whole


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_taken_in_parts() -> None:
    least = trials(MINI, 16)(select("O2")).point
    budget = least.process_bytes + int(0.75 * least.peak_bytes)
    with pytest.raises(BudgetError, match="or --allow-batch"):
        package.optimize(MINI, batch_size=16, budget_bytes=budget)
    found = package.optimize(MINI, batch_size=16, budget_bytes=budget, allow_batch=True)
    assert found.report.optimized.peak_bytes + found.report.process_bytes <= budget
    taken = found.about.parts * found.report.batch_size
    assert taken == 16 or found.about.parts == 1
    assert "a batch of 16 does not fit as a whole; taken: --" in found.report.notes[-1]


def test_mistakes(mistake: Mistake) -> None:
    least = "the smallest plan needs"
    assert least in mistake("optimize", MINI, "-b", "8", "--budget", "10kB", exit_code=3)
    arguments = ("optimize", MINI, "-b", "1", "--budget", "10kB", "--allow-batch")
    assert least in mistake(*arguments, exit_code=3)
    line = mistake("optimize", MINI, "-b", "8", "--allow-batch")
    assert "--allow-batch: expected with --budget" in line
    line = mistake("optimize", MINI, "-b", "8", "--time-budget", "0.9")
    assert "--time-budget 0.9: expected a number of 1 or more" in line


@pytest.mark.slow
def test_without_time_it_takes_what_greedy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = trials(MLP)(select("O1")).point.needed_bytes - 1
    greedy = spent(trials(MLP), budget, exact=False).chosen
    monkeypatch.setattr("bnnopt.compiler.budget.search.LIMIT_S", 0.0)
    assert spent(trials(MLP), budget, exact=True).chosen == greedy


def test_what_is_computed_again_takes_time_and_nothing_else() -> None:
    every = trials(MLP)
    names = [str(v.name) for node in every.reference.graph for v in node.outputs if v.name]
    left = every(leaving(select("O1"), names)).point.time
    assert every(()).point.time == 1
    assert left == pytest.approx(1, abs=0.01)
    assert left + 0.02 < every(select("O1")).point.time < 1.5
