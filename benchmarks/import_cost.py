"""What it costs to import the device side and to open a session, beside numpy alone.

    python benchmarks/import_cost.py

Fresh processes take turns, in a folder without packages. Of the processor time the least and the
median are given, of the resident memory the least. The model is small, so that its weights weigh
nothing. Install bnnopt as users do: an editable install adds what finds its modules.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
HEADER = f"{'':30}{'least ms':>10}{'median':>8}{'MiB':>7}{'least':>9}{'median':>8}{'memory':>8}"


def subjects(folder: Path) -> dict[str, str]:
    """What is run, by name; the first is what the others are compared with."""
    session = f"import bnnopt; bnnopt.TrainingSession({str(folder)!r})"
    return {
        "import numpy": "import numpy",
        "import numpy, safetensors": "import numpy, safetensors.numpy",
        "import bnnopt.runtime": "import bnnopt.runtime",
        "and open a session": session,
    }


def cost(code: str) -> tuple[float, int]:
    """Processor seconds and resident bytes of a fresh process that runs `code`."""
    command = [sys.executable, "-c", CHILD, code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")
    seconds, resident = json.loads(done.stdout)
    return seconds, resident


def costs(codes: dict[str, str], rounds: int) -> dict[str, tuple[float, float, int]]:
    """Least and median seconds and least bytes of `rounds` turns."""
    turns = [{name: cost(code) for name, code in codes.items()} for _ in range(rounds)]
    found = {}
    for name in codes:
        seconds, resident = zip(*(turn[name] for turn in turns), strict=True)
        found[name] = min(seconds), statistics.median(seconds), min(resident)
    return found


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
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        compile_small(Path(scratch) / "out")
        found = costs(subjects(Path(scratch) / "out"), options.rounds)
    base = next(iter(found.values()))
    print(HEADER)
    for name, (least, median, resident) in found.items():
        ratios = [a / b for a, b in zip((least, median, resident), base, strict=True)]
        print(
            f"{name:30}{least * 1000:10.0f}{median * 1000:8.0f}{resident / 2**20:7.1f}"
            f"{ratios[0]:8.2f}x{ratios[1]:7.2f}x{ratios[2]:7.2f}x"
        )


if __name__ == "__main__":
    main()
