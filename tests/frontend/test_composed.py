"""Operators that are written out in others: the same values, also far from 0, and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from bnnopt.frontend import load_forward
from bnnopt.frontend.composed import BODIES
from tests.autodiff.cases import Case
from tests.autodiff.interpreter import run
from tests.autodiff.test_gradients import (
    assert_close,
    check_case,
    differentiated,
    expected,
    gradients,
    load,
)
from tests.frontend.composed_cases import CASES, FUNCTIONS
from tests.frontend.models import BATCH, parse, rejected, save

# onnx's inference gives no shape, so no case can read it; what has the value of a rounding; what is
# drawn (tests/autodiff/test_chance.py); what has no dimensions to weight
ELSEWHERE = {"GroupNormalization", "DequantizeLinear", "Bernoulli", "Reshape"} | {
    f"Random{kind}{like}" for kind in ("Uniform", "Normal") for like in ("", "Like")
}


RECURRENT = {"GRU", "LSTM", "RNN"}


def slow_if_long(case: Case) -> object:
    """`case` for pytest's parameters; recurrent layers that are written out at length are slow."""
    is_slow = case.operator in RECURRENT and case.note not in {"plain", "reverse"}
    return pytest.param(case, marks=pytest.mark.slow) if is_slow else case


@pytest.mark.parametrize("case", [slow_if_long(case) for case in (*CASES, *FUNCTIONS)], ids=str)
def test_written_out(case: Case, tmp_path: Path) -> None:
    check_case(case, tmp_path)
    nodes = list(load(case.model(), tmp_path).graph)
    is_gone = all(node.op_type != case.operator for node in nodes)
    assert is_gone or any("/" in str(node.name) for node in nodes), "it stands as it was"


def test_every_body_has_a_case() -> None:
    assert {case.operator for case in CASES} | ELSEWHERE == set(BODIES)
    assert len({str(case) for case in CASES}) == len(CASES)


def test_a_wrong_body_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.operator == "Softsign")
    check_case(case, tmp_path)
    monkeypatch.setitem(BODIES, "Softsign", BODIES["Mish"])
    with pytest.raises(AssertionError):
        check_case(case, tmp_path)


def test_group_normalization(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weights = {name: rng.standard_normal(4).astype(np.float32) for name in ("g", "k")}
    model = parse(
        """g (float[batch,4,3] x, float[batch,4,3] c) => (float loss) {
        y = GroupNormalization <num_groups = 2, epsilon = 0.1> (x, g, k)
        weighted = Mul (y, c) loss = ReduceSum <keepdims = 0> (weighted) }""",
        weights,
        opset=21,
    )
    feeds = {name: rng.standard_normal((BATCH, 4, 3)).astype(np.float32) for name in ("x", "c")}
    forward = load_forward(save(model, tmp_path), BATCH)
    (loss,) = ReferenceEvaluator(model).run(None, feeds)
    values = {**feeds, **forward.weights}
    np.testing.assert_allclose(run(forward.graph, values)["loss"], loss, rtol=1e-5)
    want = expected(forward.graph, feeds, forward.weights)
    assert_close(gradients(differentiated(forward), values), want, 1e-6)


def test_a_reshape_to_no_dimensions(tmp_path: Path) -> None:
    """Its shape is a constant without elements, which a program would have to hold."""
    text = """g (float[batch,3] x) => (float loss) { m = MatMul (x, w) f = Exp (m)
        s = ReduceSum <keepdims = 1> (f) loss = Reshape (s, none) }"""
    weights = {"w": np.ones((3, 1), np.float32), "none": np.zeros(0, np.int64)}
    forward = load_forward(save(parse(text, weights), tmp_path), BATCH)
    assert "Reshape" not in {node.op_type for node in forward.graph}
    x = np.full((BATCH, 3), 0.5, np.float32)
    loss = run(forward.graph, {"x": x, **forward.weights})["loss"]
    np.testing.assert_allclose(loss, BATCH * np.exp(1.5), rtol=1e-6)
    assert loss.shape == ()


@pytest.mark.parametrize("name", ["Elu", "Celu", "Selu"])
def test_large_numbers_have_finite_gradients(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.operator == name)
    forward = load(case.model(), tmp_path)
    step = differentiated(forward)
    feeds = case.feeds(forward.graph, forward.weights, BATCH)
    values = run(step.graph, {**feeds, **forward.weights, "x": feeds["x"] * 1000,
                              "learning_rate": np.float32(0)})  # fmt: skip
    assert np.isfinite(values[str(step.gradients()["b"].name)]).all()


def test_a_layer_normalization_far_from_zero(tmp_path: Path) -> None:
    ones = {name: np.ones(4, np.float32) for name in ("g", "b")}
    text = "g (float[batch,3,4] x) => (float[batch,3,4] y) { y = LayerNormalization (x, g, b) }"
    forward = load_forward(save(parse(text, ones), tmp_path), BATCH)
    x = np.random.default_rng(0).standard_normal((BATCH, 3, 4)).astype(np.float32)
    near, far = (
        run(forward.graph, {**forward.weights, "x": shifted}, np.float32)["y"]
        for shifted in (x, x + np.float32(4096))
    )
    np.testing.assert_allclose(far, near, atol=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("LSTM <hidden_size = 2, clip = 1.0> (t, w, r)", "clip is 1.0, expected none"),
        (
            "LSTM <hidden_size = 2> (t, w, r, , n)",
            "sequence_lens is [2, 3, 3, 3], expected 3 for each",
        ),
        (
            'LSTM <hidden_size = 2, activations = ["Affine", "Tanh", "Tanh"]> (t, w, r)',
            "activations",
        ),
    ],
)
def test_what_no_body_does_is_refused(call: str, message: str, tmp_path: Path) -> None:
    weights = {"w": np.ones((1, 8, 2), np.float32), "r": np.ones((1, 8, 2), np.float32)}
    text = f"""g (float[4,3,2] x) => (float[3,1,4,2] y) {{
        n = Constant <value = int32[4] {{2, 3, 3, 3}}> ()
        t = Transpose <perm = [1, 0, 2]> (x) y = {call} }}"""
    rejected(save(parse(text, weights), tmp_path), "LSTM", message)
