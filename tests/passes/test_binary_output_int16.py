"""binary-output-int16: an integer of at most the fan-in takes 16 bits."""

from __future__ import annotations

from bnnopt.passes import PASSES
from bnnopt.passes.binary_output_int16 import BinaryOutputInt16
from bnnopt.training_step import TrainingStep
from tests.graphs import Network, apply, assert_bit_equal, network, node, ops, run_native, value
from tests.passes.networks import batch_norm, batch_norm_weights, small

PASS = BinaryOutputInt16()
NAMES = [p.name for p in PASSES if p.lossless]
EARLIER = NAMES[: NAMES.index(PASS.name)]


def packed(net: Network, *without: str) -> TrainingStep:
    return net.with_passes(*[name for name in EARLIER if name not in without])


def dense(fan_in: int, body: str = "c = Gemm <transB = 1> (s, wb)", shape: str = "3") -> Network:
    """A binary dense layer before a batch norm; `body` makes c of s and wb."""
    return network(
        f"""g (float[batch,{fan_in}] x) => (float[batch,{shape}] z) {{
            s = Sign (x)
            wb = Sign (w)
            {body}
            {batch_norm("c", "z", 1)}
        }}""",
        {"w": [3, fan_in], **batch_norm_weights(1, 3)},
        loss="mse",
        batch=2,
    )


def dtype(step: TrainingStep, name: str) -> str:
    return str(value(step, name).dtype)


def test_products_and_what_is_pooled_of_them_take_16_bits() -> None:
    net = small("binary")
    step, before = packed(net), packed(net)
    count, skipped = apply(PASS, step)
    assert count == 2  # c2, and c2 again in the backward pass; c1 has a real operand
    assert skipped == [("y", skipped[0][1])]
    assert skipped[0][1].startswith("SoftmaxCrossEntropy")
    for name in ("c2", "p2", "c2.rebuilt", "p2.rebuilt"):
        assert dtype(step, name) == "INT16"
    assert "MaxPool" not in ops(step)
    assert not [output for output in node(step, "PackedMaxPool", 1).outputs[1:] if output.name]
    assert apply(PASS, step)[0] == 0
    assert_bit_equal(run_native(net, step), run_native(net, before))


def test_without_recomputing_the_kept_values_take_16_bits() -> None:
    net = small("binary")
    step, before = packed(net, "recompute-binary-products"), packed(net)
    assert apply(PASS, step)[0] == 1
    assert node(step, "BatchNormalizationGrad").inputs[1].name == "p2"
    assert_bit_equal(run_native(net, step), run_native(net, before))


def test_the_largest_fan_in_is_exact() -> None:
    net = dense(32767)
    step = packed(net)
    assert apply(PASS, step)[0] == 2
    assert_bit_equal(run_native(net, step, 1), run_native(net, packed(net), 1))


def test_a_fan_in_beyond_16_bits_is_a_reason() -> None:
    reason = "its magnitude can reach 32768, above 32767"
    assert apply(PASS, packed(dense(32768)))[1][0] == ("c", reason)


def test_a_reader_of_floats_is_a_reason() -> None:
    step = packed(dense(8, "h = Gemm <transB = 1> (s, wb)\n c = Tanh (h)"))
    tanh = node(step, "Tanh")
    count, skipped = apply(PASS, step)
    assert count == 0
    assert skipped[0] == ("h", f"Tanh {tanh.name!r} reads it")


def test_indices_that_are_read_are_a_reason() -> None:
    step = packed(small("binary"), "pool-index")
    pool = node(step, "MaxPool")
    count, skipped = apply(PASS, step)
    assert count == 1  # the one that is made again, for its values
    assert ("c2", f"MaxPool {pool.name!r} gives indices") in skipped


def test_products_that_do_not_run_on_bits_are_left_alone() -> None:
    assert apply(PASS, packed(small("binary"), "packed-products")) == (0, [])


def test_a_reader_through_a_view() -> None:
    body = """h = Gemm <transB = 1> (s, wb)
        shape = Constant <value_ints = [0, 3, 1]> ()
        c = Reshape (h, shape)"""
    net = dense(8, body, "3,1")
    step = packed(net)
    assert apply(PASS, step)[0] > 0
    assert dtype(step, "h") == dtype(step, "c") == "INT16"
    assert_bit_equal(run_native(net, step), run_native(net, packed(net)))
