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
    assert sum("--sign-zero keep" in note for note in forward.notes) == (not keep_zero)


def test_the_notes_are_given_once_and_only_where_a_sign_is(tmp_path: Path) -> None:
    estimators, zeros = load(parse(good(), WEIGHTS), tmp_path).notes
    assert estimators.startswith("no estimator in the file, clipped at |x| <= 1 assumed: ")
    assert "'conv.sign', 'act.sign', 'fc.sign'" in estimators
    assert zeros.startswith("ONNX Sign is read with sign(0) = +1")
    assert load(parse(good(), WEIGHTS), tmp_path, ste=["identity"]).notes == [zeros]
    text = "g (float[batch,3] x) => (float[batch,3] y) { y = Mul (x, w) }"
    assert not load(parse(text, {"w": np.ones(3, np.float32)}), tmp_path).notes


def test_a_sign_as_the_output(tmp_path: Path) -> None:
    text = "g (float[batch,3] x) => (float[batch,3] y) { h = Mul (x, w) y = Sign (h) }"
    forward = load(parse(text, {"w": np.ones(3, np.float32)}), tmp_path)
    assert [v.name for v in forward.graph.outputs] == ["y"]
    assert forward.graph.outputs[0].producer().op_type == "Binarize"


# Written out -----------------------------------------------------------------------------------

NUMBERS = "zero = Constant <value_float = 0.0> () one = Constant <value_float = 1.0> () " \
    "minus = Constant <value_float = -1.0> () two = Constant <value_float = 2.0> ()"  # fmt: skip
FLOAT = 1  # of onnx.TensorProto
GE21 = f"c = GreaterOrEqual (h, zero) f = Cast <to = {FLOAT}> (c) t = Mul (f, two) "
SURROGATE = f"""below = Less (h, zero) m = Cast <to = {FLOAT}> (below) not = Sub (one, m)
    low = Less (h, minus) high = Less (h, one) square = Mul (h, h) double = Mul (h, two)
    up = Add (double, square) down = Sub (double, square) left = Mul (up, m) right = Mul (down, not)
    inner = Add (left, right) a = Where (high, inner, one) s = Where (low, minus, a)"""
IDIOMS = {
    "where": ("c = GreaterOrEqual (h, zero) b = Where (c, one, minus)", "clipped", "+1"),
    "where above": ("c = Greater (h, zero) b = Where (c, one, minus)", "clipped", "-1"),
    "where below": ("c = Less (h, zero) b = Where (c, minus, one)", "clipped", "+1"),
    "to float": (GE21 + "b = Sub (t, one)", "clipped", "+1"),
    "plus minus one": (GE21 + "b = Add (minus, t)", "clipped", "+1"),
    "identity": (GE21 + "q = Sub (t, one) d = Sub (q, h) b = Add (h, d)", "identity", "+1"),
    "clip": (
        "s = Clip (h, minus, one) q = Sign (h) d = Sub (q, s) b = Add (d, s)", "clipped", "+1",
    ),
    "Bi-Real": (SURROGATE + " q = Sign (h) d = Sub (q, s) b = Add (d, s)", "approx-sign", "+1"),
}  # fmt: skip
OTHERS = {
    "another threshold": "c = GreaterOrEqual (h, one) b = Where (c, one, minus)",
    "other values": "c = GreaterOrEqual (h, zero) b = Where (c, two, minus)",
    "two tensors": "c = GreaterOrEqual (h, x) b = Where (c, one, minus)",
    "a mask": "c = GreaterOrEqual (h, zero) b = Where (c, h, minus)",
    "a constant": "d = Sub (h, one) b = Add (d, one)",
}


def idiom(text: str) -> str:
    body = f"{NUMBERS} h = Mul (x, w) {text} y = Mul (b, w)"
    return f"g (float[batch,3] x) => (float[batch,3] y) {{ {body} }}"


@pytest.mark.parametrize("name", IDIOMS)
def test_written_out(name: str, tmp_path: Path) -> None:
    """One operator is left of each idiom, with the values that the file's own would give."""
    text, ste, zero = IDIOMS[name]
    model = parse(idiom(text), {"w": np.ones(3, np.float32)})
    forward = load(model, tmp_path)
    (found,) = forward.binarized
    assert (found.ste, found.zero) == (ste, zero)
    assert [n.op_type for n in forward.graph] == ["Mul", "Binarize", "Mul"]
    x = np.array([[-2.0, 0.0, 0.5]])
    assert run(forward.graph, {"x": x, **forward.weights})["y"].tolist() == [[-1, float(zero), 1]]
    asked = load(parse(idiom(text), {"w": np.ones(3, np.float32)}), tmp_path, ste=["swish-sign"])
    assert asked.binarized[0].ste == "swish-sign"


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_a_binarisation(name: str, tmp_path: Path) -> None:
    forward = load(parse(idiom(OTHERS[name]), {"w": np.ones(3, np.float32)}), tmp_path)
    assert not forward.binarized
    assert all(note.startswith("no gradient passes 'b'") for note in forward.notes)
