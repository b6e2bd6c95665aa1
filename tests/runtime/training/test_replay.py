"""Latent replay: what a frozen front gave for earlier samples, mixed into batches of new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt
from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.data.arrays import from_arrays
from bnnopt.runtime.data.normalization import AS_IT_IS
from bnnopt.runtime.replay import balanced
from bnnopt.runtime.training import remember
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS, FLOAT, FLOAT_WEIGHTS, batch_norm

BATCH = 8
# Two dense layers, the first of which stays; real numbers between them, or signs.
DENSE = f"""g (float[batch,6] x) => (float[batch,3] y) {{
    a = Gemm <transB = 1> (x, w1)
    s = {{sign}} (a)
    wb = {{sign}} (w2)
    c = Gemm <transB = 1> (s, wb)
    {batch_norm("c", "n", 1)}
    y = Gemm <transB = 1> (n, w3)
}}"""
WEIGHTS = {"w1": [10, 6], "w2": [4, 10], "g1": [4], "b1": [4], "m1": [4], "var1": [4], "w3": [3, 4]}


def session_of(
    folder: Path, level: str, sign: str = "Sign", last: int = 2, **options: Any
) -> bnnopt.TrainingSession:
    path = write(DENSE.replace("{sign}", sign), WEIGHTS, folder)
    options |= {"optimizer": "sgd", "momentum": 0}
    bnnopt.optimize(path, batch_size=BATCH, level=level, last=last, **options).save(folder / "out")
    return bnnopt.TrainingSession(folder / "out")


def batch(n: int, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    return random.standard_normal((n, 6)).astype(np.float32), random.integers(0, 3, n)


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_signs_are_replayed_as_the_samples_themselves(level: str, tmp_path: Path) -> None:
    """Judge: the step on the whole batch, old samples and new ones, without a replay."""
    session = session_of(tmp_path, level)
    (x_old, y_old), (x_new, y_new) = batch(3, seed=1), batch(5, seed=2)
    replay = session.replay(tmp_path / "kept.safetensors")
    kept = replay.remember(session.latents(x_old, y_old), 3)
    assert [rows.dtype for rows in kept.rows] == [np.uint8]
    assert kept.n_bytes == 3 * 2  # ten signs in two bytes
    session.replay(tmp_path / "kept.safetensors", 3)
    assert session.batch_size == 5
    drawn = session._replay.drawn(0)  # type: ignore[union-attr]
    order = [int(np.flatnonzero((kept.rows[0] == row).all(1))[0]) for row in drawn.rows[0]]
    whole = bnnopt.TrainingSession(tmp_path / "out")
    x, y = np.concatenate([x_new, x_old[order]]), np.concatenate([y_new, y_old[order]])
    assert sorted(order) == [0, 1, 2]
    assert session.step(x_new, y_new, 0.1) == whole.step(x, y, 0.1)
    for name, array in whole.parameters().items():
        np.testing.assert_array_equal(session.parameters()[name], array, err_msg=name)
    other = bnnopt.TrainingSession(tmp_path / "out")  # the control: the new samples alone
    assert other.step(x_new, y_new, 0.1) != whole.step(x, y, 0.1)


def test_real_numbers_are_replayed_to_eight_bits(tmp_path: Path) -> None:
    session = session_of(tmp_path, "O1", sign="Relu")
    x, y = batch(6)
    session.replay(tmp_path / "kept.safetensors")
    found = session.latents(x, y)
    assert {rows.dtype for rows in found.rows} == {np.dtype(np.int8)}
    expected = np.maximum(x @ session.parameters()["w1"].T, 0)
    error = np.abs(found.rows[0] * found.scales[0][:, None] - expected)
    assert (error <= found.scales[0][:, None] * 0.51).all()
    assert found.n_bytes == len(found.rows) * 6 * (10 + 4)


def test_the_file_goes_on_in_another_session(tmp_path: Path) -> None:
    session = session_of(tmp_path, "O1")
    path = tmp_path / "kept.safetensors"
    x, y = batch(30)
    data = from_arrays({"x": x, "y": y}, "data")
    kept = remember(session, session.replay(path), data, AS_IT_IS, 12)
    assert np.bincount(kept.labels).tolist() == [4, 4, 4]
    again = bnnopt.TrainingSession(tmp_path / "out").replay(path, 2)
    assert again.kept is not None
    np.testing.assert_array_equal(again.kept.rows[0], kept.rows[0])
    once_more = remember(session, again, data, AS_IT_IS, 12)  # they stay, in whatever order
    assert sorted(map(bytes, once_more.rows[0])) == sorted(map(bytes, kept.rows[0]))


@pytest.mark.parametrize("keep", [1, 5, 7, 100])
def test_of_each_label_alike(keep: int) -> None:
    labels = np.repeat([0, 1, 2], [2, 10, 20])
    found = np.bincount(labels[balanced(labels, keep)], minlength=3)
    assert found.sum() == min(keep, 32)
    if keep == 7:
        assert sorted(found) == [2, 2, 3]


def test_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    first = session_of(tmp_path, "O1")
    x, y = batch(40)
    data = from_arrays({"x": x, "y": y}, "data")
    remember(first, first.replay(path), data, AS_IT_IS, 9)
    weights = []
    for stops in ((4,), (2, 4)):
        session = bnnopt.TrainingSession(tmp_path / "out")
        for epochs in stops:
            session.replay(path, 3, seed=5)
            session.fit(data, epochs, seed=5, checkpoints=tmp_path / f"run{len(stops)}")
            newest = max((tmp_path / f"run{len(stops)}").glob("step*"))
            session = bnnopt.TrainingSession(tmp_path / "out")
            session.resume(newest)
        weights.append(session.parameters())
    for name, array in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], array)


@pytest.mark.slow
def test_what_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    for fed in ("float32", "uint8"):
        with pytest.raises(UsageError, match="reads the samples themselves"):
            session_of(tmp_path, "O1", last=3, input=fed).replay(path)
    session = session_of(tmp_path, "O1")
    x, y = batch(4)
    with pytest.raises(UsageError, match="call replay first"):
        session.latents(x, y)
    with pytest.raises(UsageError, match="room for new ones"):
        session.replay(path, BATCH)
    replay = session.replay(path)
    replay.remember(session.latents(x, y), 4)
    bnnopt.optimize(write(FLOAT, FLOAT_WEIGHTS, tmp_path), batch_size=4, last=1, level="O0").save(
        tmp_path / "moving"
    )
    with pytest.raises(UsageError, match="--freeze-batch-norm"):
        bnnopt.TrainingSession(tmp_path / "moving").replay(path)
    bnnopt.optimize(
        write(BINARY, BINARY_WEIGHTS, tmp_path), batch_size=4, last=1, freeze_batch_norm=True
    ).save(tmp_path / "other")
    with pytest.raises(UsageError, match="another frozen front"):
        bnnopt.TrainingSession(tmp_path / "other").replay(path)
    with pytest.raises(UsageError, match="native backend"):
        bnnopt.TrainingSession(tmp_path / "out", backend="onnxruntime").replay(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError):
        session.replay(path)
