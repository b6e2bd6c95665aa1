"""Which kernel a node is said to get is the one that it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.artifact import make_program
from bnnopt.errors import UsageError
from bnnopt.models import build, names
from bnnopt.passes import select
from bnnopt.plan import make_plan
from bnnopt.runtime.executor import Executor
from bnnopt.runtime.format import StepSpec
from bnnopt.runtime.kernels.compiled import calls
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.optimizers import BEGIN_UPDATE
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.selection import NUMPY, kernels_of, named_kernels
from bnnopt.runtime.library import library
from tests.graphs import Network, constants_of, feeds_of, initial, zoo
from tests.passes.networks import small
from tests.zoo import FIRST

LOSSLESS = [p.name for p in select("O1")]
NETWORKS = ("binary", "float", "resnet-e-mini")


def network(name: str) -> Network:
    return zoo(name, 4) if name == "resnet-e-mini" else small(name)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The C functions that are called."""
    names: list[str] = []
    found = CFunction._function.func

    def note(function: CFunction) -> object:
        if function is not BEGIN_UPDATE:  # it sets numbers
            names.append(function.name)
        return found(function)

    monkeypatch.setattr(CFunction, "_function", property(note))
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


def on_numpy(name: str, level: str) -> set[str]:
    net = zoo(name, 4)
    step = net.with_passes(*(p.name for p in select(level)))
    found = named_kernels(make_program(step, make_plan(step), 4))
    return {operator for _, operator, kernel in found if kernel == NUMPY}


@pytest.mark.slow
@pytest.mark.skipif(library() is None, reason="no compiled kernels")
@pytest.mark.parametrize("name", names())
def test_nothing_of_the_zoo_runs_on_numpy(name: str) -> None:
    level = "O2" if name in FIRST and name != "bi-real-18" else "O1"  # others take long to compile
    assert on_numpy(name, level) == set()


@pytest.mark.skipif(library() is None, reason="no compiled kernels")
def test_the_control_finds_a_kernel_that_covers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    covers_nothing = COMPILED["BinaryConv"]._replace(call=lambda *_: False)
    monkeypatch.setitem(COMPILED, "BinaryConv", covers_nothing)
    assert "BinaryConv" in on_numpy("cnv", "O1")


@pytest.mark.slow
def test_a_session_names_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ir.save(build("relu-mini"), tmp_path / "net.onnx")
    optimized = bnnopt.optimize(tmp_path / "net.onnx", batch_size=2)
    optimized.save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    assert session.kernels() == optimized.kernels()
    monkeypatch.setattr(calls, "library", lambda: None)
    assert {kernel for _, _, kernel in session.kernels()} == {NUMPY}
    with pytest.raises(UsageError, match="native"):
        bnnopt.TrainingSession(tmp_path / "out", backend="onnxruntime").kernels()


def test_without_the_library_all_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "library", lambda: None)
    step = small("binary").with_passes(*LOSSLESS)
    program = make_program(step, make_plan(step), 4)
    assert set(kernels_of(program)) <= {NUMPY, ""}


@pytest.mark.filterwarnings("error")
def test_asking_does_not_warn() -> None:
    """It divides by a step number of 0, which no step has."""
    step = small("binary", optimizer="adam").with_passes(*LOSSLESS)
    assert kernels_of(make_program(step, make_plan(step), 4))
