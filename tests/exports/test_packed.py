"""The folder that predicts alone: the session's predictions, binary weights as bits."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, load_file

import bnnopt
from bnnopt.compiler.prediction import export_network
from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.exporting import state_dict
from bnnopt.runtime.predictor import is_signs
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS, batch_norm, batch_norm_weights
from tests.zoo import build_small

Array = NDArray[Any]
BATCH = 4


def session_of(
    path: Path, rises: bool = False, **options: Any
) -> tuple[bnnopt.TrainingSession, Path]:
    """A session whose norms rise and stand still, and fall, with statistics of all sizes."""
    folder = path.parent / "out"
    bnnopt.optimize(path, batch_size=BATCH, **options).save(folder)
    session, rng = bnnopt.TrainingSession(folder), np.random.default_rng(0)
    for name, array in session.stored_weights().items():
        if array.ndim == 1:
            low = 0.3 if "var" in name else -3
            array[...] = rng.uniform(low, 30 if "var" in name else 3, array.shape)
            if name.startswith("g") or name.endswith(".weight"):
                array[...] = abs(array) if rises else array
                array[0] = 0
    return session, folder


def data_of(session: bnnopt.TrainingSession, n: int) -> Array:
    (spec,) = session.inputs.values()
    return np.random.default_rng(1).standard_normal(spec.shape_at(n)).astype(spec.dtype)


def steps_of(folder: Path) -> list[str]:
    program = json.loads((folder / "evaluation.plan.json").read_text())
    return [step["operator"] for step in program["steps"]]


@pytest.mark.parametrize(
    ("options", "batch_size", "rises"),
    [
        ({"level": "O1"}, BATCH, False),
        ({"level": "O2"}, BATCH, True),
        *(
            pytest.param(options, size, rises, marks=pytest.mark.slow)
            for options in ({"level": "O1"}, {"level": "O2"}, {"optimizer": "bop"})
            for size, rises in ((BATCH, False), (BATCH, True), (1, True))
        ),
    ],
    ids=str,
)
def test_a_small_network(
    tmp_path: Path, options: dict[str, Any], batch_size: int, rises: bool
) -> None:
    session, folder = session_of(write(BINARY, BINARY_WEIGHTS, tmp_path), rises, **options)
    export_network(folder, session, tmp_path / "network", batch_size)
    x = data_of(session, 5)
    predictor = bnnopt.Predictor(tmp_path / "network")
    found = predictor.predict(x)
    assert predictor.batch_size == batch_size
    np.testing.assert_array_equal(found, session.predict(x))
    steps = steps_of(tmp_path / "network")
    assert steps.count("ThresholdPack") == rises  # a pool before the norm: filters keep their signs
    assert "Binarize" not in steps
    assert predictor.predict(x[:0]).shape == (0, 3)
    stored = load_file(tmp_path / "network" / "constants.safetensors")
    assert {stored[name].dtype for name in stored if name.startswith("w")} == {np.dtype(np.uint8)}


def test_a_trained_scalar_stays_one(tmp_path: Path) -> None:
    text = """g (float[batch,6] x) => (float[batch,3] y) {
        h = MatMul (x, u)
        s = Mul (h, alpha)
        y = MatMul (s, v)
    }"""
    path = write(text, {"u": [6, 5], "alpha": [], "v": [5, 3]}, tmp_path)
    session, folder = session_of(path)
    export_network(folder, session, tmp_path / "network", BATCH)
    x = data_of(session, 3)
    found = bnnopt.Predictor(tmp_path / "network").predict(x)
    np.testing.assert_allclose(found, session.predict(x), rtol=1e-6)
    assert load(state_dict(session))["alpha"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "level"),
    [
        *(("mlp", "O0"), ("mlp", "O2"), ("cnv", "O1"), ("cnv", "O2"), ("binarynet", "O2")),
        *(("resnet-e-18", "O1"), ("bi-real-18", "O2"), ("relu-mini", "O1"), ("relu-mini", "O2")),
    ],
)
def test_the_zoo(name: str, level: str, tmp_path: Path) -> None:
    ir.save(build_small(name), tmp_path / "net.onnx")
    session, folder = session_of(tmp_path / "net.onnx", level=level)
    part = session._backend.evaluation.batch_size  # the session may predict a batch in parts
    n_bytes, _ = export_network(folder, session, tmp_path / "network", part)
    x = data_of(session, 3)
    found = bnnopt.Predictor(tmp_path / "network").predict(x)
    exact = name in ("mlp", "cnv", "binarynet")  # BLAS sums a real layer behind the others
    np.testing.assert_allclose(found, session.predict(x), *((0, 0) if exact else (1e-5, 1e-5)))
    trained = sum(array.size for array in session.stored_weights().values())
    if name in ("cnv", "binarynet"):
        assert n_bytes < trained * 4 / 15  # of floats: 32 but for the first layer and the norms
    if name == "cnv":
        assert steps_of(tmp_path / "network").count("BatchNormalization") == 2  # first and last
    x = data_of(session, part)
    found = bnnopt.Predictor(tmp_path / "network").predict(x)
    runner = ort.InferenceSession(tmp_path / "network" / "evaluation.onnx")
    (stock,) = runner.run(None, {runner.get_inputs()[0].name: x})
    near = np.isclose(stock, found, rtol=1e-3, atol=1e-3 * np.abs(found).max()).all(axis=1)
    assert near.mean() >= 0.5  # a sign that rounding turns changes a score


BIASED = BINARY.replace("(s1, w2b)", "(s1, w2b, q2)").replace(
    "y = Gemm <transB = 1> (f, w3b)",
    f"""h = Gemm <transB = 1> (f, w3b, q3)
    {batch_norm("h", "n3", 3)}
    s3 = Sign (n3)
    w4b = Sign (w4)
    y = Gemm <transB = 1> (s3, w4b)""",
)
BIASED_WEIGHTS = {
    **BINARY_WEIGHTS,
    **{"q2": [4], "q3": [3], "w4": [3, 3]},
    **batch_norm_weights(3, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("rises", [True, False])
def test_a_bias_goes_into_the_threshold(rises: bool, tmp_path: Path) -> None:
    session, folder = session_of(write(BIASED, BIASED_WEIGHTS, tmp_path), rises)
    weights = session.stored_weights()
    for index, mean in ((2, [4, -4, 0, 3]), (3, [-3, 1, 2])):  # where the products are
        weights[f"m{index}"][...] = weights[f"q{index}"] + np.float32(mean)
        weights[f"b{index}"][...] = 0.25
        weights[f"g{index}"][0] = 1
    export_network(folder, session, tmp_path / "network", BATCH)
    x = data_of(session, 64)
    found = bnnopt.Predictor(tmp_path / "network").predict(x)
    np.testing.assert_array_equal(found, session.predict(x))
    assert len(np.unique(found)) > 2
    steps = steps_of(tmp_path / "network")
    assert steps.count("ThresholdPack") == 1 + rises  # of negated filters a pool takes no threshold
    assert steps.count("Add") == 1 - rises


WHOLE = BINARY.replace("f = Flatten (s2)", "").replace(
    "y = Gemm <transB = 1> (f, w3b)",
    f"""c3 = Conv <kernel_shape = [3, 3]> (s2, w3b)
    {batch_norm("c3", "n3", 3)}
    low = Constant <value_float = -1.0> ()
    high = Constant <value_float = 1.0> ()
    h = Clip (n3, low, high)
    s3 = Sign (h)
    f = Flatten (s3)
    w4b = Sign (w4)
    y = Gemm <transB = 1> (f, w4b)""",
)
WHOLE_WEIGHTS = {**BINARY_WEIGHTS, "w3": [5, 4, 3, 3], "w4": [3, 5], **batch_norm_weights(3, 5)}


@pytest.mark.parametrize("level", ["O1", pytest.param("O2", marks=pytest.mark.slow)])
def test_a_convolution_over_its_whole_input_is_dense_and_a_clip_goes_into_the_threshold(
    level: str, tmp_path: Path
) -> None:
    session, folder = session_of(write(WHOLE, WHOLE_WEIGHTS, tmp_path), rises=True, level=level)
    weights = session.stored_weights()
    weights["m3"][...], weights["b3"][...], weights["g3"][0] = [-4, -1, 0, 1, 4], 0.25, 1
    export_network(folder, session, tmp_path / "network", BATCH)
    x = data_of(session, 64)
    found = bnnopt.Predictor(tmp_path / "network").predict(x)
    np.testing.assert_array_equal(found, session.predict(x))
    assert len(np.unique(found, axis=0)) > 1
    steps = steps_of(tmp_path / "network")
    assert (steps.count("BinaryConv"), steps.count("BinaryGemm")) == (1, 2)
    assert steps.count("ThresholdPack") == 2
    assert "Clip" not in steps


@pytest.mark.slow
def test_each_bit_and_threshold_counts(tmp_path: Path) -> None:
    """The control: another weight or threshold gives other predictions."""
    session, folder = session_of(write(BINARY, BINARY_WEIGHTS, tmp_path), rises=True)
    export_network(folder, session, tmp_path / "network", BATCH)
    x = data_of(session, 64)
    predictor = bnnopt.Predictor(tmp_path / "network")
    expected = session.predict(x)
    constants = predictor._executor._buffers["constant"]
    for name, array in constants.items():
        before = array.copy()
        if array.dtype == np.uint8:
            array[...] = 0
        elif name.endswith("threshold"):
            array[...] = np.inf
        else:
            continue
        assert (predictor.predict(x) != expected).any(), name
        array[...] = before
    np.testing.assert_array_equal(predictor.predict(x), expected)


def test_only_rows_of_signs_become_bits() -> None:
    ones = np.ones(256, np.float32)
    assert is_signs(ones.reshape(16, 16))
    assert not is_signs(ones)
    assert not is_signs(ones.reshape(16, 16) / 2)


def test_what_is_no_network_or_no_training_step_is_said(tmp_path: Path) -> None:
    session, folder = session_of(write(BINARY, BINARY_WEIGHTS, tmp_path))
    network = tmp_path / "network"
    export_network(folder, session, network, 1)
    with pytest.raises(UsageError, match=r"without a training step; .* bnnopt\.Predictor"):
        bnnopt.TrainingSession(network)
    with pytest.raises(UsageError, match=r"is a training step; .* bnnopt\.TrainingSession"):
        bnnopt.Predictor(folder)
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match=r"open one there with Predictor\("):
            make(bnnopt.Predictor(network))
    with pytest.raises(UsageError, match="threads is 99"):
        bnnopt.Predictor(network, threads=99)
    file = network / "constants.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ArtifactError, match="is not as it was written"):
        bnnopt.Predictor(network)


def test_a_busy_predictor_says_that_it_is_one(tmp_path: Path) -> None:
    session, folder = session_of(write(BINARY, BINARY_WEIGHTS, tmp_path))
    _, arena_bytes = export_network(folder, session, tmp_path / "network", 2)
    predictor = bnnopt.Predictor(tmp_path / "network")
    x = data_of(session, 2)
    assert arena_bytes == predictor._program.arena_bytes

    class Batch:
        def __array__(self, dtype: object = None, copy: object = None) -> Any:
            return predictor.predict(x)

    with pytest.raises(UsageError, match=r"^predict: the predictor is busy"):
        predictor.predict(Batch())  # type: ignore[arg-type]
