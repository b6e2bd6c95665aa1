"""What it costs to import the device side and to open a session, beside numpy alone.

    python benchmarks/import_cost.py

Fresh processes take turns; the least processor time and resident memory of each count. The model is
small, so that its weights weigh nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, resource, sys
exec(sys.argv[1])
usage = resource.getrusage(resource.RUSAGE_SELF)
resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
print(json.dumps([usage.ru_utime + usage.ru_stime, resident]))
"""
HEADER = f"{'':34}{'cpu ms':>8}{'MiB':>8}{'time':>8}{'memory':>8}"


def subjects(folder: Path) -> dict[str, str]:
    """What is run, by name; the first is what the others are compared with."""
    session = f"import bnnopt.runtime; bnnopt.runtime.TrainingSession({str(folder)!r})"
    return {
        "import numpy": "import numpy",
        "import numpy, safetensors": "import numpy, safetensors.numpy",
        "import bnnopt.runtime": "import bnnopt.runtime",
        "and open a session": session,
    }


def cost(code: str) -> tuple[float, int]:
    """Processor seconds and resident bytes of a fresh process that runs `code`."""
    command = [sys.executable, "-c", CHILD, code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, resident = json.loads(done.stdout)
    return seconds, resident


def least(codes: dict[str, str], rounds: int) -> dict[str, tuple[float, int]]:
    """The least of `rounds` turns."""
    turns = [{name: cost(code) for name, code in codes.items()} for _ in range(rounds)]
    return {
        name: (min(turn[name][0] for turn in turns), min(turn[name][1] for turn in turns))
        for name in codes
    }


def compile_small(folder: Path) -> None:
    """Write a folder with the smallest model of the zoo."""
    import onnx_ir as ir

    import bnnopt
    from bnnopt.models import build

    path = folder.with_suffix(".onnx")
    ir.save(build("relu-mini"), path)
    bnnopt.optimize(path, batch_size=1).save(folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        compile_small(Path(scratch) / "out")
        found = least(subjects(Path(scratch) / "out"), options.rounds)
    base_s, base_bytes = next(iter(found.values()))
    print(HEADER)
    for name, (seconds, resident) in found.items():
        print(
            f"{name:34}{seconds * 1000:8.0f}{resident / 2**20:8.1f}"
            f"{seconds / base_s:7.2f}x{resident / base_bytes:7.2f}x"
        )


if __name__ == "__main__":
    main()
