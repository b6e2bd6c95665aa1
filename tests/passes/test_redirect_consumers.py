"""redirect-consumers: what depends on weights alone is rebuilt where it is read."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from bnnopt.analysis import is_from_forward, kept_values, late_readers
from bnnopt.passes.redirect_consumers import RedirectConsumers
from bnnopt.training_step import TrainingStep, phase
from tests.graphs import apply, network, ops, value
from tests.passes.networks import small

PASS = RedirectConsumers()


def kept_from_weights(step: TrainingStep) -> set[str]:
    """What is kept although nothing but weights is behind it; shapes, of some bytes, aside."""

    def on_weights(v: ir.Value) -> bool:
        producer = v.producer()
        if producer is None:
            return not is_from_forward(v)
        return all(on_weights(s) for s in producer.inputs if s is not None)

    roots = [root for root in kept_values(step) if root.dtype != ir.DataType.INT64]
    return {str(root.name) for root in roots if on_weights(root)}


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("binary", {"w2b", "w3b"}),  # w1b: the gradient of the input is not wanted
        ("residual", {"w1b", "w2b"}),
        ("dense", {"w2b", "w2t"}),  # the transposed weight is read by the estimator
    ],
)
def test_nothing_made_of_weights_is_kept(name: str, before: set[str]) -> None:
    step = small(name).step()
    assert kept_from_weights(step) == before
    count, skipped = apply(PASS, step)
    assert count == len(before)
    assert not skipped
    assert not kept_from_weights(step)
    assert apply(PASS, step) == (0, [])


def test_the_forward_pass_is_left_as_it_is() -> None:
    step = small("binary").step()
    forward = ops(step, "forward")
    apply(PASS, step)
    assert ops(step, "forward") == forward
    assert ops(step, "rebuild") == ["Binarize", "Binarize"]


def test_float_networks_are_untouched() -> None:
    assert apply(PASS, small("float").step()) == (0, [])
    assert apply(PASS, small("dropout").step()) == (0, [])


def test_activations_are_untouched() -> None:
    step = small("binary").step()
    before = late_readers([value(step, "s1")])
    apply(PASS, step)
    assert late_readers([value(step, "s1")]) == before


def test_scaled_weights_are_rebuilt_with_their_scale() -> None:
    """XNOR-Net: sign(w) * mean |w|, read through a chain of cheap operators."""
    step = network(
        """g (float[batch,6] x) => (float[batch,3] y) {
            axes = Constant <value_ints = [0]> ()
            h = Gemm (x, w0)
            wb = Sign (w)
            size = Abs (w)
            scale = ReduceMean <keepdims = 1> (size, axes)
            scaled = Mul (wb, scale)
            y = MatMul (h, scaled)
        }""",
        {"w0": [6, 5], "w": [5, 3]},
    ).step()
    assert kept_from_weights(step)
    count, _ = apply(PASS, step)
    assert count >= 1
    assert not kept_from_weights(step)
    assert {"Abs", "ReduceMean", "Binarize", "Mul"} <= set(ops(step, "rebuild"))
    assert apply(PASS, step) == (0, [])


def test_two_layers_that_share_a_weight_each_rebuild_it() -> None:
    step = network(
        """g (float[batch,5] x) => (float[batch,5] y) {
            h0 = Gemm (x, w0)
            wb = Sign (w)
            h = MatMul (h0, wb)
            y = MatMul (h, wb)
        }""",
        {"w0": [5, 5], "w": [5, 5]},
    ).step()
    count, _ = apply(PASS, step)
    assert count == 2
    assert ops(step, "rebuild") == ["Binarize"] * 2
    assert not kept_from_weights(step)


def test_a_view_of_a_binary_weight_is_rebuilt() -> None:
    """The shape in which the backward pass reads it is made from the rebuilt value."""
    step = network(
        """g (float[batch,6] x) => (float[batch,3] y) {
            shape = Constant <value_ints = [6, 3]> ()
            h = Gemm (x, w0)
            wb = Sign (w)
            wide = Reshape (wb, shape)
            y = MatMul (h, wide)
        }""",
        {"w0": [6, 6], "w": [18]},
    ).step()
    assert kept_from_weights(step) == {"wb"}
    count, _ = apply(PASS, step)
    assert count == 1
    assert not kept_from_weights(step)
    assert ops(step, "rebuild") == ["Binarize", "Reshape"]


def test_kept_sign_zero_is_rebuilt_as_it_was() -> None:
    step = small("binary", keep_zero=True).step()
    apply(PASS, step)
    assert ops(step, "rebuild") == ["Ternarize", "Ternarize"]


def test_rebuilt_nodes_stand_right_before_their_reader() -> None:
    step = small("binary").step()
    apply(PASS, step)
    nodes = list(step.graph)
    for i, n in enumerate(nodes):
        if phase(n) == "rebuild":
            assert nodes[i + 1] in {use.node for use in n.outputs[0].uses()}
