"""Operators that are written out in others: the same values, also far from 0, and a gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
from bnnopt.frontend import load_forward
from bnnopt.frontend.composed import TEXTS
from tests.autodiff.interpreter import run
from tests.frontend.models import BATCH, parse, rejected, save

RANDOM = np.random.default_rng(0)
W = {
    "w": RANDOM.uniform(0.5, 1.5, (3, 4)).astype(np.float32),
    "g": RANDOM.uniform(0.5, 1.5, 4).astype(np.float32),
    "b": RANDOM.standard_normal(4).astype(np.float32),
}
X = RANDOM.standard_normal((BATCH, 3, 4)).astype(np.float32)
AXES = "a = Constant <value_ints = [1]> () "
CALLS = {
    "LayerNormalization": ["LayerNormalization (h, g, b)",
                           "LayerNormalization <axis = 2, epsilon = 0.1> (h, g, b)"],
    "Elu": ["Elu (h)", "Elu <alpha = 0.5> (h)"],
    "Celu": ["Celu (h)", "Celu <alpha = 0.5> (h)"],
    "Selu": ["Selu (h)", "Selu <alpha = 1.5, gamma = 0.5> (h)"],
    "Mish": ["Mish (h)"],
    "Softsign": ["Softsign (h)"],
    "ReduceL1": ["ReduceL1 (h, a)", "ReduceL1 <keepdims = 0> (h, a)"],
    "ReduceL2": ["ReduceL2 (h, a)", "ReduceL2 <keepdims = 0> (h, a)"],
    "ReduceSumSquare": ["ReduceSumSquare (h, a)", "ReduceSumSquare <keepdims = 0> (h, a)"],
}  # fmt: skip


def model_of(call: str) -> onnx.ModelProto:
    shape = "batch,4" if "keepdims" in call else "batch,1,4" if "Reduce" in call else "batch,3,4"
    text = f"g (float[batch,3,4] x) => (float[{shape}] y) {{ {AXES} h = Mul (x, w) y = {call} }}"
    read = [name for name in W if name == "w" or f", {name}" in call]
    return parse(text, {name: W[name] for name in read}, opset=18)


@pytest.mark.parametrize("name", TEXTS)
def test_written_out(name: str, tmp_path: Path) -> None:
    for call in CALLS[name]:
        model = model_of(call)
        path = save(model, tmp_path)
        forward = load_forward(path, BATCH)
        assert name not in {node.op_type for node in forward.graph}
        found = run(forward.graph, {"x": X, **forward.weights})["y"]
        (expected,) = ReferenceEvaluator(model).run(None, {"x": X})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        sgd = make_optimizer("sgd", 0.0)
        step = build_training_step(forward, TrainingOptions("mse", sgd), path)
        assert set(step.gradients()) == set(forward.weights)


@pytest.mark.parametrize("name", ["Elu", "Celu", "Selu"])
def test_large_numbers_have_finite_gradients(name: str, tmp_path: Path) -> None:
    path = save(model_of(f"{name} (h)"), tmp_path)
    forward = load_forward(path, BATCH)
    step = build_training_step(forward, TrainingOptions("mse", make_optimizer("sgd", 0.0)), path)
    feeds = {"x": X * 1000, "targets": X, "learning_rate": np.float32(0), **forward.weights}
    values = run(step.graph, feeds)
    assert np.isfinite(values[str(step.gradients()["w"].name)]).all()


def test_a_layer_normalization_far_from_zero(tmp_path: Path) -> None:
    call = CALLS["LayerNormalization"][0]
    forward = load_forward(save(model_of(call), tmp_path), BATCH)
    near, far = (run(forward.graph, {**forward.weights, "w": W["w"] * 0 + 1, "x": x})["y"]
                 for x in (X, X + np.float32(4096)))  # fmt: skip
    np.testing.assert_allclose(far, near, atol=0.01)


def test_a_layer_normalization_without_bias_stays(tmp_path: Path) -> None:
    path = save(model_of("LayerNormalization (h, g)"), tmp_path)
    rejected(path, "LayerNormalization", "no gradient rule")
