"""What the device side imports: beside numpy, safetensors and little else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import bnnopt
from tests.graphs import write
from tests.passes.networks import DENSE, DENSE_WEIGHTS

COMPILER = {"bnnopt.compiler", "click", "google.protobuf", "onnx", "onnx_ir", "onnxscript", "rich"}
# Parts of the standard library that take long to load or much memory: hashlib is OpenSSL,
# dataclasses write and compile code, pathlib loads urllib.
SLOW = {
    "asyncio", "dataclasses", "email", "hashlib", "importlib.metadata", "inspect", "ipaddress",
    "logging", "pathlib", "socket", "ssl", "tempfile", "threading", "urllib", "urllib.parse",
}  # fmt: skip
# Ours that few sessions need: the numpy kernels come with the first step that C does not cover.
LATER = {
    "bnnopt.runtime.kernels.reference", "bnnopt.runtime.onnxruntime_backend",
    "bnnopt.runtime.schedules", "onnxruntime",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("net")
    bnnopt.optimize(write(DENSE, DENSE_WEIGHTS, scratch), batch_size=4).save(scratch / "out")
    return scratch / "out"


def added(code: str) -> set[str]:
    """The modules that a fresh process loads for `code` beside those that numpy loads."""
    lines = "import sys, numpy", "before = set(sys.modules)", code
    script = "\n".join([*lines, "print(*set(sys.modules) - before)"])
    command = [sys.executable, "-c", script]
    return set(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())


def test_a_session_opens_without_what_is_slow_to_load(folder: Path) -> None:
    loaded = added(f"import bnnopt; bnnopt.TrainingSession({str(folder)!r})")
    assert not loaded & (COMPILER | SLOW | LATER)
    assert {"bnnopt.runtime.session", "safetensors"} <= loaded


def test_a_step_loads_no_part_of_the_compiler(folder: Path) -> None:
    session = f"session = bnnopt.TrainingSession({str(folder)!r})"
    step = "session.step(numpy.zeros((4, 6), numpy.float32), numpy.zeros(4, numpy.int64))"
    parameters = "session.parameters()"
    assert not added("\n".join(["import bnnopt", session, step, parameters])) & COMPILER


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import bnnopt.runtime, asyncio", {"asyncio", "socket"}),
        ("import bnnopt; bnnopt.schedules", {"bnnopt.runtime.schedules"}),
        ("import bnnopt; bnnopt.optimize", {"bnnopt.compiler", "onnx", "onnx_ir"}),
    ],
)
def test_the_control_finds_them(code: str, found: set[str]) -> None:
    assert found <= added(code)


@pytest.mark.slow
def test_the_tests_of_the_kernels_need_no_compiler_either() -> None:
    """They run under emulation and sanitizers, where numpy and safetensors are."""
    here = Path(__file__).parent
    modules = [
        f"tests.runtime.{p.stem}" for p in (*here.glob("test_compiled_*.py"), here / "test_half.py")
    ]
    code = "\n".join(f"import {module}" for module in modules)
    assert len(modules) > 4
    assert not added(code) & COMPILER
