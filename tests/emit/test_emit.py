"""What is emitted does the session's steps, to the bit, or is refused."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.cli import main
from bnnopt.emit import emit, write_samples
from bnnopt.emit.sources import sources_of
from bnnopt.errors import UsageError
from bnnopt.models import names
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.library import library, portable_kernels
from bnnopt.runtime.training import load_newest, newest
from tests.cli.helpers import MODELS
from tests.cli.test_outputs import TWO, TWO_WEIGHTS
from tests.emit.harness import (
    CLANG,
    COMPILER,
    FULL,
    QUICK,
    Batches,
    Program,
    of_program,
    of_session,
)
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS, BYTES, BYTES_WEIGHTS
from tests.runtime.compiled_calls import settings_of
from tests.runtime.test_boundary import CONTROLS, exported
from tests.zoo import LARGE, build_small

pytestmark = pytest.mark.skipif(
    library() is None or COMPILER is None, reason="needs a C compiler, and kernels built by it"
)
STEPS = 20


def compiled(folder: Path, name: str, level: str = "O1", **options: object) -> Path:
    ir.save(build_small(name), folder / f"{name}.onnx")
    optimized = bnnopt.optimize(folder / f"{name}.onnx", batch_size=8, level=level, **options)
    optimized.save(folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlp") / "out"
    bnnopt.optimize(MODELS / "mlp.onnx", batch_size=8, level="O1").save(folder)
    return folder


@pytest.fixture(scope="module")
def program(mlp: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(mlp, tmp_path_factory.mktemp("csrc"))


def test_steps_are_those_of_the_session(mlp: Path, program: Program) -> None:
    assert of_program(mlp, program, 3) == of_session(mlp, 3)


def test_the_control_finds_another_rate(mlp: Path, program: Program) -> None:
    want, got = of_session(mlp, 2), of_program(mlp, program, 2, 2e-3)
    assert got.losses[0] == want.losses[0]
    assert got.losses[1] != want.losses[1]
    assert got.state != want.state


def test_images_are_taken_as_bytes(tmp_path: Path) -> None:
    path = write(BYTES, BYTES_WEIGHTS, tmp_path)
    bnnopt.optimize(path, batch_size=4, input="uint8", sign_zero="+1").save(tmp_path / "out")
    program = Program(tmp_path / "out", tmp_path / "csrc")
    assert of_program(tmp_path / "out", program, 2) == of_session(tmp_path / "out", 2)
    assert "bnn_train_step(const uint8_t *x" in (tmp_path / "csrc" / "bnn_model.h").read_text()


@pytest.mark.slow
def test_latent_weights_may_be_integers(tmp_path: Path) -> None:
    path = write(BINARY, BINARY_WEIGHTS, tmp_path)
    options = {"level": "O3", "enable": ["int8-latents"]}
    bnnopt.optimize(path, batch_size=4, **options).save(tmp_path / "out")
    program = Program(tmp_path / "out", tmp_path / "csrc")
    assert of_program(tmp_path / "out", program, 2) == of_session(tmp_path / "out", 2)


def test_a_step_that_fails_says_where(program: Program) -> None:
    program.reset()
    before = program.state.copy()
    x, labels = np.ones((8, 784), np.float32), np.full(8, 10)  # of ten classes
    assert np.isnan(program.step([x, labels], 1e-3))
    assert program.error is not None
    assert "loss" in program.error
    np.testing.assert_array_equal(program.state, before)


@pytest.mark.parametrize(("factor", "where"), [(1e18, "bn"), (np.nan, "fc1.weight")])
def test_a_step_that_is_not_finite_is_undone(
    factor: float, where: str, mlp: Path, program: Program
) -> None:
    """As in a session, which goes on from the step before as well."""
    program.reset()
    session = TrainingSession(mlp)
    batches = Batches(session)
    good, bad, better = (batches.draw() for _ in range(3))
    losses = []
    for (x, y), by in ((good, 1.0), (bad, factor), (better, 1.0)):
        losses.append(program.step([*(by * a for a in x.values()), y], 1e-3))
        assert (program.error is None) == np.isfinite(losses[-1])
        if program.error is not None:
            assert where in program.error
    assert np.isnan(losses[1])
    with settings_of(portable=True, threads=1), portable_kernels():
        session = TrainingSession(mlp, threads=1)
        assert [session.step(x, y, 1e-3) for x, y in (good, better)] == losses[::2]


@pytest.mark.slow
def test_without_a_copy_a_failed_step_is_half_a_step(mlp: Path, tmp_path: Path) -> None:
    program = Program(mlp, tmp_path, (*QUICK, "-DBNN_UNDO=0"))
    program.reset()
    before = program.state.copy()
    x, y = np.full((8, 784), 1e18, np.float32), np.zeros(8, np.int64)
    x[:4] *= -1
    assert np.isnan(program.step([x, y], 1e-3))
    assert (program.state != before).any()
    assert not program.state[:8].any(), "the step counts"


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bce", "mse", "soft-cross-entropy", "squared-hinge"])
def test_other_losses(loss: str, tmp_path: Path) -> None:
    graph = "g (float[batch,6] x) => (float[batch,4] y) { y = Gemm <transB = 1> (x, w) }"
    folder = tmp_path / "out"
    bnnopt.optimize(write(graph, {"w": [4, 6]}, tmp_path), batch_size=4, loss=loss).save(folder)
    want = of_session(folder, 3)
    assert of_program(folder, Program(folder, tmp_path / "csrc"), 3) == want


@pytest.mark.slow
def test_every_output_is_there(tmp_path: Path) -> None:
    path = write(TWO, TWO_WEIGHTS, tmp_path)
    bnnopt.optimize(path, batch_size=4, loss="mse").save(tmp_path / "out")
    program = Program(tmp_path / "out", tmp_path / "csrc")
    session = TrainingSession(tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    program.reset()
    size = np.frombuffer(program.output([x], 16), np.float32).reshape(4, 1)
    scores = np.frombuffer(program.further_output(1, 64), np.float32).reshape(4, 4)
    np.testing.assert_allclose(size, session.predict(x), rtol=1e-6)
    np.testing.assert_allclose(scores, session.predict(x, output="scores"), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "bop"])
@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_every_level_and_optimiser(level: str, optimizer: str, tmp_path: Path) -> None:
    folder = compiled(tmp_path, "mlp", level, optimizer=optimizer)
    want = of_session(folder, STEPS, 1e-4)
    program = Program(folder, tmp_path / "csrc", FULL)
    assert of_program(folder, program, STEPS, 1e-4) == want


def test_what_has_no_kernel_is_refused(
    mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(COMPILED, "Gemm")
    with pytest.raises(SystemExit) as stop:
        main(["emit", str(mlp), "-o", str(tmp_path / "csrc")])
    assert stop.value.code == 2
    found = capsys.readouterr().err
    assert re.search(r"emit: node '\S+' \(Gemm\) has no kernel in C", found)
    assert found.count("\n") == 1
    assert not (tmp_path / "csrc").exists()


def test_a_call_that_follows_from_values_is_refused(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that reads an operand in Python: C would keep what was read."""
    kernel = COMPILED["BatchNormalizationTraining"]

    def reads(inputs, outputs, attributes, scratch):
        own = {**attributes, "epsilon": float(np.nan_to_num(inputs[0]).max())}
        return kernel.call(inputs, outputs, own, scratch)

    row = kernel._replace(call=reads)
    monkeypatch.setitem(COMPILED, "BatchNormalizationTraining", row)
    with pytest.raises(UsageError, match=r"bnn_batch_normalization_training.* depends on values"):
        emit(mlp, tmp_path)


def test_samples_as_bytes(program: Program, tmp_path: Path) -> None:
    x, y = np.arange(3 * 784, dtype=np.float32).reshape(3, 784), np.array([7, 8, 9])
    model = program.emitted.model
    assert write_samples(model, [(x[:2], y[:2]), (x[2:], y[2:])], tmp_path / "s") == 3
    record = np.dtype([("x", "<f4", 784), ("y", "<i8")])
    found = np.fromfile(tmp_path / "s", record)
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["y"], y)
    with pytest.raises(UsageError, match="no labels"):
        write_samples(model, [(x, None)], tmp_path / "s")


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["const", "file"])
def test_it_goes_on_from_the_newest_checkpoint(weights: str, tmp_path: Path) -> None:
    """Predicts as `bnnopt predict` does, and its next step is the one of the session."""
    graph = "g (float[batch,6] x) => (float[batch,4] y) { y = Gemm <transB = 1> (x, w) }"
    folder, csrc = tmp_path / "out", tmp_path / "csrc"
    bnnopt.optimize(write(graph, {"w": [4, 6]}, tmp_path), batch_size=4).save(folder)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((4, 6)).astype(np.float32), random.integers(0, 4, 4)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    data = ["--data", str(tmp_path / "data.npz")]
    main(["train", str(folder), *data, "--epochs", "3", "--quiet"])
    main(
        [
            "emit",
            str(folder),
            "-o",
            str(tmp_path / "by-command"),
            "--weights",
            weights,
            "--valid",
            data[1],
        ]
    )
    program = Program(folder, csrc, weights=weights, checkpoint=newest(folder))
    for name in program.emitted.files:
        assert (tmp_path / "by-command" / name).read_bytes() == (csrc / name).read_bytes()
    samples = np.fromfile(tmp_path / "by-command" / "test.bin", [("x", "<f4", 6), ("y", "<i8")])
    x = np.ascontiguousarray(samples["x"])  # normalised
    with settings_of(portable=True, threads=1), portable_kernels():
        main(["predict", str(folder), *data, "-o", str(tmp_path / "y.npz")])
        session = TrainingSession(folder, threads=1)
        load_newest(session, folder)
        assert session.steps_done == 3
        losses = [session.step(x, y, 1e-2) for _ in range(2)]
    program.reset()
    want = np.load(tmp_path / "y.npz")["y"].tobytes()
    assert program.output([x], len(want)) == want
    assert [program.step([x, y], 1e-2) for _ in range(2)] == losses


@pytest.mark.slow
def test_weights_as_arrays_or_a_file(mlp: Path, tmp_path: Path) -> None:
    constants = emit(mlp, tmp_path / "a", "const")
    file = emit(mlp, tmp_path / "b", "file")
    assert constants.initial_file is None
    assert not (tmp_path / "a" / "bnn_state.bin").exists()
    weights = sum(a.nbytes for a in TrainingSession(mlp).stored_weights().values() if a.any())
    assert constants.const_bytes - file.const_bytes == weights
    with pytest.raises(UsageError, match="weights 'flash'"):
        emit(mlp, tmp_path, "flash")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "level"),
    [
        (name, level)
        for i, name in enumerate(name for name in names() if name not in ("mlp", "pokebnn", *LARGE))
        for level in [("O0", "O1", "O2")[i % 3]]  # `benchmarks.emit` has all three
    ],
)
def test_the_zoo(name: str, level: str, tmp_path: Path) -> None:
    folder = compiled(tmp_path, name, level)
    want = of_session(folder, 3, 1e-6)
    assert of_program(folder, Program(folder, tmp_path / "csrc"), 3, 1e-6) == want


@pytest.mark.slow
def test_a_bitmap_that_outgrows_its_place(tmp_path: Path) -> None:
    folder = compiled(tmp_path, "pokebnn")  # random inputs leave fewer zeros than it plans for
    session = TrainingSession(folder)
    session.step(*Batches(session).draw(), 1e-6)
    memory = session.memory
    assert memory.seen_bytes > memory.planned_bytes, "no bitmap outgrows its place"
    want = of_session(folder, 3, 1e-6)
    assert of_program(folder, Program(folder, tmp_path / "csrc"), 3, 1e-6) == want
    without = Program(folder, tmp_path / "none", (*QUICK, "-DBNN_SPILL_BYTES=0"))
    with pytest.raises(AssertionError, match=r"squeezed_out\.bitmap"):
        of_program(folder, without, 1, 1e-6)


@pytest.mark.slow
@pytest.mark.skipif(CLANG is None, reason="needs clang")
@pytest.mark.parametrize(("name", "level"), [("mlp", "O2"), ("reactnet", "O1")])
def test_clang_gives_the_same(name: str, level: str, tmp_path: Path) -> None:
    folder = compiled(tmp_path, name, level)
    want = of_session(folder, 3, 1e-4)
    program = Program(folder, tmp_path / "csrc", FULL, CLANG)
    assert of_program(folder, program, 3, 1e-4) == want


@pytest.mark.slow
@pytest.mark.skipif(CLANG is None, reason="needs clang")
def test_clang_takes_every_source(tmp_path: Path) -> None:
    files = sources_of(set(exported()) - CONTROLS).files
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    sources = [name for name in files if name.endswith(".c")]
    subprocess.run([str(CLANG), *FULL, "-fsyntax-only", *sources], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_every_exported_function_is_found() -> None:
    names = set(exported()) - CONTROLS
    found = sources_of(names)
    assert len(found.prototypes) == len(names)
    assert not {file for file in found.files if "avx" in file or "threads" in file}


@pytest.mark.slow
def test_the_example_trains(mlp: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 10, 800)
    x = np.float32(0.3) * random.standard_normal((800, 784), np.float32)
    x[np.arange(800), y] += 4
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    data = ["--data", str(tmp_path / "train.npz"), "--valid", str(tmp_path / "test.npz")]
    main(["emit", str(mlp), "-o", str(tmp_path / "csrc"), *data])
    subprocess.run(["make", "-s", "CFLAGS=-O1 -Werror"], cwd=tmp_path / "csrc", check=True)
    command = ["./bnn_train", "train.bin", "test.bin", "3"]
    done = subprocess.run(
        command, cwd=tmp_path / "csrc", check=True, capture_output=True, text=True
    )
    *_, steps, accuracy = done.stdout.splitlines()
    assert steps.startswith("100 steps, mean loss")
    right, _, total, *_ = accuracy.split()
    assert int(total) == 800
    assert int(right) > 700
