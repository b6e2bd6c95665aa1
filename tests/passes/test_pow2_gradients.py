"""pow2-gradients: dy in 5 bits beside dx, where that is smaller; gradients turn by a bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.errors import DivergedError, UsageError
from bnnopt.ops import Emitter
from bnnopt.passes import PASSES, run_passes, select
from bnnopt.passes.pow2_gradients import Pow2Gradients
from bnnopt.passes.shared.rewriting import redirect
from bnnopt.plan import live_bytes, make_plan
from bnnopt.report.static_sum import StaticSum
from bnnopt.training_step import TrainingStep, is_loss_gradient, readers
from bnnopt.verification import verify_folder
from tests.cli.helpers import MODELS
from tests.graphs import (
    Arrays,
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
from tests.passes.networks import WIDER, WIDER_WEIGHTS, small

PASS = Pow2Gradients()
EARLIER = ("redirect-consumers", "sign-pack", "packed-products", "immediate-update")
RUNNERS = {"native": run_native, "onnxruntime": run_stock}


def rewritten(net: Network, *earlier: str) -> TrainingStep:
    step = net.with_passes(*(earlier or EARLIER))
    assert apply(PASS, step)[0] > 0
    return step


def cosines(found: Arrays, expected: Arrays) -> list[float]:
    return [cosine(found[k], g) for k, g in expected.items()]


def test_the_products_read_five_bits_and_nothing_else_reads_dy() -> None:
    step = rewritten(small("binary"))
    pack = node(step, "Pow2Pack", 1)
    dy, packed = pack.inputs[0], pack.outputs[0]
    assert dy is not None
    assert readers(dy) == [pack]
    assert sorted(n.op_type for n in readers(packed)) == [
        "BinaryConvInputGradPow2",
        "BinaryConvWeightGradPow2",
    ]
    assert tuple(packed.shape) == (4, (4 * 6 * 6) // 8 * 5)
    assert not {"BinaryConvInputGrad", "BinaryGemmInputGrad"} & set(ops(step))
    assert apply(PASS, step) == (0, [])


def test_a_map_that_serves_twice_is_left_alone() -> None:
    """5 bits of dy and dx take more than dx written over dy."""
    step = small("binary").with_passes(*EARLIER, "stream-gradients")
    count, skipped = apply(PASS, step)
    dx = node(step, "BinaryConvInputGrad")
    assert count == 1  # the dense layer
    assert skipped == [(dx.name, f"its dx is written over its dy of {4 * 4 * 6 * 6 * 4} B")]


def test_another_reader_is_a_reason() -> None:
    step = small("binary").with_passes(*EARLIER)
    dx = node(step, "BinaryConvInputGrad")
    emit = Emitter(step.graph, "backward")
    twice = emit("Add", dx.outputs[0], dx.inputs[0], name="twice")
    redirect(next(iter(readers(dx.outputs[0]))), dx.outputs[0], twice)
    twice.producer().replace_input_with(0, dx.outputs[0])
    step.graph.insert_after(dx, emit.nodes)
    reasons = dict(apply(PASS, step)[1])
    assert reasons[str(dx.inputs[0].name)] == "kept anyway: Add 'twice' reads it"


def test_a_layer_without_a_dx_is_a_reason() -> None:
    first = network(
        """g (float[batch,6] x) => (float[batch,3] y) {
            s = Sign (x) wb = Sign (w) y = Gemm <transB = 1> (s, wb) }""",
        {"w": [3, 6]},
    )
    count, skipped = apply(PASS, first.with_passes("packed-products"))
    assert count == 0
    assert skipped[0][1] == "packed 12 B, dx 0 B: both forms of dy need more"


@pytest.mark.slow
@pytest.mark.parametrize("backend", RUNNERS)
@pytest.mark.parametrize("name", ["binary", "residual"])
def test_gradients_turn_less_than_stated(name: str, backend: str) -> None:
    net, run = small(name, batch=16), RUNNERS[backend]
    step = rewritten(net)
    exact, found = run(net, net.with_passes(*EARLIER), 1), run(net, step, 1)
    assert found.losses == exact.losses
    weights = {k: g for k, g in exact.gradients[0].items() if k.startswith("w")}
    turned = cosines(found.gradients[0], weights)
    assert PASS.min_cosine < min(turned) < 1
    pack = node(step, "Pow2Pack")
    emit = Emitter(step.graph, "backward")
    pack.replace_input_with(0, emit("Neg", pack.inputs[0], name="wrong"))
    step.graph.insert_before(pack, emit.nodes)
    assert min(cosines(run(net, step, 1).gradients[0], weights)) < 0


def test_half_precision_maps_stay_so() -> None:
    net = small("binary")
    step = rewritten(net, *EARLIER, "float16-gradients")
    assert node(step, "BinaryConvInputGradPow2").outputs[0].dtype == ir.DataType.FLOAT16
    exact = run_native(net, net.step(), 1).gradients[0]["w2"]
    assert cosines(run_native(net, step, 1).gradients[0], {"w2": exact})[0] > PASS.min_cosine


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (small("binary", optimizer="adam"), "BinaryGemm"),
        (network(WIDER, WIDER_WEIGHTS, optimizer="adam"), "BinaryConv"),
    ],
    ids=["dense", "convolution"],
)
def test_steps_that_make_their_gradient_read_five_bits_too(net: Network, kind: str) -> None:
    """And give the bits of the product and then the step."""
    names = [p.name for p in select("O1") if p.name not in ("stream-gradients", "in-place")]
    fused = net.with_passes(*names, PASS.name)
    assert f"{kind}Pow2AdamStep" in ops(fused)
    apart = net.with_passes(*[n for n in names if n != "fuse-updates"], PASS.name)
    assert f"{kind}WeightGradPow2" in ops(apart)
    assert_bit_equal(run_native(net, fused), run_native(net, apart))


def test_an_overflow_is_refused() -> None:
    net = small("binary")
    step = rewritten(net)
    seed = next(v for v in step.graph.initializers.values() if is_loss_gradient(v))
    seed.const_value = ir.tensor(np.array(np.inf, np.float32))
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match="would not be finite"):
        run_native(net, step, 1)


def test_the_plan_is_smaller_where_dy_and_dx_are_the_peak() -> None:
    """dy of twice dx: of 24 parts in half precision 21 are left, while dy is packed."""
    names = [p.name for p in select("O2")]
    net = network(WIDER, WIDER_WEIGHTS, batch=512)
    plain, packed = net.with_passes(*names), net.with_passes(*names, PASS.name)
    largest = 512 * 16 * 16 * 16 * 2
    saved = make_plan(plain).arena_bytes - make_plan(packed).arena_bytes
    assert saved > 0.1 * largest


@pytest.mark.slow
@pytest.mark.parametrize(("name", "level"), [("mlp", "O1"), ("cnv", "O2"), ("resnet-e-mini", "O2")])
def test_no_plan_grows(name: str, level: str) -> None:
    names = [p.name for p in select(level)]
    net = zoo(name, 8, "adam")
    plain, packed = net.with_passes(*names), net.with_passes(*names, PASS.name)
    assert max(live_bytes(packed)) <= max(live_bytes(plain))
    assert make_plan(packed).peak_bytes <= make_plan(plain).peak_bytes


@pytest.mark.slow
def test_the_papers_ladder_with_five_bits() -> None:
    """Table of arXiv:2102.04270v1: Algorithm 2 and 5-bit dY, 4.24 times less than the standard."""
    reference = zoo("binarynet", 100, "adam").step()
    step = TrainingStep(reference.model.clone())
    unneeded = {"drop-adam-second-moment", "schedule", "in-place", "immediate-update"}
    names = {p.name for p in select("O2")} - unneeded | {PASS.name}
    records = run_passes(step, [p for p in PASSES if p.name in names])
    found = StaticSum.of(reference, records)
    before, after = (sum(side.values()) for side in (found.before, found.after))
    assert round(before / after, 2) == 4.24
    assert found.scheme.dy == 5


@pytest.mark.slow
def test_training_goes_down() -> None:
    net = zoo("cnv", 16)
    losses = run_native(net, rewritten(net), 8, repeat=True).losses
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_the_option_enables_it_and_verify_knows_its_bound(tmp_path: Path) -> None:
    result = bnnopt.optimize(MODELS / "mlp.onnx", batch_size=32, enable=["pow2-gradients"])
    record = next(r for r in result.report.passes if r.name == PASS.name)
    assert record.rewrites > 0
    result.save(tmp_path / "out")
    outcome = verify_folder(tmp_path / "out", "native", n_steps=1)
    assert not outcome.bit_equal
    assert not outcome.defect
    with pytest.raises(UsageError, match="'nope' is not known"):
        bnnopt.optimize(MODELS / "mlp.onnx", batch_size=32, enable=["nope"])
