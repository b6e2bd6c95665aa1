"""mask-pack: one bit for what the backward pass only asks a yes or no of."""

from __future__ import annotations

import pytest

from bnnopt.analysis import kept_values, saved_bytes
from bnnopt.passes.mask_pack import MaskPack
from bnnopt.training_step import TrainingStep
from tests.graphs import apply, network, node, ops, value
from tests.passes.networks import small

PASS = MaskPack()


def kept(step: TrainingStep) -> set[str]:
    return {str(root.name) for root in kept_values(step)}


def test_straight_through_estimators_read_bits() -> None:
    step = small("binary").step()
    assert {"n1", "n2"} <= kept(step)
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (2, [])
    assert not {"n1", "n2"} & kept(step)
    assert {"n1.mask", "n2.mask"} <= kept(step)
    assert ops(step, "backward").count("MaskedGrad") == 2
    assert apply(PASS, step) == (0, [])


def test_the_estimators_range_goes_into_the_bits() -> None:
    step = small("float").step()
    apply(PASS, step)
    pack = node(step, "RangePack")
    assert pack.attributes["low"].as_float() == 0
    assert pack.attributes["high"].as_float() == 6


def test_a_relu_whose_output_is_read_is_a_reason() -> None:
    step = small("float").step()
    count, skipped = apply(PASS, step)
    assert count == 1
    gemm = node(step, "Gemm", 2)
    reason = f"'r2' is kept anyway: Gemm {gemm.name!r} reads its value"
    assert skipped == [(node(step, "ReluGrad").name, reason)]
    assert "r2" in kept(step)
    assert apply(PASS, step)[0] == 0


def test_a_relu_before_a_pooling_is_packed() -> None:
    step = small("residual").step()
    count, _ = apply(PASS, step)
    assert count == 3
    assert "SignPack" in ops(step, "forward")
    assert not {"h", "a", "r"} & kept(step)


def test_the_masked_gradient_takes_the_old_ones_place() -> None:
    step = small("binary").step()
    old = value(step, "n1.grad")
    readers = {use.node.name for use in old.uses()}
    apply(PASS, step)
    new = value(step, "n1.grad")
    assert new.producer().op_type == "MaskedGrad"
    assert {use.node.name for use in new.uses()} == readers


def test_a_dropout_mask_becomes_bits() -> None:
    step = small("dropout").step()
    assert "BOOL" in {str(root.dtype) for root in kept_values(step)}
    before = saved_bytes(step)
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (1, [])
    assert before - saved_bytes(step) == 4 * 9 - 4 * 2
    assert ops(step).count("PackBits") == ops(step).count("UnpackBits") == 1
    assert apply(PASS, step) == (0, [])


def test_a_value_that_two_estimators_read_is_still_packed() -> None:
    step = network(
        """g (float[batch,6] x) => (float[batch,3] y) {
            h = Gemm (x, w0)
            s = Sign (h)
            r = Relu (h)
            z = Neg (r)
            a = MatMul (s, w1)
            b = ReduceMean (z, axes)
            y = Add (a, b)
        }""".replace("b = ", "axes = Constant <value_ints = [1]> ()\n b = "),
        {"w0": [6, 5], "w1": [5, 3]},
    ).step()
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (2, [])
    assert not {"h", "r"} & kept(step)


def test_estimators_that_need_the_value_are_a_reason() -> None:
    step = small("binary", ste=["s1=approx-sign"]).step()
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (1, [])
    assert "n1" in kept(step)


def test_a_clip_beside_an_estimator_that_needs_the_value() -> None:
    step = network(
        """g (float[batch,6] x) => (float[batch,3] y) {
            h = Gemm (x, w0)
            s = Sign (h)
            r = Tanh (h)
            e = Exp (h)
            l = Log (e)
            t = Mul (h, r)
            a = MatMul (s, w1)
            b = MatMul (t, w1)
            y = Add (a, b)
        }""",
        {"w0": [6, 5], "w1": [5, 3]},
    ).step()
    count, skipped = apply(PASS, step)
    assert count == 0
    ((who, reason),) = skipped
    assert who == node(step, "ClipGrad").name
    assert reason.startswith("'h' is kept anyway: Mul ")


def test_latent_weights_are_there_anyway() -> None:
    """The estimator of a weight reads the weight itself, which nobody has to keep."""
    step = small("dense").step()
    count, _ = apply(PASS, step)
    remaining = [n for n in step.graph if n.op_type == "ClipGrad"]
    assert [str(n.inputs[1].name) for n in remaining] == ["w1"]
    assert count == 2  # n1, and w2t: a transposed weight that redirect-consumers rebuilds


@pytest.mark.parametrize("operator", ["Relu", "Sign"])
def test_a_scalar_has_no_rows(operator: str) -> None:
    step = network(
        f"""g (float[batch,5] x) => (float y) {{
            h = Gemm (x, w0)
            m = ReduceMean <keepdims = 0> (h)
            s = {operator} (m)
            y = Mul (s, a)
        }}""",
        {"w0": [5, 5], "a": []},
        loss="none",
    ).step()
    count, skipped = apply(PASS, step)
    assert count == 0
    assert len(skipped) == 1


def test_a_scalar_mask_has_no_rows() -> None:
    step = network(
        """g (float[batch,5] x) => (float y) {
            ratio = Constant <value_float = 0.5> ()
            mode = Constant <value = bool {1}> ()
            h = Gemm (x, w0)
            m = ReduceMean <keepdims = 0> (h)
            y = Dropout (m, ratio, mode)
        }""",
        {"w0": [5, 5]},
        loss="none",
    ).step()
    assert apply(PASS, step)[1] == [
        (node(step, "Dropout").outputs[1].name, "a scalar has no rows of bits")
    ]
