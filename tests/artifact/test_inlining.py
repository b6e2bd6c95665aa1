"""Functions in the place of their calls, as onnx_ir's own passes put them there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

import bnnopt
from bnnopt.artifact.inlining import inline_calls, lift_constants
from tests.zoo import build_small

FUNCTIONS = """<ir_version: 10, opset_import: ["": 21, "f": 1]>
g (float[3] a, float[3] b) => (float[3] y, float[3] z) {
    t = Abs (b)
    y, left = f.both <scale = 3.0> (a, t)
    z, h = f.both (y, b)
}
<domain: "f", opset_import: ["": 21]>
both <scale: float = 2.0, other: int> (x, u) => (v, w) {
    t = f.times <by: float = @scale> (x)
    one = Constant <value_floats: floats = [1.0]> ()
    v = Add (t, one)
    w = Softmax <axis: int = @other> (u)
}
<domain: "f", opset_import: ["": 21]>
times <by: float> (x) => (t) {
    c = Constant <value_float: float = @by> ()
    t = Mul (x, c)
}
"""


def sha256(model: ir.Model) -> str:
    return hashlib.sha256(ir.to_proto(model).SerializeToString()).hexdigest()


def by_onnx_ir(model: ir.Model) -> ir.Model:
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def by_us(model: ir.Model) -> ir.Model:
    inline_calls(model)
    lift_constants(model.graph)
    return model


def test_calls_in_functions_and_names_that_are_taken() -> None:
    model = ir.from_proto(onnx.parser.parse_model(FUNCTIONS))
    assert sha256(by_us(model.clone())) == sha256(by_onnx_ir(model))
    made = [value.name for node in model.graph for value in node.outputs]
    assert made == ["t", "t_2", "y", "left", "t_4", "z", "h"]
    assert [*model.graph.initializers] == ["c", "one", "c_2", "one_2"]


@pytest.mark.slow
def test_a_compiled_step(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(build_small("mlp"), path)
    model = bnnopt.optimize(path, batch_size=4, level="O2").training.model
    assert model.functions
    assert sha256(by_us(model.clone())) == sha256(by_onnx_ir(model))
