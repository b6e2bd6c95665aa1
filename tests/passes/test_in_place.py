"""in-place: an output takes over the buffer of an operand that dies."""

from __future__ import annotations

import pytest

from bnnopt.analysis import buffers, in_place_pairs
from bnnopt.ops import OPERATORS
from bnnopt.ops.traits import having
from bnnopt.passes.in_place import InPlace
from bnnopt.plan import check, make_plan
from bnnopt.training_step import TrainingStep
from tests.graphs import (
    apply,
    assert_bit_equal,
    evaluation,
    network,
    node,
    run_native,
    value,
)
from tests.passes.networks import NETWORKS, small

PASS = InPlace()


def share(step: TrainingStep, *names: str) -> bool:
    """Whether the values live in one buffer."""
    home = {v: buffer for buffer in buffers(step) for v in buffer.values}
    return len({home[value(step, name)] for name in names}) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_buffers_and_the_same_numbers(name: str) -> None:
    net = small(name)
    step = net.step()
    n_buffers, peak = len(buffers(step)), make_plan(step).peak_bytes
    count, _ = apply(PASS, step)
    assert count > 0
    assert len(buffers(step)) == n_buffers - count
    assert make_plan(step).peak_bytes <= peak
    assert_bit_equal(run_native(net, step), run_native(net, net.step()))
    assert apply(PASS, step) == (0, [])


def test_one_gradient_map_serves_mask_and_batch_norm() -> None:
    step = small("binary").step()
    apply(PASS, step)
    assert share(step, "s1.grad", "n1.grad", "c1.grad")


def test_where_a_shortcut_reads_the_gradient_a_batch_norm_writes_over_its_input() -> None:
    net = small("residual")
    step = net.step()
    apply(PASS, step)
    grads = [n for n in step.graph if n.op_type == "BatchNormalizationGrad"]
    assert {(0, 0), (0, 1)} == {pair for n in grads for pair in in_place_pairs(n).items()}


def test_an_operand_that_is_read_later_stays() -> None:
    step = small("binary").step()
    apply(PASS, step)
    assert not in_place_pairs(node(step, "Binarize", 1))  # n1 is read by the estimator
    assert not share(step, "n1", "s1")


def test_inputs_of_the_step_and_weights_stay() -> None:
    step = network(
        """g (float[batch,5] x) => (float[batch,5] y) {
            s = Relu (x)
            wb = Sign (w)
            y = Gemm (s, wb)
        }""",
        {"w": [5, 5]},
    ).step()
    apply(PASS, step)
    assert not in_place_pairs(node(step, "Relu"))
    assert not in_place_pairs(node(step, "Binarize"))


def test_an_operand_read_twice_by_the_node_stays() -> None:
    step = evaluation(
        """g (float[batch,5] x) => (float[batch,5] y) {
            h = Gemm (x, w)
            q = Neg (h)
            y = Mul (q, q)
        }""",
        {"w": [5, 5]},
    )
    apply(PASS, step)
    assert not in_place_pairs(node(step, "Mul"))
    assert share(step, "h", "q")


def test_a_broadcast_operand_stays() -> None:
    step = evaluation(
        """g (float[batch,5] x) => (float[batch,5] y) {
            axes = Constant <value_ints = [1]> ()
            h = Gemm (x, w)
            m = ReduceMean <keepdims = 1> (h, axes)
            q = Neg (h)
            y = Sub (m, q)
        }""",
        {"w": [5, 5]},
    )
    apply(PASS, step)
    assert in_place_pairs(node(step, "Sub")) == {0: 1}
    assert not share(step, "m", "y")


def test_a_view_keeps_its_source_alive() -> None:
    step = evaluation(
        """g (float[batch,2,3] x) => (float[batch,6] y) {
            h = Neg (x)
            f = Flatten (h)
            r = Relu (h)
            g = Flatten (r)
            y = Add (f, g)
        }""",
    )
    apply(PASS, step)
    assert not in_place_pairs(node(step, "Relu"))
    assert in_place_pairs(node(step, "Add"))


def test_a_gradient_that_is_left_out_takes_over_nothing() -> None:
    """Nothing before the batch norm is trained: its dx has no name, and no buffer."""
    net = network(
        """g (float[batch,5] x) => (float[batch,5] y) {
            h = Neg (x)
            y, m, v = BatchNormalization <training_mode = 1> (h, gamma, beta, mean, var)
        }""",
        {"gamma": [5], "beta": [5], "mean": [5], "var": [5]},
        loss="mse",
    )
    step = net.with_passes("l1-batch-norm", "float16-gradients")
    assert node(step, "L1BatchNormalizationGrad").outputs[0].name == ""
    apply(PASS, step)
    assert not in_place_pairs(node(step, "L1BatchNormalizationGrad"))


def test_the_checker_knows_every_operator_that_may_overwrite() -> None:
    own = {name for name, operator in OPERATORS.items() if operator.in_place}
    optimizers = {name for name in own if name.endswith(check._OPTIMIZER)}
    assert having("in_place") | (own - optimizers) == check._MAY_OVERWRITE


def test_the_outputs_that_are_updates_stay_where_they_are() -> None:
    step = small("binary", optimizer="adam").step()
    apply(PASS, step)
    for n in step.graph:
        if n.op_type == "AdamStep":
            assert not in_place_pairs(n)
