"""Which estimator a node gets, and what sign(0) is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnnopt.errors import UsageError
from bnnopt.frontend import ESTIMATORS, ForwardGraph
from tests.autodiff.interpreter import run
from tests.frontend.models import WEIGHTS, good, load, parse, rejected, save


def estimators(forward: ForwardGraph) -> dict[str, str]:
    nodes = {str(n.name): n for n in forward.graph if n.op_type in ("Binarize", "Ternarize")}
    listed = {b.name: b.ste for b in forward.binarized}
    assert listed == {name: n.attributes["ste"].as_string() for name, n in nodes.items()}
    return listed


@pytest.mark.parametrize("name", ESTIMATORS)
def test_default_estimator(name: str, tmp_path: Path) -> None:
    found = estimators(load(parse(good(), WEIGHTS), tmp_path, ste=[name]))
    assert found == dict.fromkeys(("conv.sign", "act.sign", "fc.sign"), name)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("clipped", "clipped", "clipped")),
        (["act*=approx-sign"], ("clipped", "approx-sign", "clipped")),
        (["identity", "act*=approx-sign"], ("identity", "approx-sign", "identity")),
        (["act*=approx-sign", "identity"], ("identity", "approx-sign", "identity")),
        (["*=identity", "fc.sign=swish-sign"], ("identity", "identity", "swish-sign")),
        (["fc.sign=swish-sign", "*=identity"], ("identity", "identity", "identity")),
        (["[cf]*=identity"], ("identity", "clipped", "identity")),
        (["identity", "clipped"], ("clipped", "clipped", "clipped")),
    ],
)
def test_patterns(options: list[str], expected: tuple[str, ...], tmp_path: Path) -> None:
    found = estimators(load(parse(good(), WEIGHTS), tmp_path, ste=options))
    assert tuple(found.values()) == expected


@pytest.mark.parametrize("option", ["hardtanh", "", "act*=", "act*=hardtanh", "=", "identity=act"])
def test_unknown_estimator(option: str, tmp_path: Path) -> None:
    path = save(parse(good(), WEIGHTS), tmp_path)
    rejected(path, f"--ste {option}: unknown estimator", "clipped", ste=[option], kind=UsageError)


def test_pattern_without_a_match(tmp_path: Path) -> None:
    path = save(parse(good(), WEIGHTS), tmp_path)
    rejected(path, "--ste layer9*", "conv.sign, act.sign, fc.sign", ste=["layer9*=identity"],
             kind=UsageError)  # fmt: skip


ZERO = "g (float[batch,3] x) => (float[batch,3] y) { s = Sign (x) y = Mul (s, w) }"


@pytest.mark.parametrize(("keep_zero", "at_zero", "text"), [(False, 1.0, "+1"), (True, 0.0, "0")])
def test_sign_of_zero(keep_zero: bool, at_zero: float, text: str, tmp_path: Path) -> None:
    model = parse(ZERO, {"w": np.ones(3, np.float32)})
    forward = load(model, tmp_path, keep_zero=keep_zero)
    values = run(forward.graph, {"x": np.array([[-2.0, 0.0, 0.5]]), **forward.weights})
    assert values["y"].tolist() == [[-1.0, at_zero, 1.0]]
    (binarized,) = forward.binarized
    assert (binarized.zero, binarized.idiom) == (text, "sign")
    assert len(forward.notes) == (not keep_zero)
    assert all("--sign-zero keep" in note for note in forward.notes)


def test_the_note_is_given_once_and_only_where_a_sign_is(tmp_path: Path) -> None:
    assert len(load(parse(good(), WEIGHTS), tmp_path).notes) == 1
    text = "g (float[batch,3] x) => (float[batch,3] y) { y = Mul (x, w) }"
    assert not load(parse(text, {"w": np.ones(3, np.float32)}), tmp_path).notes


def test_a_sign_as_the_output(tmp_path: Path) -> None:
    text = "g (float[batch,3] x) => (float[batch,3] y) { h = Mul (x, w) y = Sign (h) }"
    forward = load(parse(text, {"w": np.ones(3, np.float32)}), tmp_path)
    assert [v.name for v in forward.graph.outputs] == ["y"]
    assert forward.graph.outputs[0].producer().op_type == "Binarize"
