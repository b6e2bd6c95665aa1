"""int4-gradients: dy as packed integers; gradients turn by a bound, and the unit is an option."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.errors import DivergedError, UsageError
from bnnopt.passes import make_pass
from bnnopt.passes.int4_gradients import Int4Gradients
from bnnopt.training_step import is_loss_gradient, readers
from bnnopt.verification import verify_folder
from tests.cli.helpers import MODELS
from tests.graphs import apply, cosine, node, ops, run_native, run_stock, zoo
from tests.passes.networks import small
from tests.passes.test_int8_gradients import EARLIER

PASS = Int4Gradients()
RUNNERS = {"native": run_native, "onnxruntime": run_stock}


def test_the_products_read_packed_integers() -> None:
    step = small("binary").with_passes(*EARLIER)
    assert apply(PASS, step)[0] == 1
    pack = node(step, "Int4Pack")
    dy, (packed, unit) = pack.inputs[0], pack.outputs
    assert dy is not None
    assert readers(dy) == [pack]
    assert (packed.dtype, tuple(packed.shape)) == (ir.DataType.UINT8, (4, 2))
    assert sorted(n.op_type for n in readers(packed)) == [
        "BinaryGemmInputGradInt4",
        "BinaryGemmWeightGradInt4",
    ]
    assert unit.dtype == ir.DataType.FLOAT
    assert apply(PASS, step)[0] == 0


def test_what_a_pooling_makes_is_left_to_int8() -> None:
    step = small("binary").with_passes(*EARLIER, "pool-index")
    reasons = apply(PASS, step)[1]
    assert [reason for _, reason in reasons] == [
        "a pooling makes it: int8-gradients scatters integers"
    ]
    assert apply(make_pass("int8-gradients"), step)[0] == 1
    assert {"Int4Pack", "Int8Pack"} <= set(ops(step))


@pytest.mark.parametrize("backend", ["native", pytest.param("onnxruntime", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["binary", "residual"])
def test_gradients_turn_less_than_stated(name: str, backend: str) -> None:
    net, run = small(name, batch=16), RUNNERS[backend]
    step = net.with_passes(*EARLIER)
    assert apply(PASS, step)[0] > 0
    exact, found = run(net, net.with_passes(*EARLIER), 1), run(net, step, 1)
    assert found.losses == exact.losses
    turned = {n: cosine(found.gradients[0][n], g) for n, g in exact.gradients[0].items()}
    assert min(turned.values()) > PASS.min_cosine
    assert min(turned.values()) < 0.9999


def test_fewer_that_are_cut_off_give_a_larger_unit() -> None:
    net, units = small("residual", batch=16), []
    for one_in in (4, 2**20):
        step = net.with_passes(*EARLIER)
        apply(Int4Gradients(one_in), step)
        assert node(step, "Int4Pack").attributes["one_in"].as_int() == one_in
        units.append(run_native(net, step, 1).gradients[0])
    assert any(not np.array_equal(units[0][name], units[1][name]) for name in units[0])


@pytest.mark.parametrize("one_in", [0, 1, 2**21])
def test_a_share_that_makes_no_sense(one_in: int) -> None:
    with pytest.raises(UsageError, match=f"one_in is {one_in}, expected 2 to 1048576"):
        Int4Gradients(one_in)


@pytest.mark.slow
def test_verify_holds_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    enable = ["int4-gradients"]
    bnnopt.optimize(MODELS / "mlp.onnx", batch_size=32, level="O3", enable=enable).save(out)
    assert verify_folder(out, "native", n_steps=2).defect == ""


def test_an_overflow_is_refused() -> None:
    net = small("binary")
    step = net.with_passes(*EARLIER, PASS.name)
    seed = next(v for v in step.graph.initializers.values() if is_loss_gradient(v))
    seed.const_value = ir.tensor(np.array(np.inf, np.float32))
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match="would not be finite"):
        run_native(net, step, 1)


@pytest.mark.slow
def test_training_goes_down() -> None:
    net = zoo("cnv", 16, "adam")
    losses = run_native(net, net.with_passes(*EARLIER, PASS.name), 8, repeat=True).losses
    assert losses[-1] < 0.7 * losses[0]
