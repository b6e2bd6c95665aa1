"""Artifacts fresh from onnxruntime-training, and what that package computes with them.

The environment variable ``BNNOPT_ORT_TRAINING_PYTHON`` names a Python that has the package, and
what ``training_artifacts.py`` says; without it these tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import bnnopt
from bnnopt.frontend.checkpoint import read_checkpoint
from bnnopt.verification import verify_folder
from tests.exports.test_training_artifacts import (
    assert_gradients_agree,
    compiled,
    each_backend,
    recorded,
)

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("BNNOPT_ORT_TRAINING_PYTHON")
OPTIONS = {
    "resnet18": ["--size", "32"],
    "mlp": ["--optimizer", "SGD", "--batch", "16"],
    "binarynet": ["--steps", "2"],
    "relu": ["--loss", "MSELoss"],
    "sequence": ["--steps", "2"],
}

pytestmark = [
    pytest.mark.ort_training,
    pytest.mark.skipif(PYTHON is None, reason="BNNOPT_ORT_TRAINING_PYTHON is not set"),
]
# With --dist loadgroup all tests of a network share its artifacts.
each_network = pytest.mark.parametrize(
    "source",
    [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in OPTIONS],
    indirect=True,
    scope="module",
)


@pytest.fixture(scope="module")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artifacts, made once for all tests of a network."""
    folder = tmp_path_factory.mktemp("artifacts") / request.param
    arguments = [request.param, str(folder), "--keep-forward", *OPTIONS[request.param]]
    command = [str(PYTHON), "-m", "tests.exports.training_artifacts", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@each_network
@each_backend
def test_gradients(source: Path, backend: str, tmp_path: Path) -> None:
    folder = compiled(source, tmp_path / "out", level="O1", optimizer="sgd")
    assert_gradients_agree(source, folder, backend)


@each_network
def test_lossless_level_is_bit_equal(source: Path, tmp_path: Path) -> None:
    assert verify_folder(compiled(source, tmp_path / "out", level="O1"), "native").bit_equal


@each_network
def test_saves_what_the_forward_file_saves(source: Path) -> None:
    ours, forward = (
        bnnopt.optimize(path, batch_size=8, level="O1", optimizer="sgd").report.optimized
        for path in (source, source / "forward.onnx")
    )
    assert ours.saved_bytes <= 1.001 * forward.saved_bytes  # targets are more than labels
    assert ours.peak_bytes <= 1.01 * forward.peak_bytes


@each_network
def test_checkpoint_is_what_the_package_reads(source: Path) -> None:
    theirs, ours = recorded(source), read_checkpoint(source / "checkpoint").arrays
    expected = {n.removeprefix("before:"): a for n, a in theirs.items() if "before:" in n}
    assert ours.keys() == expected.keys()
    assert all(np.array_equal(ours[name], array) for name, array in expected.items())
