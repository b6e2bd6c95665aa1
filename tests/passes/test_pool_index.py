"""pool-index: where in its window each maximum was, in a few bits."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.analysis import kept_values, saved_bytes
from bnnopt.ops import Emitter
from bnnopt.passes.pool_index import PoolIndex
from tests.graphs import Network, apply, network, node, ops, run_native, run_stock

PASS = PoolIndex()


def pooled(pool: str, shape: str = "2,7,6") -> Network:
    channels = shape.split(",")[0]
    ones = ", ".join("1" for _ in shape.split(",")[1:])
    return network(
        f"""g (float[batch,{shape}] x) => (float[batch,1,1] y) {{
            shape = Constant <value_ints = [0, 1, -1]> ()
            axes = Constant <value_ints = [2]> ()
            c = Conv <kernel_shape = [{ones}]> (x, w)
            p = MaxPool <{pool}> (c)
            f = Reshape (p, shape)
            y = ReduceMean (f, axes)
        }}""",
        {"w": [int(channels), int(channels), *(1 for _ in shape.split(",")[1:])]},
        loss="mse",
    )


WINDOWS = {
    "plain": ("kernel_shape = [2, 2], strides = [2, 2]", 2),
    "overlapping-padded": ("kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", 4),
    "asymmetric": ("kernel_shape = [2, 3], strides = [1, 2], pads = [0, 1, 1, 0]", 3),
    "dilated": ("kernel_shape = [3, 2], dilations = [2, 3]", 3),
    "same": ('kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_UPPER"', 2),
    "same-lower": ('kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_LOWER"', 4),
    "ceil": ("kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1", 4),
    "as-wide": ("kernel_shape = [1, 6]", 3),
    "single": ("kernel_shape = [1, 1]", 1),
}


@pytest.mark.parametrize(("pool", "n_bits"), WINDOWS.values(), ids=WINDOWS)
def test_indices_take_the_bits_of_a_window_and_come_back(pool: str, n_bits: int) -> None:
    net = pooled(pool)
    before = net.step()
    step = net.step()
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (1, [])
    bits = node(step, "PackedMaxPool").attributes["bit_values"].as_ints()
    assert list(bits) == [1 << i for i in range(n_bits)]
    assert saved_bytes(step) < saved_bytes(before)
    assert not [root for root in kept_values(step) if root.name == "p.indices"]
    for run in (run_native, run_stock):
        found, expected = run(net, step), run(net, before)
        np.testing.assert_array_equal(found.gradients[1]["w"], expected.gradients[1]["w"])
    assert apply(PASS, step) == (0, [])


SKIPS = {
    "1-D": ("kernel_shape = [2]", "2,8", "1-D pooling"),
    "wide": (
        "kernel_shape = [2, 3], dilations = [1, 3], pads = [0, 1, 0, 1]",
        "2,7,6",
        "its dilated kernel is wider than the input",
    ),
    "padding": (
        "kernel_shape = [2, 2], strides = [3, 3], ceil_mode = 1",
        "2,7,6",
        "a window may lie in the padding",
    ),
    "large": ("kernel_shape = [17, 17]", "1,18,18", "its window has more than 256 elements"),
}


@pytest.mark.parametrize(("pool", "shape", "reason"), SKIPS.values(), ids=SKIPS)
def test_what_it_cannot_pack_is_a_reason(pool: str, shape: str, reason: str) -> None:
    step = pooled(pool, shape).step()
    assert apply(PASS, step) == (0, [(node(step, "MaxPool").name, reason)])


def test_the_largest_window_fits_a_byte() -> None:
    net = pooled("kernel_shape = [16, 16]", "1,18,18")
    step = net.step()
    assert apply(PASS, step) == (1, [])
    found, expected = run_native(net, step), run_native(net, net.step())
    np.testing.assert_array_equal(found.gradients[1]["w"], expected.gradients[1]["w"])


def test_networks_without_pooling_are_untouched() -> None:
    step = network(
        "g (float[batch,5] x) => (float[batch,3] y) { y = Gemm (x, w) }", {"w": [5, 3]}
    ).step()
    assert apply(PASS, step) == (0, [])


def test_two_readers_of_the_indices_share_the_places() -> None:
    net = pooled("kernel_shape = [2, 2]")
    step = net.step()
    grad = node(step, "MaxPoolGrad")
    emit = Emitter(step.graph, "backward")
    attributes = {name: list(a.as_ints()) for name, a in grad.attributes.items()}
    emit("MaxPoolGrad", *grad.inputs, name="again", **attributes)
    step.graph.insert_after(grad, emit.nodes)
    assert apply(PASS, step) == (1, [])
    assert ops(step).count("PackedMaxPool") == 1
    assert ops(step).count("PackedMaxPoolGrad") == 2
    assert not {"MaxPool", "MaxPoolGrad"} & set(ops(step))


def test_another_reader_of_the_indices_is_a_reason() -> None:
    step = pooled("kernel_shape = [2, 2]").step()
    grad = node(step, "MaxPoolGrad")
    emit = Emitter(step.graph, "backward")
    emit("Cast", grad.inputs[1], name="float_indices", to=1)
    step.graph.insert_after(grad, emit.nodes)
    assert apply(PASS, step) == (0, [(node(step, "MaxPool").name, "Cast reads its indices")])
