"""float16-activations: real-valued maps are half wherever all that touches them takes that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnnopt.analysis import saved_bytes
from bnnopt.passes import PASSES
from bnnopt.passes.float16_activations import Float16Activations
from bnnopt.plan import make_plan
from tests.graphs import apply, network, ops, run_native, run_stock, value
from tests.passes.networks import small

PASS = Float16Activations()
HALF = ir.DataType.FLOAT16
LOSSLESS = [p.name for p in PASSES if p.lossless]


def test_maps_between_what_takes_half_are_half() -> None:
    step = small("stem").step()
    assert apply(PASS, step) == (7, [("q", "Flatten reads it, in float32")])
    assert all(value(step, name).dtype is HALF for name in ("c0", "n0", "r0", "p0", "a", "n", "r"))
    assert value(step, "c").dtype is ir.DataType.FLOAT  # of signs: exact, and soon int16
    assert ops(step).count("Cast") == 2  # in front of Binarize and AveragePool
    assert apply(PASS, step)[0] == 0


def test_convolutions_and_average_poolings_between_halves_read_them() -> None:
    step = small("shortcut").step()
    assert apply(PASS, step) == (8, [])
    assert all(value(step, name).dtype is HALF for name in ("a", "c0", "n0", "p", "d", "e", "r"))
    assert ops(step).count("Cast") == 2  # in front of Binarize and GlobalAveragePool
    assert value(step, "c").dtype is ir.DataType.FLOAT
    grads = [node for node in step.graph if node.op_type == "ConvWeightGrad"]
    assert {(n.inputs[0].dtype, n.outputs[0].dtype) for n in grads} >= {(HALF, ir.DataType.FLOAT)}


POOLED = """g (float[batch,2,8,8] x) => (float[batch,3] y) {
    c1 = Conv (x, w1)
    r = Relu (c1)
    p = MaxPool <kernel_shape = [2, 2]> (r)
    c2 = Conv (p, w2)
    q = GlobalAveragePool (c2)
    f = Flatten (q)
    y = Gemm <transB = 1> (f, w3)
}"""
POOLED_WEIGHTS = {"w1": [4, 2, 3, 3], "w2": [4, 4, 3, 3], "w3": [3, 4]}


@pytest.mark.parametrize(("rectifies", "n_halves"), [(True, 1), (False, 3)])
def test_a_sparse_map_is_left_to_bitmap(rectifies: bool, n_halves: int) -> None:
    """What is pooled of it as well: of zeros a bit is kept."""
    text = POOLED if rectifies else POOLED.replace("    r = Relu (c1)\n", "").replace("(r)", "(c1)")
    step = network(text, POOLED_WEIGHTS).step()
    count, skipped = apply(PASS, step)
    assert count == n_halves
    assert (("p", "Conv reads it, in float32") in skipped) == rectifies


def test_codecs_and_kernels_read_half_as_it_is() -> None:
    step = small("stem").with_passes(PASS.name, *LOSSLESS)
    forward = [node.op_type for node in step.graph if node.metadata_props["phase"] == "forward"]
    assert forward.count("Cast") == 1  # in front of AveragePool
    assert {"BinarizePack", "PackedMaxPool", "RangePack"} <= set(forward)
    before = small("stem").with_passes(*LOSSLESS)
    assert make_plan(step).peak_bytes < make_plan(before).peak_bytes
    halved = 2 * 4 * (4 * 8 * 8 + 4 * 4 * 4)  # c0 and p0, at 2 bytes less an element, batch 4
    assert saved_bytes(step) == saved_bytes(before) - halved


def test_signs_alone_are_no_reason() -> None:
    """Of a batch norm in front of a sign nothing is kept but bits, which rounding could turn."""
    step = small("binary").step()
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (1, [("p2", "what it reads is float32")])
    assert value(step, "c1").dtype is HALF
    assert value(step, "n1").dtype is value(step, "n2").dtype is ir.DataType.FLOAT


def test_what_is_computed_again_is_half_as_well() -> None:
    step = small("binary").with_passes(PASS.name, "sign-pack", "recompute-binary-products")
    assert ops(step, "rebuild").count("RealConv") == 1
    assert ops(step).count("RealConv") == 2


def test_a_reader_of_floats_keeps_the_whole_chain() -> None:
    step = small("float").step()
    count, skipped = apply(PASS, step)
    assert count == 2
    assert ("p1", "what it reads is float32") in skipped or (
        "p1",
        "Conv reads it, in float32",
    ) in skipped
    assert all(value(step, name).dtype is ir.DataType.FLOAT for name in ("n1", "r1", "p1", "r2"))


@pytest.mark.parametrize("run", [run_native, run_stock])
@pytest.mark.parametrize("name", ["float", "stem", "shortcut"])
def test_gradients_keep_their_direction(name: str, run) -> None:
    net = small(name, batch=16)
    step = net.step()
    apply(PASS, step)
    exact, found = run(net, net.step(), 1), run(net, step, 1)
    np.testing.assert_allclose(found.losses, exact.losses, rtol=2e-2)
    assert found.losses != exact.losses
    for parameter, gradient in exact.gradients[0].items():
        a, b = found.gradients[0][parameter].ravel(), gradient.ravel()
        assert a @ b > 0.97 * np.linalg.norm(a) * np.linalg.norm(b), parameter


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (run_native, "stem"),
        (run_native, "shortcut"),
        (run_stock, "stem"),
        pytest.param(run_stock, "shortcut", marks=pytest.mark.slow),
    ],
)
def test_lossless_passes_stay_lossless_behind_it(run, name: str) -> None:
    """Rewritten kernels round where the reference does: the same bits but for sums of float32."""
    net = small(name, batch=8)
    reference = net.with_passes(PASS.name, "packed-products")
    exact, found = run(net, reference, 2), run(net, net.with_passes(PASS.name, *LOSSLESS), 2)
    assert found.losses == exact.losses
    for parameter, gradient in exact.gradients[1].items():
        np.testing.assert_array_equal(found.gradients[1][parameter], gradient, parameter)


def test_training_goes_down() -> None:
    net = small("stem", batch=8)
    losses = run_native(net, net.with_passes(PASS.name, *LOSSLESS), 20, repeat=True).losses
    assert losses[-1] < 0.8 * losses[0]
