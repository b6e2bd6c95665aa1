"""fuse-updates: a weight gradient is stepped tile by tile, and nowhere kept."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from bnnopt.passes import LEVELS, run_passes, select
from bnnopt.passes.fuse_updates import FuseUpdates
from bnnopt.plan import make_plan, peak_bytes
from bnnopt.runtime.kernels import formulas
from bnnopt.runtime.library import set_threads
from bnnopt.training_step import TrainingStep, makes_gradient, name_gradients
from tests.graphs import (
    Network,
    Trajectory,
    apply,
    assert_bit_equal,
    network,
    run_native,
    run_stock,
    zoo,
)
from tests.passes.networks import small

PASS = FuseUpdates()
OPTIMIZERS = {
    "adam": {"optimizer": "adam"},
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "bop": {"optimizer": "bop"},
}
BATCH = 64  # of which the maps are the peak, not the scratch memory of four threads
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
each_level = pytest.mark.parametrize("level", LEVELS[1:])


def rewritten(net: Network, level: str, *without: str) -> TrainingStep:
    step = net.step()
    run_passes(step, select(level, disabled=without))
    return step


def fused(step: TrainingStep) -> list[ir.Node]:
    return [n for n in step.graph if makes_gradient(n)]


def run(net: Network, step: TrainingStep, threads: int, **options: bool) -> Trajectory:
    set_threads(threads)
    try:
        return run_native(net, step, n_steps=3, **options)
    finally:
        set_threads(2)


@pytest.mark.slow
@each_level
@each_optimizer
def test_several_steps_give_the_same_bits(optimizer: str, level: str) -> None:
    net = small("binary", batch=BATCH, **OPTIMIZERS[optimizer])
    separate, together = rewritten(net, level, "fuse-updates"), rewritten(net, level)
    assert len(fused(together)) == 3
    assert not fused(separate)
    expected = run(net, separate, 1, with_gradients=False)
    for threads in (1, 2):
        found = run(net, together, threads, with_gradients=False)
        expected.gradients = found.gradients = []
        assert_bit_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "level"), [("adam", "O1"), ("momentum", "O2"), ("bop", "O2")]
)
def test_onnxruntime_runs_it_too(optimizer: str, level: str) -> None:
    net = small("binary", **OPTIMIZERS[optimizer])
    steps = [rewritten(net, level), rewritten(net, level, "fuse-updates")]
    together, separate = (run_stock(net, step) for step in steps)
    together.gradients = separate.gradients = []
    assert_bit_equal(together, separate)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnv", "mlp"])
def test_larger_layers_give_the_same_bits(name: str) -> None:
    for optimizer in ("adam", "bop"):
        net = zoo(name, optimizer=optimizer)
        together = rewritten(net, "O1")
        assert len(fused(together)) > 3
        expected = run(net, rewritten(net, "O1", "fuse-updates"), 1)
        assert_bit_equal(run(net, together, 2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 20, 1 << 19])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum"])
@each_level
def test_dense_layers_of_real_numbers(
    level: str, optimizer: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formulas, "BLOCK", block)
    net = small("float", **OPTIMIZERS[optimizer])
    together = rewritten(net, level)
    kept = {"O1": "", "O2": "Half", "O3": "Half" if optimizer == "sgd" else "Byte"}[level]
    assert any(n.op_type.startswith(f"Gemm{kept}") for n in fused(together))
    expected = run(net, rewritten(net, level, "fuse-updates"), 1)
    assert_bit_equal(run(net, together, 2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["scale", "limit", "beta1"])
def test_another_number_is_seen(changed: str) -> None:
    net = small("binary", optimizer="adam")
    expected = run(net, rewritten(net, "O1", "fuse-updates"), 1)
    step = rewritten(net, "O1")
    for wrong in fused(step):
        number = wrong.attributes[changed].as_float()
        wrong.attributes.add(ir.AttrFloat32(changed, number * 0.7))
    with pytest.raises(AssertionError):
        assert_bit_equal(run(net, step, 1), expected)


def test_a_gradient_is_written_where_it_is_named() -> None:
    step = rewritten(small("binary", batch=BATCH, optimizer="adam"), "O1")
    assert not {"w2", "w3"} & set(step.gradients())
    name_gradients(step)
    assert {"w1", "w2", "w3"} <= set(step.gradients())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "bop"])
def test_the_plan_has_no_place_for_the_gradient(optimizer: str) -> None:
    net = zoo("cnv", 1, optimizer)
    peaks = [
        make_plan(rewritten(net, "O1", *without)).peak_bytes for without in (["fuse-updates"], [])
    ]
    assert peaks[0] - peaks[1] > 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "har"])
def test_scratch_memory_of_tiles_does_not_raise_the_peak(name: str) -> None:
    """The weights are a few KiB, the tiles of four threads 64."""
    net = zoo(name, 1)
    separate, together = rewritten(net, "O1", "fuse-updates"), rewritten(net, "O1")
    assert fused(together)
    assert peak_bytes(together) <= peak_bytes(separate)


def test_binary_weights_are_stepped_before_they_are_read_for_the_last_time() -> None:
    """The gradient map can be written over only when it has been read for the weights."""
    step = rewritten(small("binary", optimizer="bop"), "O1")
    order = [n for n in step.graph if n.op_type in ("BinaryConvBopStep", "BinaryConvInputGrad")]
    assert [n.op_type for n in order] == ["BinaryConvBopStep", "BinaryConvInputGrad"]
    copy = order[1].inputs[1].producer()
    assert copy.op_type == "Cast"
    assert copy.inputs[0] is order[0].inputs[0]


# What it leaves alone -----------------------------------------------------------------------------

SHARED = """g (float[batch,6] x) => (float[batch,6] y) {
    wb = Sign (w)
    s = Sign (x)
    a = Gemm <transB = 1> (s, wb)
    t = Sign (a)
    y = Gemm <transB = 1> (t, wb)
}"""


def packed(net: Network) -> TrainingStep:
    return net.with_passes("sign-pack", "packed-products", "immediate-update")


def reasons(step: TrainingStep) -> dict[str, str]:
    return dict(apply(PASS, step)[1])


def test_a_shared_weight_has_its_gradients_added_up() -> None:
    step = packed(network(SHARED, {"w": [6, 6]}))
    assert "Add" in reasons(step)["w"]
    assert not fused(step)


def test_a_gradient_that_somebody_wants_stays() -> None:
    step = packed(small("binary"))
    step.graph.outputs.append(step.gradients()["w2"])
    found = reasons(step)
    assert "read elsewhere" in found["w2"]
    assert "w3" not in found


def test_a_mask_of_other_bounds_stays() -> None:
    step = packed(small("binary"))
    clip = next(n for n in step.graph if n.op_type == "ClipGrad" and n.inputs[1].name == "w3")
    clip.attributes.add(ir.AttrFloat32("low", -0.5))
    assert "ClipGrad" in reasons(step)["w3"]
