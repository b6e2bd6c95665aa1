"""block-filters: maps of a forward pass that are nowhere whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.errors import UsageError
from bnnopt.models import build
from bnnopt.ops import dims
from bnnopt.passes import select
from bnnopt.passes.block_filters import BlockFilters
from bnnopt.plan import make_plan
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
from tests.passes.networks import TALL, TALL_WEIGHTS, small

PASS = BlockFilters()
BITS = [
    *("redirect-consumers", "sign-pack", "recompute-binary-products", "mask-pack", "pool-index"),
    *("packed-products", "fuse-batch-norm-signs", "binary-output-int16"),
]
NARROW = [
    *("l1-batch-norm", "float16-activations", "bnn-batch-norm-backward", "float16-gradients"),
    *BITS,
]


@pytest.fixture(scope="module")
def net() -> Network:
    return small("wide")


def largest(step: TrainingStep) -> int:
    """Bytes of the largest value that a forward node makes."""
    made = [
        v for n in step.graph if n.metadata_props["bnnopt.phase"] == "forward" for v in n.outputs
    ]
    return max(v.dtype.itemsize * ir.Shape(dims(v)).numpy()[0] for v in made if v.dtype is not None)


def test_a_pooled_convolution_and_its_norm_are_one_node(net: Network) -> None:
    step = net.with_passes(*BITS)
    assert "BinaryConv" in ops(step, "forward")
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (1, [])
    assert "BinaryConvPoolBatchNormalizationSigns" in ops(step, "forward")
    assert not {"BinaryConv", "PackedMaxPool"} & {*ops(step, "forward")}
    assert apply(PASS, step) == (0, [])


def test_the_stem_as_well_where_it_writes_float16(net: Network) -> None:
    step = net.with_passes(*NARROW)
    assert apply(PASS, step)[0] == 3
    assert {
        "RealConvL1BatchNormalizationSigns",
        "BinaryConvPoolL1BatchNormalizationSigns",
    } <= {*ops(step, "forward")}
    assert "BinaryConvInputGradNormConvWeightGrad" in ops(step, "backward")
    assert "ConvWeightGrad" not in ops(step, "backward")


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_native, run_stock])
@pytest.mark.parametrize("passes", [BITS, NARROW], ids=["lossless", "lossy"])
def test_the_same_bits(net: Network, run, passes: list[str]) -> None:
    before = net.with_passes(*passes)
    after = net.with_passes(*passes)
    assert apply(PASS, after)[0] > 0
    assert_bit_equal(run(net, after), run(net, before))


def test_the_forward_pass_needs_less(net: Network) -> None:
    """A plan of the forward nodes alone: the whole map of int16 was 4 x 72 x 16 x 16 x 2 bytes."""
    passes = [*NARROW, "schedule"]
    before, after = net.with_passes(*passes), net.with_passes(*passes, PASS.name)
    plans = [make_plan(step) for step in (before, after)]
    assert plans[1].arena_bytes <= plans[0].arena_bytes
    assert PASS.name in {p.name for p in select("O3")} - {p.name for p in select("O2")}


STEM = [*NARROW, "input-gradient-sums", "pool-batch-norm-backward"]
EVERYWHERE = dataclasses.replace(PASS, least_kib=0)


@pytest.mark.parametrize(
    ("run", "shifted"),
    [
        (run_native, True),
        (run_native, False),
        (run_stock, True),
        pytest.param(run_stock, False, marks=pytest.mark.slow),
    ],
)
def test_a_stem_there_and_back(run, shifted: bool) -> None:
    """Its map is nowhere; what each tap of its convolution sees is summed, or not asked for."""
    net = small("tall")
    if not shifted:
        text = TALL.replace("    shifted = Add (x, shift)\n", "").replace("(shifted,", "(x,")
        net = network(text, {k: v for k, v in TALL_WEIGHTS.items() if k != "shift"})
    before, after = net.with_passes(*STEM), net.with_passes(*STEM)
    assert apply(EVERYWHERE, after)[0] == 2
    assert {"RealConvNormMaxPool"} <= {*ops(after, "forward")}
    grad = node(after, "RealConvNormMaxPoolGrad")
    assert bool(grad.outputs[1].name) == shifted
    gone = {"RealConv", "PackedMaxPool", "ThresholdPack", "ConvWeightGrad", "ConvTapSums", "Relu"}
    assert not gone & {*ops(after)}
    assert_bit_equal(run(net, after), run(net, before))
    assert apply(EVERYWHERE, after)[0] == 0


def test_a_stem_whose_map_is_read_elsewhere_stays() -> None:
    """Without a pass that sums its taps the gradient of the shift reads the map's gradient."""
    net = small("tall")
    step = net.with_passes(*NARROW, "pool-batch-norm-backward")
    count, skipped = apply(EVERYWHERE, step)
    assert count == 1
    assert ("c0.grad", "ConvInputGrad reads it too") in skipped


@pytest.mark.slow
def test_a_large_batch_of_large_images_fits_8_gib(tmp_path: Path) -> None:
    """ResNetE-18 at 224 x 224, as docs/memory.md has it; without the pass it does not."""
    path, peaks = tmp_path / "resnet-e-18.onnx", []
    ir.save(build("resnet-e-18"), path)
    for left_out in ([], [PASS.name]):
        made = bnnopt.optimize(path, batch_size=4096, level="O3", disable=left_out)
        peaks.append(made.report.optimized.peak_bytes / 2**30)
    assert peaks[0] <= 8 < 10 < peaks[1]


def test_what_is_left_says_why(net: Network) -> None:
    alone = dataclasses.replace(PASS, least_kib=0)
    step = small("binary").with_passes(*BITS)
    count, skipped = apply(alone, step)
    assert count == 0
    assert "a block of it" in skipped[0][1]
    step = net.with_passes("packed-products", "sign-pack", "fuse-batch-norm-signs")
    count, skipped = apply(PASS, step)
    assert count == 0
    with pytest.raises(UsageError, match="least_kib"):
        BlockFilters(least_kib=-1)
