"""Images that are fed as bytes: the same training as of the floats that they become."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import UsageError
from bnnopt.runtime import Predictor
from bnnopt.runtime.data import Normalization
from bnnopt.runtime.data.normalization import HALVES
from bnnopt.runtime.native import NativeBackend
from bnnopt.verification import verify_folder
from tests.graphs import write
from tests.passes.networks import (
    BINARY,
    BINARY_WEIGHTS,
    BYTES,
    BYTES_WEIGHTS,
    DENSE,
    DENSE_WEIGHTS,
    WIDE,
    WIDE_WEIGHTS,
)

BATCH = 6
IMAGES = """g (float[batch,3,16,16] x) => (float[batch,3] y) {
    c = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x, w1)
    r = Relu (c)
    f = Flatten (r)
    y = Gemm <transB = 1> (f, w3)
}"""
NETWORKS = {
    "images": (IMAGES, {"w1": [4, 3, 3, 3], "w3": [3, 256]}),
    "binary": (BINARY, BINARY_WEIGHTS),
    "signs": (BYTES, BYTES_WEIGHTS),
    "dense": (DENSE, DENSE_WEIGHTS),
    "wide": (WIDE, WIDE_WEIGHTS),
}
LEVELS = ("O0", "O1", "O2", "O3")
QUICK = [("images", "O1"), ("signs", "O1")]
OTHERS = [(n, o) for n in NETWORKS for o in LEVELS if (n, o) not in QUICK]
BY_CHANNEL = Normalization(200.0, (0.4, 0.7, 0.2), (0.3, 0.9, 0.5))
Folders = Callable[..., Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Output folders by network, level and input, each written once."""

    @functools.cache
    def make(name: str, level: str, fed: str) -> Path:
        scratch = tmp_path_factory.mktemp("net")
        path = write(*NETWORKS[name], scratch)
        bnnopt.optimize(path, batch_size=BATCH, level=level, input=fed).save(scratch / "out")
        return scratch / "out"

    return make


def batches(session: TrainingSession, n: int = 3) -> list[tuple[Any, Any]]:
    """Bytes and labels, the last batch smaller than the others."""
    rng = np.random.default_rng(3)
    (spec,) = session.inputs.values()
    sizes = [BATCH] * (n - 1) + [BATCH - 2]
    return [
        (rng.integers(0, 256, spec.shape_at(b), np.uint8), rng.integers(0, 3, b)) for b in sizes
    ]


def trained(folder: Path, normalization: Normalization | None, **options: Any) -> tuple[Any, ...]:
    """Losses, weights and predictions after some steps; floats are normalised here."""
    session = TrainingSession(folder, **options)
    numbers = normalization or HALVES
    if session.takes_bytes and normalization is not None:
        session.normalize(normalization)
    data = [(x if session.takes_bytes else numbers(x), y) for x, y in batches(session)]
    losses = [session.step(x, y) for x, y in data]
    weights = {name: array.tobytes() for name, array in session.parameters().items()}
    return losses, weights, session.predict(data[0][0]).tobytes()


@pytest.mark.parametrize(
    ("name", "level"), [*QUICK, *(pytest.param(*row, marks=pytest.mark.slow) for row in OTHERS)]
)
def test_the_bits_of_floats(name: str, level: str, folders: Folders) -> None:
    """At every level, whatever the first layer is: losses, weights and predictions."""
    floats, read = (folders(name, level, fed) for fed in ("float32", "uint8"))
    assert trained(read, None) == trained(floats, None)


@pytest.mark.parametrize("name", ["images", "signs"])
def test_the_bits_of_floats_by_channel(name: str, folders: Folders) -> None:
    floats, read = (folders(name, "O1", fed) for fed in ("float32", "uint8"))
    assert trained(read, BY_CHANNEL) == trained(floats, BY_CHANNEL)
    assert trained(read, BY_CHANNEL) != trained(read, None)


def test_the_bits_of_floats_on_onnxruntime(folders: Folders) -> None:
    floats, read = (folders("signs", "O1", fed) for fed in ("float32", "uint8"))
    options = {"backend": "onnxruntime", "threads": 1}
    assert trained(read, BY_CHANNEL, **options) == trained(floats, BY_CHANNEL, **options)


def test_the_bits_of_floats_without_compiled_kernels(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnnopt.runtime.kernels.compiled.calls.library", lambda: None)
    floats, read = (folders("signs", "O1", fed) for fed in ("float32", "uint8"))
    assert trained(read, BY_CHANNEL) == trained(floats, BY_CHANNEL)


@pytest.mark.parametrize("method", ["step", "predict", "evaluate"])
def test_bytes_that_nobody_has_normalised_are_no_floats(method: str, folders: Folders) -> None:
    session = TrainingSession(folders("signs", "O1", "float32"))
    x, y = batches(session)[0]

    def call(x: Any) -> Any:
        return session.predict(x) if method == "predict" else getattr(session, method)(x, y)

    with pytest.raises(UsageError, match=r"x is uint8 and reaches \d+, expected float32, normal"):
        call(x)
    for fine in (x.astype(np.float32), x % 2, x > 100, HALVES(x)):  # 0 and 1 are what they are
        call(fine)


@pytest.mark.parametrize("backend", ["native", "onnxruntime"])
def test_verify(backend: str, folders: Folders) -> None:
    assert verify_folder(folders("signs", "O1", "uint8"), backend).bit_equal


def test_memory_is_that_of_bytes(folders: Folders) -> None:
    """The images of a batch, planned and held: a quarter, and nowhere as floats."""
    sessions = [TrainingSession(folders("images", "O1", fed)) for fed in ("float32", "uint8")]
    planned = [session.memory.planned_bytes for session in sessions]
    images = BATCH * 3 * 16 * 16
    scales = 2 * 3 * 4
    aligned = 64
    assert abs(planned[0] - planned[1] - 3 * images + scales) <= aligned
    backend = sessions[1]._backend
    assert isinstance(backend, NativeBackend)
    values = backend.training.values
    assert {v.dtype for v in values if v.shape[1:] == (3, 16, 16)} == {"uint8"}


def test_checkpoints_keep_the_numbers(folders: Folders, tmp_path: Path) -> None:
    session = TrainingSession(folders("signs", "O1", "uint8"))
    (x, y), *_ = batches(session)
    session.normalize(BY_CHANNEL)
    session.step(x, y)
    session.save(tmp_path / "c.safetensors")
    want = session.step(x, y)
    again = TrainingSession(folders("signs", "O1", "uint8"))
    again.resume(tmp_path / "c.safetensors")
    assert again.step(x, y) == want
    factor, shift = again.scales.values()
    np.testing.assert_array_equal(factor, BY_CHANNEL.numbers(4)[0])
    np.testing.assert_array_equal(shift, BY_CHANNEL.numbers(4)[1])


def test_the_network_alone_normalises_as_it_was_trained_to(
    folders: Folders, tmp_path: Path
) -> None:
    from bnnopt.compiler.prediction import export_network

    folder = folders("signs", "O1", "uint8")
    session = TrainingSession(folder)
    (x, y), *_ = batches(session)
    session.normalize(BY_CHANNEL)
    session.step(x, y)
    export_network(folder, session, tmp_path / "packed", BATCH)
    predictor = Predictor(tmp_path / "packed")
    assert predictor.takes_bytes
    np.testing.assert_array_equal(predictor.predict(x), session.predict(x))


def test_fit_and_evaluation_share_the_numbers(folders: Folders) -> None:
    from bnnopt.runtime.training import evaluate
    from bnnopt.runtime.training.loop import as_dataset

    floats, read = (TrainingSession(folders("signs", "O1", fed)) for fed in ("float32", "uint8"))
    (x, y), (other, labels), _ = batches(read)
    data, valid = as_dataset((x, y), "data"), as_dataset((other, labels), "valid")
    histories = [
        session.fit(data, 2, valid, normalization=BY_CHANNEL)["valid_loss"]
        for session in (floats, read)
    ]
    assert histories[0] == histories[1]
    assert evaluate(read, valid, None).loss == evaluate(floats, valid, BY_CHANNEL).loss
    read.fit(data, 1)  # by the numbers that it has
    np.testing.assert_array_equal(next(iter(read.scales.values())), BY_CHANNEL.numbers(4)[0])


def test_mistakes_are_one_line(folders: Folders, tmp_path: Path) -> None:
    floats, read = (TrainingSession(folders("signs", "O1", fed)) for fed in ("float32", "uint8"))
    (x, y), *_ = batches(read)
    wanted = "step: x is float32, expected uint8; images as they are stored, or optimize without"
    with pytest.raises(UsageError, match=wanted):
        read.step(HALVES(x), y)
    with pytest.raises(UsageError, match="x is int64, expected uint8"):
        read.predict(x.astype(np.int64))
    with pytest.raises(UsageError, match="fed as floats; normalise it before, or optimize --input"):
        floats.normalize(HALVES)
    with pytest.raises(UsageError, match="mean has 2 numbers, expected 1, or one for each of"):
        read.normalize(Normalization(255.0, (0.1, 0.2)))
    two = """g (float[batch,3] a, float[batch,3] b) => (float[batch,2] y) {
        s = Add (a, b)
        y = Gemm (s, w)
    }"""
    path = write(two, {"w": [3, 2]}, tmp_path)
    with pytest.raises(UsageError, match="takes a float, b float; expected one input of float32"):
        bnnopt.optimize(path, batch_size=4, input="uint8")
    with pytest.raises(UsageError, match="--input int8: expected float32, uint8"):
        bnnopt.optimize(path, batch_size=4, input="int8")
