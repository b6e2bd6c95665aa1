"""Chains of nodes that are one operator: found however they are written, and nothing else is."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bnnopt.frontend import ForwardGraph, load_forward
from tests.autodiff.interpreter import run
from tests.frontend.models import BATCH, parse, save

HEAD = """g (float[batch,6] x) => (float[batch,3] y) {
    root = Constant <value_float = 1.4142135> () inverse = Constant <value_float = 0.70710677> ()
    one = Constant <value_float = 1.0> () half = Constant <value_float = 0.5> ()
    two = Constant <value_float = 2.0> ()
    h = MatMul (x, w)"""
TAIL = "y = MatMul (g, v) }"
CHAINS = {
    "torch": "a = Div (h, root) e = Erf (a) s = Add (e, one) p = Mul (h, s) g = Mul (p, half)",
    "inner-half": "a = Div (h, root) e = Erf (a) s = Add (e, one) p = Mul (half, s) g = Mul (h, p)",
    "onnxruntime": "a = Mul (h, inverse) e = Erf (a) s = Add (one, e) t = Mul (h, half)"
    " g = Mul (t, s)",
    "divided": "a = Mul (inverse, h) e = Erf (a) s = Add (e, one) p = Mul (s, h) g = Div (p, two)",
}
OTHERS = {
    "another-scale": "a = Div (h, two) e = Erf (a) s = Add (e, one) p = Mul (h, s)"
    " g = Mul (p, half)",
    "another-factor": "a = Div (h, root) e = Erf (a) s = Add (e, one) p = Mul (a, s)"
    " g = Mul (p, half)",
    "no-half": "a = Div (h, root) e = Erf (a) s = Add (e, one) p = Mul (h, s) g = Mul (p, two)",
    "read-inside": "a = Div (h, root) e = Erf (a) s = Add (e, one) p = Mul (h, s) q = Mul (p, half)"
    " g = Add (q, e)",
    "two-halves": "a = Div (h, root) e = Erf (a) s = Add (e, one) p = Mul (half, s)"
    " q = Mul (half, p) g = Mul (h, q)",
    "upside-down": "a = Div (root, h) e = Erf (a) s = Add (e, one) p = Mul (h, s)"
    " g = Mul (p, half)",
}
WEIGHTS = {
    name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    for seed, (name, shape) in enumerate({"w": (6, 6), "v": (6, 3)}.items())
}


def read(chain: str, folder: Path) -> ForwardGraph:
    return load_forward(save(parse(f"{HEAD} {chain} {TAIL}", WEIGHTS), folder), BATCH)


def operators(forward: ForwardGraph) -> Counter[str]:
    return Counter(node.op_type for node in forward.graph)


@pytest.mark.parametrize("name", CHAINS)
def test_gelu(name: str, tmp_path: Path) -> None:
    forward = read(CHAINS[name], tmp_path)
    assert operators(forward) == {"MatMul": 2, "Gelu": 1}
    x = np.random.default_rng(2).standard_normal((BATCH, 6)).astype(np.float32)
    y = run(forward.graph, {**WEIGHTS, "x": x})["y"]
    other = read(OTHERS["another-scale"], tmp_path)  # the control
    assert np.abs(run(other.graph, {**WEIGHTS, "x": x})["y"] - y).max() > 1e-2
    h = x.astype(np.float64) @ WEIGHTS["w"]
    want = h * 0.5 * (1 + np.vectorize(math.erf)(h / 2**0.5)) @ WEIGHTS["v"]
    np.testing.assert_allclose(y, want, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_gelu_stays(name: str, tmp_path: Path) -> None:
    found = operators(read(OTHERS[name], tmp_path))
    assert found["Gelu"] == 0
    assert found["Erf"] == 1


def unbound(places: str) -> str:
    return f"t = Reshape (h, three) {places} g = Concat <axis = 1> (c, b, a)"


UNBIND = "three = Constant <value_ints = [-1, 3, 2]> ()" + "".join(
    f" i{n} = Constant <value_int = {n}> ()" for n in (-1, 0, 1, 2)
)


@pytest.mark.parametrize("last", ["i2", "i_1"])
def test_all_places_of_an_axis_are_a_split(last: str, tmp_path: Path) -> None:
    text = UNBIND.replace("i-1", "i_1") + unbound(
        "a = Gather <axis = 1> (t, i0) b = Gather <axis = -2> (t, i1)"
        f" c = Gather <axis = 1> (t, {last})"
    )
    forward = read(text, tmp_path)
    found = operators(forward)
    assert (found["Split"], found["Squeeze"], found["Gather"]) == (1, 3, 0)
    x = np.random.default_rng(2).standard_normal((BATCH, 6)).astype(np.float32)
    h = (x @ WEIGHTS["w"]).reshape(BATCH, 3, 2)[:, ::-1].reshape(BATCH, 6)
    np.testing.assert_allclose(
        run(forward.graph, {**WEIGHTS, "x": x}, np.float32)["y"], h @ WEIGHTS["v"], atol=1e-5
    )


def test_some_places_of_an_axis_are_gathered(tmp_path: Path) -> None:
    text = UNBIND.replace("i-1", "i_1") + unbound(
        "a = Gather <axis = 1> (t, i0) b = Gather <axis = 1> (t, i1) c = Gather <axis = 1> (t, i1)"
    )
    assert operators(read(text, tmp_path))["Split"] == 0
