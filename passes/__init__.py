"""Rewrites of the training step: one file per pass, run by the manager."""

if __name__ != "bnnopt.passes":
    raise ImportError("import this package as bnnopt.passes, not as passes")

from bnnopt.passes.infra.base import Pass, Skip, Trace
from bnnopt.passes.infra.graph_check import BrokenGraph, check_graph
from bnnopt.passes.infra.manager import (
    LEVELS,
    PASSES,
    PassRecord,
    by_loss,
    in_order,
    kernel_passes,
    least_cosine,
    map_kernels,
    run_passes,
    select,
    with_pass,
)
from bnnopt.passes.prune_stored import PruneStored

__all__ = [
    "LEVELS",
    "PASSES",
    "BrokenGraph",
    "Pass",
    "PassRecord",
    "PruneStored",
    "Skip",
    "Trace",
    "by_loss",
    "check_graph",
    "in_order",
    "kernel_passes",
    "least_cosine",
    "map_kernels",
    "run_passes",
    "select",
    "with_pass",
]
