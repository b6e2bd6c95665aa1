"""``--init``: a second compile starts from what a first one has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from safetensors.numpy import save_file

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.training import Checkpoints
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(BINARY, BINARY_WEIGHTS, tmp_path)


def trained(path: Path, folder: Path, **options: Any) -> tuple[TrainingSession, Path]:
    """A session two steps on, and its checkpoint."""
    bnnopt.optimize(path, batch_size=4, **options).save(folder)
    session, rng = TrainingSession(folder), np.random.default_rng(0)
    for _ in range(2):
        session.step(rng.uniform(-1, 1, (4, 2, 6, 6)), rng.integers(0, 3, 4), lr=0.1)
    session.save(folder.parent / "trained.safetensors")
    return session, folder.parent / "trained.safetensors"


def started(path: Path, init: Path, **options: Any) -> bnnopt.Optimized:
    return bnnopt.optimize(path, init=str(init), batch_size=2, **options)


@pytest.mark.parametrize("level", ["O1", pytest.param("O2", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_another_batch_size_and_level_go_on_from_a_checkpoint(
    path: Path, tmp_path: Path, level: str
) -> None:
    session, checkpoint = trained(path, tmp_path / "a", level=level)
    again = started(path, checkpoint, level="O1")
    assert not [note for note in again.report.notes if "--init" in note]
    again.save(tmp_path / "b")
    found = TrainingSession(tmp_path / "b").parameters()
    for name, array in session.parameters().items():
        np.testing.assert_array_equal(found[name], array)
    untrained = bnnopt.optimize(path, batch_size=2)
    assert any((untrained.weights[name] != array).any() for name, array in found.items())


@pytest.mark.slow
def test_weights_that_were_kept_as_bits(path: Path, tmp_path: Path) -> None:
    """Both ways: to latent weights of -1 and +1, and from the signs of such."""
    session, checkpoint = trained(path, tmp_path / "a", optimizer="bop")
    latent = started(path, checkpoint, optimizer="sgd")
    for name, array in session.parameters().items():
        np.testing.assert_array_equal(latent.weights[name], array)
    packed = started(path, checkpoint, optimizer="bop")
    np.testing.assert_array_equal(packed.weights["w2"], session._persistent["w2"])


def test_an_exported_model(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        other = np.full(tensor.dims, 0.25, np.float32)
        tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    weights = started(path, tmp_path / "other.onnx").weights
    assert all((weights[name] == 0.25).all() for name in BINARY_WEIGHTS)


@pytest.mark.filterwarnings("error")
@pytest.mark.slow
def test_a_state_dict_in_another_type_of_floats(path: Path, tmp_path: Path) -> None:
    for kind in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        halves = {name: np.full(shape, 0.5, kind.numpy()) for name, shape in BINARY_WEIGHTS.items()}
        save_file(halves, tmp_path / "halves")
        weights = started(path, tmp_path / "halves").weights
        assert all((weights[name] == 0.5).all() for name in BINARY_WEIGHTS), kind
    save_file({"w1": np.full(BINARY_WEIGHTS["w1"], 1e60)}, tmp_path / "large")
    with pytest.raises(UsageError, match="'w1' is not finite"):
        started(path, tmp_path / "large")


def test_a_head_of_another_width_starts_anew_and_is_named(path: Path, tmp_path: Path) -> None:
    wide = {name: np.full(shape, 0.5, np.float32) for name, shape in BINARY_WEIGHTS.items()}
    wide["w3"] = np.zeros((10, 36), np.float32)
    del wide["g1"]
    save_file(wide, tmp_path / "wide.safetensors")
    optimized, plain = (
        started(path, tmp_path / "wide.safetensors"),
        bnnopt.optimize(path, batch_size=2),
    )
    (note,) = [note for note in optimized.report.notes if note.startswith("--init")]
    shape = BINARY_WEIGHTS["w3"]
    assert note == (
        f"--init: 2 of {len(BINARY_WEIGHTS)} weights start as in the model: g1, w3 {shape} "
        "(float32 [10, 36] there)"
    )
    for name in ("g1", "w3"):
        np.testing.assert_array_equal(optimized.weights[name], plain.weights[name])
    assert (optimized.weights["w1"] == 0.5).all()


def test_what_cannot_be_started_from(path: Path, tmp_path: Path) -> None:
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "foreign")
    with pytest.raises(UsageError, match=r"--init .*: no weight of this model .* found other"):
        started(path, tmp_path / "foreign")
    bad = np.full(BINARY_WEIGHTS["w1"], np.nan, np.float32)
    save_file({"w1": bad}, tmp_path / "bad")
    with pytest.raises(UsageError, match="'w1' is not finite"):
        started(path, tmp_path / "bad")
    with pytest.raises(ArtifactError, match="no such file"):
        started(path, tmp_path / "nowhere")
    _, checkpoint = trained(path, tmp_path / "a")
    damaged = bytearray(checkpoint.read_bytes())
    damaged[-1] ^= 1
    checkpoint.write_bytes(damaged)
    with pytest.raises(ArtifactError, match="is not as it was written"):
        started(path, checkpoint)


@pytest.mark.slow
def test_a_folder_of_checkpoints_stands_for_the_newest(path: Path, tmp_path: Path) -> None:
    session, _ = trained(path, tmp_path / "a")
    checkpoints = Checkpoints(tmp_path / "a.checkpoints")
    checkpoints.save(session, {})
    session.step(np.ones((4, 2, 6, 6)), np.zeros(4, np.int64), lr=0.1)
    checkpoints.save(session, {})
    again = started(path, tmp_path / "a.checkpoints")
    np.testing.assert_array_equal(again.weights["w1"], session.parameters()["w1"])
    with pytest.raises(UsageError, match="has no checkpoint"):
        started(path, tmp_path)


def test_weights_of_another_type_are_named_by_it(path: Path, tmp_path: Path) -> None:
    arrays = {name: np.ones(shape, np.int64) for name, shape in BINARY_WEIGHTS.items()}
    save_file(arrays, tmp_path / "integers.safetensors")
    with pytest.raises(UsageError, match=r"int64 \[.*expected such as \w+ float32"):
        started(path, tmp_path / "integers.safetensors")
