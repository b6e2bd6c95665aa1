"""Input that cannot be used: exit code 2, one line, nothing half-written; see `mistake`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.cli.conftest import Mistake
from tests.cli.helpers import MODELS, Cli, read_report, save_model, snapshot

MLP = MODELS / "mlp.onnx"
OUTPUTS = ("-o", "out", "--json", "report.json")


def truncated(path: Path) -> None:
    path.write_bytes(MLP.read_bytes()[:1_000_000])


def future_opset(path: Path) -> None:
    model = onnx.load(MLP)
    model.opset_import[0].version = 99
    onnx.save(model, path)


def hardmax(path: Path) -> None:
    save_model(path, "h = MatMul (x, w) y = Hardmax (h)")


def custom_domain(path: Path) -> None:
    save_model(path, "h = MatMul (x, w) y = acme.Quantize (h)", domains=', "acme": 1')


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "net.onnx: no such file"),
    "a folder": (lambda path: path.mkdir(), "net.onnx: is a folder"),
    "empty": (lambda path: path.touch(), "net.onnx: not an ONNX file"),
    "text": (lambda path: path.write_text("hello " * 100), "net.onnx: not an ONNX file"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "not an ONNX"),
    "truncated": (truncated, "net.onnx: not an ONNX file, or cut short"),
    "opset 99": (future_opset, "opset 99 found, expected 9 to"),
    "no gradient rule": (hardmax, "Hardmax"),
    "unknown domain": (custom_domain, "acme.Quantize"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("command", ["optimize", "inspect"])
def test_file(mistake: Mistake, kind: str, command: str, workspace: Path) -> None:
    make, expected = FILES[kind]
    if kind == "a folder" and command == "inspect":
        expected = "net.onnx: not a bnnopt folder"
    make(workspace / "net.onnx")
    outputs = OUTPUTS if command == "optimize" else ("--html", "x.html", "--json", "x.json")
    batch = () if kind == "a folder" and command == "inspect" else ("-b", "4")
    assert expected in mistake(command, "net.onnx", *batch, *outputs)


OPTIONS: dict[str, tuple[list[str], str]] = {
    "no batch size": ([], "pass --batch-size N"),
    "batch size 0": (["-b", "0"], "--batch-size 0: expected a number from 1 to"),
    "batch size -1": (["-b", "-1"], "--batch-size -1: expected a number from 1 to"),
    "batch size absurd": (["-b", "99999999999"], "--batch-size 99999999999: expected"),
    "batch size text": (["-b", "many"], "'many' is not a valid integer"),
    "level": (["-b", "4", "-O7"], "level 'O7' is not known; expected O0, O1"),
    "level text": (["-b", "4", "-Omax"], "level 'Omax' is not known"),
    "pass": (["-b", "4", "--passes", "sign-pack,sing-pack"], "did you mean 'sign-pack'?"),
    "disabled pass": (["-b", "4", "--disable", "nope"], "pass 'nope' is not known"),
    "budget": (["-b", "4", "--budget", "lots"], "'lots': expected a size such as 64MiB"),
    "budget without a unit": (
        ["-b", "4", "--budget", "64"],
        "'64': expected a unit, such as 64MiB",
    ),
    "budget below 0": (["-b", "4", "--budget", "-1"], "'-1': expected a size"),
    "loss": (["-b", "4", "--loss", "l3"], "--loss l3: expected cross-entropy, soft-cross-entropy"),
    "no scalar": (["-b", "4", "--loss", "none"], "expected a scalar loss"),
    "optimizer": (["-b", "4", "--optimizer", "lion"], "--optimizer lion: expected adam, sgd"),
    "momentum": (["-b", "4", "--momentum", "1"], "--momentum 1.0: expected a number from 0"),
    "momentum nan": (["-b", "4", "--momentum", "nan"], "--momentum nan"),
    "rate": (["-b", "4", "--lr", "-1"], "--lr -1.0: expected a number above 0"),
    "rate nan": (["-b", "4", "--lr", "nan"], "--lr nan: expected"),
    "rate inf": (["-b", "4", "--lr", "inf"], "--lr inf: expected"),
    "seed": (["-b", "4", "--seed", "-1"], "--seed -1: expected a number from 0"),
    "seed huge": (["-b", "4", "--seed", "9" * 30], "expected a number from 0"),
    "sign zero": (["-b", "4", "--sign-zero", "0"], "--sign-zero 0: expected +1, keep"),
    "freeze all": (["-b", "4", "--freeze", "*"], "nothing to train"),
    "freeze nothing": (["-b", "4", "--freeze", "zzz"], "--freeze zzz: no parameter matches"),
    "last": (["-b", "4", "--last", "0"], "--last 0: expected a number of layers"),
    "calibrate": (["-b", "4", "--calibrate", "no.npz"], "--calibrate no.npz: no such file"),
    "prune weights": (["-b", "4", "--prune-weights", "1"], "--prune-weights 1.0: expected"),
    "prune end": (["-b", "4", "--prune-end", "0"], "--prune-end 0: expected a number of steps"),
    "prune binary": (["-b", "4", "--prune-weights", "0.5"], "trains no real-valued layer"),
    "prune stored": (["-b", "4", "--prune-stored", "2"], "--prune-stored 2.0: expected"),
    "ste": (["-b", "4", "--ste", "magic"], "unknown estimator 'magic'"),
    "ste pattern": (["-b", "4", "--ste", "zzz=clipped"], "no binarisation matches"),
    "unknown": (["-b", "4", "--bogus"], "No such option '--bogus'"),
    "two models": (["-b", "4", "other.onnx"], "unexpected extra argument"),
    "no value": (["-b"], "requires an argument"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_option(mistake: Mistake, kind: str) -> None:
    options, expected = OPTIONS[kind]
    assert expected in mistake("optimize", MLP, *OUTPUTS, *options)


def test_command_line(mistake: Mistake, bnnopt: Cli) -> None:
    assert "Missing argument 'MODEL'" in mistake("optimize")
    assert "No such command 'nope'" in mistake("nope")
    assert "No such option '--nope'" in mistake("--nope")
    alone = bnnopt()
    assert alone.exit_code == 2
    assert alone.stdout.startswith("Usage: bnnopt")
    assert alone.stderr.count("\n") == 1
    assert "no command given; expected one of compare, demo, emit, eval, export" in alone.stderr


# Places that cannot be written: found before the long work -------------------------------------


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the model has begun the long work."""

    def started(*_: Any) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr("bnnopt.compiler.building.load_forward", started)
    monkeypatch.setattr("bnnopt.verification.verify.load_step", started)
    monkeypatch.setattr("bnnopt.artifact.load_step", started)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("place", ["file/out", "file", "foreign"])
def test_folder_that_cannot_be_written(mistake: Mistake, place: str, workspace: Path) -> None:
    (workspace / "file").write_text("mine")
    (workspace / "foreign").mkdir()
    (workspace / "foreign" / "thesis.txt").write_text("mine")
    line = mistake("optimize", MLP, "-b", "4", "-o", place)
    assert f"bnnopt: {place}: " in line


PLACES = {
    "nowhere/r": "there is no folder",
    "file/r": "there is no folder",
    "folder": "is a folder; expected a file",
    "": "is a folder; expected a file",
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "arguments",
    [
        ["optimize", str(MLP), "-b", "4", "-o", "out", "--json"],
        ["inspect", str(MLP), "-b", "4", "--json"],
        ["inspect", str(MLP), "-b", "4", "--html"],
        ["inspect", "compiled", "--html"],
        ["verify", "compiled", "--json"],
    ],
    ids=lambda arguments: f"{arguments[0]}-{Path(arguments[1]).name}{arguments[-1]}",
)
def test_file_that_cannot_be_written(
    mistake: Mistake, place: str, arguments: list[str], workspace: Path, compiled: Path
) -> None:
    (workspace / "file").write_text("mine")
    (workspace / "folder").mkdir()
    (workspace / "compiled").symlink_to(compiled)
    assert PLACES[place] in mistake(*arguments, place)


@pytest.mark.slow
def test_places_where_only_trying_tells(mistake: Mistake) -> None:
    assert "/proc/out: cannot be written" in mistake("optimize", MLP, "-b", "4", "-o", "/proc/out")
    for option in ("--json", "--html"):
        line = mistake("inspect", MLP, "-b", "4", option, "/proc/report")
        assert "/proc/report: cannot be written" in line


def test_no_permission(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.R_OK)
    for arguments in (["--json", "r.json"], ["-o", "out"]):
        assert "no permission" in mistake("optimize", MLP, "-b", "4", *arguments)


@pytest.mark.slow
def test_standard_output_that_is_full(compiled: Path) -> None:
    for arguments in (["inspect", compiled, "--json", "-"], ["passes"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "bnnopt", *map(str, arguments)],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert done.returncode == 2
        assert (
            done.stderr == "bnnopt: standard output: cannot be written: No space left on device\n"
        )


@pytest.mark.slow
def test_reader_that_goes_away() -> None:
    command = f"{sys.executable} -m bnnopt passes | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.slow
def test_disk_that_fills_up(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before stays."""
    Path("report.json").write_text("old")

    def fail(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    line = mistake("inspect", MLP, "-b", "4", "--html", "report.json")
    assert "report.json: cannot be written: No space left on device" in line


def test_not_enough_memory(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("bnnopt.compiler.building.build_training_step", fail)
    assert "not enough memory" in mistake("optimize", MLP, "-b", "4", *OUTPUTS)


# Names that are no text, and names that look like something else -------------------------------

BYTES = os.fsdecode(b"caf\xe9")


def test_names_that_are_no_text(bnnopt: Cli, mistake: Mistake, workspace: Path) -> None:
    shown = "caf\\udce9"
    assert f"{shown}.onnx: no such file" in mistake("optimize", f"{BYTES}.onnx", "-b", "4")
    assert shown in mistake("optimize", MLP, "-b", "4", "--freeze", BYTES)
    assert shown in mistake("optimize", MLP, "-b", "4", "--passes", BYTES)
    assert shown in mistake("optimize", MLP, "-b", "4", f"--{BYTES}")
    assert shown in mistake("verify", BYTES)
    assert shown in mistake("zoo", BYTES)
    save_model(workspace / "net.onnx", "y = MatMul (x, w)").rename(f"{BYTES}.onnx")
    outputs = ("-o", BYTES, "--json", f"{BYTES}.json")
    found = bnnopt("optimize", f"{BYTES}.onnx", "-b", "4", *outputs)
    assert (found.exit_code, found.stderr) == (0, "")
    assert f"written: {shown}" in found.stdout
    read_report((workspace / f"{BYTES}.json").read_text())
    for arguments in (["verify", BYTES], ["inspect", BYTES, "--html", f"{BYTES}.html"]):
        found = bnnopt(*arguments)
        assert (found.exit_code, found.stderr) == (0, "")
        assert found.stdout.startswith(shown)
    assert f"<h1>{shown}</h1>" in (workspace / f"{BYTES}.html").read_text()


def test_names_that_look_like_markup(bnnopt: Cli, workspace: Path) -> None:
    """Node names as PyTorch writes them have brackets and slashes."""
    body = '["/[red]/fc[/red]"] h = MatMul (x, "[bold]w[/]") ["[/]:smile:"] y = Relu (h)'
    path = save_model(workspace / "[bold]net:smile:.onnx", body, weight="[bold]w[/]")
    found = bnnopt("optimize", path.name, "-b", "4", "--explain", "-o", "[red]")
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout.startswith("[bold]net:smile:.onnx: batch size 4")
    assert "written: [red]" in found.stdout
    assert "[bold]w[/]" in bnnopt("verify", "[red]").stdout
    assert "[bold]w[/]" in bnnopt("inspect", path.name, "-b", "4").stdout


# Interrupted -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "compiler.building.load_forward",
        "compiler.pipeline.run_passes",
        "artifact.write.portable_model",
    ],
)
def test_interrupted(mistake: Mistake, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"bnnopt.{place}", interrupt)
    line = mistake("optimize", MLP, "-b", "4", *OUTPUTS, exit_code=130)
    assert line == "bnnopt: interrupted\n"


@pytest.mark.slow
def test_ctrl_c(workspace: Path) -> None:
    """While the model is read, which takes its time here."""
    script = """
import signal, sys, time
import bnnopt.frontend.read as read
from bnnopt.cli import main

def check(path):
    print("reading", file=sys.stderr, flush=True)
    time.sleep(20)

read.check_regular = check
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
main()
"""
    before = snapshot(workspace)
    command = [sys.executable, "-c", script, "optimize", "net.onnx", "-b", "4", *OUTPUTS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout, stderr) == (130, "", "bnnopt: interrupted\n")
    assert snapshot(workspace) == before


def test_a_long_value_is_cut(bnnopt: Cli) -> None:
    found = bnnopt("optimize", MLP, "--gamma", "n" * 5000)
    assert found.exit_code == 2
    assert len(found.stderr) < 1100


def test_an_option_of_optimize_is_said_to_be_one(mistake: Mistake) -> None:
    line = mistake("train", "out", "--data", "x.npz", "--clip-grad-norm", "1")
    assert "--clip-grad-norm" in line
    assert "one of optimize" in line
    assert "optimize" not in mistake("train", "out", "--data", "x.npz", "--strange", "1")


def test_more_classes_than_there_can_be(bnnopt: Cli) -> None:
    found = bnnopt("optimize", MLP, "-b", "4", "--head", str(1 << 60))
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert "--head 1152921504606846976: expected at most 16777216" in found.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "out", "n" * 5000),
        ("compare", "n" * 5000, "out"),
        ("inspect", "n" * 5000),
        ("optimize", MLP, "-b", "4", "--init", "n" * 5000),
        ("fleet", "init", "n" * 5000, "--folder", "out"),
        ("verify", "n" * 5000),
        ("train", "n" * 5000, "--data", "n" * 5000),
    ],
)
def test_a_path_that_is_too_long(bnnopt: Cli, arguments: tuple[str, ...]) -> None:
    found = bnnopt(*arguments)
    assert found.exit_code == 2
    assert found.stderr.startswith("bnnopt: ")
    assert len(found.stderr) < 1100
