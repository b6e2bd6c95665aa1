"""Opset 9 to 12, by onnx's converter: what they mean, and what they do not say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnnopt.frontend import load_forward
from tests.autodiff.interpreter import run, session
from tests.autodiff.test_gradients import assert_close, differentiated, expected, gradients
from tests.frontend.models import BATCH, parse, rejected, save

RNG = np.random.default_rng(1)
W = {"w": RNG.standard_normal((3, 2)).astype(np.float32), "k": np.ones(2, np.float32)}
BODIES = {
    9: "m = MatMul (x, w) a = Add (m, k) u = Unsqueeze <axes = [1]> (a) r = Relu (u)"
       " s = ReduceSum <axes = [1]> (r) y = Squeeze <axes = [1]> (s)",
    10: "m = MatMul (x, w) a = Add (m, k) y = Softmax <axis = 1> (a)",
    11: "m = MatMul (x, w) a = Add (m, k) b, e = Split <axis = 1> (a) y = Concat <axis = 1> (e, b)",
    12: "m = MatMul (x, w) a = Add (m, k) y = ReduceMean <axes = [1]> (a)",
}  # fmt: skip


@pytest.mark.parametrize("opset", BODIES)
def test_is_read(opset: int, tmp_path: Path) -> None:
    n = 1 if opset == 12 else 2
    text = f"""g (float[batch,3] x, float[batch,{n}] c) => (float loss) {{ {BODIES[opset]}
        t = Mul (y, c) loss = ReduceSum <keepdims = 0> (t) }}"""
    model = parse(text, W, opset, ir_version=6)
    feeds = {name: RNG.standard_normal((BATCH, size)).astype(np.float32)
             for name, size in (("x", 3), ("c", n))}  # fmt: skip
    (loss,) = session(model.SerializeToString()).run(["loss"], feeds)
    forward = load_forward(save(model, tmp_path), BATCH)
    values = {**feeds, **forward.weights}
    np.testing.assert_allclose(run(forward.graph, values)["loss"], loss, rtol=1e-5)
    want = expected(forward.graph, feeds, forward.weights)
    assert_close(gradients(differentiated(forward), values), want, 1e-6)


def test_a_dropout_without_a_mode_is_refused(tmp_path: Path) -> None:
    text = "g (float[batch,3] x) => (float[batch,2] y) { d = Dropout (x) y = MatMul (d, w) }"
    path = save(parse(text, {"w": W["w"]}, opset=11), tmp_path)
    rejected(path, "Dropout", "no mode before opset 12")
