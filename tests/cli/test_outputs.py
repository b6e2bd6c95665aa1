"""``--output`` of networks with several, and ``train --profile``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from bnnopt.cli import main
from bnnopt.runtime import TrainingSession
from tests.cli.conftest import Mistake
from tests.cli.helpers import Cli
from tests.graphs import write

# A regression, which the loss is of, and beside it the scores of four classes.
TWO = """g (float[batch,6] x) => (float[batch,1] size, float[batch,4] scores) {
    h = Gemm <transB = 1> (x, w1)
    a = Relu (h)
    size = Gemm <transB = 1> (a, w2)
    scores = Gemm <transB = 1> (a, w3)
}"""
TWO_WEIGHTS = {"w1": [5, 6], "w2": [1, 5], "w3": [4, 5]}
# The same with a loss of its own: the mean of the square of one output.
OWN_LOSS = TWO.replace("(float[batch,1] size,", "(float loss,").replace(
    "scores = Gemm",
    "square = Mul (size, size) loss = ReduceMean <keepdims = 0> (square) scores = Gemm",
)
N = 10


def folder_of(text: str, loss: str, workspace: Path) -> Path:
    path = write(text, TWO_WEIGHTS, workspace)
    main(["optimize", str(path), "-b", "4", "--loss", loss, "-o", "out"])
    return workspace / "out"


def samples(y: np.ndarray) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32)
    np.savez("data.npz", x=x, y=y)
    return x


@pytest.mark.parametrize(("text", "loss"), [(TWO, "mse"), (OWN_LOSS, "none")])
def test_another_output_is_predicted_and_measured(
    text: str, loss: str, bnnopt: Cli, workspace: Path
) -> None:
    """Judge: onnxruntime on what ``export`` writes."""
    folder_of(text, loss, workspace)
    labels = np.random.default_rng(1).integers(0, 4, N)
    x = samples(labels)
    assert bnnopt("predict", "out", "--data", "data.npz", "--output", "scores", "-o", "y.npz")
    assert bnnopt("export", "out", "-o", "trained.onnx").exit_code == 0
    network = ort.InferenceSession("trained.onnx", providers=["CPUExecutionProvider"])
    (expected,) = network.run(["scores"], {"x": x})
    np.testing.assert_allclose(np.load("y.npz")["y"], expected, atol=1e-5)
    line = ["eval", "out", "--data", "data.npz", "--output", "scores", "--json", "-"]
    found = json.loads(bnnopt(*line).stdout)
    assert found["loss"] is None
    assert found["accuracy"] == (expected.argmax(1) == labels).mean()
    session = TrainingSession("out", backend="onnxruntime")
    np.testing.assert_allclose(session.predict(x, "scores"), expected, atol=1e-5)


def test_targets_of_the_first_output_are_no_classes(bnnopt: Cli, workspace: Path) -> None:
    folder_of(TWO, "mse", workspace)
    samples(np.ones((N, 1), np.float32))
    found = json.loads(bnnopt("eval", "out", "--data", "data.npz", "--json", "-").stdout)
    assert found["accuracy"] is None
    assert found["loss"] > 0


def test_an_unknown_output_is_one_line(bnnopt: Cli, workspace: Path) -> None:
    folder_of(TWO, "mse", workspace)
    samples(np.zeros(N, np.int64))
    found = bnnopt("predict", "out", "--data", "data.npz", "--output", "score", "-o", "y.npz")
    assert found.exit_code == 2
    assert "no output 'score'; expected size, scores; did you mean 'scores'?\n" in found.stderr


def test_a_profile_times_each_node(bnnopt: Cli, workspace: Path) -> None:
    folder_of(TWO, "mse", workspace)
    samples(np.ones((N, 1), np.float32))
    assert not bnnopt("train", "out", "--data", "data.npz", "--epochs", "2", "--profile").exit_code
    found = json.loads((workspace / "out" / "profile.json").read_text())
    assert found["steps"] == 6
    assert found["seen_bytes"] == TrainingSession("out").memory.planned_bytes
    products = [node for node in found["nodes"] if "Gemm" in node["op"]]
    assert len(products) >= 3
    for node in found["nodes"]:
        assert node["calls"] == 6
        assert node["seconds"] > 0
    folder_of(TWO, "mse", workspace)  # optimize writes there again
    assert not (workspace / "out" / "profile.json").exists()


def test_onnxruntime_has_no_profile(mistake: Mistake, workspace: Path) -> None:
    folder_of(TWO, "mse", workspace)
    samples(np.ones((N, 1), np.float32))
    line = ["train", "out", "--data", "data.npz", "--profile", "--backend", "onnxruntime"]
    assert "only the native backend" in mistake(*line, "--quiet")
