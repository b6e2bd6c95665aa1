"""What a process takes to run a step, beside the plan: what a budget holds back for it."""

from __future__ import annotations

from bnnopt.ops import is_view
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.training_step import TrainingStep

# Their sum lies above what was measured on all networks of the zoo, three levels and one to four
# threads: `benchmarks.process_memory`, `docs/budget.md`.
BASE = 24 << 17  # the compiled kernels' code, stacks of threads, what opening a folder leaves
PER_ENTRY = 2048  # of a node or a value: views, bound calls, attributes
NUMPY = 21 << 17  # where nodes run on numpy: its code and BLAS's, arrays of a part of a value


def process_bytes(step: TrainingStep) -> int:
    """Bytes that a process grows by when it opens and runs a step, beside the planned peak.

    An estimate from above, on x86-64. What Python and numpy take before, and
    the data that are handed over, are not in it.
    """
    nodes = [node for node in step.graph if not is_view(node)]
    made = sum(1 for node in step.graph for value in node.outputs if value.name)
    values = len(step.graph.inputs) + len(step.graph.initializers) + made
    needed = BASE + PER_ENTRY * (len(step.graph) + values)
    return needed + NUMPY * any(node.op_type not in COMPILED for node in nodes)
