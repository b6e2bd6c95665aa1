"""int8-latents: latent weights in int8, none of which is 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.errors import UsageError
from bnnopt.ops import dims
from bnnopt.passes import PASSES, run_passes
from bnnopt.passes.int8_latents import Int8Latents
from bnnopt.plan import make_plan
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.kernels.latents import nearest, places, widened
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.training_step import Role, TrainingStep, latent_units
from bnnopt.verification import verify_folder
from tests.graphs import Network, apply, run_native, run_stock, write, zoo
from tests.passes.networks import BINARY, BINARY_WEIGHTS, small

PASS = Int8Latents()
KERNEL_PASSES = ("redirect-consumers", "sign-pack", "packed-products")
SIGNS = ("binary-weight-gradients", "drop-adam-second-moment")
HALF = (*KERNEL_PASSES, "float16-state")
UNIT = 2.0**-9


def rewritten(net: Network, *earlier: str) -> TrainingStep:
    step = net.with_passes(*earlier)
    assert apply(PASS, step)[0] > 0
    return step


def test_weights_of_which_signs_are_read_become_int8() -> None:
    step = rewritten(small("binary", optimizer="adam"), *HALF)
    narrow = {str(v.name) for v in step.inputs(Role.PARAMETER) if v.dtype == ir.DataType.INT8}
    assert narrow == {"w1", "w2", "w3"} == latent_units(step).keys()
    clips = [n for n in step.graph if n.op_type == "ClipGrad"]
    makers = [n.inputs[1].producer() for n in clips if n.inputs[1] is not None]
    assert all(maker is not None and maker.op_type != "WidenLatents" for maker in makers)
    assert len(clips) == len(makers) == 2  # of the activations
    assert apply(PASS, step) == (0, [])


def test_half_the_bytes_of_the_weights() -> None:
    net = zoo("mlp", 4, "adam")
    before, after = net.with_passes(*SIGNS, *HALF), rewritten(net, *SIGNS, *HALF)
    elements = sum(int(np.prod(dims(v))) for v in after.inputs(Role.PARAMETER) if len(dims(v)) > 1)
    saved = make_plan(before).persistent_bytes - make_plan(after).persistent_bytes
    assert saved == elements


def test_what_is_left_says_why() -> None:
    step = small("binary", optimizer="adam").step()
    count, skipped = apply(PASS, step)
    assert count == 0
    assert {reason for _, reason in skipped} <= {"it is not in float16"}
    step = small("binary", optimizer="adam").with_passes(*SIGNS, *HALF)
    count, skipped = apply(Int8Latents(unit=2.0**-6), step)
    assert count == 0
    assert skipped[0][1] == "its estimator ends at 1, 128 units do not fit"
    assert apply(PASS, small("float", optimizer="adam").with_passes(*HALF)) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [HALF, (*SIGNS, *HALF), (*SIGNS, *HALF, "state-8bit")])
def test_backends_and_fused_steps_agree(earlier: tuple[str, ...]) -> None:
    """One step: the same integers, but where real sums in another order turn a rounding."""
    net = small("binary", optimizer="adam")
    step = rewritten(net, *earlier)
    fused = TrainingStep(step.model.clone())
    run_passes(fused, [p for p in PASSES if p.name in ("immediate-update", "fuse-updates")])
    plain = run_native(net, step, 1, with_gradients=False).persistent
    at_once = run_native(net, fused, 1, with_gradients=False).persistent
    stock = run_stock(net, step, 1).persistent
    for name in latent_units(step):
        assert plain[name].dtype == np.int8
        np.testing.assert_array_equal(at_once[name], plain[name])
        assert np.mean(stock[name] != plain[name]) < 0.02
        assert np.abs(stock[name].astype(int) - plain[name]).max() <= 1


def test_the_mean_is_exact_and_no_weight_is_0() -> None:
    x = np.linspace(-0.3, 0.3, 601, dtype=np.float32).repeat(2000)
    q = KERNELS["RoundToLatents"](x, np.array(3), unit=UNIT, seed=5)
    w = KERNELS["WidenLatents"](q, unit=UNIT).reshape(601, 2000)
    assert np.abs(w).min() == UNIT / 2
    inside = np.abs(x[::2000]) < 127 * UNIT
    error = w.mean(axis=1)[inside] - x[::2000][inside]
    assert np.abs(error).max() < 5 * UNIT / 2 / np.sqrt(2000)
    assert np.abs(error).mean() < UNIT / 50
    towards = KERNELS["RoundToLatents"](x, np.array(3), unit=UNIT, seed=5) >= 0
    near = np.abs(x) < UNIT / 8
    assert 0.3 < towards[near].mean() < 0.7, "signs near 0 are by chance, not all plus"


@pytest.mark.parametrize("bound", [1.0, 0.1, 0.0005])
def test_bounds_are_those_of_what_integers_stand_for(bound: float) -> None:
    low, high = places(bound, UNIT)
    w = widened(np.arange(-128, 128, dtype=np.int8), UNIT)
    kept = [q for q, value in zip(range(-128, 128), w, strict=True) if abs(value) <= bound]
    assert (low, high) == ((min(kept), max(kept)) if kept else (-1, 0))


@pytest.mark.slow
def test_a_session_reads_them_as_floats(tmp_path: Path) -> None:
    path = write(BINARY, BINARY_WEIGHTS, tmp_path)
    enable = ["int8-latents"]
    bnnopt.optimize(path, batch_size=4, level="O3", enable=enable, ste=["clipped"]).save(
        tmp_path / "out"
    )
    session = TrainingSession(tmp_path / "out")
    assert session.about.dtypes["w2"] == "int8"
    start = session.parameters()["w2"]
    source = bnnopt.optimize(path, batch_size=4, level="O0").weights["w2"]
    inside = np.abs(source) < 127 * UNIT
    assert np.abs(start - source)[inside].max() <= UNIT / 2
    np.testing.assert_array_equal(np.sign(start), np.where(source < 0, -1, 1))
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((4, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, 4)
    session.step(*batch)
    session.save(tmp_path / "c.safetensors")
    want = session.step(*batch), session.parameters()["w2"].tobytes()
    session.resume(tmp_path / "c.safetensors")
    assert (session.step(*batch), session.parameters()["w2"].tobytes()) == want
    session.load_parameters({"w2": start})
    np.testing.assert_array_equal(session.parameters()["w2"], start)
    session.clip_latents(0.1)
    assert np.abs(session.parameters()["w2"]).max() <= 0.1
    for backend in ("native", "onnxruntime"):
        assert not verify_folder(tmp_path / "out", backend).defect


def test_rounding_to_the_nearest_is_noticed() -> None:
    """The control: integers that stand still are not what chance gives."""
    x = np.full(4096, 0.3 * UNIT, np.float32)
    drawn = KERNELS["RoundToLatents"](x, np.array(1), unit=UNIT, seed=1)
    assert len(np.unique(drawn)) == 2
    assert len(np.unique(nearest(x, UNIT))) == 1


def test_a_unit_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="unit is 0"):
        Int8Latents(unit=0.0)
