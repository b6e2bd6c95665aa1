"""packed-products: products with a binary operand run on its bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bnnopt.analysis import saved_bytes
from bnnopt.ops import Emitter, ints
from bnnopt.passes import PASSES, map_kernels
from bnnopt.passes.packed_products import PackedProducts
from tests.graphs import (
    Network,
    Trajectory,
    apply,
    assert_bit_equal,
    network,
    ops,
    run_native,
    run_stock,
    zoo,
)
from tests.passes.networks import NETWORKS, small

PASS = PackedProducts()
ALL = [p.name for p in PASSES if p.lossless]
EARLIER = ("redirect-consumers", "sign-pack", "recompute-binary-products")


def products(net: Network, *earlier: str) -> list[str]:
    step = net.with_passes(*earlier)
    apply(PASS, step)
    return sorted(op for op in ops(step) if op.startswith("Binary"))


def test_every_product_of_two_binary_tensors_is_mapped() -> None:
    found = products(small("binary"))
    assert found.count("BinaryConv") == 1  # the first convolution has a real input
    assert found.count("BinaryGemm") == 1
    for gradient in ("ConvInputGrad", "ConvWeightGrad", "GemmInputGrad", "GemmWeightGrad"):
        assert found.count(f"Binary{gradient}") == 1


def test_a_recomputed_product_is_mapped_too() -> None:
    found = products(small("binary"), *EARLIER)
    assert found.count("BinaryConv") == 2


def test_no_unpacked_copy_is_left_behind() -> None:
    step = small("binary").with_passes(*EARLIER)
    assert "SignUnpack" in ops(step)
    apply(PASS, step)
    assert "SignUnpack" not in ops(step)
    assert "Binarize" in ops(step)  # of the first weight: its other operand is real
    assert ops(step).count("BinarizePack") >= 2


def test_a_weight_gradient_that_is_only_packed_is_written_as_bits() -> None:
    found = products(small("binary"), "binary-weight-gradients")
    assert found.count("BinaryConvWeightGradSigns") == found.count("BinaryGemmWeightGradSigns") == 1
    assert not any(op.endswith("WeightGrad") for op in found)


def test_a_weight_gradient_that_is_read_as_numbers_too_is_kept() -> None:
    step = small("binary").with_passes("binary-weight-gradients", PASS.name)
    (signs,) = [node for node in step.graph if node.op_type == "BinaryGemmWeightGradSigns"]
    emit = Emitter(step.graph, "backward")
    dw = emit("BinaryGemmWeightGrad", *signs.inputs, name="dw", x_shape=ints(signs, "x_shape"))
    packed = emit("BinarizePack", dw, name="packed", zero=1.0)
    emit("Relu", dw, name="reader")
    step.graph.insert_after(signs, emit.nodes)
    step.graph.outputs.extend([packed, emit.nodes[-1].outputs[0]])
    assert apply(PASS, step)[0] == 0


def test_alone_it_keeps_for_the_backward_pass_what_a_framework_keeps() -> None:
    step = small("binary").step()
    before = saved_bytes(step)
    apply(PASS, step)
    assert saved_bytes(step) == before


def test_twice_is_once() -> None:
    step = small("binary").with_passes(*EARLIER)
    assert apply(PASS, step)[0] > 0
    assert apply(PASS, step) == (0, [])


@pytest.mark.parametrize("transposed", [True, False])
def test_a_weight_as_matmul_reads_it(transposed: bool) -> None:
    """PyTorch writes a layer without bias as MatMul(x, Transpose(Sign(w)))."""
    turned = "wt = Transpose <perm = [1, 0]> (wb)" if transposed else "wt = Identity (wb)"
    body = f"""g (float[batch,12] x) => (float[batch,5] y) {{
        h = MatMul (x, w0)
        hb = Sign (h)
        wb = Sign (w)
        {turned}
        y = MatMul (hb, wt)
    }}"""
    shape = [5, 9] if transposed else [9, 5]
    net = network(body, {"w0": [12, 9], "w": shape})
    found = products(net)
    assert ("BinaryGemm" in found) == transposed  # rows of (in, out) are not the layer's
    assert "BinaryGemmWeightGrad" in found


@pytest.mark.parametrize(
    "product",
    ["Gemm <alpha = 0.5, transB = 1> (hb, wb)", "Gemm <transB = 1> (h, w)"],
    ids=["scaled", "real"],
)
def test_other_products_are_left_alone(product: str) -> None:
    body = f"""g (float[batch,12] x) => (float[batch,5] y) {{
        h = MatMul (x, w0)
        hb = Sign (h)
        wb = Sign (w)
        y = {product}
    }}"""
    assert products(network(body, {"w0": [12, 9], "w": [5, 9]})) == []


def test_a_sign_that_may_be_zero_is_left_alone() -> None:
    assert products(small("binary", keep_zero=True)) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_is_exact_and_gradients_are_close(name: str) -> None:
    net = small(name)
    plain, mapped = (run_native(net, net.with_passes(*p), 1) for p in ((), (PASS.name,)))
    assert plain.losses[0] == mapped.losses[0]
    for parameter, expected in plain.gradients[0].items():
        bound = 1e-5 * max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(mapped.gradients[0][parameter], expected, rtol=0, atol=bound)


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_native, run_stock], ids=["native", "onnxruntime"])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_passes_give_the_bits_of_the_reference_on_the_same_kernels(
    name: str, run: Callable[..., Trajectory]
) -> None:
    net = small(name)
    reference = map_kernels(net.step(), [p for p in PASSES if p.name in ALL])
    assert_bit_equal(run(net, net.with_passes(*ALL)), run(net, reference))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnv", "resnet-e-mini", "relu-mini"])
def test_the_same_of_the_zoo(name: str) -> None:
    net = zoo(name, 3)
    reference = map_kernels(net.step(), [p for p in PASSES if p.name in ALL])
    assert_bit_equal(run_native(net, net.with_passes(*ALL)), run_native(net, reference))


def test_a_gradient_turned_twice_is_the_gradient() -> None:
    text = """g (float[batch,6] x) => (float[batch,3] y) {
        xb = Sign (x)
        wb = Sign (w)
        turned = Transpose <perm = [1, 0]> (wb)
        y = MatMul (xb, turned)
    }"""
    step = network(text, {"w": [3, 6]}).with_passes()
    assert "Transpose" in ops(step)
    apply(PASS, step)
    assert "BinaryGemmWeightGrad" in ops(step)
    assert "Transpose" not in ops(step)


@pytest.mark.parametrize(
    "product",
    [
        "t = MatMul (wt, ht)\n y = Transpose <perm = [1, 0]> (t)",
        "y = Gemm <transA = 1, transB = 1> (ht, wt)",
        "y = Gemm <transA = 1> (ht, wt)",
        "t = Gemm <transB = 1> (wt, hb)\n y = Transpose <perm = [1, 0]> (t)",
    ],
)
def test_a_matrix_whose_transpose_alone_is_kept(product: str) -> None:
    """The layer on columns, w.T @ h.T: the same kernels, and bits, as before anything is packed."""
    body = f"""g (float[batch,12] x) => (float[batch,5] y) {{
        h = MatMul (x, w0)
        hb = Sign (h)
        wb = Sign (w)
        wt = Transpose <perm = [1, 0]> (wb)
        ht = Transpose <perm = [1, 0]> (hb)
        {product}
    }}"""
    is_turned = "<transA = 1> (ht, wt)" in product
    shapes = {"w0": [12, 40], "w": [5, 40] if is_turned else [40, 5]}
    net = network(body, shapes, batch=33)
    reference = map_kernels(net.step(), [p for p in PASSES if p.name in ALL])
    for batch in (33, 7):
        found = run_native(net, net.with_passes(*ALL), batch=batch)
        assert_bit_equal(found, run_native(net, reference, batch=batch))


def test_a_view_that_changes_nothing_hides_no_scale() -> None:
    """Signs are kept by what they are, not by the Reshape that a layer read them through."""
    body = """g (float[batch,12] x) => (float[batch,5] y) {
        rows = Constant <value_ints = [-1, 40]> ()
        h = MatMul (x, w0)
        hb = Sign (h)
        a = Mul (scale, hb)
        r = Reshape (a, rows)
        y = Gemm <transB = 1> (r, w)
    }"""
    net = network(body, {"w0": [12, 40], "w": [5, 40], "scale": []}, batch=33)
    reference = map_kernels(net.step(), [p for p in PASSES if p.name in ALL])
    assert_bit_equal(run_native(net, net.with_passes(*ALL)), run_native(net, reference))
