"""float16-activations: what only a batch norm reads of a real convolution is half."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnnopt.analysis import saved_bytes
from bnnopt.passes.float16_activations import Float16Activations
from tests.graphs import apply, ops, run_native, run_stock, value
from tests.passes.networks import small

PASS = Float16Activations()


def test_the_output_that_batch_norm_reads_is_half() -> None:
    step = small("binary").with_passes("redirect-consumers", "packed-products")
    before = saved_bytes(step)
    assert apply(PASS, step) == (1, [])
    assert value(step, "c1").dtype == ir.DataType.FLOAT16
    assert ops(step).count("RealConv") == 1
    assert before - saved_bytes(step) == 2 * 4 * 4 * 6 * 6
    assert apply(PASS, step) == (0, [])


def test_what_is_computed_again_is_half_as_well() -> None:
    names = ("redirect-consumers", "sign-pack", "recompute-binary-products", "packed-products")
    step = small("binary").with_passes(*names)
    assert ops(step).count("Conv") == 2
    assert apply(PASS, step)[0] == 2
    assert not ops(step).count("Conv")


def test_other_readers_are_a_reason() -> None:
    step = small("float").step()
    count, skipped = apply(PASS, step)
    assert count == 2
    assert not skipped
    step = small("dropout").step()
    assert apply(PASS, step) == (0, [])
    count, skipped = apply(PASS, small("binary").step())
    assert (count, skipped) == (1, [("c2", "MaxPool reads it, in float32")])


@pytest.mark.parametrize("run", [run_native, run_stock])
def test_gradients_keep_their_direction(run) -> None:
    net = small("float")
    step = net.step()
    apply(PASS, step)
    exact, found = run(net, net.step(), 1), run(net, step, 1)
    np.testing.assert_allclose(found.losses, exact.losses, rtol=1e-2)
    assert found.losses != exact.losses
    for name, gradient in exact.gradients[0].items():
        a, b = found.gradients[0][name].ravel(), gradient.ravel()
        assert a @ b > 0.98 * np.linalg.norm(a) * np.linalg.norm(b), name
