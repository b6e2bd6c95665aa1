"""``train``, ``eval`` and ``predict`` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bnnopt as package
from bnnopt.runtime.tensors import read_tensors
from bnnopt.runtime.training import Checkpoints
from tests.cli.conftest import Mistake
from tests.cli.helpers import MODELS, Cli

N_CLASSES = 10
KEYS = {
    *("epoch", "step", "loss", "accuracy", "valid_loss", "valid_accuracy", "images_per_s"),
    "seen_bytes",
}


def write_data(path: Path, n: int, seed: int, as_bytes: bool = False) -> Path:
    """Vectors around one of ten random places, which is their class."""
    places = np.random.default_rng(0).standard_normal((N_CLASSES, 784))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, N_CLASSES, n)
    x = (places[y] + 0.5 * rng.standard_normal((n, 784))).astype(np.float32)
    if as_bytes:
        x = np.clip(127.5 + 40 * x, 0, 255).astype(np.uint8)
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture
def data(workspace: Path, compiled: Path) -> Path:
    """A workspace with ``out``, 110 samples to train on and 45 to measure on."""
    (workspace / "out").symlink_to(compiled)
    write_data(workspace / "train.npz", 110, 1)
    write_data(workspace / "valid.npz", 45, 2)
    return workspace


TRAIN = ("train", "out", "--data", "train.npz", "--valid", "valid.npz", "--threads", "1")


def weights(folder: Path, name: str = "out.checkpoints") -> dict[str, bytes]:
    session = package.TrainingSession(folder / "out")
    session.resume(Checkpoints(folder / name).found()[0])
    return {key: array.tobytes() for key, array in session.parameters().items()}


def test_it_trains_measures_and_predicts(bnnopt: Cli, data: Path) -> None:
    found = bnnopt(*TRAIN, "--epochs", "4", "--log-json", "log.jsonl")
    assert (found.exit_code, found.stdout) == (0, "")
    assert "epoch 4/4  loss" in found.stderr
    rows = [json.loads(line) for line in (data / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all(set(row) == KEYS for row in rows)
    assert rows[-1]["step"] == 24
    assert rows[-1]["loss"] < rows[0]["loss"]

    scores = json.loads(bnnopt("eval", "out", "--data", "valid.npz", "--json", "-").stdout)
    assert scores["samples"] == 45
    assert scores["accuracy"] == rows[-1]["valid_accuracy"] > 0.6
    assert scores["loss"] == rows[-1]["valid_loss"]

    assert bnnopt("predict", "out", "--data", "valid.npz", "-o", "y.npz").exit_code == 0
    with np.load(data / "y.npz") as predicted, np.load(data / "valid.npz") as truth:
        assert predicted["y"].shape == (45, N_CLASSES)
        np.testing.assert_array_equal(predicted["label"], predicted["y"].argmax(1))
        assert (predicted["label"] == truth["y"]).mean() == scores["accuracy"]


@pytest.mark.slow
def test_a_resumed_run_goes_on_to_the_same_bits(bnnopt: Cli, data: Path) -> None:
    schedule = ("--schedule", "constant", "--seed", "3", "--lr", "0.002")
    assert bnnopt(*TRAIN, *schedule, "--epochs", "3", "--checkpoint", "whole").exit_code == 0
    for epochs in ("1", "2", "3"):
        assert bnnopt(*TRAIN, *schedule, "--epochs", epochs, "--resume").exit_code == 0
    assert weights(data) == weights(data, "whole")
    assert bnnopt(*TRAIN, "--epochs", "3", "--checkpoint", "other").exit_code == 0
    assert weights(data) != weights(data, "other")


def test_images_of_eight_bits_are_normalised_as_in_training(bnnopt: Cli, data: Path) -> None:
    write_data(data / "train.npz", 110, 1, as_bytes=True)
    write_data(data / "valid.npz", 45, 2, as_bytes=True)
    found = bnnopt(
        *TRAIN,
        "--epochs",
        "2",
        "--log-json",
        "log.jsonl",
        "--mean",
        "0.5",
        "--std",
        "0.2",
        "--scale",
        "255",
    )
    assert found.exit_code == 0
    last = json.loads((data / "log.jsonl").read_text().splitlines()[-1])
    scores = json.loads(bnnopt("eval", "out", "--data", "valid.npz", "--json", "-").stdout)
    assert scores["loss"] == last["valid_loss"]
    other = bnnopt("eval", "out", "--data", "valid.npz", "--scale", "1", "--json", "-")
    assert json.loads(other.stdout)["loss"] != scores["loss"]


def test_images_may_be_normalised_within_the_step(bnnopt: Cli, data: Path) -> None:
    """The same weights, scores and predictions as of floats, and the numbers go with them."""
    write_data(data / "bytes.npz", 110, 1, as_bytes=True)
    optimize = ("optimize", MODELS / "mlp.onnx", "-o", "read", "-b", "20", "--input", "uint8")
    assert bnnopt(*optimize).exit_code == 0
    numbers = ("--mean", "0.5", "--std", "0.2", "--scale", "255")
    found = []
    for folder in ("out", "read"):
        train = ("train", folder, "--data", "bytes.npz", "--threads", "1", "--epochs")
        assert bnnopt(*train, "1", *numbers).exit_code == 0
        assert bnnopt(*train, "2", "--resume").exit_code == 0
        scores = bnnopt("eval", folder, "--data", "bytes.npz", "--json", "-").stdout
        assert bnnopt("predict", folder, "--data", "bytes.npz", "-o", "y.npz").exit_code == 0
        session = package.TrainingSession(data / folder)
        session.resume(Checkpoints(data / f"{folder}.checkpoints").found()[0])
        weights = [array.tobytes() for array in session.parameters().values()]
        found.append((scores, np.load("y.npz")["y"].tobytes(), weights))
    assert found[0] == found[1]
    expected = "valid.npz: x is float32, expected uint8, images as they are stored"
    assert expected in bnnopt("eval", "read", "--data", "valid.npz").stderr
    assert bnnopt("export", "read", "--packed", "packed").exit_code == 0
    packed = bnnopt("eval", "packed", "--data", "bytes.npz", "--json", "-").stdout
    assert json.loads(packed)["accuracy"] == json.loads(scores)["accuracy"]
    for command in (("eval", "packed"), ("emit", "read", "-o", "csrc")):
        refused = bnnopt(*command, "--data", "bytes.npz", "--mean", "0.4")
        assert refused.exit_code == 2
        assert "leave them out" in refused.stderr


def test_quiet_prints_nothing(bnnopt: Cli, data: Path) -> None:
    found = bnnopt(*TRAIN, "--epochs", "1", "--quiet")
    assert (found.exit_code, found.stdout, found.stderr) == (0, "", "")


def test_the_log_on_standard_output_is_nothing_else(bnnopt: Cli, data: Path) -> None:
    found = bnnopt(*TRAIN, "--epochs", "2", "--log-json", "-")
    assert [json.loads(line)["epoch"] for line in found.stdout.splitlines()] == [1, 2]


def test_options_from_a_file(bnnopt: Cli, data: Path) -> None:
    (data / "train.toml").write_text(
        'data = "train.npz"\nepochs = 2\nlog-json = "log.jsonl"\nseed = 7\nmean = [0.0]\n'
    )
    assert bnnopt("train", "out", "--config", "train.toml", "--epochs", "1").exit_code == 0
    assert len((data / "log.jsonl").read_text().splitlines()) == 1  # what is typed goes before it
    (data / "train.toml").write_text("epoch = 2\n")
    found = bnnopt("train", "out", "--config", "train.toml")
    assert found.exit_code == 2
    assert "no option 'epoch'; did you mean 'epochs'?" in found.stderr
    for value in ("{}", "[[1]]", "2026-01-01"):
        (data / "train.toml").write_text(f"epochs = {value}\n")
        found = bnnopt("train", "out", "--config", "train.toml")
        assert found.exit_code == 2
        assert "train.toml: epochs is" in found.stderr


@pytest.mark.parametrize("name", ["c.png", "c.svg", "c.html"])
def test_curves(bnnopt: Cli, data: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    assert bnnopt(*TRAIN, "--epochs", "2", "--curves", name).exit_code == 0
    content = (data / name).read_bytes()
    starts = {"c.png": b"\x89PNG", "c.svg": b"<?xml", "c.html": b"<!doctype html>"}
    assert content.startswith(starts[name])
    if name == "c.html":
        assert b"<svg" in content
        assert b"http" not in content.replace(b"http://www.w3.org", b"").replace(
            b"http://purl.org", b""
        ).replace(b"http://creativecommons.org", b"").replace(b"https://matplotlib.org", b"")


def test_a_training_is_not_written_over(bnnopt: Cli, data: Path) -> None:
    assert bnnopt(*TRAIN, "--epochs", "1").exit_code == 0
    before = weights(data)
    found = bnnopt(*TRAIN, "--epochs", "1", "--seed", "1")
    assert found.exit_code == 2
    assert "--resume goes on from it" in found.stderr
    assert weights(data) == before


def test_a_damaged_checkpoint_is_left_out(bnnopt: Cli, data: Path) -> None:
    assert bnnopt(*TRAIN, "--epochs", "2").exit_code == 0
    newest, before = Checkpoints(data / "out.checkpoints").found()
    content = bytearray(Path(newest).read_bytes())
    content[-5] ^= 1
    Path(newest).write_bytes(content)
    found = bnnopt(*TRAIN, "--epochs", "3", "--resume")
    assert found.exit_code == 0, found
    assert f"left out: {newest}" in found.stderr
    assert f"going on from step 6, {before}" in found.stderr


def test_a_signal_keeps_everything(data: Path) -> None:
    command = [sys.executable, "-m", "bnnopt", *TRAIN, "--epochs", "100000", "--quiet"]
    process = subprocess.Popen(command, cwd=data, stderr=subprocess.PIPE, text=True)
    while not (data / "out.checkpoints").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    newest = Checkpoints(data / "out.checkpoints").found()[0]
    assert said == f"bnnopt: stopped; --resume goes on from {newest}\n"
    assert weights(data)


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no data": (("train", "out"), "Missing option '--data'"),
    "not there": (("train", "out", "--data", "no.npz"), "no.npz: cannot be read"),
    "no folder": (("train", "nowhere", "--data", "train.npz"), "not a bnnopt folder"),
    "epochs": ((*TRAIN, "--epochs", "0"), "--epochs"),
    "schedule": ((*TRAIN, "--schedule", "linear"), "'cosine'"),
    "warmup": ((*TRAIN, "--warmup", "1000"), "expected fewer than all"),
    "augment": ((*TRAIN, "--augment", "flip"), "is for images"),
    "mean": ((*TRAIN, "--mean", "a"), "expected numbers such as"),
    "std": ((*TRAIN, "--std", "0"), "expected numbers above 0"),
    "curves": ((*TRAIN, "--curves", "c.jpg"), "expected .png"),
    "output": (("predict", "out", "--data", "valid.npz", "-o", "y.csv"), "ends in .npz"),
    "checkpoint": (
        ("eval", "out", "--data", "valid.npz", "--checkpoint", "no.safetensors"),
        "no such file",
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(
    mistake: Callable[..., str], data: Path, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in mistake(*arguments)


def test_before_training_the_weights_are_those_of_the_file(bnnopt: Cli, data: Path) -> None:
    found = bnnopt("eval", "out", "--data", "valid.npz", "--json", "-")
    assert found.exit_code == 0
    assert "no checkpoint: those of the model file" in found.stderr
    session = package.TrainingSession(data / "out")
    with np.load(data / "valid.npz") as arrays:
        assert json.loads(found.stdout)["accuracy"] == session.evaluate(arrays["x"], arrays["y"])


def test_a_last_batch_of_one_sample_is_left_out_before_a_norm_over_samples(
    bnnopt: Cli, data: Path
) -> None:
    write_data(data / "train.npz", 101, 1)
    found = bnnopt(*TRAIN, "--epochs", "1", "--log-json", "log.jsonl")
    assert "leaves out 1 of 101 samples" in found.stderr
    assert json.loads((data / "log.jsonl").read_text())["step"] == 5
    write_data(data / "train.npz", 102, 1)
    found = bnnopt(*TRAIN, "--epochs", "1", "--checkpoint", "two", "--log-json", "two.jsonl")
    assert "leaves out" not in found.stderr
    assert json.loads((data / "two.jsonl").read_text())["step"] == 6


@pytest.mark.slow
def test_earlier_samples_are_replayed(bnnopt: Cli, workspace: Path) -> None:
    arguments = ["optimize", MODELS / "mlp.onnx", "-b", "20", "--last", "2", "--freeze-batch-norm"]
    assert bnnopt(*arguments, "-o", "out").exit_code == 0
    random = np.random.default_rng(0)
    for name, labels in (("old", (0, 5)), ("new", (5, 10))):
        x = random.standard_normal((60, 784)).astype(np.float32)
        np.savez(f"{name}.npz", x=x, y=random.integers(*labels, 60))
    train = ["train", "out", "--epochs", "1", "--replay", "8", "--replay-keep", "30"]
    first = bnnopt(*train, "--data", "old.npz", "--checkpoint", "first")
    assert "keeps nothing yet" in first.stderr
    assert "30 samples to replay, 32 B each" in first.stderr  # 256 signs
    second = bnnopt(*train, "--data", "new.npz", "--checkpoint", "second")
    assert "each batch has 8 of 30 earlier samples" in second.stderr
    assert second.exit_code == 0
    labels = read_tensors("out.replay.safetensors")[0]["labels"]
    assert np.bincount(labels).tolist() == [3] * 10


def test_event_files_have_each_epoch(bnnopt: Cli, compiled: Path, workspace: Path) -> None:
    """Judge: the records as TensorBoard defines them, a length, a checksum, an event."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    data = write_data(workspace / "data.npz", 60, seed=1)
    (workspace / "train.yaml").write_text(f"data: {data}\nepochs: 2\ntensorboard: events\n")
    found = bnnopt(
        "train",
        compiled,
        "--config",
        "train.yaml",
        "--quiet",
        "--log-json",
        "log.json",
        "--checkpoint",
        "kept",
    )
    assert found.exit_code == 0, found.stderr
    (file,) = (workspace / "events").iterdir()
    content, place, scalars = file.read_bytes(), 0, []
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        place += 16 + length
    rows = [json.loads(line) for line in Path("log.json").read_text().splitlines()]
    expected = [
        (row["step"], name, pytest.approx(row[name], rel=1e-6))
        for row in rows
        for name in ("loss", "accuracy", "images_per_s", "seen_bytes")
    ]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert scalars == expected


@pytest.mark.parametrize(
    ("text", "words"), [("[1", "as YAML"), ("- 1", "a table"), ("x: 1", "'x'")]
)
def test_a_yaml_file_that_makes_no_sense(
    mistake: Mistake, compiled: Path, workspace: Path, text: str, words: str
) -> None:
    (workspace / "train.yaml").write_text(text)
    assert words in mistake("train", compiled, "--config", "train.yaml")
