"""Order, placement in one arena, and an independent checker."""

from bnnopt.plan.arena import ALIGNMENT, Interval, aligned, place
from bnnopt.plan.check import OverlapError, check_program
from bnnopt.plan.order import dependencies, memory_order, reorder, waits_for
from bnnopt.plan.plan import MemoryPlan, arena_bytes, live_bytes, make_plan, peak_bytes
from bnnopt.plan.process import process_bytes
from bnnopt.plan.workspace import workspace_bytes

__all__ = [
    "ALIGNMENT",
    "Interval",
    "MemoryPlan",
    "OverlapError",
    "aligned",
    "arena_bytes",
    "check_program",
    "dependencies",
    "live_bytes",
    "make_plan",
    "memory_order",
    "peak_bytes",
    "place",
    "process_bytes",
    "reorder",
    "waits_for",
    "workspace_bytes",
]
