"""Training artifacts of onnxruntime-training, against what that package recorded with them.

The folders in ``artifacts`` come from ``training_artifacts.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import bnnopt
from bnnopt.runtime import BACKENDS
from bnnopt.runtime.tensors import read_tensors
from tests.graphs import cosine

Array = NDArray[Any]
FOLDERS = Path(__file__).parent / "artifacts"

each_folder = pytest.mark.parametrize("name", ["small", "binary", "mixed", "sequence"])
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def recorded(folder: Path) -> dict[str, Array]:
    with np.load(folder / "recorded.npz") as file:
        return dict(file)


def compiled(source: Path, output: Path, batch: int | None = None, **options: object) -> Path:
    """Compiled for the batches that were recorded, or for others."""
    size = recorded(source)["x"].shape[1] if batch is None else batch
    bnnopt.optimize(source, batch_size=size, **options).save(output)
    return output


def first_step(folder: Path, x: Array, y: Array, backend: str) -> tuple[float, dict[str, Array]]:
    """Loss and gradients of the first step, as momentum keeps them."""
    session = bnnopt.TrainingSession(folder, backend=backend)
    loss = session.step(x, y)
    session.save(folder.with_suffix(".safetensors"))
    tensors, _ = read_tensors(folder.with_suffix(".safetensors"))
    suffix = ".momentum"
    return loss, {n.removesuffix(suffix): a for n, a in tensors.items() if n.endswith(suffix)}


def assert_gradients_agree(source: Path, folder: Path, backend: str) -> None:
    theirs = recorded(source)
    loss, ours = first_step(folder, theirs["x"][0], theirs["y"][0], backend)
    assert loss == pytest.approx(float(theirs["loss"]), rel=1e-5)
    expected = {n.partition(":")[2]: a for n, a in theirs.items() if n.startswith("gradient:")}
    assert ours.keys() == expected.keys()
    largest = max(float(np.linalg.norm(a)) for a in expected.values())
    for name, gradient in expected.items():
        if np.linalg.norm(gradient) < 1e-6 * largest:  # a bias before batch norm: rounding alone
            assert np.linalg.norm(ours[name]) < 1e-5 * largest, name
        else:
            assert cosine(ours[name], gradient) >= 0.9999, name


@pytest.mark.slow
@each_backend
@each_folder
def test_gradients(name: str, backend: str, tmp_path: Path) -> None:
    folder = compiled(FOLDERS / name, tmp_path / name, level="O1", optimizer="sgd")
    assert_gradients_agree(FOLDERS / name, folder, backend)


@pytest.mark.slow
@each_folder
def test_a_wrong_gradient_is_found(name: str, tmp_path: Path) -> None:
    """Negative control: labels of another batch."""
    folder = compiled(FOLDERS / name, tmp_path / name, optimizer="sgd")
    theirs = recorded(FOLDERS / name)
    _, ours = first_step(folder, theirs["x"][0], theirs["y"][1], "native")
    assert min(cosine(ours[n], theirs[f"gradient:{n}"]) for n in ours) < 0.9


@pytest.mark.slow
@each_backend
@each_folder
def test_trains_as_the_package_does(name: str, backend: str, tmp_path: Path) -> None:
    """With the folder's own optimiser: AdamW with weight decay, and SGD; statistics too."""
    theirs = recorded(FOLDERS / name)
    session = bnnopt.TrainingSession(compiled(FOLDERS / name, tmp_path / name), backend=backend)
    losses = [session.step(x, y) for x, y in zip(theirs["x"], theirs["y"], strict=True)]
    np.testing.assert_allclose(losses, theirs["losses"], rtol=1e-5)
    for key, array in session.parameters().items():
        bound = 3e-3 if key == "conv.bias" else 1e-5  # its gradient is rounding, scaled by Adam
        np.testing.assert_allclose(array, theirs[f"after:{key}"], rtol=0, atol=bound, err_msg=key)


@pytest.mark.slow
@each_backend
@each_folder
def test_lossless_level_is_bit_equal(name: str, backend: str, tmp_path: Path) -> None:
    from bnnopt.verification import verify_folder

    found = verify_folder(compiled(FOLDERS / name, tmp_path / name), backend)
    assert found.bit_equal


@pytest.mark.parametrize("name", ["small", "binary"])
def test_saves_what_the_forward_file_saves(name: str) -> None:
    options = {"batch_size": 100, "level": "O1", "optimizer": "sgd"}
    ours = bnnopt.optimize(FOLDERS / name, **options).report
    forward = bnnopt.optimize(FOLDERS / name / "forward.onnx", **options).report
    assert ours.optimized.saved_bytes == forward.optimized.saved_bytes
    assert ours.optimized.peak_bytes <= 1.01 * forward.optimized.peak_bytes
    fired, expected = (
        {p.name for p in report.passes if p.rewrites} - {"schedule"} for report in (ours, forward)
    )
    assert fired == expected


@pytest.mark.slow
@each_backend
def test_smaller_batch_and_evaluation(backend: str, tmp_path: Path) -> None:
    theirs = recorded(FOLDERS / "small")
    x, y = theirs["x"][0], theirs["y"][0]
    of_8, of_3 = (
        bnnopt.TrainingSession(
            compiled(FOLDERS / "small", tmp_path / str(n), n, optimizer="sgd"), backend=backend
        )
        for n in (8, 3)
    )
    assert of_8.step(x[:3], y[:3]) == pytest.approx(of_3.step(x[:3], y[:3]), rel=1e-6)
    for name, array in of_8.parameters().items():
        np.testing.assert_allclose(array, of_3.parameters()[name], rtol=1e-5, atol=1e-7)
    assert of_8.predict(x).shape == (8, 10)
    assert 0 <= of_8.evaluate(x, y) <= 1
