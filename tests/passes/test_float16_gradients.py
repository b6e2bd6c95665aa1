"""float16-gradients: gradient maps in half precision, parameter gradients as they were."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnnopt.errors import DivergedError
from bnnopt.ops import dims
from bnnopt.passes import PASSES, run_passes, select
from bnnopt.passes.float16_gradients import Float16Gradients
from bnnopt.plan import make_plan
from bnnopt.training_step import TrainingStep, is_loss_gradient, phase
from tests.graphs import BATCH, Network, apply, cosine, network, run_native, run_stock, zoo
from tests.passes.networks import BATCH_NORM_NETWORKS, small

PASS = Float16Gradients()
LOSSLESS = [p for p in PASSES if p.lossless]


def rewritten(net: Network, pass_: Float16Gradients = PASS) -> TrainingStep:
    step = net.step()
    assert apply(pass_, step)[0] > 0
    return step


def maps(step: TrainingStep, batch: int = BATCH) -> list[ir.Value]:
    """The gradients of activations of more than two axes."""
    made = [v for n in step.graph if phase(n) == "backward" for v in n.outputs[:1]]
    return [v for v in made if len(dims(v)) > 2 and dims(v)[0] == batch and "w" not in str(v.name)]


@pytest.mark.parametrize("name", BATCH_NORM_NETWORKS)
def test_maps_are_half_and_parameter_gradients_are_not(name: str) -> None:
    step = rewritten(small(name))
    kinds = [v.dtype for v in maps(step)]
    assert kinds.count(ir.DataType.FLOAT16) >= 0.6 * len(kinds)
    assert all(v.dtype == ir.DataType.FLOAT for v in step.gradients().values())
    assert apply(PASS, step) == (0, [])


@pytest.mark.parametrize(
    ("run", "name"),
    [*((run_native, name) for name in BATCH_NORM_NETWORKS), (run_stock, "residual")],
)
def test_parameter_gradients_keep_their_size_and_direction(run, name: str) -> None:
    net = small(name)
    exact, found = run(net, net.step(), 1), run(net, rewritten(net), 1)
    assert found.losses == exact.losses
    for parameter, gradient in exact.gradients[0].items():
        other = found.gradients[0][parameter]
        norm = np.linalg.norm(gradient)
        assert np.linalg.norm(other - gradient) < 0.01 * norm + 1e-6, parameter


@pytest.mark.parametrize("loss", ["mse", "squared-hinge"])
def test_other_losses(loss: str) -> None:
    net = small("residual", loss=loss) if loss != "mse" else mse()
    exact, found = (run_native(net, step, 1) for step in (net.step(), rewritten(net)))
    for parameter, gradient in exact.gradients[0].items():
        if np.linalg.norm(gradient) > 1e-5:
            assert cosine(found.gradients[0][parameter], gradient) > 0.9999, parameter


def mse() -> Network:
    return network(
        """g (float[batch,2,4,4] x) => (float[batch,3,4,4] y) {
            c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
            r = Relu (c)
            y = Conv (r, w2)
        }""",
        {"w1": [4, 2, 3, 3], "w2": [3, 4, 1, 1]},
        loss="mse",
    )


@pytest.mark.slow
def test_with_all_lossless_passes() -> None:
    """After them the maps take half the memory, and one kernel's in-place pairs still hold."""
    net = zoo("cnv")
    plain, half = net.step(), net.step()
    run_passes(plain, LOSSLESS)
    run_passes(half, [p for p in PASSES if p.lossless or p.name == PASS.name])
    transient = "transient_activations_and_gradients"
    assert make_plan(half).classes[transient] < 0.8 * make_plan(plain).classes[transient]
    exact, found = run_native(net, plain, 1), run_native(net, half, 1)
    for parameter, gradient in exact.gradients[0].items():
        assert cosine(found.gradients[0][parameter], gradient) > 0.98, parameter


@pytest.mark.slow
def test_algorithm_2_in_100_mib() -> None:
    """BinaryNet, Adam, batch 100: no gradient map is float32, and the plan is below 100 MiB."""
    step = zoo("binarynet", 100, "adam").step()
    run_passes(step, select("O2"))
    wide = [v for v in maps(step, 100) if v.dtype != ir.DataType.FLOAT16]
    assert not wide
    assert make_plan(step).peak_bytes < 100 * 2**20


def test_the_scale_is_a_power_of_two_and_comes_out_exactly() -> None:
    """A last layer in float32 only: its gradient has the very bits that it had."""
    net = small("residual")
    step = rewritten(net)
    seed = next(v for v in step.graph.initializers.values() if is_loss_gradient(v))
    assert float(seed.const_value.numpy()) == 2.0**10 * BATCH
    exact, found = run_native(net, net.step(), 1), run_native(net, step, 1)
    np.testing.assert_array_equal(found.gradients[0]["w3"], exact.gradients[0]["w3"])


def test_the_scale_keeps_small_gradients() -> None:
    """Without it the gradients of a large batch would be below float16's range."""
    tiny = network(
        """g (float[batch,2,4,4] x) => (float[batch,3] y) {
            small = Constant <value_float = 1e-6> ()
            c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
            r = Relu (c)
            d = Mul (r, small)
            p = GlobalAveragePool (d)
            f = Flatten (p)
            y = MatMul (f, w2)
        }""",
        {"w1": [4, 2, 3, 3], "w2": [4, 3]},
    )
    exact = run_native(tiny, tiny.step(), 1).gradients[0]["w1"]
    found = run_native(tiny, rewritten(tiny), 1).gradients[0]["w1"]
    assert cosine(found, exact) > 0.9999
    unscaled = Float16Gradients(scale_bits=-6)
    lost = run_native(tiny, rewritten(tiny, unscaled), 1).gradients[0]["w1"]
    assert np.linalg.norm(lost - exact) > 0.1 * np.linalg.norm(exact)


def test_an_overflow_shows() -> None:
    """As documented: infinity, which no weight takes. It is not hidden."""
    net = small("residual")
    step = rewritten(net, Float16Gradients(scale_bits=30))
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match="would not be finite"):
        run_native(net, step, 2)


def test_a_graph_without_a_marked_gradient_is_left_alone() -> None:
    step = small("residual").step()
    for v in step.graph.initializers.values():
        v.metadata_props.pop("gradient", None)
    count, skipped = apply(PASS, step)
    assert count == 0
    assert skipped == [("loss", "the graph does not say which value is its gradient")]


def test_training_goes_down() -> None:
    net = zoo("resnet-e-mini", 8)
    losses = run_native(net, rewritten(net), 8, repeat=True).losses
    assert losses[-1] < 0.9 * losses[0]


def test_a_layer_with_as_many_outputs_as_there_are_samples() -> None:
    """The gradient of its weights has an axis of that length too, and stays float32."""
    text = """g (float[batch,8] x) => (float[batch,3] y) {
        z = Constant <value_float = 1e-6> ()
        e = Add (w, z)
        s = Sign (e)
        r = Sign (x)
        h = Gemm <transB = 1> (r, s)
        y = Gemm <transB = 1> (h, v)
    }"""
    of_weights = {}
    for n in (16, 5):
        step = rewritten(network(text, {"w": (16, 8), "v": (3, 16)}, batch=n))
        made = [v for node in step.graph if phase(node) == "backward" for v in node.outputs]
        of_weights[n] = {str(v.name): v.dtype for v in made if dims(v) == (16, 8)}
    assert of_weights[16] == of_weights[5]
    assert set(of_weights[16].values()) == {ir.DataType.FLOAT}


@pytest.mark.parametrize("optimizer", ["sgd", "bop"])
def test_a_map_that_is_a_parameter_gradient_is_float_again(optimizer: str) -> None:
    """The weight as the left operand, w.T @ h.T: its gradient is the one that a map would have."""
    body = """g (float[batch,6] x) => (float[batch,3] y) {
        hb = Sign (x)
        wb = Sign (w)
        wt = Transpose <perm = [1, 0]> (wb)
        ht = Transpose <perm = [1, 0]> (hb)
        t = MatMul (wt, ht)
        turned = Transpose <perm = [1, 0]> (t)
        y = MatMul (turned, v)
    }"""
    net = network(body, {"w": [6, 5], "v": [5, 3]}, optimizer=optimizer)
    step = net.with_passes("packed-products", PASS.name)
    updates = [node for node in step.graph if phase(node) == "update"]
    gradients = [v for node in updates for v in node.inputs if v in step.gradients().values()]
    assert all(v.dtype == ir.DataType.FLOAT for v in gradients)
    exact, found = run_native(net, net.with_passes("packed-products"), 1), run_native(net, step, 1)
    assert found.losses == exact.losses
    for name in exact.persistent:
        np.testing.assert_allclose(found.persistent[name], exact.persistent[name], rtol=0.01)
