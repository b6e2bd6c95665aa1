"""prune-stored: weight gradients from the largest activations; everything else stays exact."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import bnnopt
from bnnopt.analysis import kept_values
from bnnopt.errors import UsageError
from bnnopt.passes.mask_pack import MaskPack
from bnnopt.passes.prune_stored import PruneStored
from bnnopt.verification import verify_folder
from tests.cli.helpers import MODELS
from tests.graphs import Trajectory, apply, cosine, network, node, ops, run_native, run_stock
from tests.passes.networks import small

PASS = PruneStored()
RUNNERS = {"native": run_native, "onnxruntime": run_stock}

PLAIN = """g (float[batch,2,8,8] x) => (float[batch,3] y) {
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1) r1 = Relu (c1)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r1, w2, b2) r2 = Relu (c2)
    p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
    f = Flatten (p2) y = Gemm <transB = 1> (f, w3, b3) }"""
SHAPES = {"w1": [4, 2, 3, 3], "b1": [4], "w2": [4, 4, 3, 3], "b2": [4], "w3": [3, 64], "b3": [3]}


def cosines(found: Trajectory, expected: Trajectory) -> dict[str, float]:
    """Of the first step's gradients."""
    return {n: cosine(g, expected.gradients[0][n]) for n, g in found.gradients[0].items()}


def test_only_the_weight_gradients_read_the_pruned_copy() -> None:
    step = network(PLAIN, SHAPES).step()
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (2, [])
    assert "BitmapConvWeightGrad" in ops(step, "backward")
    (use,) = node(step, "BitmapUnpack").outputs[0].uses()
    assert use.node.op_type == "Gemm"
    apply(MaskPack(), step)
    kept = {str(root.name) for root in kept_values(step)}
    assert not {"r1", "p2"} & kept
    assert {"r1.pruned", "r1.pruned.1", "r1.mask"} <= kept
    pack = node(step, "PrunedBitmapPack")
    assert pack.attributes["keep"].as_ints() == (51,) == (round(0.2 * 4 * 8 * 8),)
    assert pack.attributes["capacity"].as_int() == 1 + 4 * 51
    assert apply(PASS, step)[0] == 0


@pytest.mark.parametrize("backend", RUNNERS)
def test_gradients_turn_less_than_stated_and_only_those_of_weights(backend: str) -> None:
    net = network(PLAIN, SHAPES)
    reference = RUNNERS[backend](net, net.step(), 1)
    found = {}
    for sparsity in (0.5, 0.8, 0.98):
        step = net.step()
        apply(PruneStored(sparsity), step)
        pruned = RUNNERS[backend](net, step, 1)
        assert pruned.losses[0] == reference.losses[0]
        for name in ("w1", "b1", "b2", "b3"):
            exact = reference.gradients[0][name]
            assert pruned.gradients[0][name].tobytes() == exact.tobytes()
        found[sparsity] = min(cosines(pruned, reference).values())
    assert 1 > found[0.5] > found[0.8] > found[0.98]
    assert found[0.8] > PASS.min_cosine


def test_another_reader_is_a_reason() -> None:
    text = PLAIN.replace("c2 = Conv", "t = Tanh (r1) c2 = Conv").replace("(r1, w2, b2)", "(t, w2)")
    text = text.replace("r2 = Relu (c2)", "r2 = Add (c2, t)")
    step = network(text, {k: v for k, v in SHAPES.items() if k != "b2"}).step()
    _, skipped = apply(PASS, step)
    reasons = dict(skipped)
    assert reasons["t"].startswith("kept anyway: Mul")


def test_small_networks_have_their_own_reasons() -> None:
    count, _ = apply(PASS, small("float").step())
    assert count == 2


@pytest.mark.slow
def test_the_option_runs_it_and_verify_knows_its_bound(tmp_path: Path) -> None:
    model = MODELS / "relu-mini.onnx"
    result = bnnopt.optimize(model, batch_size=8, prune_stored=0.7)
    record = next(r for r in result.report.passes if r.name == "prune-stored")
    assert record.rewrites > 0
    assert not record.lossless
    result.save(tmp_path / "out")
    outcome = verify_folder(tmp_path / "out", "native", n_steps=1)
    assert not outcome.bit_equal
    assert not outcome.defect
    for wrong in (0, 1, 1.5):
        with pytest.raises(UsageError, match="--prune-stored"):
            bnnopt.optimize(model, batch_size=8, prune_stored=float(wrong))


@pytest.mark.parametrize(("sparsity", "bound"), [(0.75, 0.25), (0.8, 0.2236), (0.98, 0.0707)])
def test_the_bound_follows_the_sparsity(sparsity: float, bound: float) -> None:
    assert PruneStored(sparsity).min_cosine == pytest.approx(bound, abs=1e-4)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.98])
def test_one_sample_of_a_dense_layer_keeps_the_root_of_its_share(sparsity: float) -> None:
    """Of the squares, the largest elements keep their share or more: dw = dy y^T turns by that."""
    random = np.random.default_rng(0)
    for y in (random.standard_normal(100), np.ones(100), random.standard_cauchy(100)):
        kept = np.where(np.argsort(np.argsort(abs(y))) >= round(100 * sparsity), y, 0)
        dy = random.standard_normal(7)
        exact, pruned = np.outer(dy, y).ravel(), np.outer(dy, kept).ravel()
        cosine = exact @ pruned / np.linalg.norm(exact) / np.linalg.norm(pruned)
        assert cosine >= np.sqrt(1 - sparsity) - 1e-12


@pytest.mark.slow
def test_verify_reads_the_options_from_the_artifact(tmp_path: Path) -> None:
    """With another share in it the bound is another one."""
    optimized = bnnopt.optimize(MODELS / "relu-mini.onnx", batch_size=4, prune_stored=0.98)
    assert "prune-stored{sparsity=0.98}" in optimized.about.passes
    optimized.save(tmp_path / "out")
    assert not verify_folder(tmp_path / "out", "native", n_steps=1).defect
    passes = [spec.replace("0.98", "0.01") for spec in optimized.about.passes]
    dataclasses.replace(optimized, about=optimized.about._replace(passes=passes)).save(
        tmp_path / "out"
    )
    outcome = verify_folder(tmp_path / "out", "native", n_steps=1)
    assert outcome.min_cosine == pytest.approx(np.sqrt(0.99) / 2)
