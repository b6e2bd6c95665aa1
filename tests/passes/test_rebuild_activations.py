"""rebuild-activations: a layer's input from the input of the batch norm before it."""

from __future__ import annotations

import pytest

from bnnopt.analysis import kept_values
from bnnopt.passes.mask_pack import MaskPack
from bnnopt.passes.rebuild_activations import RebuildActivations
from bnnopt.training_step import TrainingStep
from tests.graphs import (
    Network,
    apply,
    assert_bit_equal,
    network,
    node,
    ops,
    run_native,
    run_stock,
)
from tests.passes.networks import batch_norm, batch_norm_weights, small

PASS = RebuildActivations()
N_BLOCKS = 5


def kept(step: TrainingStep) -> set[str]:
    return {str(root.name) for root in kept_values(step)}


def residual(n_blocks: int = N_BLOCKS) -> Network:
    """Blocks of convolution, batch norm and shortcut, in the manner of ResNets."""
    lines, weights = [], {}
    for i in range(n_blocks):
        lines += [
            f"c{i} = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r{i}, w{i})",
            batch_norm(f"c{i}", f"n{i}", i),
            f"s{i} = Add (n{i}, r{i})",
            f"r{i + 1} = Relu (s{i})",
        ]
        weights |= {f"w{i}": [3, 3, 3, 3], **batch_norm_weights(i, 3)}
    body = "\n".join(lines)
    text = f"""g (float[batch,3,4,4] r0) => (float[batch,3] y) {{ {body}
        f = Flatten (r{n_blocks}) y = Gemm (f, v) }}"""
    return network(text, {**weights, "v": [48, 3]})


def test_the_layer_reads_what_batch_norm_gives_again() -> None:
    step = small("float").step()
    assert {"r2", "c2", "n2.3", "n2.4"} <= kept(step)
    count, _ = apply(PASS, step)
    assert count == 1
    assert ops(step, "rebuild") == ["BatchNormalizationApply", "Relu", "Flatten"]
    copy = node(step, "BatchNormalizationApply")
    assert [v.name for v in copy.inputs if v is not None] == ["c2", "g2", "b2", "n2.3", "n2.4"]
    gradient = node(step, "Gemm", 2)
    assert node(step, "Flatten", 1).outputs[0] in gradient.inputs
    assert "r2" in kept(step)  # its own gradient still asks for the mask
    apply(MaskPack(), step)
    assert "r2" not in kept(step)
    assert "r2.mask" in kept(step)
    assert apply(PASS, step)[0] == 0


def test_what_a_pooling_gives_is_a_reason() -> None:
    step = small("float").step()
    _, skipped = apply(PASS, step)
    assert "p1" in kept(step)
    assert "p1" not in dict(skipped)  # it is no candidate: a pooling is not cheap


def test_a_value_without_anything_kept_behind_it_is_a_reason() -> None:
    text = """g (float[batch,2,4,4] x) => (float[batch,3] y) {
        c = Conv <kernel_shape = [3, 3]> (x, w) r = Relu (c) f = Flatten (r) y = Gemm (f, v) }"""
    step = network(text, {"w": [2, 2, 3, 3], "v": [8, 3]}).step()
    conv = node(step, "Conv").name
    assert apply(PASS, step) == (0, [("r", f"it comes from Conv {conv!r}")])


def test_a_chain_of_shortcuts_is_cut_where_it_grows_long() -> None:
    """Each block adds batch norm, sum and ReLU: the third output has nine steps behind it."""
    step = residual().step()
    count, skipped = apply(RebuildActivations(longest=8), step)
    assert skipped == [("r3", "kept: the chain behind it has 9 steps")]
    assert count == N_BLOCKS - 1
    apply(MaskPack(), step)
    maps = {f"{kind}{i}" for kind in "rns" for i in range(N_BLOCKS + 1)}
    assert kept(step) & maps == {"r0", "r3"}


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_native, run_stock])
def test_blocks_give_the_same_bits(run: object) -> None:
    assert callable(run)
    net = residual()
    step = net.step()
    apply(PASS, step)
    assert_bit_equal(run(net, step), run(net, net.step()))
    assert_bit_equal(run(net, step, batch=3), run(net, net.step(), batch=3))


def test_a_norm_of_rows_is_taken_again() -> None:
    text = """g (float[batch,6] x) => (float[batch,3] y) {
        h = Gemm (x, w) n = LayerNormalization (h, s, b) y = Gemm (n, v) }"""
    net = network(text, {"w": [6, 8], "s": [8], "b": [8], "v": [8, 3]})
    step = net.step()
    assert {"h", "n"} <= kept(step)
    assert apply(PASS, step)[0] == 1
    assert ops(step, "rebuild") == ["LayerNormalization"]
    assert "n" not in kept(step)


STACK = """g (float[batch,4,6] x) => (float[batch,3] y) {
    h = MatMul (x, w) n = LayerNormalization (h, s, b)
    root = Constant <value_float = 1.4142135> () one = Constant <value_float = 1.0> ()
    half = Constant <value_float = 0.5> ()
    u = MatMul (n, wu) z = Div (u, root) e = Erf (z) p = Add (e, one) t = Mul (u, p)
    a = Mul (t, half) d = MatMul (a, wd)
    f = Flatten (d) y = Gemm (f, v) }"""


def stack() -> Network:
    """Layers of three dimensions, whose weight gradients read their inputs in two."""
    shapes = {"w": [6, 8], "s": [8], "b": [8], "wu": [8, 16], "wd": [16, 8], "v": [32, 3]}
    return network(STACK, shapes)


def test_a_reader_behind_a_late_view_gets_it_again() -> None:
    step = stack().step()
    assert {"h", "n", "u", "a"} <= kept(step)
    assert apply(PASS, step)[0] == 2
    assert sorted(ops(step, "rebuild")) == ["Gelu", "LayerNormalization", "Reshape", "Reshape"]
    assert not {"n", "a"} & kept(step)


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_native, run_stock])
def test_layers_of_three_dimensions_give_the_same_bits(run: object) -> None:
    assert callable(run)
    net, step = stack(), stack().step()
    apply(PASS, step)
    assert_bit_equal(run(net, step), run(net, net.step()))
