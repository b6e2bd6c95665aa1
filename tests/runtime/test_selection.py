"""Which kernel a node is said to get is the one that it gets."""

from __future__ import annotations

from typing import Any

import pytest

from bnnopt.artifact import make_program
from bnnopt.passes import select
from bnnopt.plan import make_plan
from bnnopt.runtime.executor import Executor
from bnnopt.runtime.format import StepSpec
from bnnopt.runtime.kernels import compiled
from bnnopt.runtime.kernels.selection import NUMPY, kernels_of
from bnnopt.runtime.library import library
from tests.graphs import Network, constants_of, feeds_of, initial, zoo
from tests.passes.networks import small

LOSSLESS = [p.name for p in select("O1")]
NETWORKS = ("binary", "float", "resnet-e-mini")


def network(name: str) -> Network:
    return zoo(name, 4) if name == "resnet-e-mini" else small(name)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The C functions that are called."""
    names: list[str] = []
    function = compiled._function

    def note(name: str) -> object:
        names.append(name)
        return function(name)

    monkeypatch.setattr(compiled, "_function", note)
    return names


@pytest.mark.skipif(library() is None, reason="no compiled kernels")
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_said_is_what_runs(name: str, called: list[str]) -> None:
    net = network(name)
    step = net.with_passes(*LOSSLESS)
    program = make_program(step, make_plan(step), net.batch)
    said = dict(zip((s.name for s in program.steps), kernels_of(program), strict=True))
    assert not called, "nothing runs to find out"
    found: dict[str, str] = {}

    def observe(spec: StepSpec, outputs: object) -> None:
        found[spec.name] = "" if spec.is_view else ", ".join(dict.fromkeys(called)) or NUMPY
        called.clear()

    executor = Executor(program, initial(step, net.weights), constants_of(step))
    feeds: dict[str, Any] = feeds_of(step, 1)
    by_role = {
        role: tuple(feeds[program.values[i].name] for i in indices)
        for role, indices in program.roles.items()
    }
    executor.run(by_role, net.batch, observe)
    assert found == said
    assert len({kernel for kernel in said.values() if kernel.startswith("bnn_")}) > 3


def test_without_the_library_all_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "library", lambda: None)
    step = small("binary").with_passes(*LOSSLESS)
    program = make_program(step, make_plan(step), 4)
    assert set(kernels_of(program)) <= {NUMPY, ""}
