"""stream-gradients: dx is written over dy, behind everything else that reads dy."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from bnnopt.analysis import buffers, in_place_pairs, size_bytes
from bnnopt.passes.stream_gradients import StreamGradients
from bnnopt.plan import make_plan
from bnnopt.plan.workspace import workspace_bytes
from bnnopt.training_step import TrainingStep, readers
from tests.graphs import Network, apply, assert_bit_equal, network, node, run_native, run_stock, zoo
from tests.passes.networks import small

PASS = StreamGradients()
EARLIER = ("redirect-consumers", "sign-pack", "packed-products", "immediate-update")


def input_grad(step: TrainingStep) -> ir.Node:
    return node(step, "BinaryConvInputGrad")


def test_one_map_for_both_and_the_weight_gradient_first() -> None:
    step = small("binary").with_passes(*EARLIER)
    n_buffers = len(buffers(step))
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (1, [])
    assert len(buffers(step)) == n_buffers - 1
    dx = input_grad(step)
    assert in_place_pairs(dx) == {0: 0}
    nodes = list(step.graph)
    assert dx.inputs[0] is not None
    assert [n.op_type for n in readers(dx.inputs[0])].count("BinaryConvWeightGrad") == 1
    assert max(nodes.index(n) for n in readers(dx.inputs[0])) == nodes.index(dx)
    assert apply(PASS, step) == (0, [])


def test_the_copied_samples_are_part_of_the_plan() -> None:
    step = small("binary").with_passes(*EARLIER)
    before = workspace_bytes(input_grad(step))
    apply(PASS, step)
    assert workspace_bytes(input_grad(step)) > before


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_native, run_stock], ids=["native", "onnxruntime"])
@pytest.mark.parametrize("name", ["binary", "residual"])
def test_the_same_bits(name: str, run) -> None:
    net = small(name)
    found, expected = net.with_passes(*EARLIER, PASS.name), net.with_passes(*EARLIER)
    assert any(in_place_pairs(n) for n in found.graph)
    assert_bit_equal(run(net, found), run(net, expected))


@pytest.mark.slow
def test_the_same_bits_of_the_zoo() -> None:
    net = zoo("cnv", 3)
    assert apply(PASS, net.with_passes(*EARLIER))[0] > 1
    found, expected = net.with_passes(*EARLIER, PASS.name), net.with_passes(*EARLIER)
    assert_bit_equal(run_native(net, found), run_native(net, expected))


def with_filters(n: int) -> Network:
    body = """g (float[batch,2,6,6] x) => (float[batch,3] y) {
        c1 = Conv <kernel_shape = [1, 1]> (x, w1)
        s1 = Sign (c1)
        w2b = Sign (w2)
        c2 = Conv <kernel_shape = [3, 3]> (s1, w2b)
        f = Flatten (c2)
        y = Gemm <transB = 1> (f, w3)
    }"""
    return network(body, {"w1": [4, 2, 1, 1], "w2": [n, 4, 3, 3], "w3": [3, 16 * n]})


def test_a_larger_gradient_of_the_input_takes_over_too() -> None:
    net = with_filters(4)
    found, expected = net.with_passes(*EARLIER, PASS.name), net.with_passes(*EARLIER)
    assert in_place_pairs(input_grad(found)) == {0: 0}
    assert_bit_equal(run_native(net, found), run_native(net, expected))


def test_a_larger_one_takes_its_memory_as_it_is_made() -> None:
    step = with_filters(4).with_passes(*EARLIER, PASS.name)
    node = input_grad(step)
    (dy, _), dx = node.inputs, node.outputs[0]
    position = [*step.graph].index(node)
    home = {value: buffer for buffer in buffers(step) for value in buffer.values}
    assert (home[dy].n_bytes, home[dy].last) == (4 * 4 * 16 * 4, position - 1)
    assert (home[dx].n_bytes, home[dx].first) == (4 * 4 * 36 * 4, position)
    assert home[dx].onto in home[dy].values
    offsets = make_plan(step).offsets
    assert offsets[dx] == offsets[dy]


def test_a_smaller_one_is_left_alone() -> None:
    step = with_filters(12).with_passes(*EARLIER)
    count, ((_, reason),) = apply(PASS, step)
    assert (count, reason) == (0, "dy has 3072 bytes, dx only 2304")


def test_a_gradient_that_is_kept_is_left_alone() -> None:
    step = small("binary").with_passes(*EARLIER)
    dy = input_grad(step).inputs[0]
    assert dy is not None
    step.graph.outputs.append(dy)
    assert apply(PASS, step) == (0, [(input_grad(step).name, "its dy is kept, or read twice")])
    assert size_bytes(dy) == size_bytes(input_grad(step).outputs[0])


def test_a_reader_that_needs_dx_is_not_moved() -> None:
    step = small("binary").with_passes(*EARLIER)
    dx = input_grad(step)
    both = ir.Node("", "Add", [dx.outputs[0], dx.inputs[0]], name="both")
    both.metadata_props["phase"] = "backward"
    both.outputs[0].name, both.outputs[0].dtype = "both", dx.outputs[0].dtype
    both.outputs[0].shape = dx.outputs[0].shape
    step.graph.insert_after(dx, both)
    step.graph.outputs.append(both.outputs[0])
    reason = "its dy is read by something that needs its dx"
    assert apply(PASS, step) == (0, [(dx.name, reason)])
