"""What is printed where, at which width, how fast and in how much memory."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from bnnopt.cli.bar import bar_line
from bnnopt.compiler import optimize as compile_model
from bnnopt.passes import select
from bnnopt.runtime.training.loop import Progress
from bnnopt.tables import Column, Listing, Row
from tests.cli.helpers import FILES, MODELS, Cli

MLP = MODELS / "mlp.onnx"
NAMES = [entry.name for entry in select("O1")]


@pytest.fixture(scope="module")
def at_once() -> Callable[..., Any]:
    """`bnnopt.optimize`, which does the same thing only once."""
    known: dict[str, Any] = {}

    def optimize(model: Path, **options: Any) -> Any:
        if str(model) not in known:
            known[str(model)] = compile_model(model, **options)
        return known[str(model)]

    return optimize


@pytest.fixture
def quick(at_once: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnnopt.compiler.optimize", at_once)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("columns", [50, 60, 80, 200])
@pytest.mark.parametrize("file", FILES)
def test_width(bnnopt: Cli, file: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    found = bnnopt("optimize", MODELS / file, "-b", "8", "--explain")
    lines = [line.rstrip() for line in found.stdout.splitlines() if "written: " not in line]
    assert max(map(len, lines)) <= columns
    assert "…" not in found.stdout
    ledger = lines[lines.index("Memory after each pass") :]
    ledger = ledger[: ledger.index("")]
    for name in NAMES:
        line = next(line for line in ledger if line.startswith(f"{name} "))
        assert line.count("iB") == 2 or line.count(" B") == 1
        assert ("bit-equal" in line) <= (columns >= 72)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("columns", [20, 40])
def test_names_are_never_cut(bnnopt: Cli, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = bnnopt("optimize", MLP, "-b", "8").stdout
    assert "…" not in text
    letters = "".join(text.split())
    if columns == 40:
        assert all(name.split("-")[0] in letters for name in NAMES)


def test_optional_columns_go_last_first() -> None:
    columns = [Column("a"), Column("b", optional=True), Column("c", optional=True)]
    listing = Listing("", columns, [Row(["x" * 10, "y" * 10, "z" * 10])])
    for width, expected in ((34, "xyz"), (33, "xy"), (22, "xy"), (21, "x"), (10, "x")):
        console = Console(width=width)
        with console.capture() as capture:
            console.print(listing)
        assert set(capture.get()) & set("xyz") == set(expected)


def run(arguments: list[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bnnopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore


@pytest.mark.slow
def test_piped(workspace: Path) -> None:
    """Plain text, 80 columns, nothing on standard error."""
    done = run(["optimize", MLP, "-b", "8", "-o", "out"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert all(f"\n{name} " in done.stdout for name in NAMES)


@pytest.mark.slow
def test_ascii_only() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run(["optimize", MLP, "-b", "8"], env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_takes_nothing(closed: str) -> None:
    command = f'"{sys.executable}" -m bnnopt inspect "{MLP}" -b 8 {closed}'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_progress_goes_to_standard_error() -> None:
    master, slave = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=drain, args=(master, shown))
    command = [sys.executable, "-m", "bnnopt", "optimize", str(MLP), "-b", "8", "--json", "-"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=environment)
    os.close(slave)
    reader.start()
    stdout, _ = process.communicate(timeout=30)
    reader.join()
    os.close(master)
    assert process.returncode == 0
    assert stdout.startswith(b"{")
    assert b"\x1b" not in stdout
    text = b"".join(shown)
    assert any(name.encode() in text for name in [*NAMES, "reading", "building", "starting"])


def drain(handle: int, into: list[bytes]) -> None:
    try:
        while chunk := os.read(handle, 4096):
            into.append(chunk)
    except OSError:  # the other end is closed
        pass


# What is imported when -------------------------------------------------------------------------


def imported(code: str) -> set[str]:
    """Top-level modules after some code, and those of bnnopt."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_import_is_light() -> None:
    heavy = {"numpy", "onnx", "onnx_ir", "rich", "click", "safetensors", "onnxruntime"}
    assert not imported("import bnnopt; bnnopt.__version__") & heavy


@pytest.mark.parametrize(
    "arguments", [["--help"], ["optimize", "--help"], ["--version"], ["passes"]]
)
def test_help_and_lists_are_light(arguments: list[str]) -> None:
    found = imported(f"from bnnopt.cli import main; main({arguments})")
    assert not found & {"onnx", "onnx_ir", "sympy", "numpy", "onnxruntime", "safetensors"}


def test_device_is_light(compiled: Path) -> None:
    code = f"""
import bnnopt, numpy as np
session = bnnopt.TrainingSession({str(compiled)!r})
session.step(np.ones((20, 784), np.float32), np.zeros(20, np.int64))"""
    assert not imported(code) & {"onnx", "onnx_ir", "rich", "click", "onnxruntime"}


# Speed and memory ------------------------------------------------------------------------------

MEASURED = """
import sys
from bnnopt.cli import main
try:
    main(sys.argv[1:])
finally:
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""


@pytest.mark.slow
def test_full_binarynet(bnnopt: Cli, workspace: Path) -> None:
    """The network of the paper at its batch size takes less memory than its own peak."""
    bnnopt("zoo", "binarynet")
    arguments = ["optimize", "binarynet.onnx", "-b", "100", "-o", "out"]
    command = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert int(done.stderr) < 10**6  # KiB resident at most
    assert (workspace / "out" / "training.onnx").stat().st_size < 2**20


def test_the_bar_fits_its_line() -> None:
    session = cast(Any, SimpleNamespace(planned_memory=None))
    progress = Progress(4, 10, session, epoch=1, batch=5, loss_sum=20.0, samples=10, hits=9)
    progress.labels = 10
    for columns in (10, 30, 40, 80):
        assert len(_line(progress, columns)) <= columns
    assert _line(progress, 80).startswith("epoch 2/4  ####")
    assert _line(progress, 80).endswith("-  0:01:05  loss 2.0000  accuracy 90.00 %")
    assert _line(progress, 30).endswith("-  0:01:05")
    bar = _line(progress, 80).split("  ")[1]
    assert bar.count("#") == int(15 / 40 * len(bar))
    assert "-:--:--" in bar_line(progress, 0.0, None, 80)


def _line(progress: Progress, columns: int) -> str:
    return bar_line(progress, 15 / 40, 65.0, columns)


def test_a_warning_is_one_line() -> None:
    code = "from bnnopt.cli.terminal import prepare_streams; import warnings; prepare_streams(); "
    command = [sys.executable, "-c", code + "warnings.warn('slow', RuntimeWarning)"]
    assert subprocess.run(command, capture_output=True, text=True).stderr == "bnnopt: slow\n"
