"""bitmap: sparse activations as bits and non-zero values, whatever a batch is like."""

from __future__ import annotations

import math

import pytest

from bnnopt.analysis import expected_density, kept_values, saved_bytes, size_bytes
from bnnopt.metadata import Key
from bnnopt.ops import dims, is_view
from bnnopt.passes.bitmap import Bitmap
from bnnopt.training_step import TrainingStep
from tests.graphs import (
    Network,
    apply,
    assert_bit_equal,
    network,
    node,
    ops,
    run_native,
    run_stock,
    value,
)
from tests.passes.networks import small

PASS = Bitmap()
RUNNERS = {"native": run_native, "onnxruntime": run_stock}

# ReLU and its views, pooled, joined with a dense map, dropped out.
SOURCES = """g (float[batch,2,6,6] x) => (float[batch,3] y) {
    ratio = Constant <value_float = 0.25> () mode = Constant <value = bool {1}> ()
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1) r = Relu (c)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    j = Concat <axis = 1> (r, x)
    k = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (j, w2)
    s = Add (k, p) d = Dropout (s, ratio, mode) q = Relu (d) f = Flatten (q)
    y = Gemm (f, w3) }"""
SHAPES = {"w1": [4, 2, 3, 3], "w2": [4, 6, 3, 3], "w3": [36, 3]}


def kept(step: TrainingStep) -> set[str]:
    return {str(root.name) for root in kept_values(step)}


def test_every_reader_takes_the_encoded_form() -> None:
    step = small("float").step()
    before = saved_bytes(step)
    value(step, "r2").metadata_props[Key.DENSITY] = "0.5"
    value(step, "p1").metadata_props[Key.DENSITY] = "1"
    count, _ = apply(PASS, step)
    assert count == 1
    assert "r2" not in kept(step)
    assert {"r2.bitmap", "r2.bitmap.1"} <= kept(step)
    assert ops(step, "backward").count("BitmapReluGrad") == 1
    assert ops(step, "rebuild") == ["BitmapUnpack"]
    n, elements = dims(value(step, "r2"))[0], math.prod(dims(value(step, "r2")))
    capacity = 1 + math.ceil(0.5 * 1.05 * elements)
    encoded = n * math.ceil(elements / n / 8) + 4 * capacity
    assert before - saved_bytes(step) == 4 * elements - encoded
    assert apply(PASS, step)[0] == 0


def test_the_weight_gradient_of_a_convolution_decodes_by_itself() -> None:
    step = small("relu").step()
    count, _ = apply(PASS, step)
    assert count == 3
    assert not kept(step) & {"r1", "r2", "r3"}
    grads = [n for n in step.graph if n.op_type == "BitmapConvWeightGrad"]
    shapes = {tuple(n.attributes["shape"].as_ints()) for n in grads}
    assert shapes == {(4, 7, 7)}
    assert sorted(n.attributes["group"].as_int() for n in grads) == [1, 4]
    (use,) = node(step, "BitmapUnpack").outputs[0].uses()
    assert use.node.op_type == "Gemm"


def test_a_volume_is_decoded_right_before_its_weight_gradient() -> None:
    text = """g (float[batch,1,3,3,3] x) => (float[batch,2] y) {
        c = Conv (x, w1) r = Relu (c) d = Conv (r, w2) f = Flatten (d) y = Gemm (f, w3) }"""
    shapes = {"w1": [2, 1, 2, 2, 2], "w2": [2, 2, 2, 2, 2], "w3": [2, 2]}
    step = network(text, shapes).step()
    apply(PASS, step)
    (use,) = node(step, "BitmapUnpack").outputs[0].uses()
    assert use.node.op_type == "ConvWeightGrad"


def test_a_view_is_decoded_in_its_own_shape() -> None:
    step = small("float").step()
    apply(PASS, step)
    decoded = node(step, "BitmapUnpack").outputs[0]
    readers = [use.node.op_type for use in decoded.uses()]
    flat = next(n for n in step.graph if is_view(n) and n.op_type == "Flatten").outputs[0]
    assert readers == ["Gemm"]
    assert dims(decoded) == dims(flat)


def test_too_dense_is_a_reason_with_bytes() -> None:
    step = small("float").step()
    value(step, "r2").metadata_props[Key.DENSITY] = "0.97"
    _, skipped = apply(PASS, step)
    reasons = dict(skipped)
    dense = size_bytes(value(step, "r2"))
    assert "too dense to gain" in reasons["r2"]
    assert f"dense {dense} B" in reasons["r2"]
    assert "r2" in kept(step)


def test_expected_densities() -> None:
    step = network(SOURCES, SHAPES).step()
    found = {name: expected_density(value(step, name)) for name in "xcrpjsdqf"}
    assert found == {
        **{"x": None, "c": None, "r": 0.6, "p": None, "s": None, "q": 0.6, "f": 0.6},
        "j": pytest.approx((4 * 0.6 + 2) / 6),
        "d": pytest.approx(0.75),
    }
    low = small("float").step()
    assert expected_density(value(low, "r1")) == 0.6  # a Clip from 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", RUNNERS)
@pytest.mark.parametrize("density", ["0", "0.3", None])
@pytest.mark.parametrize("net", [network(SOURCES, SHAPES), small("relu")], ids=["joined", "relu"])
def test_a_denser_batch_than_planned_loses_nothing(
    net: Network, density: str | None, backend: str
) -> None:
    reference = RUNNERS[backend](net, net.step())
    step = net.step()
    for output in [output for n in step.graph for output in n.outputs]:
        if density is not None and output.name in ("r", "j", "p", "q", "r1", "r2", "r3"):
            output.metadata_props[Key.DENSITY] = density
    count, _ = apply(PASS, step)
    assert count >= 2
    assert_bit_equal(RUNNERS[backend](net, step), reference)
    assert_bit_equal(
        RUNNERS[backend](net, step, batch=3), RUNNERS[backend](net, net.step(), batch=3)
    )
