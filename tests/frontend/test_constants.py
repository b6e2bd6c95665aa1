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
