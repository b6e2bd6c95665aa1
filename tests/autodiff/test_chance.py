"""Random numbers: by the step in training, without chance in an evaluation, for any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bnnopt.autodiff import build_evaluation
from bnnopt.frontend import ForwardGraph, load_forward
from bnnopt.training_step import Role, TrainingStep
from tests.autodiff.interpreter import Array, run
from tests.autodiff.test_gradients import differentiated, gradients
from tests.frontend.models import parse, rejected, save

BATCH, COLUMNS = 4, 3000
X = np.random.default_rng(0).standard_normal((BATCH, COLUMNS)).astype(np.float32)
WEIGHT = {"w": np.ones(COLUMNS, np.float32)}
DRAWS = {
    "uniform": ("u = RandomUniform <shape = [4, 3000], low = -1.0, high = 2.0> ()", 0.5, 0.75**0.5),
    "uniform-like": ("u = RandomUniformLike (x)", 0.5, 12**-0.5),
    "normal": ("u = RandomNormal <shape = [4, 3000], mean = 2.0, scale = 0.5> ()", 2.0, 0.5),
    "normal-like": ("u = RandomNormalLike (x)", 0.0, 1.0),
    "bernoulli": ("p = Constant <value_float = 0.3> () q = Expand (p, s) u = Bernoulli (q)", 0.3,
                  0.21**0.5),
}  # fmt: skip
DEPTH = """one = Constant <value_ints = [1]> () none = Constant <value_ints = [0]> ()
    n = Slice (s, none, one, none) shape = Concat <axis = 0> (n, one)
    like = ConstantOfShape (shape) u = RandomUniformLike (like)
    p = Constant <value_float = 0.75> () below = Less (u, p) m = Cast <to = 1> (below)"""


def network(body: str) -> onnx.ModelProto:
    text = f"""g (float[batch,{COLUMNS}] x) => (float[batch,{COLUMNS}] y) {{
        s = Shape (x) h = Mul (x, w) {body} }}"""
    return parse(text, WEIGHT, opset=18)


def load(body: str, folder: Path, batch: int = BATCH) -> ForwardGraph:
    return load_forward(save(network(body), folder), batch)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_go_by_the_step(name: str, tmp_path: Path) -> None:
    body, mean, deviation = DRAWS[name]
    step = differentiated(load(f"{body} y = Add (h, u)", tmp_path), "mse")
    assert len(step.inputs(Role.STEP)) == 1
    first, again, second = (noise(step, t) for t in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == second) < 0.7
    assert first.mean() == pytest.approx(mean, abs=4 * deviation / first.size**0.5)
    assert first.std() == pytest.approx(deviation, rel=0.05)


def noise(step: TrainingStep, t: int) -> Array:
    """What is added to x, whose weights are 1."""
    (target,) = (str(v.name) for v in step.inputs(Role.LABELS))
    feeds = {"x": X, target: np.zeros_like(X), "step": np.int64(t), **WEIGHT}
    return run(step.graph, {**feeds, "learning_rate": np.float32(0)}, np.float32)["y"] - X


def predicted(evaluation: TrainingStep) -> Array:
    return run(evaluation.graph, {"x": X, **WEIGHT}, np.float32)[str(evaluation.loss.name)]


def test_two_draws_differ(tmp_path: Path) -> None:
    body = "u = RandomUniformLike (x) v = RandomUniformLike (x) d = Sub (u, v) y = Add (h, d)"
    assert np.abs(noise(differentiated(load(body, tmp_path), "mse"), 1)).max() > 0.9


@pytest.mark.parametrize("batch", [BATCH, BATCH - 1])
def test_gradients_pass_by(batch: int, tmp_path: Path) -> None:
    """Also where the shape is that of a value with a gradient."""
    forward = load("u = RandomUniformLike (h) y = Mul (h, u)", tmp_path)
    step = differentiated(forward, "mse")
    (target,) = (str(v.name) for v in step.inputs(Role.LABELS))
    feeds = {"x": X[:batch].astype(np.float64), target: np.ones((batch, COLUMNS))}
    values = {**feeds, "step": np.int64(3), **forward.weights}
    got = gradients(step, values)["w"][:5]
    near = []
    for i in range(5):
        sides = []
        for sign in (1, -1):
            w = forward.weights["w"].astype(np.float64)
            w[i] += sign * 1e-5
            full = {**values, "w": w, "learning_rate": np.float32(0)}
            sides.append(float(run(step.graph, full)[str(step.loss.name)]))
        near.append((sides[0] - sides[1]) / 2e-5)
    np.testing.assert_allclose(got, near, rtol=1e-4)


@pytest.mark.parametrize(
    ("product", "factor"), [("y = Mul (m, h)", 1), ("f = Div (m, p) y = Mul (h, f)", 4 / 3)]
)
def test_stochastic_depth_is_off_in_an_evaluation(
    product: str, factor: float, tmp_path: Path
) -> None:
    """As arXiv:1603.09382 has it: no mask, whatever its rate."""
    forward = load(f"{DEPTH} {product}", tmp_path)
    noisy = noise(differentiated(forward, "mse"), 1) + X
    factors = noisy[:, 0] / X[:, 0]
    np.testing.assert_allclose(np.unique(factors.round(4)), [0, factor], rtol=1e-3)
    evaluation = build_evaluation(forward)
    assert [node.op_type for node in evaluation.graph] == ["Mul"]
    np.testing.assert_array_equal(predicted(evaluation), X)


def test_a_stochastic_sign_is_the_sign_in_an_evaluation(tmp_path: Path) -> None:
    body = """two = Constant <value_float = 2.0> () one = Constant <value_float = 1.0> ()
        k = Constant <value_float = -1.0> () a = Add (h, one) p = Div (a, two)
        u = RandomUniformLike (p) below = Less (u, p) y = Where (below, one, k)"""
    evaluation = build_evaluation(load(body, tmp_path))
    np.testing.assert_array_equal(predicted(evaluation), np.where(X > 0, 1, -1))


def test_a_normal_noise_is_none_in_an_evaluation(tmp_path: Path) -> None:
    evaluation = build_evaluation(load("u = RandomNormalLike (x) y = Add (h, u)", tmp_path))
    np.testing.assert_allclose(predicted(evaluation), X, atol=1e-6)


def test_a_smaller_batch_draws_what_the_first_samples_drew(tmp_path: Path) -> None:
    step = differentiated(load(f"{DEPTH} y = Mul (h, m)", tmp_path), "mse")
    (target,) = (str(v.name) for v in step.inputs(Role.LABELS))
    rows = []
    for n in (BATCH, 2):
        feeds = {"x": X[:n], target: X[:n], "step": np.int64(5), "learning_rate": np.float32(0)}
        rows.append(run(step.graph, {**feeds, **WEIGHT}, np.float32)["y"])
    np.testing.assert_array_equal(rows[0][:2], rows[1])


IMPOSSIBLE = {
    "low and high": "u = RandomUniformLike <low = 2.0, high = 1.0> (x)",
    "scale": "u = RandomNormalLike <scale = -1.0> (x)",
    "a probability": "p = Constant <value_floats = [0.5, 1.5]> () q = Bernoulli (p)"
    " u = ReduceMean <keepdims = 0> (q)",
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_no_distribution_has_is_refused(what: str, tmp_path: Path) -> None:
    rejected(save(network(f"{IMPOSSIBLE[what]} y = Add (h, u)"), tmp_path), what)
