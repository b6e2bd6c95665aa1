"""A device: the command line where onnx, onnx_ir and rich are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from bnnopt.errors import COMPILER, no_compiler

ABSENT = "; ".join(f"sys.modules[{name!r}] = None" for name in (*COMPILER, "google.protobuf"))


def on_device(*commands: str) -> subprocess.CompletedProcess[str]:
    """Run command lines one after the other in a process that cannot import the compiler's."""
    runs = "".join(f"main({line.split()!r})\n" for line in commands)
    code = f"import sys\n{ABSENT}\nfrom bnnopt.cli import main\n{runs}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture
def data(workspace: Path) -> Path:
    random = np.random.default_rng(0)
    x = random.standard_normal((40, 1, 28, 28)).astype(np.float32)
    np.savez(workspace / "data.npz", x=x, y=random.integers(0, 10, 40))
    return workspace / "data.npz"


@pytest.mark.slow
def test_it_trains_measures_predicts_and_exports(compiled: Path, data: Path) -> None:
    found = on_device(
        f"train {compiled} --data {data} --epochs 1 --checkpoint checkpoints",
        f"eval {compiled} --data {data} --json -",
        f"predict {compiled} --data {data} -o y.npz",
        f"export {compiled} -o trained.onnx --torch trained.safetensors",
    )
    assert found.returncode == 0, found.stderr
    expected = np.load("y.npz")["y"]
    network = ort.InferenceSession("trained.onnx", providers=["CPUExecutionProvider"])
    given = network.get_inputs()[0]
    x = np.load(data)["x"].reshape(40, *given.shape[1:])
    (y,) = network.run(None, {given.name: x})
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("line", ["optimize model.onnx", "verify out", "demo -o new", "passes"])
def test_what_needs_the_compiler_is_one_line(line: str, workspace: Path) -> None:
    found = on_device(line)
    assert found.returncode == 2
    assert "needs the compiler" in found.stderr
    assert "pip install 'bnnopt[compile]'" in found.stderr
    assert found.stderr.count("\n") == 1
    assert not (workspace / "new").exists()


def test_another_module_that_is_missing_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError):
        no_compiler(ModuleNotFoundError("no", name="scipy"), "optimize")


def test_the_library_needs_no_click_and_the_command_line_says_that_it_does(compiled: Path) -> None:
    hidden = f"import sys; {ABSENT}; sys.modules['click'] = None; "
    use = f"import bnnopt; print(bnnopt.TrainingSession({str(compiled)!r}).batch_size)"
    found = subprocess.run([sys.executable, "-c", hidden + use], capture_output=True, text=True)
    assert found.stdout == "20\n"
    start = "from bnnopt.__main__ import main; main()"
    found = subprocess.run([sys.executable, "-c", hidden + start], capture_output=True, text=True)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "pip install click" in found.stderr
