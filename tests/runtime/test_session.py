"""Training from an output folder: what it gives, what it refuses, and what a crash leaves."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import ArtifactError, BnnoptError, DivergedError, UsageError
from bnnopt.models import build
from bnnopt.runtime import BACKENDS, files, tensors
from bnnopt.runtime.format import FORMAT, Program
from bnnopt.runtime.tensors import read_tensors, write_tensors
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS, DENSE, DENSE_WEIGHTS, small

Array = NDArray[Any]
BATCH = 4
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Output folders by network text and options, each written once."""

    @functools.cache
    def make(text: str, optimizer: str = "adam", loss: str = "cross-entropy") -> Path:
        scratch = tmp_path_factory.mktemp("net")
        weights = WEIGHTS[text]
        path = write(text, weights, scratch)
        bnnopt.optimize(path, batch_size=BATCH, optimizer=optimizer, loss=loss).save(
            scratch / "out"
        )
        return scratch / "out"

    return make


REGRESSION = "g (float[batch,3] x) => (float[batch,2] y) { y = Gemm (x, w) }"
OWN_LOSS = """g (float[batch,3] x, float[batch,2] target) => (float loss) {
    y = Gemm (x, w)
    d = Sub (y, target)
    q = Mul (d, d)
    loss = ReduceMean <keepdims = 0> (q)
}"""
TWO_INPUTS = """g (float[batch,3] a, float[batch,3] b) => (float[batch,2] y) {
    s = Add (a, b)
    y = Gemm (s, w)
}"""
FIXED = """g (float[batch,6] x) => (float[batch,6] y) {
    shape = Constant <value_ints = [6, 4]> ()
    back = Constant <value_ints = [4, 6]> ()
    h = MatMul (x, w)
    t = Reshape (h, shape)
    r = Relu (t)
    y = Reshape (r, back)
}"""
WEIGHTS: dict[str, dict[str, list[int]]] = {
    BINARY: BINARY_WEIGHTS,
    DENSE: DENSE_WEIGHTS,
    REGRESSION: {"w": [3, 2]},
    OWN_LOSS: {"w": [3, 2]},
    TWO_INPUTS: {"w": [3, 2]},
    FIXED: {"w": [6, 6]},
}


def batch(number: int = 0, n: int = BATCH) -> tuple[Array, Array]:
    rng = np.random.default_rng(number)
    return rng.uniform(-1, 1, (n, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, n)


def state(session: TrainingSession) -> dict[str, bytes]:
    arrays = {name: array.tobytes() for name, array in session._persistent.items()}
    return {**arrays, "steps": str(session.steps_done).encode()}


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    assert len(str(error)) > 10
    return str(error)


# What it gives -----------------------------------------------------------------------------------


@each_backend
def test_training_goes_down_and_is_counted(folders: Callable[..., Path], backend: str) -> None:
    session = TrainingSession(folders(BINARY, "sgd"), backend)
    losses = [session.step(*batch(), lr=0.05) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(isinstance(loss, float) for loss in losses)
    assert session.steps_done == 20
    assert session.batch_size == BATCH
    assert session.evaluate(*batch()) >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_backends_agree(folders: Callable[..., Path], optimizer: str) -> None:
    a, b = (TrainingSession(folders(BINARY, optimizer), backend) for backend in BACKENDS)
    for number, n in enumerate((4, 4, 3)):
        np.testing.assert_allclose(*(s.step(*batch(number, n)) for s in (a, b)), rtol=1e-4)
    ours, theirs = a.parameters(), b.parameters()
    assert ours.keys() == theirs.keys() == set(small("binary").weights)
    for name in ours:
        # Adam gives a gradient near 0, of which the last bits decide the sign, the full rate.
        same = np.isclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
        assert same.mean() >= (0.97 if optimizer == "adam" else 1)
    x, _ = batch(9, 11)
    if optimizer == "sgd":
        np.testing.assert_allclose(a.predict(x), b.predict(x), rtol=1e-3, atol=1e-2)


@each_backend
def test_parameters_are_copies_under_the_files_names(
    folders: Callable[..., Path], backend: str
) -> None:
    session = TrainingSession(folders(BINARY), backend)
    first = session.parameters()
    weights = small("binary").weights
    assert {k: v.tobytes() for k, v in first.items()} == {
        k: v.tobytes() for k, v in weights.items()
    }
    session.step(*batch())
    second = session.parameters()
    assert all(first[name].tobytes() == weights[name].tobytes() for name in weights)
    assert any(first[name].tobytes() != second[name].tobytes() for name in weights)
    second["w1"][:] = 7
    assert not (session.parameters()["w1"] == 7).any()


@each_backend
@pytest.mark.parametrize("n", [0, 1, 3, 4, 9])
def test_predict_takes_any_number(folders: Callable[..., Path], backend: str, n: int) -> None:
    session = TrainingSession(folders(BINARY), backend)
    x, _ = batch(1, n)
    found = session.predict(x)
    assert (found.shape, found.dtype) == ((n, 3), np.float32)
    for i in range(n):
        np.testing.assert_allclose(found[i], session.predict(x[i : i + 1])[0], rtol=1e-5, atol=1e-5)


@each_backend
def test_predicting_changes_nothing(folders: Callable[..., Path], backend: str) -> None:
    a, b = (TrainingSession(folders(BINARY), backend) for _ in range(2))
    for number in range(3):
        a.predict(batch(number + 20, 7)[0])
        assert a.step(*batch(number)) == b.step(*batch(number))
    assert state(a) == state(b)


@each_backend
def test_the_rate_is_the_folders_or_the_steps_own(
    folders: Callable[..., Path], backend: str
) -> None:
    a, b, c = (TrainingSession(folders(BINARY, "sgd"), backend) for _ in range(3))
    a.step(*batch())
    b.step(*batch(), lr=0.01)
    c.step(*batch(), lr=0)
    assert state(a) == state(b)
    assert c.parameters()["w1"].tobytes() == small("binary").weights["w1"].tobytes()


@each_backend
def test_other_array_likes_are_taken(folders: Callable[..., Path], backend: str) -> None:
    a, b = (TrainingSession(folders(BINARY), backend) for _ in range(2))
    x, y = batch()
    a.step(x, y)
    b.step(x.astype(np.float64).tolist(), y.astype(np.uint8).tolist())
    assert state(a) == state(b)
    strided = np.asfortranarray(np.repeat(x, 2, axis=0))[::2]
    assert a.step(strided, y) == b.step(x, y)


# Checkpoints -------------------------------------------------------------------------------------


@each_backend
def test_large_numbers_are_no_infinity(folders: Callable[..., Path], backend: str) -> None:
    """The sum of what is finite may be infinite: a step finds that out, and changes nothing."""
    session = TrainingSession(folders(BINARY), backend)
    before = state(session)
    with pytest.raises(DivergedError, match="'m1' is not finite; nothing has changed"):
        session.step(np.full(X.shape, 3e38), Y)
    assert state(session) == before


@each_backend
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resume_is_bit_exact(
    folders: Callable[..., Path], backend: str, optimizer: str, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    a = TrainingSession(folders(BINARY, optimizer), backend)
    for number in range(3):
        a.step(*batch(number))
    a.save(file)
    saved = state(a)
    expected = [a.step(*batch(number)) for number in range(3, 6)]
    b = TrainingSession(folders(BINARY, optimizer), backend)
    b.resume(str(file))
    assert state(b) == saved
    assert [b.step(*batch(number)) for number in range(3, 6)] == expected
    assert state(a) == state(b)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_resume_on_the_other_backend(folders: Callable[..., Path], tmp_path: Path) -> None:
    a, b = (TrainingSession(folders(BINARY), backend) for backend in BACKENDS)
    a.step(*batch())
    a.save(tmp_path / "c")
    b.resume(tmp_path / "c")
    assert state(a) == state(b)
    np.testing.assert_allclose(a.step(*batch(1)), b.step(*batch(1)), rtol=1e-4)


class Killed(BaseException):
    """Like KeyboardInterrupt."""


@pytest.mark.parametrize("where", ["save_file", "_sync", "replace"])
@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")], ids=repr)
def test_a_save_that_fails_leaves_the_old_one(
    folders: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: BaseException,
) -> None:
    file = tmp_path / "checkpoint"
    session = TrainingSession(folders(BINARY))
    session.save(file)
    before = file.read_bytes()
    session.step(*batch())

    def fail(*_: object) -> None:
        raise error

    home = {"save_file": tensors, "_sync": files, "replace": files.os}[where]
    monkeypatch.setattr(home, where, fail)
    with pytest.raises((Killed, ArtifactError)):
        session.save(file)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    session.save(file)
    assert file.read_bytes() != before


def test_a_place_that_cannot_be_written(folders: Callable[..., Path], tmp_path: Path) -> None:
    session = TrainingSession(folders(BINARY))
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "no" / "c", tmp_path / "file" / "c", tmp_path, Path()):
        with pytest.raises(ArtifactError) as caught:
            session.save(path)
        assert str(path) in one_line(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def wrong_checkpoints(folders: Callable[..., Path], scratch: Path) -> dict[str, Path]:
    good = scratch / "good"
    session = TrainingSession(folders(BINARY))
    session.step(*batch())
    session.save(good)
    content = good.read_bytes()
    found = {"missing": scratch / "missing", "a folder": scratch}
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        found[f"cut at {length}"] = scratch / f"cut{length}"
        found[f"cut at {length}"].write_bytes(content[:length])
    other = {"text": b"hello, this is no checkpoint", "zeros": bytes(1000), "long": content + b"x"}
    for name, data in other.items():
        found[name] = scratch / name
        found[name].write_bytes(data)
    held, _ = read_tensors(good)
    for name, metadata in (("no steps", {}), ("bad steps", {"steps_done": "many"})):
        found[name] = scratch / name
        write_tensors(found[name], held, metadata)
    for name, changed in {
        "other shape": {**held, "w1": held["w1"][:1]},
        "other dtype": {**held, "w1": held["w1"].astype(np.float64)},
        "one less": {k: v for k, v in held.items() if k != "w3"},
        "one more": {**held, "w4": held["w3"]},
    }.items():
        found[name] = scratch / name
        write_tensors(found[name], changed, {"steps_done": "3"})
    _, metadata = read_tensors(good)
    for name, changes in {
        "a flipped bit": (held | {"w1": held["w1"] * np.float32(1.0001)}, metadata),
        "another number of steps": (held, metadata | {"steps_done": "4"}),
        "another text": (held, metadata | {"note.training": "{}"}),
        "steps beyond int64": (held, metadata | {"steps_done": "9" * 19}),
        "no checksum": (held, {"steps_done": "3"}),
    }.items():
        found[name] = scratch / name
        write_tensors(found[name], *changes)
    for optimizer, text in (("sgd", BINARY), ("adam", DENSE)):
        found[optimizer + " other"] = scratch / f"other-{optimizer}"
        TrainingSession(folders(text, optimizer)).save(found[optimizer + " other"])
    found["weights"] = folders(BINARY) / "weights.safetensors"
    return found


def test_wrong_checkpoints_change_nothing(folders: Callable[..., Path], tmp_path: Path) -> None:
    session = TrainingSession(folders(BINARY))
    session.step(*batch(3))
    before = state(session)
    for name, path in wrong_checkpoints(folders, tmp_path).items():
        with pytest.raises(ArtifactError) as caught:
            session.resume(path)
        assert str(path) in one_line(caught.value), name
        assert state(session) == before, name


def test_an_adam_checkpoint_is_not_for_sgd(folders: Callable[..., Path], tmp_path: Path) -> None:
    TrainingSession(folders(DENSE, "adam")).save(tmp_path / "c")
    with pytest.raises(ArtifactError, match="adam_m"):
        TrainingSession(folders(DENSE, "sgd")).resume(tmp_path / "c")


# What it refuses ---------------------------------------------------------------------------------

X, Y = batch()
BAD_STEPS: dict[str, tuple[Any, Any, Any]] = {
    "too many": (*batch(0, 5), None),
    "none": (*batch(0, 0), None),
    "other shape": (X[:, :1], Y, None),
    "flat": (X.reshape(4, -1), Y, None),
    "one sample": (X[0], Y[:1], None),
    "a number": (3.0, Y, None),
    "strings": (X.astype(str), Y, None),
    "complex": (X.astype(complex), Y, None),
    "objects": (np.full(X.shape, None), Y, None),
    "a nan": (np.where(np.arange(X.size).reshape(X.shape) == 5, np.nan, X), Y, None),
    "an infinity": (np.where(np.arange(X.size).reshape(X.shape) == 0, -np.inf, X), Y, None),
    "too large for float32": (np.full(X.shape, 1e39), Y, None),
    "ragged": ([[1.0], [1.0, 2.0]], Y, None),
    "a mapping of another name": ({"z": X}, Y, None),
    "an empty mapping": ({}, Y, None),
    "no labels": (X, None, None),
    "too few labels": (X, Y[:3], None),
    "one-hot labels": (X, np.eye(3)[Y], None),
    "float labels": (X, Y.astype(np.float32), None),
    "boolean labels": (X, Y > 1, None),
    "label too large": (X, np.array([0, 1, 2, 3]), None),
    "label negative": (X, np.array([0, 1, 2, -1]), None),
    "ragged labels": (X, [[1], [1, 2]], None),
    "text rate": (X, Y, "fast"),
    "nan rate": (X, Y, float("nan")),
    "infinite rate": (X, Y, float("inf")),
    "negative rate": (X, Y, -0.1),
    "rate beyond float32": (X, Y, 1e39),
    "two rates": (X, Y, np.array([0.1, 0.2])),
}


@each_backend
def test_what_does_not_fit_changes_nothing(folders: Callable[..., Path], backend: str) -> None:
    session = TrainingSession(folders(BINARY), backend)
    session.step(X, Y)
    before = state(session)
    for name, (x, y, lr) in BAD_STEPS.items():
        with pytest.raises(UsageError) as caught:
            session.step(x, y, lr)
        assert "step" in one_line(caught.value), name
        assert state(session) == before, name
    evaluations = ((X, Y[:2]), (X[:0], Y[:0]), (X[:, :1], Y), (X, None), (X, [[1], [1, 2]]),
                   (X, Y + 0.5), (X, Y + 3), (X, Y - 1), (X, Y.astype(str)))  # fmt: skip
    for x, y in evaluations:
        with pytest.raises(UsageError) as caught:
            session.evaluate(x, y)
        one_line(caught.value)
    for values in (None, [X], {"nobody": X}, {next(iter(session.parameters())): np.zeros(77)}):
        with pytest.raises(UsageError) as caught:
            session.load_parameters(values)
        assert "load_parameters" in one_line(caught.value)
    assert state(session) == before


def test_backends_and_threads(folders: Callable[..., Path]) -> None:
    folder = folders(BINARY)
    with pytest.raises(UsageError, match="expected native or onnxruntime"):
        TrainingSession(folder, "cuda")
    for backend in BACKENDS:
        for threads in (0, -1, 1000, "two", 1.5):
            with pytest.raises(UsageError, match="expected 1 to"):
                TrainingSession(folder, backend, cast(int, threads))
        TrainingSession(folder, backend, threads=1).step(X, Y)


# Other losses and inputs -------------------------------------------------------------------------


@each_backend
def test_regression(folders: Callable[..., Path], backend: str) -> None:
    session = TrainingSession(folders(REGRESSION, "sgd", "mse"), backend)
    x = np.random.default_rng(0).standard_normal((4, 3))
    y = x[:, :2] * 2
    losses = [session.step(x, y, lr=0.1) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]
    for wrong in (y[:, :1], y[:3], y.astype(str), y + 1j):
        with pytest.raises(UsageError):
            session.step(x, wrong)


@each_backend
def test_a_graph_with_its_own_loss_and_two_inputs(
    folders: Callable[..., Path], backend: str
) -> None:
    session = TrainingSession(folders(OWN_LOSS, "sgd", "none"), backend)
    x = np.random.default_rng(0).standard_normal((4, 3))
    data = {"x": x, "target": x[:, :2] * 2}
    losses = [session.step(data, lr=0.1) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]
    before = state(session)
    bad: list[tuple[Any, ...]] = [
        (x,),
        (data, np.zeros(4)),
        ({"x": x},),
        ({**data, "z": x},),
        ({"x": x, "target": x[:3, :2]},),
        ({"x": x, "target": x},),
    ]
    for arguments in bad:
        with pytest.raises(UsageError) as caught:
            session.step(*arguments)
        one_line(caught.value)
    for method in (session.predict, lambda d: session.evaluate(d, np.zeros(4))):
        with pytest.raises(UsageError) as caught:
            method(data)
        assert "no axis of samples" in one_line(caught.value)
    assert state(session) == before


@each_backend
def test_two_inputs_and_labels(folders: Callable[..., Path], backend: str) -> None:
    session = TrainingSession(folders(TWO_INPUTS, "sgd"), backend)
    a, b = np.random.default_rng(0).standard_normal((2, 9, 3))
    y = np.arange(9) % 2
    session.step({"b": b[:3], "a": a[:3]}, y[:3])
    assert session.predict({"a": a, "b": b}).shape == (9, 2)
    np.testing.assert_allclose(
        session.predict({"a": a, "b": b}), session.predict({"a": b, "b": a}), rtol=1e-5
    )
    assert 0 <= session.evaluate({"a": a, "b": b}, y) <= 1
    with pytest.raises(UsageError, match="a mapping with a, b"):
        session.predict(a)


@each_backend
def test_a_graph_that_is_tied_to_its_batch(folders: Callable[..., Path], backend: str) -> None:
    session = TrainingSession(folders(FIXED, "sgd", "mse"), backend)
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    session.step(x, x)
    before = state(session)
    with pytest.raises(UsageError, match="3 samples, expected 4"):
        session.step(x[:3], x[:3])
    assert state(session) == before
    assert session.predict(x[:3]).shape == (3, 6)
    assert session.predict(x[:0]).shape == (0, 6)


# Damaged folders ---------------------------------------------------------------------------------


def opens(folder: Path, backend: str) -> None:
    session = TrainingSession(folder, backend)
    session.step(*batch())
    session.predict(batch()[0])


@each_backend
def test_damaged_folders_are_one_line(
    folders: Callable[..., Path], backend: str, tmp_path: Path
) -> None:
    """Cut short at many places, or with a byte changed: an error, or it was not read at all."""
    good, folder = folders(BINARY), tmp_path / "out"
    rng = np.random.default_rng(0)
    read = ["artifact.json", "weights.safetensors", "training.plan.json", "evaluation.plan.json"]
    read += ["constants.safetensors"] if backend == "native" else ["training.portable.onnx"]
    for name in read:
        content = (good / name).read_bytes()
        shutil.copytree(good, folder)
        cuts = [0, 1, 8, 9, len(content) - 1, *rng.integers(2, len(content) - 1, 6)]
        damaged = [content[:cut] for cut in cuts]
        for at in rng.integers(0, len(content), 12):
            damaged.append(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        damaged += [b"null", b"[]", b"{}", b'"x"', b"[" * 100_000, content + b"\n\0"]
        for data in damaged:
            (folder / name).write_bytes(data)
            with pytest.raises(BnnoptError) as caught:
                opens(folder, backend)
            assert str(folder) in one_line(caught.value)
        (folder / name).unlink()
        with pytest.raises(ArtifactError) as caught:
            opens(folder, backend)
        assert name in one_line(caught.value)
        shutil.rmtree(folder)


def test_no_folder_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(ArtifactError, match="not a bnnopt folder"):
            TrainingSession(path)


def test_another_format(folders: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(folders(BINARY), tmp_path / "out")
    file = tmp_path / "out" / "artifact.json"
    file.write_text(file.read_text().replace(f'"format": {FORMAT}', '"format": 99'))
    with pytest.raises(ArtifactError, match=f"format 99, expected {FORMAT}; optimize"):
        TrainingSession(tmp_path / "out")


# Memory ------------------------------------------------------------------------------------------


def test_one_arena_of_the_planned_size(folders: Callable[..., Path]) -> None:
    folder = folders(BINARY)
    session = TrainingSession(folder)
    backend = session._backend
    programs = [
        Program.from_json((folder / f"{kind}.plan.json").read_text())
        for kind in ("training", "evaluation")
    ]
    assert backend.arena.nbytes == max(program.arena_bytes for program in programs)
    assert backend.arena.ctypes.data % 64 == 0
    for executor in (backend._train, backend._predict):
        assert executor._arena is backend.arena
    for number, n in enumerate((4, 3, 1)):
        session.step(*batch(number, n))
        session.predict(batch(number, n)[0])
    for executor, program in zip((backend._train, backend._predict), programs, strict=True):
        for views in executor._views.values():
            in_arena = [
                view
                for view, spec in zip(views, program.values, strict=True)
                if spec.place == "arena"
            ]
            assert all(np.may_share_memory(view, backend.arena) for view in in_arena if view.size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "relu-mini"])
def test_zoo_models_train(name: str, tmp_path: Path) -> None:
    model = build(name)
    assert model.graph.opset_imports[""] == 17
    ir.save(model, tmp_path / "net.onnx")
    bnnopt.optimize(tmp_path / "net.onnx", batch_size=2).save(tmp_path / "out")
    session = TrainingSession(tmp_path / "out")
    shape = (2, 784) if name == "mlp" else (2, 3, 32, 32)
    assert np.isfinite(session.step(np.ones(shape, np.float32), [1, 2]))
