"""state-8bit: momenta in int8, with a unit a filter that follows the step before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.ops import dims
from bnnopt.passes.state_8bit import State8bit
from bnnopt.plan import make_plan
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.training_step import Role, TrainingStep
from tests.graphs import Network, apply, ops, run_native, run_stock, zoo
from tests.passes.networks import small

PASS = State8bit()
HALF = "float16-state"
SIGNS = ("binary-weight-gradients", "drop-adam-second-moment")
OPTIMIZERS: dict[str, dict[str, object]] = {
    "momentum": {"momentum": 0.9},
    "adam": {"optimizer": "adam"},
    "bop": {"optimizer": "bop"},
}


def rewritten(net: Network, *earlier: str) -> TrainingStep:
    step = net.with_passes(*earlier)
    assert apply(PASS, step)[0] > 0
    return step


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_momenta_of_filters_become_int8_and_get_peaks(optimizer: str) -> None:
    step = rewritten(small("binary", **OPTIMIZERS[optimizer]), HALF)
    narrow = [v for v in step.inputs(Role.STATE) if v.dtype == ir.DataType.INT8]
    assert narrow
    state = {str(v.name): dims(v) for v in step.inputs(Role.STATE)}
    for m in narrow:
        assert state[f"{m.name}.peaks"] == (dims(m)[0], 4)
    assert apply(PASS, step) == (0, [])


def test_a_byte_less_a_weight_but_for_the_peaks() -> None:
    net = zoo("mlp", 4, "adam")
    before = make_plan(net.with_passes(*SIGNS, HALF))
    after = make_plan(rewritten(net, *SIGNS, HALF))
    n_filters = 4 * 256 + 10
    saved = 399_872 - 16 * n_filters
    assert before.persistent_bytes - after.persistent_bytes == saved


def test_what_is_left_says_why() -> None:
    step = small("binary", optimizer="adam").step()
    count, skipped = apply(PASS, step)
    assert count == 0
    assert {reason for _, reason in skipped} == {"its momentum is not in float16"}
    step = small("dense", optimizer="adam").with_passes(HALF)
    count, skipped = apply(PASS, step)
    assert count == 0
    assert skipped[0][1] == "a filter of 6 elements: its unit needs as much"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_first_step_is_that_of_float16(optimizer: str) -> None:
    """It reads no momentum, and writes weights before it rounds one."""
    net = small("binary", **OPTIMIZERS[optimizer])
    for run in (run_native, run_stock):
        wide = run(net, net.with_passes(*SIGNS, HALF), 1)
        found = run(net, rewritten(net, *SIGNS, HALF), 1)
        assert found.losses == wide.losses
        for name in net.weights:
            np.testing.assert_array_equal(found.persistent[name], wide.persistent[name])


# How near the momentum is -----------------------------------------------------------------------


def momenta(
    gradients: list[Array], keep: float, *, headroom: float = 2
) -> tuple[list[Array], list[Array], list[Array]]:
    """(exact, ours in float32, units) after each step of SGD with momentum."""
    shape = gradients[0].shape
    w, lr = np.zeros(shape, np.float16), np.array(0, np.float32)
    q, peaks = np.zeros(shape, np.int8), np.zeros((shape[0], 4), np.float32)
    exact, found = np.zeros(shape), ([], [], [])
    for number, dw in enumerate(gradients, 1):
        exact = keep * exact + dw
        unit = peaks[:, (number - 1) % 4, None] * np.float32(headroom / 127)
        _, peaks, q = KERNELS["ByteMomentumStep"](
            *(w, dw, peaks, q, lr, np.array(number)),
            momentum=keep, stochastic=0, seed=5, headroom=headroom,
        )  # fmt: skip
        for history, value in zip(found, (exact, q * unit, unit), strict=True):
            history.append(value)
    return found


def drawn(n_steps: int, mean: float = 0.3) -> list[Array]:
    random = np.random.default_rng(3)
    return [(random.standard_normal((8, 500)) + mean).astype(np.float32) for _ in range(n_steps)]


def test_the_momentum_is_unbiased_and_its_noise_is_below_its_unit() -> None:
    exact, ours, units = momenta(drawn(60), 0.9)
    error = ours[-1] - exact[-1]
    assert np.abs(error).max() < 5 * units[-1].max()
    assert float(np.sqrt(np.mean(error**2))) < 1.5 * units[-1].max()  # 0.5 a step / sqrt(1 - 0.81)
    assert abs(float(error.mean())) < 0.1 * units[-1].max()


def test_what_is_below_a_unit_arrives_and_to_nearest_it_would_not() -> None:
    """One large element sets the unit; the others' steps are a hundredth of it."""
    dw = np.full((1, 20_000), 1e-4, np.float32)
    dw[0, 0] = 1
    exact, ours, units = momenta([dw] * 200, 0.99, headroom=1.125)
    assert float(ours[-1][0, 1:].mean()) == pytest.approx(float(exact[-1][0, 1]), rel=0.1)
    assert np.round(1e-4 / units[-1].item()) == 0


def test_what_grows_too_fast_is_cut_off_for_one_step() -> None:
    dw = [np.ones((1, 20), np.float32)] * 3
    dw.append(np.full((1, 20), 100, np.float32))
    exact, ours, units = momenta([*dw, *dw[:1] * 30], 0.5)
    np.testing.assert_allclose(ours[3], 127 * units[3].item())
    assert ours[3].max() < 0.1 * exact[3].max()
    np.testing.assert_allclose(ours[-1], exact[-1], atol=2 * units[-1].item())


def test_rows_have_units_of_their_own() -> None:
    scale = np.float32([[1e-20], [1.0], [1e6], [0.0]])
    dw = np.random.default_rng(1).standard_normal((4, 400)).astype(np.float32) * scale
    exact, ours, _ = momenta([dw] * 10, 0.9)
    for row in range(3):
        error = np.linalg.norm(ours[-1][row] - exact[-1][row])
        assert error < 0.1 * np.linalg.norm(exact[-1][row]), row
    assert (ours[-1][3] == 0).all()


# The whole way: compiler, folder, session -------------------------------------------------------


def test_training_goes_down() -> None:
    net = zoo("mlp", 8, "adam")
    losses = run_native(net, rewritten(net, *SIGNS, HALF), 8, repeat=True).losses
    assert losses[-1] < 0.9 * losses[0]


@pytest.fixture(scope="module", params=["adam", "bop"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("level-3") / "out"
    bnnopt.optimize("models/mlp.onnx", level="O3", optimizer=request.param, batch_size=5).save(made)
    return made


def batch(number: int) -> tuple[Array, Array]:
    random = np.random.default_rng(number)
    return random.standard_normal((5, 784)).astype(np.float32), random.integers(0, 10, 5)


@pytest.mark.slow
def test_a_session_resumes_bit_exactly_on_any_number_of_threads(
    folder: Path, tmp_path: Path
) -> None:
    session, other = TrainingSession(folder, threads=1), TrainingSession(folder, threads=2)
    for number in range(5):
        session.step(*batch(number))
    session.save(tmp_path / "c.safetensors")
    first = [session.step(*batch(number)) for number in range(5, 11)]
    other.resume(tmp_path / "c.safetensors")
    assert [other.step(*batch(number)) for number in range(5, 11)] == first
    for name, array in session.parameters().items():
        np.testing.assert_array_equal(array, other.parameters()[name])


def test_the_level_has_it_in_its_fused_steps() -> None:
    optimized = bnnopt.optimize("models/mlp.onnx", level="O3", batch_size=5)
    record = next(p for p in optimized.report.passes if p.name == PASS.name)
    assert record.rewrites == 5
    step = zoo("mlp", 4, "adam").with_passes(*SIGNS, "packed-products", HALF, PASS.name)
    assert "SignByteFirstMomentStep" in ops(step, "update")
