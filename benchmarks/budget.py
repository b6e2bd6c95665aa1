"""``--budget`` on five networks and five budgets each: what is chosen, measured, against greedy.

    python -m benchmarks.budget [--networks CNV] [--measure]

Budgets lie between the smallest and the largest plan. With ``--measure`` a fresh process runs the
chosen step, as in `benchmarks.resident_memory`, and its resident growth is printed beside the
budget. Times are those that are predicted, of a step that computes nothing twice.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx_ir as ir

import bnnopt
from benchmarks.resident_memory import write_batch
from benchmarks.steps import MIB, Process
from bnnopt.compiler.budget import Budget, Trials, fit_budget
from bnnopt.compiler.building import build_forward
from bnnopt.models import build
from bnnopt.passes import kernel_passes, select
from bnnopt.report.spending import Point
from bnnopt.settings import Settings

# Name: model of the zoo, its options, batch size.
NETWORKS: dict[str, tuple[str, dict[str, int], int]] = {
    "CNV": ("cnv", {}, 50),
    "BinaryNet": ("binarynet", {}, 100),
    "ResNetE-18, 32 x 32": ("resnet-e-18", {"size": 32, "classes": 10}, 16),
    "ResNetE-18, 224 x 224": ("resnet-e-18", {}, 8),
    "Bi-Real-18, 224 x 224": ("bi-real-18", {}, 4),
}
SHARES = (0.02, 0.15, 0.35, 0.6, 0.85)  # of the way from the smallest plan to the largest


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(ort_training=None)
    options = parser.parse_args()
    print("| network | budget | plan | measured | numbers | time | greedy | solver |")
    print("|" + "---|" * 8)
    for name in options.networks:
        with tempfile.TemporaryDirectory() as scratch:
            _network(name, Path(scratch), options)


def _network(name: str, scratch: Path, options: argparse.Namespace) -> None:
    model, sizes, batch = NETWORKS[name]
    path = scratch / "model.onnx"
    ir.save(build(model, 0, **sizes), path)
    ends = [_trials(path, batch)(select(level)).point.needed_bytes for level in ("O2", "O0")]
    for share in SHARES:
        budget = int(ends[0] + share * (ends[1] - ends[0]))
        made = bnnopt.optimize(path, batch_size=batch, budget_bytes=budget)
        exact = made.report.spending
        assert exact is not None
        asked = Budget(select("O2"), budget)
        greedy = fit_budget(_trials(path, batch), asked, lambda _: None, exact=False)
        assert exact.chosen.needed_bytes <= budget
        assert exact.chosen.price <= greedy.chosen.price
        assert not any(p.beats(q) for p in exact.points for q in exact.points)
        shown = " | "
        if options.measure:
            made.save(scratch / str(budget) / "out")
            grown = _measured(path, scratch / str(budget), batch, options)
            assert grown <= budget
            shown = f"{grown / MIB:.1f} | "
        print(
            f"| {name} | {budget / MIB:.1f} | {exact.chosen.peak_bytes / MIB:.1f} | {shown}"
            f"{_loss(exact.chosen)} | {exact.chosen.time:.2f} | "
            f"{greedy.chosen.peak_bytes / MIB:.1f}, {_loss(greedy.chosen)}, "
            f"{greedy.chosen.time:.2f} | {exact.seconds:.1f} s |",
            flush=True,
        )


def _trials(path: Path, batch: int) -> Trials:
    built = build_forward(path, Settings(batch_size=batch), lambda _: None)
    return Trials(built.reference, kernel_passes())


def _loss(point: Point) -> str:
    """The loss class in a few words."""
    if not point.lossy:
        return "no pass" if not point.passes else "lossless"
    return f"{len(point.lossy)} lossy"


def _measured(path: Path, folder: Path, batch: int, options: argparse.Namespace) -> float:
    """Resident growth of a process of its own that trains ``out`` of a folder, in bytes."""
    write_batch(folder, path, batch)
    process = Process("bnnopt", folder, options)
    try:
        assert process.ready(), "the process did not start"
        for _ in range(options.steps):
            process.step()
        return float(process.finish())
    finally:
        process.close()


if __name__ == "__main__":
    main()
