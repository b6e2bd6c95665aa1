"""Constants are computed while a file is read, but not for ever, nor without end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnnopt.errors import ModelError
from bnnopt.frontend import load_forward
from tests.frontend.models import BATCH, parse, save

W = {"w": np.ones((6, 3), np.float32)}


def loop(trips: int, body: str = "a2 = Add (a, a)") -> str:
    return f"""
        n = Constant <value_int = {trips}> ()
        always = Constant <value = bool {{1}}> ()
        one = Constant <value_floats = [1.0]> ()
        l = Loop (n, always, one) <body = b (int64 i, bool c, float[k] a) => (bool c2, float[m] a2)
            {{ c2 = Identity (c)
               {body} }}>"""


def network(constant: str) -> str:
    return f"""g (float[batch,6] x) => (float[batch,3] y) {{
        {constant}
        h = Mul (x, l)
        y = MatMul (h, w)
    }}"""


CONSTANTS = {
    "a loop of many trips": (loop(10**12), "no known number of trips"),
    "a loop that doubles": (loop(40, "a2 = Concat <axis = 0> (a, a)"), "a Concat within a Loop"),
    "expanded": (
        "s = Constant <value_ints = [1000000, 1000000]> () o = Constant <value_float = 1.0> ()"
        " l = Expand (o, s)",
        "takes 4,000,000,000,000 bytes",
    ),
    "a range": (
        "a = Constant <value_float = 0.0> () b = Constant <value_float = 1e12> ()"
        " c = Constant <value_float = 1.0> () l = Range (a, b, c)",
        "bytes, expected at most",
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_what_is_too_much_is_refused(name: str, tmp_path: Path) -> None:
    constant, expected = CONSTANTS[name]
    path = save(parse(network(constant), W), tmp_path)
    with pytest.raises(ModelError, match=expected):
        load_forward(path, BATCH)


def test_a_short_loop_is_computed(tmp_path: Path) -> None:
    graph = load_forward(save(parse(network(loop(5)), W), tmp_path), BATCH).graph
    (factor,) = [v for v in graph.initializers.values() if v.name == "l"]
    assert factor.const_value is not None
    np.testing.assert_array_equal(factor.const_value.numpy(), [32])


# onnx's numbers of types that no numpy array of ours has: the bits of two elements.
NARROW = {
    "int4": (22, 1),
    "float4": (23, 1),
    "uint2": (25, 1),
    "float6": (27, 2),
    "complex": (14, 16),
}


@pytest.mark.parametrize("name", NARROW)
def test_a_shape_of_another_type(name: str, tmp_path: Path) -> None:
    kind, n_bytes = NARROW[name]
    model = parse(
        "g (float[batch,6] x) => (float[batch,3] y) { h = MatMul (x, w) y = Reshape (h, t) }", W
    )
    model.opset_import[0].version, model.ir_version = 25, 12
    model.graph.initializer.add(name="t", dims=[2], data_type=kind, raw_data=bytes(n_bytes))
    with pytest.raises(ModelError, match=r"node 'y' .Reshape.: .*Expected:int64"):
        load_forward(save(model, tmp_path), BATCH)
