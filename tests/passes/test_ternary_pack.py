"""ternary-pack: values of -1, 0 and +1 are kept at two bits."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.analysis import kept_values, saved_bytes
from bnnopt.passes.rebuild_activations import RebuildActivations
from bnnopt.passes.ternary_pack import TernaryPack
from tests.graphs import apply, assert_bit_equal, network, run_native, run_stock
from tests.passes.networks import small

PASS = TernaryPack()
RUNNERS = {"native": run_native, "onnxruntime": run_stock}
# A sign behind a ReLU, mirrored in half of its columns by v, so that all three values are there.
MIRRORED = """g (float[batch,6] x) => (float[batch,3] y) {
    c1 = Gemm <transB = 1> (x, w1) r1 = Relu (c1) m = Mul (r1, v) s1 = Sign (m)
    f = Flatten (s1) y = Gemm <transB = 1> (f, w2) }"""


def test_each_element_takes_two_bits() -> None:
    step = small("zeros").step()
    apply(RebuildActivations(), step)
    before = saved_bytes(step)
    assert apply(PASS, step) == (1, [])
    rows = -(-9 // 8) * 2  # bytes of a sample, whose nine elements start at a byte, twice
    assert before - saved_bytes(step) == 4 * (9 * 4 - rows)
    assert {str(root.name) for root in kept_values(step)} >= {"s1.signs", "s1.not_zero"}
    assert apply(PASS, step) == (0, [])


@pytest.mark.parametrize("backend", RUNNERS)
def test_the_same_bits(backend: str) -> None:
    net = network(MIRRORED, {"w1": [9, 6], "v": [9], "w2": [3, 9]}, keep_zero=True)
    whole, packed = net.step(), net.step()
    assert apply(PASS, packed)[0] == 1
    runs = RUNNERS[backend](net, whole), RUNNERS[backend](net, packed)
    assert_bit_equal(*runs)
    assert all(np.isfinite(loss) for loss in runs[0].losses)


def test_signs_without_a_zero_are_left_to_one_bit() -> None:
    assert apply(PASS, small("binary").step()) == (0, [])


def test_a_reader_with_other_rows_is_a_reason() -> None:
    text = """g (float[batch,2,5] x) => (float[batch,2,3] y) {
        rows = Constant <value_ints = [-1, 5]> () back = Constant <value_ints = [-1, 2, 3]> ()
        h = MatMul (x, w0) s = Sign (h) r = Reshape (s, rows) c = MatMul (r, w1)
        y = Reshape (c, back) }"""
    step = network(text, {"w0": [5, 5], "w1": [5, 3]}, loss="mse", keep_zero=True).step()
    assert apply(PASS, step) == (0, [("s", "a reader sees it with other rows")])
