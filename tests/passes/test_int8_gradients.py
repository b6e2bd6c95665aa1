"""int8-gradients: dy as integers written over it; gradients turn by a bound, and are unbiased."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.analysis import buffers, in_place_pairs
from bnnopt.errors import DivergedError
from bnnopt.ops import Emitter
from bnnopt.passes import select
from bnnopt.passes.int8_gradients import Int8Gradients
from bnnopt.passes.shared.rewriting import redirect
from bnnopt.plan import make_plan
from bnnopt.training_step import TrainingStep, is_loss_gradient, readers
from bnnopt.verification import verify_folder
from tests.cli.helpers import MODELS
from tests.graphs import (
    Network,
    apply,
    assert_bit_equal,
    cosine,
    network,
    node,
    ops,
    run_native,
    run_stock,
    zoo,
)
from tests.passes.networks import WIDER, WIDER_WEIGHTS, batch_norm, batch_norm_weights, small

PASS = Int8Gradients()
EARLIER = ("redirect-consumers", "sign-pack", "packed-products")
RUNNERS = {"native": run_native, "onnxruntime": run_stock}


OVERLAPPING = f"""g (float[batch,2,7,7] x) => (float[batch,4] y) {{
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
    {batch_norm("c1", "n1", 1)}
    s1 = Sign (n1)
    w2b = Sign (w2)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s1, w2b)
    p2 = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (c2)
    a = GlobalAveragePool (p2)
    y = Flatten (a)
}}"""


def rewritten(net: Network, *earlier: str) -> TrainingStep:
    step = net.with_passes(*(earlier or EARLIER))
    assert apply(PASS, step)[0] > 0
    return step


def test_the_products_read_integers_that_lie_over_dy() -> None:
    step = rewritten(small("binary"))
    pack = node(step, "Int8Pack", 1)
    dy, (q, unit) = pack.inputs[0], pack.outputs
    assert dy is not None
    assert readers(dy) == [pack]
    assert in_place_pairs(pack) == {0: 0}
    assert (q.dtype, tuple(q.shape), unit.dtype) == (ir.DataType.INT8, (4, 4, 6, 6), dy.dtype)
    assert sorted(n.op_type for n in readers(q)) == [
        "BinaryConvInputGradInt8",
        "BinaryConvWeightGradInt8",
    ]
    assert not {"BinaryConvInputGrad", "BinaryGemmInputGrad"} & set(ops(step))
    assert apply(PASS, step) == (0, [])


def test_every_map_has_a_stream_of_its_own() -> None:
    step = rewritten(small("binary"))
    seeds = [n.attributes["seed"].as_int() for n in step.graph if n.op_type == "Int8Pack"]
    assert len(set(seeds)) == len(seeds) == 2


def test_a_pooling_scatters_integers() -> None:
    """The elements are rounded that are there before the pooling; the rest of its map is 0."""
    net = small("binary", batch=16)
    earlier = (*EARLIER, "pool-index")
    step = rewritten(net, *earlier)
    pool = node(step, "PackedMaxPoolGrad")
    pack = pool.inputs[0].producer()
    assert pack.op_type == "Int8Pack"
    assert pool.outputs[0].dtype == ir.DataType.INT8
    assert [n.inputs[2] for n in readers(pool.outputs[0]) if "Weight" in n.op_type] == [
        pack.outputs[1]
    ]
    exact = run_native(net, net.with_passes(*earlier), 1).gradients[0]
    found = run_native(net, step, 1).gradients[0]
    assert PASS.min_cosine < cosine(found["w2"], exact["w2"]) < 1


def test_a_pooling_that_adds_is_left_in_floats() -> None:
    """Windows of 3 x 3 that overlap: a sum of integers may not fit."""
    step = network(
        OVERLAPPING, {"w1": [4, 2, 3, 3], **batch_norm_weights(1, 4), "w2": [4, 4, 3, 3]}
    ).with_passes(*EARLIER, "pool-index")
    assert apply(PASS, step)[0] == 1
    assert node(step, "PackedMaxPoolGrad").outputs[0].dtype == ir.DataType.FLOAT
    assert node(step, "Int8Pack").inputs[0] is node(step, "PackedMaxPoolGrad").outputs[0]


def test_integers_lie_where_dy_began_and_leave_the_rest_of_it() -> None:
    text = OVERLAPPING.replace("4] y", "16] y")
    weights = {"w1": [8, 2, 3, 3], **batch_norm_weights(1, 8), "w2": [16, 8, 3, 3]}
    step = rewritten(network(text, weights))
    pack = node(step, "Int8Pack")
    assert in_place_pairs(pack) == {0: 0}
    dy, q = pack.inputs[0], pack.outputs[0]
    home = {value: buffer for buffer in buffers(step) for value in buffer.values}
    position = [*step.graph].index(pack)
    assert home[dy].last == position
    assert home[q].onto in home[dy].values
    assert home[q].first == position + 1
    assert home[q].n_bytes * 4 == home[dy].n_bytes
    plan = make_plan(step)
    assert plan.offsets[q] == plan.offsets[dy]


def test_another_reader_is_a_reason() -> None:
    step = small("binary").with_passes(*EARLIER)
    dx = node(step, "BinaryConvInputGrad")
    emit = Emitter(step.graph, "backward")
    twice = emit("Add", dx.outputs[0], dx.inputs[0], name="twice")
    redirect(next(iter(readers(dx.outputs[0]))), dx.outputs[0], twice)
    twice.producer().replace_input_with(0, dx.outputs[0])
    step.graph.insert_after(dx, emit.nodes)
    reasons = dict(apply(PASS, step)[1])
    assert reasons == {str(dx.inputs[0].name): "kept anyway: Add 'twice' reads it"}


@pytest.mark.parametrize("backend", ["native", pytest.param("onnxruntime", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["binary", "residual"])
def test_gradients_turn_less_than_stated(name: str, backend: str) -> None:
    net, run = small(name, batch=16), RUNNERS[backend]
    step = rewritten(net)
    exact, found = run(net, net.with_passes(*EARLIER), 1), run(net, step, 1)
    assert found.losses == exact.losses
    weights = [k for k in exact.gradients[0] if k.startswith("w")]
    turned = [cosine(found.gradients[0][k], exact.gradients[0][k]) for k in weights]
    assert PASS.min_cosine < min(turned) < 1
    pack = node(step, "Int8Pack")
    emit = Emitter(step.graph, "backward")
    pack.replace_input_with(0, emit("Neg", pack.inputs[0], name="wrong"))
    step.graph.insert_before(pack, emit.nodes)
    wrong = run(net, step, 1).gradients[0]
    assert min(cosine(wrong[k], exact.gradients[0][k]) for k in weights) < 0


def test_backends_agree() -> None:
    """The integers are those of the seed and the step on both; sums of them are exact."""
    net = small("binary")
    step = rewritten(net)
    native, stock = run_native(net, step, 1), run_stock(net, step, 1)
    for name in ("w2", "w3"):
        found, expected = native.gradients[0][name], stock.gradients[0][name]
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_half_precision_maps_stay_so() -> None:
    step = rewritten(small("binary"), *EARLIER, "float16-gradients")
    assert node(step, "BinaryConvInputGradInt8").outputs[0].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (small("binary", optimizer="adam"), "BinaryGemm"),
        (network(WIDER, WIDER_WEIGHTS, optimizer="adam"), "BinaryConv"),
    ],
    ids=["dense", "convolution"],
)
def test_steps_that_make_their_gradient_read_integers_too(net: Network, kind: str) -> None:
    """And give the bits of the product and then the step; dx is written over its dy."""
    names = [*(p.name for p in select("O1")), PASS.name]
    fused = net.with_passes(*names)
    assert f"{kind}Int8AdamStep" in ops(fused)
    apart = net.with_passes(*[n for n in names if n not in ("fuse-updates", "stream-gradients")])
    assert f"{kind}WeightGradInt8" in ops(apart)
    assert in_place_pairs(node(fused, "BinaryConvInputGradInt8")) == {0: 0}
    assert_bit_equal(run_native(net, fused), run_native(net, apart))


def test_an_overflow_is_refused() -> None:
    net = small("binary")
    step = rewritten(net)
    seed = next(v for v in step.graph.initializers.values() if is_loss_gradient(v))
    seed.const_value = ir.tensor(np.array(np.inf, np.float32))
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match="would not be finite"):
        run_native(net, step, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "level"), [("mlp", "O1"), ("cnv", "O2"), ("resnet-e-mini", "O2")])
def test_no_plan_grows(name: str, level: str) -> None:
    names = [p.name for p in select(level)]
    net = zoo(name, 8, "adam")
    plain, narrow = net.with_passes(*names), net.with_passes(*names, PASS.name)
    assert make_plan(narrow).peak_bytes <= make_plan(plain).peak_bytes + 4096  # units


@pytest.mark.slow
def test_training_goes_down() -> None:
    net = zoo("cnv", 16, "adam")
    losses = run_native(net, rewritten(net), 8, repeat=True).losses
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_the_option_enables_it_and_verify_knows_its_bound(tmp_path: Path) -> None:
    result = bnnopt.optimize(MODELS / "mlp.onnx", batch_size=32, enable=[PASS.name])
    result.save(tmp_path / "out")
    outcome = verify_folder(tmp_path / "out", "native", n_steps=1)
    assert not outcome.bit_equal
    assert not outcome.defect
