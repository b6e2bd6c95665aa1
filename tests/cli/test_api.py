"""The same from Python: ``bnnopt.optimize``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt
from bnnopt.cli import cli
from bnnopt.errors import (
    ArtifactError,
    BnnoptError,
    BudgetError,
    ModelError,
    UsageError,
    VerificationError,
)
from bnnopt.settings import options
from tests.cli.helpers import MODELS, Cli, read_report

MLP = MODELS / "mlp.onnx"


def test_report_and_save(workspace: Path) -> None:
    optimized = bnnopt.optimize(str(MLP), batch_size=20, level="O1")
    assert isinstance(optimized, bnnopt.Optimized)
    report = read_report(optimized.report.to_json())
    assert report == optimized.report.to_dict()
    assert optimized.report.ratio == report["ratio"] > 1
    optimized.save("out")
    session = bnnopt.TrainingSession(workspace / "out")
    x, y = np.ones((20, 784), np.float32), np.zeros(20, np.int64)
    losses = [session.step(x, y) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_same_as_the_command_line(cli_report: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        "batch_size": 20,
        "optimizer": "sgd",
        "momentum": 0.5,
        "freeze": ["fc1.*"],
    }
    assert bnnopt.optimize(MLP, **options).report.to_dict() == cli_report


@pytest.fixture
def cli_report(bnnopt: Cli) -> dict[str, Any]:
    options = ["--optimizer", "sgd", "--momentum", "0.5", "--freeze", "fc1.*"]
    return read_report(bnnopt("optimize", MLP, "-b", "20", "--json", "-", *options).stdout)


def test_progress() -> None:
    lines: list[str] = []
    bnnopt.optimize(MLP, batch_size=4, progress=lines.append)
    assert lines[:2] == ["reading the model", "building the training step"]
    assert "pass sign-pack" in lines


def test_a_lone_name_is_a_list_of_one() -> None:
    one = bnnopt.optimize(MLP, batch_size=4, passes="sign-pack", freeze="fc1.*", ste="identity")
    many = bnnopt.optimize(
        MLP, batch_size=4, passes=("sign-pack",), freeze=["fc1.*"], ste=["identity"]
    )
    assert one.report.to_dict() == many.report.to_dict()
    assert [record.name for record in one.report.passes] == ["sign-pack"]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"colour": "red"}, "no option 'colour'; expected one of batch_size"),
    "misspelt": ({"batchsize": 4}, "no option 'batchsize'; did you mean 'batch_size'?"),
    "batch text": ({"batch_size": "4"}, "batch_size is '4', expected int"),
    "batch fraction": ({"batch_size": 4.5}, "batch_size is 4.5, expected int"),
    "batch bool": ({"batch_size": True}, "batch_size is True, expected int"),
    "level number": ({"batch_size": 4, "level": 1}, "level is 1, expected a text such as 'O2'"),
    "level": ({"batch_size": 4, "level": "O9"}, "level 'O9' is not known"),
    "passes": ({"batch_size": 4, "passes": [1]}, "passes is [1], expected Sequence[str]"),
    "none": ({"batch_size": 4, "level": None}, "level is None, expected a text"),
    "momentum": ({"batch_size": 4, "momentum": "0.9"}, "momentum is '0.9', expected float"),
    "loss": ({"batch_size": 4, "loss": "l3"}, "--loss l3"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes(kind: str) -> None:
    options, expected = MISTAKES[kind]
    with pytest.raises(UsageError) as caught:
        bnnopt.optimize(MLP, **options)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_editor_sees_the_options_of_settings() -> None:
    parameters = inspect.signature(bnnopt.optimize).parameters
    for option in options():
        annotation = inspect.formatannotation(parameters[option.name].annotation)
        assert annotation.removeprefix("collections.abc.") == option.type
        assert parameters[option.name].default == option.default
    own = {"model", "settings", "example", "progress"}
    assert parameters.keys() == own | {option.name for option in options()}
    described = re.findall(r"^(\w+) : ", bnnopt.optimize.__doc__ or "", re.MULTILINE)
    assert set(described) == parameters.keys()


@pytest.mark.slow
def test_a_type_checker_knows_the_options(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    calls = {
        "batch_size=4, momentum=0.5, freeze=['a']": None,
        "batchsize=4": 'Unexpected keyword argument "batchsize"',
        "batch_size='4'": 'incompatible type "str"; expected "int | None"',
    }
    lines = ["import bnnopt", *(f"bnnopt.optimize('m.onnx', {c}).save('out')" for c in calls)]
    code = tmp_path / "user.py"
    code.write_text("\n".join(lines))
    found, _, _ = api.run(["--no-error-summary", str(code)])
    for line, error in enumerate(calls.values(), 2):
        said = [text for text in found.splitlines() if f"user.py:{line}:" in text]
        assert bool(said) == (error is not None)
        assert error is None or error in said[0]


def test_near_names_are_suggested() -> None:
    for option, wrong, near in (
        ("optimizer", "adm", "adam"),
        ("loss", "cross_entropy", "cross-entropy"),
    ):
        with pytest.raises(UsageError, match=f"did you mean '{near}'"):
            bnnopt.optimize(MLP, batch_size=4, **{option: wrong})  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers() -> None:
    report = bnnopt.optimize(MLP, batch_size=np.int64(4), learning_rate=np.float32(0.1)).report
    assert read_report(report.to_json())["batch_size"] == 4


@pytest.mark.slow
def test_errors_are_of_one_tree(workspace: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        bnnopt.optimize("nope.onnx", batch_size=4)
    with pytest.raises(BudgetError, match="too much"):
        bnnopt.optimize(MLP, batch_size=4, budget_bytes=1000)
    (workspace / "file").write_text("")
    with pytest.raises(ArtifactError):
        bnnopt.optimize(MLP, batch_size=4).save("file")
    kinds = (UsageError, ModelError, ArtifactError, BudgetError, VerificationError)
    assert [kind.exit_code for kind in kinds] == [2, 2, 2, 3, 1]
    assert all(issubclass(kind, BnnoptError) for kind in kinds)


def test_package() -> None:
    names = {"Optimized", "Predictor", "TrainingSession", "__version__", "optimize", "schedules"}
    assert set(bnnopt.__all__) == names
    assert all(getattr(bnnopt, name) for name in bnnopt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        bnnopt.nope  # noqa: B018


def test_every_option_is_on_the_command_line_with_its_default() -> None:
    command = cli.commands["optimize"]
    typed = command.make_context("optimize", ["model.onnx"]).params
    defaults = {option.name: option.default for option in options()}
    assert {name: typed[name] for name in defaults} == defaults
