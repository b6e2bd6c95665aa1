"""pool-before-join: channels are pooled, and their gradients scattered, part by part."""

from __future__ import annotations

import pytest

from bnnopt.ops import dims
from bnnopt.passes.pool_before_join import PoolBeforeJoin
from tests.graphs import (
    apply,
    assert_bit_equal,
    network,
    node,
    ops,
    run_native,
    run_stock,
    value,
)
from tests.passes.networks import JOINED, JOINED_WEIGHTS, small

PASS = PoolBeforeJoin()
RUNNERS = {"native": run_native, "onnxruntime": run_stock}


def test_nothing_as_large_as_the_joined_map_is_left() -> None:
    step = small("joined").step()
    joined = dims(value(step, "j"))
    assert dims(node(step, "MaxPoolGrad").outputs[0]) == joined
    assert apply(PASS, step) == (1, [])
    assert joined not in [dims(v) for n in step.graph for v in n.outputs]
    assert ops(step, "forward").count("MaxPool") == ops(step, "backward").count("MaxPoolGrad") == 2
    assert dims(value(step, "p")) == dims(node(step, "Concat").outputs[0])
    assert apply(PASS, step)[0] == 0


@pytest.mark.parametrize("backend", RUNNERS)
def test_same_bits(backend: str) -> None:
    net = small("joined")
    step = net.step()
    apply(PASS, step)
    assert_bit_equal(RUNNERS[backend](net, step), RUNNERS[backend](net, net.step()))


READ_AGAIN = JOINED.replace("y = Gemm", "q = Gemm").replace(
    "(f, w3)", "(f, w3) k = Conv (j, w4) g = GlobalAveragePool (k) h = Flatten (g) y = Add (q, h)"
)
BY_ROW = JOINED.replace("axis = 1> (r1, r2)", "axis = 2> (r1, r1)")


@pytest.mark.parametrize(
    ("text", "w3", "reason"),
    [(READ_AGAIN, [3, 72], "reads the joined map"), (BY_ROW, [3, 63], "not joined by channel")],
    ids=["read-again", "by-row"],
)
def test_why_not(text: str, w3: list[int], reason: str) -> None:
    step = network(text, {**JOINED_WEIGHTS, "w3": w3, "w4": [3, 8, 1, 1]}).step()
    count, skipped = apply(PASS, step)
    assert count == 0
    assert reason in skipped[0][1]
