"""Rewrites of the training step: one file per pass, run by the manager."""

if __name__ != "bnnopt.passes":
    raise ImportError("import this package as bnnopt.passes, not as passes")

from bnnopt.passes.infra.base import Pass, Skip, Trace
from bnnopt.passes.infra.graph_check import BrokenGraph, check_graph
from bnnopt.passes.infra.manager import (
    PassRecord,
    apply_passes,
    by_loss,
    in_order,
    kernel_passes,
    least_cosine,
    make_pass,
    map_kernels,
    rewrite,
    run_passes,
    select,
)
from bnnopt.passes.infra.stages import LEVELS, PASSES, STAGES, Stage

__all__ = [
    "LEVELS",
    "PASSES",
    "STAGES",
    "BrokenGraph",
    "Pass",
    "PassRecord",
    "Skip",
    "Stage",
    "Trace",
    "apply_passes",
    "by_loss",
    "check_graph",
    "in_order",
    "kernel_passes",
    "least_cosine",
    "make_pass",
    "map_kernels",
    "rewrite",
    "run_passes",
    "select",
]
