"""binary-output-int16: an integer of at most the fan-in takes 16 bits."""

from __future__ import annotations

import pytest

from bnnopt.analysis import saved, saved_bytes
from bnnopt.passes.binary_output_int16 import BinaryOutputInt16
from bnnopt.training_step import TrainingStep
from tests.graphs import Network, apply, assert_bit_equal, network, ops, run_native, value
from tests.passes.networks import batch_norm, batch_norm_weights, small

PASS = BinaryOutputInt16()


def kept(step: TrainingStep) -> set[str]:
    return {str(root.name) for root in saved(step)}


def dense(fan_in: int, body: str = "c = MatMul (s, wb)", n: int = 3) -> Network:
    """A binary dense layer before a batch norm; `body` makes c of s and wb."""
    return network(
        f"""g (float[batch,{fan_in}] x) => (float[batch,{n}] z) {{
            s = Sign (x)
            wb = Sign (w)
            {body}
            {batch_norm("c", "z", 1)}
        }}""",
        {"w": [fan_in, n], **batch_norm_weights(1, n)},
        loss="mse",
        batch=2,
    )


def test_a_pooled_binary_convolution_is_kept_in_16_bits() -> None:
    net = small("binary")
    step = net.step()
    assert "p2" in kept(step)
    before = saved_bytes(step)
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (1, [])  # c1 has a real operand
    assert "p2" not in kept(step)
    assert str(value(step, "p2.int16").dtype) == "INT16"
    assert before - saved_bytes(step) == 2 * 4 * 4 * 3 * 3
    assert apply(PASS, step) == (0, [])
    assert_bit_equal(run_native(net, step), run_native(net, net.step()))


def test_the_largest_fan_in_is_exact() -> None:
    net = dense(32767)
    step = net.step()
    assert apply(PASS, step) == (1, [])
    assert_bit_equal(run_native(net, step, 1), run_native(net, net.step(), 1))


def test_a_fan_in_beyond_16_bits_is_a_reason() -> None:
    step = dense(32768).step()
    assert apply(PASS, step) == (0, [("c", "its magnitude can reach 32768, above 32767")])


@pytest.mark.parametrize(
    "body",
    [
        "c = MatMul (x, wb)",
        "c = MatMul (s, w)",
        "c = Gemm <alpha = 0.5> (s, wb)",
        "h = MatMul (s, wb)\n c = Tanh (h)",
        "c = Gemm (s, wb, b1)",
    ],
)
def test_what_may_be_no_integer_is_left_alone(body: str) -> None:
    assert apply(PASS, dense(8, body).step()) == (0, [])


def test_kept_zeros_are_left_alone() -> None:
    assert apply(PASS, small("binary", keep_zero=True).step()) == (0, [])


def test_a_reader_through_a_view() -> None:
    net = network(
        f"""g (float[batch,8] x) => (float[batch,4,1] z) {{
            shape = Constant <value_ints = [0, 4, 1]> ()
            s = Sign (x)
            wb = Sign (w)
            c = MatMul (s, wb)
            r = Reshape (c, shape)
            {batch_norm("r", "z", 1)}
        }}""",
        {"w": [8, 4], **batch_norm_weights(1, 4)},
        loss="mse",
    )
    step = net.step()
    assert apply(PASS, step) == (1, [])
    assert not {"c", "r"} & kept(step)
    assert_bit_equal(run_native(net, step), run_native(net, net.step()))


def test_signs_are_left_to_sign_pack() -> None:
    step = small("dense").step()
    apply(PASS, step)
    assert "s1" in kept(step)
    assert ops(step).count("Cast") == 0
