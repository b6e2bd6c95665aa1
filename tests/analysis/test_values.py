"""What is known of a value without running anything."""

from __future__ import annotations

import pytest

from bnnopt.analysis import fan_in, integer_bound, is_binary, is_binary_product
from bnnopt.ops import Emitter
from bnnopt.training_step import TrainingStep
from tests.graphs import evaluation, node, value


def step_of(body: str, keep: str = "Sign") -> TrainingStep:
    """y after `body`, from x and h (real), s and t (binary) and w (6, 5), v (4, 2, 3, 3)."""
    return evaluation(
        f"""g (float[batch,2,6,6] x, float[batch,6] h) => (float[batch] y) {{
            one = Constant <value_ints = [1]> ()
            shape = Constant <value_ints = [0, 3, 2]> ()
            starts = Constant <value_ints = [1]> ()
            ends = Constant <value_ints = [3]> ()
            s = Sign (x)
            t = Sign (h)
            wb = Sign (w)
            vb = Sign (v)
            {body}
            f = Flatten (z)
            y = ReduceSum <keepdims = 0> (f, one)
        }}""",
        {"w": [6, 5], "v": [4, 2, 3, 3], "b": [5]},
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("z = Sign (h)", True),
        ("z = Flatten (s)", True),
        ("z = Reshape (t, shape)", True),
        ("z = Transpose <perm = [0, 2, 1, 3]> (s)", True),
        ("z = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s)", True),
        ("z = Slice (t, starts, ends, one)", True),
        ("z = Gather <axis = 1> (t, one)", True),
        ("z, q = Split <num_outputs = 2, axis = 1> (t)", True),
        ("z = Concat <axis = 1> (t, t)", True),
        ("z = Concat <axis = 1> (t, h)", False),
        ("z = Relu (s)", False),
        ("z = AveragePool <kernel_shape = [2, 2]> (s)", False),
        ("z = Add (t, t)", False),
        ("z = Neg (t)", False),
        ("z = Tanh (h)", False),
        ("z = Conv (s, vb)", False),
    ],
)
def test_is_binary(body: str, expected: bool) -> None:
    assert is_binary(value(step_of(body), "z")) is expected


def test_inputs_and_left_out_ones_are_not_binary() -> None:
    step = step_of("z = Conv (x, v)")
    assert not is_binary(value(step, "x"))
    assert not is_binary(value(step, "v"))
    assert not is_binary(None)


def test_indices_of_a_pooling_of_signs_are_not_binary() -> None:
    step = step_of("z, i = MaxPool <kernel_shape = [3, 3]> (s)")
    indices = node(step, "MaxPool").outputs[1:]
    assert not any(is_binary(v) for v in indices)
    assert all(integer_bound(v) is None for v in indices)


def test_unpacked_signs_are_binary_and_ternary_values_are_not() -> None:
    step = step_of("z = Neg (t)")
    emit = Emitter(step.graph, "forward")
    packed = emit("SignPack", value(step, "t"), name="packed")
    assert is_binary(emit("SignUnpack", packed, name="unpacked", shape=[6]))
    assert not is_binary(packed)
    assert not is_binary(emit("Ternarize", value(step, "h"), name="t", ste="clipped", clip=1.0))


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        ("z = MatMul (t, wb)", 6),
        ("z = Gemm (t, wb)", 6),
        ("wt = Transpose (wb)\n z = Gemm <transB = 1> (t, wt)", 6),
        ("z = Conv (s, vb)", 18),
        ("z = Conv <pads = [1, 1, 1, 1]> (s, vb)", 18),
        ("c = Conv (s, vb)\n z = MaxPool <kernel_shape = [2, 2]> (c)", 18),
        ("c = Conv (s, vb)\n z = Flatten (c)", 18),
        ("c = MatMul (t, wb)\n z = Transpose (c)", 6),
        ("z = Sign (h)", 1),
        ("z = MatMul (h, wb)", None),
        ("z = MatMul (t, w)", None),
        ("z = Gemm (t, wb, b)", None),
        ("z = Gemm <alpha = 2.0> (t, wb)", None),
        ("c = Conv (s, vb)\n z = AveragePool <kernel_shape = [2, 2]> (c)", None),
        ("z = Tanh (h)", None),
    ],
)
def test_integer_bound(body: str, bound: int | None) -> None:
    assert integer_bound(value(step_of(body), "z")) == bound


def test_fan_in_of_a_grouped_convolution() -> None:
    step = evaluation(
        """g (float[batch,4,5,5] x) => (float[batch,6,3,3] y) {
            y = Conv <group = 2> (x, w)
        }""",
        {"w": [6, 2, 3, 3]},
    )
    assert fan_in(node(step, "Conv")) == 18


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("z = MatMul (t, wb)", True),
        ("z = MatMul (h, wb)", True),
        ("z = MatMul (t, w)", True),
        ("z = MatMul (h, w)", False),
        ("z = Mul (t, t)", False),
    ],
)
def test_is_binary_product(body: str, expected: bool) -> None:
    producer = value(step_of(body), "z").producer()
    assert producer is not None
    assert is_binary_product(producer) is expected
