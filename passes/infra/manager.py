"""The list of passes, and the manager that runs, checks and measures them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from bnnopt.errors import UsageError
from bnnopt.ops import functions_for
from bnnopt.passes.binary_output_int16 import BinaryOutputInt16
from bnnopt.passes.binary_weight_gradients import BinaryWeightGradients
from bnnopt.passes.bitmap import Bitmap
from bnnopt.passes.bnn_batch_norm_backward import BnnBatchNormBackward
from bnnopt.passes.drop_adam_second_moment import DropAdamSecondMoment
from bnnopt.passes.float16_activations import Float16Activations
from bnnopt.passes.float16_gradients import Float16Gradients
from bnnopt.passes.float16_state import Float16State
from bnnopt.passes.fuse_batch_norm_signs import FuseBatchNormSigns
from bnnopt.passes.fuse_updates import FuseUpdates
from bnnopt.passes.immediate_update import ImmediateUpdate
from bnnopt.passes.in_place import InPlace
from bnnopt.passes.infra.base import Pass, Skip, Trace
from bnnopt.passes.infra.graph_check import BrokenGraph, check_graph, interface
from bnnopt.passes.input_gradient_sums import InputGradientSums
from bnnopt.passes.l1_batch_norm import L1BatchNorm
from bnnopt.passes.mask_pack import MaskPack
from bnnopt.passes.packed_products import PackedProducts
from bnnopt.passes.pool_batch_norm_backward import PoolBatchNormBackward
from bnnopt.passes.pool_before_join import PoolBeforeJoin
from bnnopt.passes.pool_index import PoolIndex
from bnnopt.passes.pow2_gradients import Pow2Gradients
from bnnopt.passes.prune_stored import PruneStored
from bnnopt.passes.rebuild_activations import RebuildActivations
from bnnopt.passes.recompute_binary_products import RecomputeBinaryProducts
from bnnopt.passes.redirect_consumers import RedirectConsumers
from bnnopt.passes.schedule import Schedule
from bnnopt.passes.sign_pack import SignPack
from bnnopt.passes.stream_gradients import StreamGradients
from bnnopt.plan import make_plan
from bnnopt.training_step import TrainingStep

# The order in which passes run, whatever the order in which they are named. First what changes
# the numbers; then the codecs, those that free more before those that free less; at last what
# depends on the order of the nodes.
PASSES: tuple[Pass, ...] = (
    BinaryWeightGradients(),
    DropAdamSecondMoment(),
    L1BatchNorm(),
    Float16Activations(),
    PoolBeforeJoin(),
    RedirectConsumers(),
    SignPack(),
    RecomputeBinaryProducts(),
    RebuildActivations(),
    PruneStored(),
    MaskPack(),
    PoolIndex(),
    Bitmap(),
    PackedProducts(),
    InputGradientSums(),
    FuseBatchNormSigns(),
    BnnBatchNormBackward(),
    PoolBatchNormBackward(),
    BinaryOutputInt16(),
    Float16Gradients(),
    Float16State(),  # when it is known which products read bits
    ImmediateUpdate(),
    FuseUpdates(),
    StreamGradients(),
    InPlace(),
    Pow2Gradients(),  # when it is known which dx is written over its dy
    Schedule(),
)
LEVELS = ("O0", "O1", "O2")


@dataclass(frozen=True)
class PassRecord:
    """One line of the ledger: what a pass did, and the memory after it."""

    name: str
    lossless: bool
    min_cosine: float
    numbers: str
    rewrites: int
    peak_bytes: int
    saved_bytes: int
    skipped: tuple[Skip, ...]
    chosen: tuple[Skip, ...] = ()


def select(
    level: str,
    only: Sequence[str] = (),
    disabled: Sequence[str] = (),
    enabled: Sequence[str] = (),
) -> list[Pass]:
    """The passes to run, in their order.

    Parameters
    ----------
    level : str
        One of `LEVELS`; not used where `only` names passes.
    only, disabled, enabled : sequence of str
        Names of passes; `enabled` are there beside those of the level, or of `only`.

    Raises
    ------
    UsageError
        If a level or a pass is not known.
    """
    if level not in LEVELS:
        raise UsageError(f"level {level!r} is not known; expected {', '.join(LEVELS)}")
    known = {candidate.name for candidate in PASSES}
    for name in (*only, *disabled, *enabled):
        if name not in known:
            raise UsageError(f"pass {name!r} is not known; expected some of {', '.join(known)}")
    wanted = set(only) or {p.name for p in PASSES if p.level <= int(level[1:])}
    return [p for p in PASSES if p.name in wanted.union(enabled) - set(disabled)]


def run_passes(
    step: TrainingStep, passes: Sequence[Pass], report: Callable[[str], None] = lambda name: None
) -> list[PassRecord]:
    """Run the passes over `step`, verify it after each, and measure what each saves.

    `report` is called with the name of each pass before it runs.

    Raises
    ------
    BrokenGraph
        A defect of a pass; the message names it.
    """
    records = []
    for position, candidate in enumerate(passes, 1):
        report(candidate.name)
        trace = Trace()
        storage = not candidate.changes_storage
        expected = interface(step, storage)
        rewrites = candidate.run(step, trace)
        try:
            check_graph(step, expected, storage)
        except BrokenGraph as error:
            place = f"pass {candidate.name!r} ({position} of {len(passes)}) broke the graph"
            raise BrokenGraph(f"{place}: {error}") from None
        plan = make_plan(step)
        records.append(
            PassRecord(
                name=candidate.name,
                lossless=candidate.lossless,
                min_cosine=candidate.bound,
                numbers=candidate.numbers,
                rewrites=rewrites,
                peak_bytes=plan.peak_bytes,
                saved_bytes=plan.saved_bytes,
                skipped=tuple(trace.skipped),
                chosen=tuple(trace.chosen),
            )
        )
    _declare_functions(step)
    return records


def in_order(passes: Collection[Pass]) -> list[Pass]:
    """The passes in the order in which they run, each once."""
    return [p for p in PASSES if p in passes]


def with_pass(passes: Collection[Pass], more: Pass) -> list[Pass]:
    """The passes and one of other options than `PASSES` has, in the order in which they run."""
    names = {p.name for p in passes} | {more.name}
    return [more if p.name == more.name else p for p in PASSES if p.name in names]


def by_loss(passes: Sequence[Pass]) -> list[list[Pass]]:
    """Sets of passes, each lossier than the one before: the lossless ones, then all.

    The lossy ones join in the order of their bounds, the mildest first; last what changes the
    function.
    """
    lossy = [p for p in passes if not p.lossless]
    mildest_first = sorted(lossy, key=lambda p: (p.changes_function, -p.bound))
    sets = [
        {p for p in passes if p.lossless}.union(mildest_first[:n])
        for n in range(len(mildest_first) + 1)
    ]
    return [in_order(chosen) for chosen in sets]


def kernel_passes(disabled: Collection[str] = ()) -> list[Pass]:
    """The passes that run at every level: they choose kernels, and all levels share them."""
    return [p for p in PASSES if p.maps_kernels and p.name not in disabled]


def least_cosine(names: Collection[str], bounds: Mapping[str, float] | None = None) -> float | None:
    """The bound of passes that ran: the least cosine of a gradient with them and without them.

    The product of their own bounds, as the errors of different passes do not correlate. None where
    all passes are lossless: bits are to be equal then. Of a pass that is not known nothing is
    promised.

    Parameters
    ----------
    names : collection of str
        The passes.
    bounds : mapping of str to float, optional
        Of those that ran with options of their own; for the others it is that of the defaults.
    """
    known = {p.name: p for p in PASSES}
    if all(name in known and known[name].lossless for name in names):
        return None
    if not known.keys() >= set(names):
        return -1.0
    own = bounds or {}
    return math.prod(own.get(name, known[name].bound) for name in names)


def map_kernels(reference: TrainingStep, names: Collection[str]) -> TrainingStep:
    """A copy of a step that computes the function, and runs on the kernels, of passes by `names`.

    What is bit-equal is bit-equal on the same kernels: this is the reference to compare with.
    """
    step = TrainingStep(reference.model.clone())
    run_passes(step, [p for p in PASSES if _changes_reference(p) and p.name in names])
    return step


def _changes_reference(candidate: Pass) -> bool:
    return candidate.maps_kernels or candidate.changes_function


def _declare_functions(step: TrainingStep) -> None:
    """Give the model the functions of the operators that it now uses, and no others."""
    step.model.functions.clear()
    for function in functions_for(step.graph, step.opset):
        step.model.functions[function.identifier()] = function
