"""recompute-binary-products: the input of a batch norm comes from sign bits again."""

from __future__ import annotations

import pytest

from bnnopt.analysis import kept_values
from bnnopt.passes.recompute_binary_products import RecomputeBinaryProducts
from bnnopt.passes.redirect_consumers import RedirectConsumers
from bnnopt.passes.sign_pack import SignPack
from bnnopt.training_step import Role, TrainingStep, set_role
from tests.graphs import Network, apply, network, node, ops, value
from tests.passes.networks import batch_norm, batch_norm_weights, small

PASS = RecomputeBinaryProducts()


def kept(step: TrainingStep) -> set[str]:
    return {str(root.name) for root in kept_values(step)}


def prepared(net: Network) -> TrainingStep:
    step = net.step()
    apply(RedirectConsumers(), step)
    apply(SignPack(), step)
    return step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "products"),
    [("binary", {"c1", "p2"}), ("residual", {"c1", "c2"}), ("dense", {"c1"})],
)
def test_products_before_a_batch_norm_are_computed_again(name: str, products: set[str]) -> None:
    step = prepared(small(name))
    assert products <= kept(step)
    count, _ = apply(PASS, step)
    assert count == len(products)
    assert not products & kept(step)
    assert apply(PASS, step)[0] == 0


def test_the_pooling_behind_a_convolution_is_computed_again_too() -> None:
    step = prepared(small("binary"))
    apply(PASS, step)
    again = ops(step, "rebuild")
    assert again.count("Conv") == 2
    assert again.count("MaxPool") == 1
    assert "c2" not in kept(step)


def test_the_copy_reads_the_bits_not_the_signs() -> None:
    step = prepared(small("binary"))
    before = kept(step)
    apply(PASS, step)
    assert kept(step) < before
    assert {"s1.signs", "s2.signs"} <= kept(step)


def test_a_product_of_two_real_tensors_is_a_reason() -> None:
    assert apply(PASS, small("float").step()) == (
        0,
        [("c1", "it comes from Conv 'c1'"), ("c2", "it comes from Conv 'c2'")],
    )


def test_the_stem_of_a_residual_network_is_a_reason() -> None:
    _, skipped = apply(PASS, prepared(small("residual")))
    assert skipped == [("c0", "it comes from Conv 'c0'")]


def test_kept_zeros_leave_two_ternary_operands() -> None:
    step = prepared(small("binary", keep_zero=True))
    assert apply(PASS, step) == (
        0,
        [("c1", "it comes from Conv 'c1'"), ("p2", "it comes from Conv 'c2'")],
    )


def test_an_operand_that_is_not_kept_is_a_reason() -> None:
    """Nothing wants the gradient of w1: its real operand is read in the forward pass only."""
    net = network(
        f"""g (float[batch,5] x) => (float[batch,3] y) {{
            t = Tanh (x)
            k = Add (t, x)
            w1b = Sign (w1)
            c1 = MatMul (k, w1b)
            {batch_norm("c1", "n1", 1)}
            y = MatMul (n1, w2)
        }}""",
        {"w1": [5, 4], **batch_norm_weights(1, 4), "w2": [4, 3]},
    )
    step = net.step()
    weight = value(step, "w1")
    set_role(weight, Role.FROZEN)
    dead = ["w1.next", "w1.grad", "w1b.grad"]
    outputs = step.graph.outputs
    outputs[:] = [o for o in outputs if o.name not in dead]
    for name in dead:
        step.graph.remove(value(step, name).producer(), safe=True)
    assert node(step, "BatchNormalizationGrad")
    count, skipped = apply(PASS, step)
    assert count == 0
    assert skipped == [("c1", "it comes from Tanh 't'")]


def test_a_reader_through_a_view_is_a_reason() -> None:
    step = network(
        f"""g (float[batch,5] x) => (float[batch,4,1] z) {{
            shape = Constant <value_ints = [0, 4, 1]> ()
            w1b = Sign (w1)
            c1 = MatMul (x, w1b)
            r = Reshape (c1, shape)
            {batch_norm("r", "z", 1)}
        }}""",
        {"w1": [5, 4], **batch_norm_weights(1, 4)},
        loss="mse",
    ).step()
    assert apply(PASS, step) == (0, [("c1", "it is read through a view")])


def test_a_binary_weight_alone_is_enough() -> None:
    """The first layer's input is real and kept anyway: as it is, for the gradient of w1."""
    step = prepared(small("dense"))
    count, _ = apply(PASS, step)
    assert count == 1
    assert "x" in kept(step)
