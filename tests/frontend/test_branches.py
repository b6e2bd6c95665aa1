"""An If that shapes decide is the branch that it takes; one that data decides is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.autodiff.interpreter import session
from tests.frontend.models import BATCH, load, parse, rejected, save
from tests.frontend.test_normalize import output

RNG = np.random.default_rng(4)
WEIGHTS = {"w": RNG.standard_normal((3, 2)), "b": RNG.standard_normal(2)}
VALUES = {name: array.astype(np.float32) for name, array in WEIGHTS.items()}
X = RNG.standard_normal((BATCH, 3)).astype(np.float32)
BRANCHES = """<then_branch = t () => (float[batch,2] a) { k = Relu (h) a = Add (k, b) },
    else_branch = e () => (float[batch,2] q) <float[1] k = {0.5}> { q = Mul (h, k) }>"""


def network(body: str, length: int = 3) -> str:
    return f"""g (float[batch,3] x) => (float[batch,2] y) {{
        s = Shape (x) one = Constant <value_int = 1> () d = Gather (s, one)
        n = Constant <value_int = {length}> () is = Equal (d, n) h = MatMul (x, w) {body} }}"""


@pytest.mark.parametrize(
    ("body", "length", "operators"),
    [
        (f"y = If (is) {BRANCHES}", 3, ["MatMul", "Relu", "Add"]),
        (f"y = If (is) {BRANCHES}", 4, ["MatMul", "Mul"]),
        (f"u = If (is) {BRANCHES} v = If (is) {BRANCHES} z = Exp (v) y = Sub (u, z)", 3, None),
        (
            f"""y = If (is) <then_branch = o () => (float[batch,2] z) {{
                r = If (is) {BRANCHES} z = Neg (r) }},
                else_branch = p () => (float[batch,2] z) {{ z = Abs (h) }}>""",
            3,
            ["MatMul", "Relu", "Add", "Neg"],
        ),
    ],
    ids=["then", "else", "twice", "nested"],
)
def test_the_taken_branch(
    body: str, length: int, operators: list[str] | None, tmp_path: Path
) -> None:
    model = parse(network(body, length), VALUES, opset=18)
    (want,) = session(model.SerializeToString()).run(None, {"x": X})
    forward = load(model, tmp_path)
    np.testing.assert_allclose(output(forward, X), want, rtol=1e-5)
    assert operators in (None, [node.op_type for node in forward.graph])
    names = [str(value.name) for node in forward.graph for value in node.outputs]
    assert len(set(names)) == len(names)


def test_a_condition_on_data(tmp_path: Path) -> None:
    body = f"""m = ReduceMax <keepdims = 0> (x) o = Constant <value_float = 1.0> ()
        c = Less (m, o) ["choice"] y = If (c) {BRANCHES}"""
    path = save(parse(network(body), VALUES, opset=18), tmp_path)
    rejected(path, "node 'choice' (If): its condition depends on the data", "export")


def test_a_condition_of_several_elements(tmp_path: Path) -> None:
    body = f"c = Constant <value = bool[2] {{1, 0}}> () y = If (c) {BRANCHES}"
    path = save(parse(network(body), VALUES, opset=18), tmp_path)
    rejected(path, "(If): its condition has 2 elements, expected one", "export")
