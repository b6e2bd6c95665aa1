"""normalize-on-read: normalise images of 8 bits in the kernels that read them."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.analysis import buffers, kept_values, size_bytes
from bnnopt.passes.normalize_on_read import NormalizeOnRead
from bnnopt.training_step import Role, phase
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
from tests.passes.networks import BYTES_WEIGHTS, small

PASS = NormalizeOnRead()
CONV = """g (float[batch,3,6,6] x) => (float[batch,3] y) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
    r = Relu (c)
    f = Flatten (r)
    y = Gemm <transB = 1> (f, w3)
}"""
CONV_WEIGHTS = {name: BYTES_WEIGHTS[name] for name in ("w1", "w3")}


def conv(text: str = CONV, **options: object) -> Network:
    return network(text, CONV_WEIGHTS, fed_bytes=True, **options)


def test_no_float_of_the_images_is_kept() -> None:
    step = conv().step()
    assert value(step, "x.normalized") in kept_values(step)
    assert apply(PASS, step) == (1, [])
    assert "NormalizeBytes" not in ops(step)
    x, floats = step.inputs(Role.DATA)[0], value(step, "x.normalized")
    assert size_bytes(floats) == size_bytes(x) == 4 * 3 * 6 * 6
    assert kept_values(step)[x] == [x, floats]
    (home,) = [buffer for buffer in buffers(step) if x in buffer.values]
    assert floats in home.values
    assert apply(PASS, step) == (0, [])


def test_a_reader_of_floats_gets_them_right_before_it() -> None:
    step = small("bytes").step()
    count, skipped = apply(PASS, step)
    assert (count, {reason for _, reason in skipped}) == (
        1,
        {"Binarize takes floats: made right before it"},
    )
    nodes = list(step.graph)
    made = node(step, "NormalizeBytes")
    assert nodes[nodes.index(made) + 1] is node(step, "Binarize")
    assert phase(made) == "forward"
    assert ops(step).count("NormalizeBytes") == 1
    assert node(step, "Conv").inputs[0] is value(step, "x.normalized")


def test_floats_are_made_again_for_the_backward_pass() -> None:
    """A product in front of the first layer: its gradient reads the image."""
    text = CONV.replace("(x, w1)", "(xs, w1)").replace(
        "c = Conv", "xs = Mul (x, scale)\n    c = Conv"
    )
    step = network(text, {**CONV_WEIGHTS, "scale": [1, 3, 1, 1]}, fed_bytes=True).step()
    _, skipped = apply(PASS, step)
    assert len(skipped) == 2
    phases = [phase(n) for n in step.graph if n.op_type == "NormalizeBytes"]
    assert phases == ["forward", "rebuild"]


def test_an_output_is_a_reason() -> None:
    step = conv(
        CONV.replace("=> (float[batch,3] y)", "=> (float[batch,3] y, float[batch,3,6,6] x)")
    )
    evaluation = step.evaluation_step()
    assert apply(PASS, evaluation) == (0, [("x.normalized", "'x.normalized' is an output")])


@pytest.mark.parametrize("run", [run_native, run_stock], ids=["native", "onnxruntime"])
@pytest.mark.parametrize("batch", [4, 3])
def test_the_same_bits(run, batch: int) -> None:
    net = small("bytes", optimizer="adam")
    step = net.step()
    apply(PASS, step)
    found, expected = run(net, step, 2, batch), run(net, net.step(), 2, batch)
    assert_bit_equal(found, expected)
    assert np.abs(expected.gradients[0]["w1"]).max() > 0


def test_other_numbers_are_noticed() -> None:
    """The step reads factor and shift: with others it is another one."""
    net = conv()
    step = net.step()
    apply(PASS, step)
    other = Network(net.training, net.evaluation, {**net.weights}, net.batch)
    other.weights["x.shift"] = net.weights["x.shift"] + np.float32(1e-3)
    with pytest.raises(AssertionError):
        assert_bit_equal(run_native(net, step), run_native(other, step))
