"""Resident memory of training steps, measured beside what was planned.

    python benchmarks/resident_memory.py --model binarynet --batch-size 100

For every level and backend a fresh process opens the folder, runs some steps on random data and
samples its resident set from the operating system. Growth is counted from the moment when all
libraries are imported and the batch is made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, sys, threading, time
import numpy as np
from bnnopt.runtime import TrainingSession
folder, backend, n_steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
if backend == "onnxruntime":
    import onnxruntime
about = json.load(open(folder + "/artifact.json"))
inputs = json.load(open(folder + "/training.plan.json"))
spec = inputs["values"][inputs["roles"]["data"][0]]
batch = about["batch_size"]
random = np.random.default_rng(0)
shape = [-d * batch if d < 0 else d for d in spec["shape"]]
x = random.standard_normal(shape, np.float32)
y = random.integers(0, about["classes"], batch)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

base, peak, running = resident(), 0, True
def watch():
    global peak
    while running:
        peak = max(peak, resident())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
session = TrainingSession(folder, backend=backend)
losses, seconds = [], []
for _ in range(n_steps):
    start = time.perf_counter()
    losses.append(session.step(x, y))
    seconds.append(time.perf_counter() - start)
running = False
watcher.join()
print(json.dumps({"growth_bytes": peak - base, "losses": losses, "seconds": min(seconds)}))
"""


def measure(folder: Path, backend: str, n_steps: int) -> dict[str, object]:
    """Run some steps in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(folder), backend, str(n_steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def main() -> None:
    """Compile the model at every level, measure, and print a table."""
    import onnx_ir as ir

    import bnnopt
    from bnnopt.models import build
    from bnnopt.passes import LEVELS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="binarynet", help="of the zoo, or an ONNX file")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    mib = 2**20
    print(f"{'level':6}{'backend':13}{'planned MiB':>12}{'growth MiB':>12}{'s/step':>8}  losses")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(options.model)
        if path.suffix != ".onnx":
            path = Path(scratch) / f"{options.model}.onnx"
            ir.save(build(options.model), path)
        for level in LEVELS:
            folder = Path(scratch) / level
            optimized = bnnopt.optimize(path, batch_size=options.batch_size, level=level)
            optimized.save(folder)
            planned = optimized.report.optimized.peak_bytes / mib
            for backend in ("native", "onnxruntime"):
                found = measure(folder, backend, options.steps)
                print(
                    f"{level:6}{backend:13}{planned:12.1f}{found['growth_bytes'] / mib:12.1f}"
                    f"{found['seconds']:8.2f}  {found['losses']}"
                )


if __name__ == "__main__":
    main()
