"""input-gradient-sums: sums of a convolution's input gradient, without the gradient."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.passes.input_gradient_sums import InputGradientSums
from tests.graphs import apply, network, ops, run_native, run_stock
from tests.passes.networks import SHIFTED, SHIFTED_WEIGHTS, small

PASS = InputGradientSums()


def test_the_gradient_of_the_input_is_gone() -> None:
    step = small("shifted").step()
    assert ops(step).count("ConvInputGrad") == 1
    assert apply(PASS, step) == (1, [])
    assert not ops(step).count("ConvInputGrad")
    assert ops(step).count("ConvTapSums") == 1
    assert apply(PASS, step) == (0, [])


@pytest.mark.parametrize("run", [run_native, run_stock], ids=["native", "onnxruntime"])
def test_gradients_are_equal_but_for_the_order_of_sums(run) -> None:
    net = small("shifted", batch=5)
    step = net.step()
    apply(PASS, step)
    exact, found = run(net, net.step(), 1).gradients[0], run(net, step, 1).gradients[0]
    assert np.abs(exact["shift"]).min() > 1e-4
    for name, gradient in exact.items():
        np.testing.assert_allclose(found[name], gradient, rtol=2e-5, atol=1e-6)


def test_other_axes_are_a_reason() -> None:
    """A shift of every row: not the sum of a whole plane."""
    weights = {**SHIFTED_WEIGHTS, "shift": [1, 3, 9, 1]}
    count, skipped = apply(PASS, network(SHIFTED, weights).step())
    assert count == 0
    assert [reason for _, reason in skipped] == ["it sums over other axes than batch and space"]
