"""Mistakes of a new user: each is one line that says what to do. To add one, add a row."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt as package
from bnnopt.errors import UsageError
from tests.cli.conftest import Mistake
from tests.cli.helpers import MODELS, Cli

MINI = str(MODELS / "resnet-e-mini.onnx")  # x is (batch, 3, 32, 32), of ten classes
RANDOM = np.random.default_rng(0)
X = RANDOM.random((16, 3, 32, 32), np.float32)
Y = RANDOM.integers(0, 10, 16)

# What is typed, and what the line has to say.
MISTAKES = {
    "a command that is nearly one": (["optimse", MINI], "Did you mean 'optimize'?"),
    "a file of PyTorch": (
        ["optimize", "net.pt", "-b", "4"],
        "a file of PyTorch, expected ONNX; in Python build the module, load the file, and "
        "bnnopt.torch.export(module, x, 'model.onnx')",
    ),
    "no batch size": (["optimize", MINI], "pass --batch-size N"),
    "a pass that is nearly one": (
        ["optimize", MINI, "-b", "4", "--passes", "sing-pack"],
        "did you mean 'sign-pack'?",
    ),
    "an optimiser that is nearly one": (
        ["optimize", MINI, "-b", "4", "--optimizer", "adamm"],
        "did you mean 'adam'?",
    ),
    "a level that is none": (
        ["optimize", MINI, "-b", "4", "-O7"],
        "level 'O7' is not known; expected O0, O1, O2",
    ),
    "a budget without a unit": (
        ["optimize", MINI, "-b", "4", "--budget", "64"],
        "expected a unit, such as 64MiB or 64B",
    ),
    "a folder that is compiled already": (
        ["optimize", "out"],
        "out: is a folder; expected an .onnx file",
    ),
    "a model where a folder is expected": (
        ["train", MINI, "--data", "good.npz"],
        "write one with 'bnnopt optimize model.onnx -o FOLDER'",
    ),
    "an option that a folder ignores": (
        ["inspect", "out", "-b", "8"],
        "--batch-size: is for a model; out is a folder, whose step is built; leave it out",
    ),
    "channels that come last": (
        ["train", "out", "--data", "nhwc.npz"],
        "channels come last there: x.transpose(0, 3, 1, 2)",
    ),
    "flat images": (
        ["train", "out", "--data", "flat.npz"],
        "as many numbers in another shape: x.reshape(-1, 3, 32, 32)",
    ),
    "one-hot labels": (["train", "out", "--data", "onehot.npz"], "one-hot? y.argmax(1)"),
    "names of classes as labels": (
        ["train", "out", "--data", "words.npz"],
        "class names as np.unique(y, return_inverse=True)[1]",
    ),
    "arrays of objects": (
        ["train", "out", "--data", "objects.npz"],
        "holds arrays of Python objects; expected numbers: give np.array a dtype",
    ),
    "no labels": (["train", "out", "--data", "x.npz"], "expected an array named y beside x"),
    "labels of other classes": (
        ["train", "out", "--data", "far.npz"],
        "y has labels from 90 to 90, expected 0 to 9",
    ),
    "too many threads": (
        ["train", "out", "--data", "good.npz", "--threads", "64"],
        "threads is 64, expected 1 to 4",
    ),
    "a file of options with a mistake": (
        ["--config", "wrong.toml", "train", "out"],
        "there is no option 'epoch'; did you mean 'epochs'?",
    ),
    "a network that is nearly in the zoo": (["zoo", "binarnet"], "did you mean 'binarynet'?"),
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled folder, data in many shapes, and other files."""
    folder = tmp_path_factory.mktemp("things")
    package.optimize(MINI, batch_size=8).save(folder / "out")
    for name, arrays in {
        "good": {"x": X, "y": Y},
        "nhwc": {"x": X.transpose(0, 2, 3, 1), "y": Y},
        "flat": {"x": X.reshape(16, -1), "y": Y},
        "onehot": {"x": X, "y": np.eye(10, dtype=np.float32)[Y]},
        "words": {"x": X, "y": np.where(Y > 4, "cat", "dog")},
        "objects": {"x": np.array([{}] * 16, object), "y": Y},
        "x": {"x": X},
        "far": {"x": X, "y": np.full(16, 90)},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "net.pt").write_bytes(b"PK\3\4" + pickle.dumps({"a": 1}))
    (folder / "wrong.toml").write_text("[train]\nepoch = 3\n")
    return folder


@pytest.fixture
def here(things: Path, workspace: Path) -> Path:
    shutil.copytree(things, workspace, dirs_exist_ok=True)
    return workspace


@pytest.mark.parametrize("case", MISTAKES)
def test_the_line_says_what_to_do(mistake: Mistake, here: Path, case: str) -> None:
    arguments, expected = MISTAKES[case]
    assert expected in " ".join(mistake(*arguments).split())


def test_there_are_fifteen_and_what_is_right_is_no_mistake(bnnopt: Cli, here: Path) -> None:
    assert len(MISTAKES) >= 15
    assert bnnopt("train", "out", "--data", "good.npz", "--epochs", "1").exit_code == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: package.optimize(MINI, batch_size=4, level=2), "expected a text such as 'O2'"),
        (lambda: package.optimize(MINI, batch_size=4, level="-O2"), "did you mean 'O2'?"),
        (lambda: package.optimize(MINI, batch_size="4"), "batch_size is '4', expected int"),
        (lambda: package.optimize(object()), "object found, expected a path, or a PyTorch module"),
    ],
)  # fmt: skip
def test_mistakes_in_python(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert words in str(caught.value)


def test_threads_and_their_variable_agree(
    mistake: Mistake, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("abc", "64"):
        monkeypatch.setenv("BNNOPT_NUM_THREADS", text)
        line = mistake("eval", "out", "--data", "good.npz")
        assert f"BNNOPT_NUM_THREADS is '{text}', expected 1 to 4; set one of these" in line


# The file of options ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_file_has_options_of_every_command(bnnopt: Cli, here: Path) -> None:
    (here / "bnnopt.toml").write_text(
        f'batch-size = 8\n[optimize]\noutput = "new"\nfreeze = ["*.bias"]\ndisable = ["bitmap"]\n'
        f'[train]\ndata = "{here / "good.npz"}"\nepochs = 2\n'
    )
    found = bnnopt("optimize", MINI)
    assert found.exit_code == 0, found
    assert "written: new" in found.stdout
    assert "not trained: " in found.stdout
    assert "bitmap" not in found.stdout
    assert bnnopt("train", "new", "--log-json", "log").exit_code == 0
    assert len((here / "log").read_text().splitlines()) == 2
    assert bnnopt("train", "new", "--epochs", "1", "--log-json", "log").exit_code == 2  # is trained


def test_mistakes_in_the_file(mistake: Mistake, here: Path) -> None:
    for text, words in {
        "[trian]": "there is no command 'trian'; did you mean 'train'?",
        "epoch = 1": "there is no option 'epoch'",
        "[train]\nepochs = [[1]]": "epochs is [[1]]",
        "=": "cannot be read as TOML",
    }.items():
        (here / "bnnopt.toml").write_text(text)
        assert words in mistake("train", "out")


# Objects for people -----------------------------------------------------------------------------


def test_objects_say_what_they_are(things: Path) -> None:
    optimized = package.optimize(MINI, batch_size=8)
    text = repr(optimized)
    assert text.startswith("<Optimized resnet-e-mini.onnx, batch size 8, adam, -O1: ")
    assert text.endswith("x smaller>")
    assert repr(optimized.report) == text.replace("<Optimized", "<Report of")
    session = package.TrainingSession(things / "out")
    assert "resnet-e-mini.onnx, batch size 8, adam, -O1, 0 steps done" in repr(session)
    for html, word in ((optimized._repr_html_(), "sign-pack"), (session._repr_html_(), "planned")):
        assert html.count("<table>") == html.count("</table>") >= 1
        assert word in html


def test_the_shell_completes(bnnopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_BNNOPT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "bnnopt opt")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert bnnopt().stdout == "plain,optimize\n"
