"""optimize --calibrate: sparsity as measured on a file, and a session that meets denser batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt
from bnnopt.errors import UsageError
from tests.cli.conftest import Cli
from tests.cli.helpers import MODELS

MODEL = MODELS / "relu-mini.onnx"
OTHER = "rebuild-activations"  # would leave little for a bitmap in a network with batch norm
BATCH = 8
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2 * BATCH + 3, 3, 32, 32)).astype(np.float32)
LABELS = RNG.integers(0, 10, BATCH)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=IMAGES)
    return path


def optimized(**options: Any) -> bnnopt.Optimized:
    return bnnopt.optimize(MODEL, batch_size=BATCH, disable=OTHER, **options)


def encoded(result: bnnopt.Optimized) -> dict[str, float]:
    """Planned density of every value that is kept as a bitmap, by name."""
    packs = [node for node in result.training.graph if node.op_type == "BitmapPack"]
    return {
        str(node.inputs[0].name): (node.attributes["capacity"].as_int() - 1)
        / math.prod(node.inputs[0].shape.numpy())
        for node in packs
    }


@pytest.mark.slow
def test_the_plan_follows_the_data(data: Path) -> None:
    default, measured = optimized(), optimized(calibrate=str(data))
    np.savez(data, x=np.zeros_like(IMAGES))
    of_zeros = optimized(calibrate=str(data))
    assert encoded(default)
    assert encoded(measured) != encoded(default) != encoded(of_zeros)
    assert measured.report.optimized.worst_case_bytes > measured.report.optimized.peak_bytes
    first = next(iter(encoded(measured)))
    assert 0.2 < encoded(measured)[first] < 0.8


@pytest.mark.slow
def test_a_denser_batch_gives_the_same_bits_and_is_told(data: Path, tmp_path: Path) -> None:
    np.savez(data, x=np.zeros_like(IMAGES))  # dead inputs: next to nothing is planned for
    optimized(calibrate=str(data)).save(tmp_path / "out")
    optimized(level="O0").save(tmp_path / "reference")
    session = bnnopt.TrainingSession(tmp_path / "out")
    reference = bnnopt.TrainingSession(tmp_path / "reference")
    assert session.memory.seen_bytes == session.memory.planned_bytes
    for n in (BATCH, BATCH - 3):
        losses = [s.step(IMAGES[:n], LABELS[:n]) for s in (session, reference)]
        assert losses[0] == losses[1]
    weights = reference.parameters()
    assert all(array.tobytes() == weights[n].tobytes() for n, array in session.parameters().items())
    memory = session.memory
    assert memory.planned_bytes < memory.seen_bytes <= memory.worst_case_bytes
    assert reference.memory.worst_case_bytes == reference.memory.planned_bytes
    with pytest.raises(UsageError, match="only the native backend"):
        _ = bnnopt.TrainingSession(tmp_path / "out", backend="onnxruntime").memory


def test_explain_shows_the_bytes_of_each_way(bnnopt: Cli, data: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["optimize", MODEL, "-b", str(BATCH), "--calibrate", data, "--disable", OTHER]
    shown = bnnopt(*arguments, "--explain", "--json", report).stdout
    (record,) = [p for p in json.loads(report.read_text())["passes"] if p["name"] == "bitmap"]
    assert len(record["chosen"]) == record["rewrites"] > 0
    assert all("dense" in choice["reason"] for choice in record["chosen"])
    assert "What was chosen by bytes" in shown


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": IMAGES[:5]}, "5 samples found, expected at least one batch of 8"),
        ({"x": IMAGES[:, :2]}, r"'x' is float32 \[19, 2, 32, 32\], expected float32 \[n, 3, 32"),
        ({"x": IMAGES > 0}, "'x' is bool"),
        ({"images": IMAGES}, "arrays images found, expected 'x'$"),
        ({"x": np.full_like(IMAGES, np.nan)}, "'x' has NaN or infinity"),
        (b"PK and no more", "not an .npz file"),
        (b"", "not an .npz file"),
    ],
)
def test_a_file_that_does_not_fit(
    arrays: dict[str, Any] | bytes, expected: str, data: Path
) -> None:
    if isinstance(arrays, bytes):
        data.write_bytes(arrays)
    else:
        np.savez(data, **arrays)
    with pytest.raises(UsageError, match=expected):
        optimized(calibrate=str(data))
