"""bnn-batch-norm-backward: the gradient of a batch norm from the bits of its result."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.analysis import saved_bytes
from bnnopt.passes import PASSES
from bnnopt.passes.bnn_batch_norm_backward import BnnBatchNormBackward
from bnnopt.passes.fuse_batch_norm_signs import FuseBatchNormSigns
from bnnopt.training_step import TrainingStep
from tests.graphs import Network, apply, cosine, node, ops, run_native, run_stock, zoo
from tests.passes.networks import NETWORKS, small

PASS = BnnBatchNormBackward()
LOSSLESS = [p.name for p in PASSES if p.lossless]
BEFORE_FUSION = LOSSLESS[: LOSSLESS.index(FuseBatchNormSigns.name)]
each_norm = pytest.mark.parametrize("norm", [(), ("l1-batch-norm",)], ids=["L2", "L1"])


def fused(net: Network, *also: str) -> TrainingStep:
    return net.with_passes(*BEFORE_FUSION, FuseBatchNormSigns.name, *also)


@each_norm
def test_the_input_is_neither_kept_nor_made_again(norm: tuple[str, ...]) -> None:
    step = fused(small("binary"), *norm)
    before = saved_bytes(step)
    assert ops(step, "rebuild").count("BinaryConv") == 1
    assert apply(PASS, step) == (2, [])
    assert ops(step).count("BatchNormalizationSignsGrad") == 2
    assert not {"MaskedGrad", "BatchNormalizationGrad"} & set(ops(step))
    assert not {"BinaryConv", "Conv", "MaxPool"} & set(ops(step, "rebuild"))
    tables = 2 if norm else 1
    assert saved_bytes(step) == before - 2 * 4 * 4 + tables * 2 * 4 * 4 * 4  # means go, levels come
    assert apply(PASS, step) == (0, [])


def test_both_tables_are_one_in_l2() -> None:
    step = fused(small("binary"))
    apply(PASS, step)
    grad, norm = node(step, "BatchNormalizationSignsGrad"), node(step, "BatchNormalizationSigns")
    assert grad.inputs[5] is grad.inputs[6]
    assert not norm.outputs[7].name


@each_norm
def test_a_shortcut_and_the_last_layer_keep_the_exact_gradient(norm: tuple[str, ...]) -> None:
    step = fused(small("residual"), *norm)
    count, skipped = apply(PASS, step)
    assert count == 0
    assert len(skipped) == 3
    assert all(reason.endswith("is not only signs and mask") for _, reason in skipped)


def test_another_estimator_is_a_reason() -> None:
    step = fused(small("binary", ste=["identity"]))
    count, skipped = apply(PASS, step)
    assert count == 0
    assert {reason for _, reason in skipped} == {"its estimator is not the clipped one"}


@pytest.mark.slow
@each_norm
@pytest.mark.parametrize("name", ["mlp", "cnv"])
def test_gradients_stay_within_the_stated_bound(name: str, norm: tuple[str, ...]) -> None:
    net = zoo(name, 8)
    plain = run_native(net, net.with_passes(*LOSSLESS, *norm), 1).gradients[0]
    found = run_native(net, net.with_passes(*LOSSLESS, *norm, PASS.name), 1).gradients[0]
    cosines = {parameter: cosine(found[parameter], plain[parameter]) for parameter in plain}
    assert 0.97 <= min(cosines.values()) < 1, cosines  # beta is trained, gamma is not


def test_a_trained_gamma_stays_within_the_stated_bound() -> None:
    net = small("binary", batch=64)
    plain = run_native(net, net.with_passes(*LOSSLESS), 1).gradients[0]
    found = run_native(net, net.with_passes(*LOSSLESS, PASS.name), 1).gradients[0]
    cosines = {parameter: cosine(found[parameter], plain[parameter]) for parameter in plain}
    assert min(cosines.values()) >= PASS.min_cosine, cosines


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_native, run_stock], ids=["native", "onnxruntime"])
@each_norm
def test_trained_scales_of_any_sign_and_size(norm: tuple[str, ...], run) -> None:
    """gamma negative, near 0 and large."""
    net = small("binary", batch=16)
    net.weights["g1"] = np.array([-1.5, 1e-3, 0.4, 3], np.float32)
    net.weights["b1"] = np.array([0.2, 0.5, -0.3, 0], np.float32)
    plain = run(net, net.with_passes(*LOSSLESS, *norm), 1).gradients[0]
    found = run(net, net.with_passes(*LOSSLESS, *norm, PASS.name), 1).gradients[0]
    for parameter in plain.keys() - {"g1"}:
        assert cosine(found[parameter], plain[parameter]) >= 0.95, parameter
    assert np.isfinite(found["g1"]).all()
    assert abs(found["g1"][1]) < 1e-6  # all bits of this channel are the same: they say nothing


@pytest.mark.parametrize("name", NETWORKS)
def test_training_goes_down(name: str) -> None:
    net = small(name, batch=8)
    step = net.with_passes(*LOSSLESS, PASS.name)
    losses = run_native(net, step, 12, repeat=True).losses
    assert losses[-1] < losses[0]
