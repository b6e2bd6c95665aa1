"""pool-batch-norm-backward: the gradient of a pooled batch norm from the pool and a bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnnopt.analysis import kept_values, size_bytes
from bnnopt.passes import PASSES
from bnnopt.passes.pool_batch_norm_backward import PoolBatchNormBackward
from bnnopt.training_step import TrainingStep
from tests.graphs import Network, apply, network, node, ops, run_native, run_stock
from tests.passes.networks import STEM, STEM_WEIGHTS

PASS = PoolBatchNormBackward()
LOSSLESS = [p.name for p in PASSES if p.lossless]
BEFORE = ["l1-batch-norm", *LOSSLESS]
BARE = STEM.replace("r0 = Relu (n0)\n", "").replace("(r0)", "(n0)")
ALSO_READ = "t = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (r0) u = Add (q, t)"
SHARED = STEM.replace("f = Flatten (q)", f"{ALSO_READ} f = Flatten (u)")
each_stem = pytest.mark.parametrize("text", [STEM, BARE], ids=["relu", "bare"])


def stem(text: str = STEM, batch: int = 8) -> Network:
    net = network(text, STEM_WEIGHTS, batch=batch)
    net.weights["g0"] = np.array([1.5, -0.7, 0.2, 1], np.float32)
    net.weights["b0"] = np.array([0.3, 0.5, -0.2, 0], np.float32)
    return net


def kept(step: TrainingStep) -> dict[str | None, int]:
    return {root.name: size_bytes(root) for root in kept_values(step)}


@pytest.mark.slow
@each_stem
def test_one_bit_is_kept_instead_of_the_input(text: str) -> None:
    step = stem(text).with_passes(*BEFORE)
    before = kept(step)
    assert apply(PASS, step) == (1, [])
    after = kept(step)
    assert "c0" in before
    assert "c0" not in after
    sides = [name for name in after if name is not None and name.endswith(".sides")]
    assert [after[name] for name in sides] == [8 * 4 * 8 * 8 // 8]
    assert not {"PackedMaxPoolGrad", "SignPack"} & set(ops(step))
    assert apply(PASS, step) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_native, run_stock], ids=["native", "onnxruntime"])
@each_stem
def test_gradients_are_those_of_the_chain(text: str, run) -> None:
    """Scales of any sign; in float32 nothing but rounding is lost."""
    net = stem(text, batch=16)
    exact = run(net, net.with_passes(*BEFORE), 1)
    found = run(net, net.with_passes(*BEFORE, PASS.name), 1)
    assert found.losses == exact.losses
    for name, gradient in exact.gradients[0].items():
        scale = max(np.abs(gradient).max(), 1e-3)
        np.testing.assert_allclose(
            found.gradients[0][name], gradient, 0, 2e-3 * scale, err_msg=name
        )


@pytest.mark.slow
def test_behind_float16_activations() -> None:
    net, names = stem(batch=16), ["l1-batch-norm", "float16-activations", *LOSSLESS]
    exact = run_native(net, net.with_passes(*names), 1).gradients[0]
    found = run_native(net, net.with_passes(*names, PASS.name), 1).gradients[0]
    for name, gradient in exact.items():
        a, b = found[name].ravel(), gradient.ravel()
        assert a @ b >= PASS.min_cosine * np.linalg.norm(a) * np.linalg.norm(b), name


def test_its_gradient_maps_are_half_behind_float16_gradients() -> None:
    step = stem().with_passes(*[p.name for p in PASSES])
    grad = node(step, "L1BatchNormalizationPoolGrad")
    kinds = [v.dtype for v in (grad.inputs[0], grad.inputs[1], grad.outputs[0]) if v is not None]
    assert kinds == [ir.DataType.FLOAT16] * 3


@pytest.mark.parametrize(
    ("text", "names", "reason"),
    [
        (STEM, LOSSLESS, "it pools something else than an L1 batch norm"),
        (SHARED, BEFORE, "the gradient of 'n0' comes from elsewhere too"),
    ],
    ids=["L2", "shared"],
)
def test_reasons(text: str, names: list[str], reason: str) -> None:
    count, skipped = apply(PASS, stem(text).with_passes(*names))
    assert count == 0
    assert [found for _, found in skipped] == [reason]


def test_training_goes_down() -> None:
    net = stem()
    names = [p.name for p in PASSES]
    losses = run_native(net, net.with_passes(*names), 20, repeat=True).losses
    assert losses[-1] < 0.8 * losses[0]
