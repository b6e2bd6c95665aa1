"""l1-batch-norm: the mean absolute deviation instead of the standard deviation."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.passes import PASSES, map_kernels
from bnnopt.passes.l1_batch_norm import L1BatchNorm
from tests.graphs import apply, assert_bit_equal, feeds_of, ops, run_native, run_stock, zoo
from tests.passes.networks import NETWORKS, small

PASS = L1BatchNorm()
WITH_NORMS = [name for name in NETWORKS if name != "dropout"]


@pytest.mark.parametrize("name", WITH_NORMS)
def test_every_batch_norm_and_its_gradient_are_replaced(name: str) -> None:
    step = small(name).step()
    n_norms = ops(step).count("BatchNormalizationTraining")
    assert apply(PASS, step) == (2 * n_norms, [])
    assert ops(step).count("L1BatchNormalizationTraining") == n_norms
    assert ops(step).count("L1BatchNormalizationGrad") == n_norms
    assert apply(PASS, step) == (0, [])


def test_the_first_result_and_the_running_statistics_are_those_of_the_formula() -> None:
    """c1 = conv(x, sign(w1)) has no parameter that changes in the first step."""
    net = small("binary")
    found, plain = (run_native(net, step, 1) for step in (net.with_passes(PASS.name), net.step()))
    x = feeds_of(net.step(), 1)["x"].astype(np.float64)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    c1 = np.einsum("nchwij,mcij->nmhw", windows, np.where(net.weights["w1"] < 0, -1, 1))
    mean = c1.mean((0, 2, 3))
    deviation = np.abs(c1 - mean[:, None, None]).mean((0, 2, 3))
    wanted = 0.9 * net.weights["var1"] + 0.1 * deviation**2
    np.testing.assert_allclose(found.persistent["var1"], wanted, rtol=1e-5)
    np.testing.assert_array_equal(found.persistent["m1"], plain.persistent["m1"])
    assert not np.allclose(plain.persistent["var1"], wanted, rtol=1e-2)


def test_training_goes_down() -> None:
    net = small("binary", batch=8)
    losses = run_native(net, net.with_passes(PASS.name), 12, repeat=True).losses
    assert losses[-1] < 0.9 * losses[0]


def test_backends_agree() -> None:
    net = small("float")
    native, stock = (run(net, net.with_passes(PASS.name), 1) for run in (run_native, run_stock))
    np.testing.assert_allclose(native.losses[0], stock.losses[0], rtol=1e-5)
    for name, wanted in stock.gradients[0].items():
        bound = 1e-4 * float(np.abs(wanted).max())
        np.testing.assert_allclose(native.gradients[0][name], wanted, rtol=0, atol=bound)


def test_the_reference_to_compare_with_is_changed_as_well() -> None:
    net = small("binary")
    reference = map_kernels(net.step(), [PASS])
    assert "L1BatchNormalizationTraining" in ops(reference)
    assert "L1BatchNormalizationTraining" not in ops(map_kernels(net.step(), []))
    assert_bit_equal(run_native(net, net.with_passes(PASS.name)), run_native(net, reference))


def test_what_is_rebuilt_of_a_batch_norm_is_the_same() -> None:
    names = [p.name for p in PASSES if p.lossless]
    net = zoo("relu-mini")
    step = net.with_passes(PASS.name, *names)
    assert "BatchNormalizationApply" in ops(step)
    assert_bit_equal(run_native(net, step), run_native(net, map_kernels(net.step(), [PASS])))
