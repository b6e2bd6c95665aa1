"""The fuzzer sees what is planted, says the same again, and finds nothing in a short run."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bnnopt.errors import UsageError
from tests.fuzz.campaign import ACCEPTED, REFUSED, Campaign, Result, Tally
from tests.fuzz.seeds import make_seeds
from tests.fuzz.targets import TARGETS, Target


def accept() -> bool:
    return True


def refuse() -> bool:
    raise UsageError("no")


def trace() -> bool:
    raise ZeroDivisionError


def crash() -> bool:
    ctypes.string_at(0)
    return True


def hang() -> bool:
    while True:
        pass


def wait() -> bool:
    time.sleep(60)
    return True


def hog() -> bool:
    return bool(bytearray(400 << 20))


OUTCOMES = {
    accept: ACCEPTED,
    refuse: REFUSED,
    trace: "ZeroDivisionError",
    crash: "crash",
    hang: "hang",
    wait: "hang",
    hog: "MemoryError",
}


def campaign(tmp_path: Path, targets: dict[str, Target], seconds: float = 0.1) -> Campaign:
    for name in ("seeds", "scratch"):
        (tmp_path / name).mkdir()
    return Campaign(targets, tmp_path / "seeds", tmp_path / "scratch", 1, seconds)


def planted(use: Callable[[], bool]) -> Target:
    def make(rng: random.Random, folder: Path, seeds: Path) -> None:
        (folder / "n").write_text(str(rng.random()))

    return Target(make, lambda folder, seeds: use(), 1)


@pytest.mark.slow
def test_every_planted_fault_is_found(tmp_path: Path) -> None:
    """And no other: a worker goes on with the next input."""
    found = campaign(tmp_path, {use.__name__: planted(use) for use in OUTCOMES})
    results = list(found.run(range(len(OUTCOMES)), workers=2))
    assert sorted(result.number for result in results) == list(range(len(OUTCOMES)))
    expected = {use.__name__: outcome for use, outcome in OUTCOMES.items()}
    for result in results:
        assert (result.target, result.outcome) == (result.target, expected[result.target])


def test_a_fault_is_kept_with_its_input(tmp_path: Path) -> None:
    found = campaign(tmp_path, {"trace": planted(trace), "accept": planted(accept)})
    tally = Tally(found, tmp_path / "kept")
    for result in found.run(range(4), workers=1):
        tally.add(result)
    assert tally.n_faults == 2
    (first, *_) = sorted((tmp_path / "kept").glob("trace-*"))
    again = tmp_path / "again"
    again.mkdir()
    found.make(int(first.name.split("-")[1]), again)
    assert (again / "n").read_text() == (first / "n").read_text()
    assert "ZeroDivisionError" in (first / "outcome.txt").read_text()


def test_a_result_is_a_fault_or_not() -> None:
    assert not Result(0, "x", ACCEPTED).is_fault
    assert Result(0, "x", "crash").is_fault


@pytest.mark.slow
def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    short = campaign(tmp_path, dict(TARGETS), seconds=10)
    make_seeds(tmp_path / "seeds")
    tally = Tally(short)
    for result in short.run(range(400)):
        tally.add(result)
    assert tally.n_faults == 0, "\n".join(tally.lines())
    for name in TARGETS:
        assert tally.counts[name, ACCEPTED], f"no {name} is accepted"
        assert tally.counts[name, REFUSED], f"no {name} is refused"
