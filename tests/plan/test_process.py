"""What is held back for the process, against what a process takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.models import build

# Run by a process of its own: its resident growth from the imports to its peak.
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from bnnopt.runtime import TrainingSession

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

folder, *shape = sys.argv[1], *map(int, sys.argv[2:])
random = np.random.default_rng(0)
x, y = random.standard_normal(shape, np.float32), random.integers(0, 10, shape[0])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
session = TrainingSession(folder, threads=2)
for _ in range(2):
    session.step(x, y)
print(json.dumps(status("VmHWM") - before))
"""
NETWORKS = {
    "binarynet": ("O3", 8, 3, 32, 32),  # opening it may take no more than a step
    "cnv": ("O2", 8, 3, 32, 32),
    "mlp": ("O2", 100, 784),
    "resnet-e-mini": ("O2", 8, 3, 32, 32),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_process_takes_no_more_than_is_held_back(name: str, tmp_path: Path) -> None:
    level, *shape = NETWORKS[name]
    ir.save(build(name), tmp_path / "model.onnx")
    optimized = bnnopt.optimize(tmp_path / "model.onnx", batch_size=shape[0], level=level)
    optimized.save(tmp_path / "out")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), *map(str, shape)]
    found = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    beside = json.loads(found) - optimized.report.optimized.peak_bytes
    held_back = optimized.report.process_bytes
    assert held_back / 4 < beside <= held_back
