"""``export --packed``, and the commands that take what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import bnnopt as package
from tests.cli.helpers import Cli
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS


def test_a_network_alone_predicts_and_is_measured(bnnopt: Cli, workspace: Path) -> None:
    path = write(BINARY, BINARY_WEIGHTS, workspace)
    package.optimize(path, batch_size=4).save("out")
    session, rng = package.TrainingSession("out"), np.random.default_rng(0)
    x, y = rng.standard_normal((7, 2, 6, 6)).astype(np.float32), np.arange(7) % 3
    session.step(x[:4], y[:4], lr=0.1)
    session.save("trained")
    np.savez("data.npz", x=x, y=y)
    data = ("--data", "data.npz", "--scale", "1")

    said = bnnopt("export", "out", "--packed", "network", "-b", "4", "--checkpoint", "trained")
    assert said.exit_code == 0
    assert "predicts 4 at once" in said.stdout
    assert bnnopt("predict", "network", *data, "-o", "y.npz").exit_code == 0
    np.testing.assert_array_equal(np.load("y.npz")["y"], session.predict(x))
    alone, whole = (
        bnnopt("eval", "network", *data),
        bnnopt("eval", "out", *data, "--checkpoint", "trained"),
    )
    assert alone.stdout == whole.stdout
    assert "accuracy" in alone.stdout


def test_what_a_network_alone_does_not_take(bnnopt: Cli, workspace: Path) -> None:
    package.optimize(write(BINARY, BINARY_WEIGHTS, workspace), batch_size=4).save("out")
    assert bnnopt("export", "out", "--packed", "network").exit_code == 0
    for options, expected in (
        (("--checkpoint", "trained"), "has its weights inside"),
        (("--backend", "onnxruntime"), "is for native"),
    ):
        found = bnnopt("eval", "network", "--data", "data.npz", *options)
        assert found.exit_code == 2
        assert expected in found.stderr
    train = ("train", "network", "--data", "data.npz", "--epochs", "1")
    for command in (train, ("inspect", "network"), ("verify", "network")):
        found = bnnopt(*command)
        assert found.exit_code == 2
        assert "without a training step" in found.stderr
    for folder, size, expected in (
        ("out", "1", "out: holds a training step; choose another folder"),
        ("network", "9999999", "--batch-size 9999999: expected a number from 1 to 1048576"),
    ):
        found = bnnopt("export", "out", "--packed", folder, "-b", size)
        assert found.exit_code == 2
        assert expected in found.stderr
    package.TrainingSession("out")  # is still there
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("mine")
    found = bnnopt("export", "out", "--packed", "notes")
    assert found.exit_code == 2
    assert "which bnnopt did not write" in found.stderr
