"""float16-state: weights and optimiser state in half precision, with updates that arrive."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.errors import UsageError
from bnnopt.ops import dims
from bnnopt.passes.float16_state import Float16State
from bnnopt.plan import make_plan
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.artifact import read_program
from bnnopt.runtime.format import EVALUATION, TRAINING, statistics
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.library import portable_kernels
from bnnopt.training_step import Role, TrainingStep, readers
from tests.graphs import (
    BATCH,
    Network,
    apply,
    assert_bit_equal,
    network,
    ops,
    run_native,
    run_stock,
    value,
    write,
    zoo,
)
from tests.passes.networks import NETWORKS, small

PASS = Float16State()
NEAREST = Float16State(stochastic=False)
ALGORITHM_2 = ("binary-weight-gradients", "drop-adam-second-moment")
CODECS = (
    *("redirect-consumers", "sign-pack", "recompute-binary-products"),
    *("mask-pack", "pool-index", "packed-products"),
)
OPTIMIZERS: dict[str, dict[str, object]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw"},
    "rmsprop": {"optimizer": "rmsprop"},
}


def rewritten(net: Network, *earlier: str, pass_: Float16State = PASS) -> TrainingStep:
    step = net.with_passes(*earlier)
    assert apply(pass_, step)[0] > 0
    return step


def halves(step: TrainingStep) -> set[str]:
    inputs = step.inputs(Role.PARAMETER, Role.STATE)
    return {str(v.name) for v in inputs if v.dtype == ir.DataType.FLOAT16}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_matrices_and_their_state_become_half(name: str, optimizer: str) -> None:
    step = rewritten(small(name, **OPTIMIZERS[optimizer]))
    for v in step.inputs(Role.PARAMETER, Role.STATE):
        assert (v.name in halves(step)) == (len(dims(v)) > 1), v.name
    assert apply(PASS, step) == (0, [])


def test_half_of_the_bytes_of_weights_and_state() -> None:
    net = zoo("mlp", 4, "adam")
    before, after = make_plan(net.step()), make_plan(rewritten(net))
    matrices = 399_872 * 3
    assert before.persistent_bytes - after.persistent_bytes == 2 * matrices


def test_signs_are_packed_from_the_half_weights_themselves() -> None:
    step = small("binary").with_passes(*ALGORITHM_2, *CODECS)
    assert apply(PASS, step)[0] == 3
    packs = [n for n in step.graph if n.op_type == "BinarizePack" and n.inputs[0].name == "w2"]
    assert packs
    assert not [n for n in step.graph if n.op_type == "Cast" and n.inputs[0].name == "w2"]


def test_no_float32_copy_outlives_its_reader() -> None:
    step = rewritten(small("float"))
    nodes = list(step.graph)
    casts = [n for n in nodes if n.op_type == "Cast"]
    assert casts
    for cast in casts:
        (use,) = cast.outputs[0].uses()
        assert nodes.index(use.node) == nodes.index(cast) + 1


def widened(step: TrainingStep) -> dict[str, list[str]]:
    """What reads which weights as halves."""
    found: dict[str, list[str]] = {}
    for view in [node for node in step.graph if node.op_type == "WidenOnRead"]:
        users = found.setdefault(str(view.inputs[0].name), [])
        users += [node.op_type for node in readers(view.outputs[0])]
    return found


# A product of a stack, one whose weights are a view, and Gemms of either layout.
PRODUCTS = """g (float[batch,3,5] x) => (float[batch,3] y) {
    flat = Constant <value_ints: ints = [0, 18]> ()
    turned = Constant <value_ints: ints = [20, 3]> ()
    h = MatMul (x, w1)
    r = Relu (h)
    f = Reshape (r, flat)
    g2 = Gemm <transB = 1> (f, w2, b2)
    r2 = Relu (g2)
    w3m = Reshape (w3, turned)
    m3 = MatMul (r2, w3m)
    one = Gemm (f, w4, b4)
    y = Add (m3, one)
}"""
PRODUCT_WEIGHTS = {
    "w1": [5, 6],
    "w2": [20, 18],
    "b2": [20],
    "w3": [3, 20],
    "w4": [18, 1],
    "b4": [1],
}


def test_products_widen_weights_as_they_read_them() -> None:
    step = rewritten(network(PRODUCTS, PRODUCT_WEIGHTS))
    assert widened(step) == {
        "w1": ["MatMul"],
        "w2": ["Gemm", "Gemm"],
        "w3": ["Reshape"],
        "w4": ["Gemm"],
    }
    casts = [n for n in step.graph if n.op_type == "Cast" and n.inputs[0].name in halves(step)]
    assert [str(n.inputs[0].name) for n in casts] == ["w4"]  # a bias of one number has no kernel


@pytest.mark.slow
@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("batch", [2, 20])
def test_the_same_bits_as_weights_that_are_cast(batch: int, portable: bool) -> None:
    net = network(PRODUCTS, PRODUCT_WEIGHTS, batch=batch, optimizer="adam")
    step, other = rewritten(net), rewritten(net)
    for view in [n for n in other.graph if n.op_type == "WidenOnRead"]:
        view.op_type, view.domain = "Cast", ""
        view.attributes.add(ir.AttrInt64("to", int(ir.DataType.FLOAT)))
    with portable_kernels() if portable else contextlib.nullcontext():
        assert_bit_equal(run_native(net, step), run_native(net, other))


@pytest.mark.slow
def test_prediction_reads_the_halves(tmp_path: Path) -> None:
    path = write(PRODUCTS, PRODUCT_WEIGHTS, tmp_path)
    optimized = bnnopt.optimize(path, batch_size=BATCH, passes=[PASS.name])
    optimized.save(tmp_path / "out")
    session = TrainingSession(tmp_path / "out")
    program = read_program(tmp_path / "out", EVALUATION)
    assert [s.operator for s in program.steps].count("WidenOnRead") == 3
    assert not statistics(read_program(tmp_path / "out", TRAINING))  # a view moves none
    x = np.random.default_rng(0).standard_normal((BATCH, 3, 5), np.float32)
    w = {name: np.float64(np.float16(a)) for name, a in session.parameters().items()}
    f = np.maximum(x @ w["w1"], 0).reshape(BATCH, 18)
    hidden = np.maximum(f @ w["w2"].T + session.parameters()["b2"], 0)
    want = hidden @ w["w3"].reshape(20, 3) + f @ w["w4"] + session.parameters()["b4"]
    np.testing.assert_allclose(session.predict(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "optimizer", "pass_"),
    [
        *((run_native, optimizer, p) for optimizer in OPTIMIZERS for p in (PASS, NEAREST)),
        (run_stock, "adam", PASS),
    ],
)
@pytest.mark.parametrize("signs", [(), ALGORITHM_2], ids=["sizes", "signs"])
def test_a_step_is_that_of_float32_to_eleven_digits(run, optimizer, pass_, signs) -> None:
    net = small("binary", **OPTIMIZERS[optimizer])
    weights = {n: np.float32(np.float16(w)) for n, w in net.weights.items()}
    net = dataclasses.replace(net, weights=weights)
    exact = run(net, net.with_passes(*signs), 1)
    found = run(net, rewritten(net, *signs, pass_=pass_), 1)
    assert found.losses == exact.losses
    for name in net.weights:
        a, b = (np.float32(t.persistent[name]) for t in (found, exact))
        bound = 2**-10 * np.abs(b) if found.persistent[name].dtype == np.float16 else 0
        assert (np.abs(a - b) <= bound + 1e-7).all(), name


def test_rounding_repeats() -> None:
    """It is a function of the seed, the step and the element."""
    net = small("binary", optimizer="adam")
    step = rewritten(net, *ALGORITHM_2)
    first, second = run_native(net, step, 2), run_native(net, step, 2)
    for name, array in first.persistent.items():
        np.testing.assert_array_equal(array, second.persistent[name])


def steps_of_adam(fan_in: int, n: int = 3000) -> dict[str, tuple[float, float]]:
    """(w, root of the unbiased second moment) after n steps of gradient 1 / sqrt(fan-in)."""
    s, size = 1 / np.sqrt(fan_in), 64
    lr = np.array(1e-4, np.float32)
    adam = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    dw = np.full(size, s, np.float32)
    zeros = np.zeros(size, np.float16)
    w, m, v = zeros, zeros, zeros
    naive = [zeros, zeros, zeros]
    for t in range(1, n + 1):
        count = np.array(t)
        w, m, v = KERNELS["HalfAdamStep"](w, dw, m, v, lr, count, stochastic=1, seed=1, **adam)
        wide = [a.astype(np.float32) for a in naive]
        results = KERNELS["AdamStep"](wide[0], dw, *wide[1:], lr, count, **adam)
        naive = [np.asarray(a, np.float16) for a in results]
    root = float(np.mean(v.astype(np.float64))) / 1024 / np.sqrt(1 - 0.999**n)
    naive_root = float(np.sqrt(np.float64(naive[2][0]))) / np.sqrt(1 - 0.999**n)
    return {
        "ours": (float(np.mean(w.astype(np.float64))), root / s),
        "naive": (float(naive[0][0]), naive_root / s),
    }


def test_second_moment_of_signs_does_not_underflow() -> None:
    """With N = 50,000 the naive v is 0 and its steps are far too long; ours are right."""
    found = steps_of_adam(50_000)
    w, root = found["ours"]
    assert root == pytest.approx(1, abs=0.02)
    assert w == pytest.approx(-0.3, abs=0.01)
    assert found["naive"][1] == 0
    assert abs(found["naive"][0]) > 5


def test_the_naive_form_stands_still_even_where_it_does_not_underflow() -> None:
    assert abs(steps_of_adam(100)["naive"][1] - 1) > 0.05
    assert steps_of_adam(100)["ours"][1] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-2, 10.0])
def test_real_gradients_of_any_size(size: float) -> None:
    """Adam does not depend on the gradients' scale: nor does ours, from 6e-8 to 64."""
    random = np.random.default_rng(2)
    adam = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8 * size}
    lr, n = np.array(1e-3, np.float32), 2000
    exact = [np.zeros(n, np.float32)] * 3
    ours = [np.zeros(n, np.float16)] * 3
    for t in range(1, 200):
        dw = (size * (random.standard_normal(n) + 0.5)).astype(np.float32)
        exact = KERNELS["AdamStep"](exact[0], dw, *exact[1:], lr, np.array(t), **adam)
        ours = KERNELS["HalfAdamStep"](
            ours[0], dw, *ours[1:], lr, np.array(t), stochastic=1, seed=3, **adam
        )
    change = exact[0].astype(np.float64)
    assert np.linalg.norm(ours[0] - change) < 0.02 * np.linalg.norm(change)


def test_stochastic_rounding_has_the_right_mean_and_nearest_has_not() -> None:
    """Steps of a tenth of a digit: to nearest, none arrives."""
    w = {stochastic: np.ones(4096, np.float16) for stochastic in (0, 1)}
    lr, dw = np.array(1, np.float32), np.full(4096, 5e-5, np.float32)
    for t in range(1, 101):
        for stochastic, weights in w.items():
            w[stochastic] = KERNELS["HalfSgdStep"](
                weights, dw, lr, np.array(t), stochastic=stochastic, seed=7
            )
    assert (w[0] == 1).all()
    assert float(w[1].astype(np.float64).mean()) == pytest.approx(1 - 5e-3, abs=1e-4)


def test_too_large_saturates() -> None:
    for stochastic in (0, 1):
        (x,) = [np.array([1e6, -1e6, 65519.0], np.float32)]
        y = KERNELS["RoundToHalf"](x, np.array(1), stochastic=stochastic, seed=0)
        np.testing.assert_array_equal(y, np.float16([65504, -65504, 65504]))


def test_training_goes_down() -> None:
    net = zoo("mlp", 8, "adam")
    losses = run_native(net, rewritten(net), 8, repeat=True).losses
    assert losses[-1] < 0.9 * losses[0]


# The whole way: compiler, folder, session ------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("float16") / "out"
    passes = ["packed-products", *ALGORITHM_2, PASS.name, "immediate-update"]
    bnnopt.optimize("models/mlp.onnx", batch_size=BATCH, passes=passes).save(made)
    return made


def batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(number)
    return random.standard_normal((BATCH, 784)).astype(np.float32), random.integers(0, 10, BATCH)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "onnxruntime"])
def test_session_resumes_bit_exactly_and_gives_float32(
    folder: Path, tmp_path: Path, backend: str
) -> None:
    session = TrainingSession(folder, backend=backend)
    start = session.parameters()
    session.step(*batch(1))
    checkpoint = tmp_path / "checkpoint.safetensors"
    session.save(checkpoint)
    assert checkpoint.stat().st_size < 1.1 * 399_872 * (2 + 2)  # weights, momentum
    first = session.step(*batch(2))
    other = TrainingSession(folder, backend=backend)
    other.resume(checkpoint)
    assert other.step(*batch(2)) == first
    for name, array in session.parameters().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, other.parameters()[name])
    assert np.abs(session.parameters()["fc1.weight"] - start["fc1.weight"]).max() > 0
    assert session.predict(batch(3)[0]).dtype == np.float32


def test_a_weight_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    path = write(
        "g (float[2,5] x) => (float[2,3] y) { y = MatMul (x, w) }", {"w": [5, 3]}, tmp_path
    )
    model = onnx.load(path)
    (weight,) = model.graph.initializer
    array = onnx.numpy_helper.to_array(weight) * np.float32(1e6)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, path)
    with pytest.raises(UsageError) as caught:
        bnnopt.optimize(path, passes=[PASS.name])
    assert "'w'" in str(caught.value)
    assert "65504" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_step_counter_where_there_was_none() -> None:
    net = network("g (float[batch,5] x) => (float[batch,3] y) { y = MatMul (x, w) }", {"w": [5, 3]})
    assert not net.step().inputs(Role.STEP)
    step = rewritten(net)
    assert len(step.inputs(Role.STEP)) == 1
    assert ops(step, "update") == ["HalfSgdStep"]
    assert value(step, "w").dtype == ir.DataType.FLOAT16
