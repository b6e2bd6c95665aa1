"""The data flow, front to back: file, forward graph, training step, passes, plan, folder."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.analysis import real_weights
from bnnopt.artifact import Contents, make_program, without_weights, write_folder
from bnnopt.compiler.budget import Budget, Spending, Trials, beyond, fit_budget, fit_time
from bnnopt.compiler.building import (
    Built,
    Progress,
    build_forward,
    headed,
    import_artifacts,
    loss_options,
)
from bnnopt.compiler.calibration import calibrate
from bnnopt.compiler.evaluation import fit
from bnnopt.compiler.garbage import rare_collections
from bnnopt.compiler.hints import cut_latents, hints
from bnnopt.errors import BudgetError, ModelError, UsageError
from bnnopt.frontend import is_artifacts
from bnnopt.ops import dims, dtype, traits
from bnnopt.passes import (
    LEVELS,
    Pass,
    PassRecord,
    in_order,
    kernel_passes,
    map_kernels,
    run_passes,
    select,
)
from bnnopt.plan import make_plan, peak_bytes, process_bytes
from bnnopt.report import Footprint, Report, StaticSum
from bnnopt.runtime.format import Artifact
from bnnopt.runtime.kernels.latents import nearest
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.kernels.selection import named_kernels
from bnnopt.runtime.pruning import Pruning
from bnnopt.settings import Settings, check, taking, with_options
from bnnopt.training_step import (
    PERSISTENT,
    Role,
    TrainingStep,
    latent_units,
    readers,
    role,
)

if TYPE_CHECKING:
    from torch import nn

FLOAT16_MAX = 65504.0


@dataclass(frozen=True, repr=False)
class Optimized:
    """A compiled model: its report, and what `save` writes.

    Attributes
    ----------
    report : Report
        What each pass saved.
    training, evaluation, reference : TrainingStep
        The rewritten step, the evaluation graph, and the step before any rewrite.
    """

    report: Report
    training: TrainingStep
    evaluation: TrainingStep
    reference: TrainingStep
    about: Artifact
    weights: dict[str, NDArray[np.generic]]
    source: onnx.ModelProto

    def kernels(self) -> list[tuple[str, str, str]]:
        """Name, operator and kernel of each node that runs: C functions, or ``numpy``."""
        plan = make_plan(self.training)
        return named_kernels(make_program(self.training, plan, self.about.batch_size))

    def __repr__(self) -> str:
        return repr(self.report).replace("<Report of", "<Optimized")

    def _repr_html_(self) -> str:
        """In a notebook: the report's tables."""
        return self.report._repr_html_()

    def to_html(self) -> str:
        """A page of its own that shows the memory before and after, as ``--html`` writes it."""
        from bnnopt.compiler.pages import page_of  # it needs this module
        from bnnopt.report.page import render_page

        return render_page(page_of(self))

    @rare_collections()
    def save(self, folder: str | Path) -> None:
        """Write the folder that `TrainingSession` opens.

        Raises
        ------
        ArtifactError
            If it cannot be written, or holds files that are not bnnopt's; it is unchanged then.
        """
        contents = Contents(
            about=self.about,
            training=self.training,
            evaluation=self.evaluation,
            reference=self.reference,
            weights=self.weights,
            report=self.report.to_json(),
            source=self.source,
        )
        write_folder(Path(os.fsdecode(folder)), contents)


@dataclass(frozen=True, kw_only=True)
class _Arguments(Settings):
    """What `optimize` takes beside the model."""

    settings: Settings | None = field(default=None, kw_only=False)
    example: Any = None
    progress: Progress | None = None


@taking(_Arguments)
@rare_collections()
def optimize(
    model: str | Path | nn.Module,
    settings: Settings | None = None,
    *,
    example: Any = None,
    progress: Progress | None = None,
    **options: object,
) -> Optimized:
    """Compile a model into a training step that fits.

    Parameters
    ----------
    model : path
        A forward graph in ONNX: latent weights as initialisers, batch norm in training mode. Or a
        folder of onnxruntime-training artifacts. Or a PyTorch module with its `example`.
    settings : Settings, optional
        All options at once; or give them by name:
    example : Tensor, tuple or dict
        A batch for a PyTorch module, see `bnnopt.torch.export`; its size is the batch size where
        that is not given.
    {options}
    progress : callable, optional
        Called with a line about what comes next.

    Raises
    ------
    UsageError
        If an option is not known, or has a value that makes no sense.
    ModelError
        If the file cannot be read, or cannot be trained as it is.
    BudgetError
        If no set of passes fits.

    Examples
    --------
    >>> optimized = bnnopt.optimize("model.onnx", batch_size=100, level="O1")
    >>> optimized.save("out")
    """
    chosen = with_options(settings or Settings(), options)
    check(chosen)
    selected(chosen, chosen.level)
    if not isinstance(model, str | bytes | os.PathLike):
        return _of_module(model, example, chosen, progress)
    if example is not None:
        raise UsageError("optimize: example is for a PyTorch module, found a file; leave it out")
    say = progress or (lambda line: None)
    path = Path(os.fsdecode(model))
    if chosen.allow_batch:
        return _in_parts(path, replace(chosen, allow_batch=False), say)
    chosen = replace(chosen, batch_size=_part_size(chosen))
    say("reading the model")
    build = import_artifacts if is_artifacts(path) else build_forward
    with headed(path, chosen) as (file, notes):
        built = build(file, chosen, say)
    built.forward.notes += notes
    forward, reference, evaluation = built.forward, built.reference, built.evaluation
    _check_kernels(path, reference, evaluation)
    if chosen.calibrate is not None:
        say("measuring sparsity")
        values = forward.weights | forward.normalization
        calibrate(reference, values, forward.batch_size, Path(chosen.calibrate))
    kernels = kernel_passes(chosen.disable)
    baseline = Footprint.of(make_plan(map_kernels(reference, kernels)))
    level, training, records, spending = _rewrite(reference, chosen, say)
    units = latent_units(training)
    forward.notes += hints(reference, records, chosen.enable)
    forward.notes += cut_latents(forward.weights, units)
    say("shrinking the evaluation")
    evaluation = fit(evaluation, training, chosen.disable)
    report = Report(
        model=path.name,
        batch_size=forward.batch_size,
        level=level,
        optimizer=built.optimizer.name,
        baseline=baseline,
        passes=records,
        optimized=Footprint.of(make_plan(training)),
        process_bytes=process_bytes(training),
        static=StaticSum.of(reference, records),
        binarized=forward.binarized,
        notes=forward.notes,
        trained=_elements(reference, Role.PARAMETER),
        frozen=_elements(reference, Role.FROZEN),
        spending=spending,
    )
    about = _about(built, training, report, chosen)
    weights = {
        n: nearest(forward.weights[n], units[n])
        if n in units
        else _stored(n, forward.weights[n], about.dtypes[n])
        for n in about.weights
    }
    weights |= forward.normalization
    plus = {found.name for found in forward.binarized if found.zero == "+1"}
    source = without_weights(built.source, about.weights, plus)
    return Optimized(report, training, evaluation, reference, about, weights, source)


def _part_size(chosen: Settings) -> int | None:
    """Samples that the programs take at once: a batch, or a part of it."""
    parts, whole = chosen.accumulate, chosen.batch_size
    if parts == 1:
        return whole
    if whole is None or whole % parts:
        given = "no --batch-size" if whole is None else f"--batch-size {whole}"
        raise UsageError(f"--accumulate {parts}: {given}, expected a multiple of {parts}")
    if chosen.class_weights or chosen.ignore_index is not None:
        raise UsageError(
            f"--accumulate {parts}: not with --class-weights or --ignore-index, whose mean over a "
            "part is not that over the batch; leave one of them out"
        )
    return whole // parts


def _in_parts(path: Path, chosen: Settings, say: Progress) -> Optimized:
    """With the batch in as few parts as the budget needs; else with a smaller batch.

    Raises
    ------
    UsageError
        If there is no batch size or no budget, or the parts are given.
    BudgetError
        If a single sample does not fit.
    """
    if chosen.batch_size is None or chosen.budget_bytes is None or chosen.accumulate > 1:
        raise UsageError("--allow-batch: expected with --budget and --batch-size, not --accumulate")
    refusal = BudgetError("")
    for ways in _batches(chosen, chosen.batch_size):
        try:
            found = optimize(path, replace(chosen, **ways), progress=say)
        except BudgetError as error:
            refusal = error
            say(str(error))
            continue
        given = f"--budget: a batch of {chosen.batch_size} does not fit as a whole"
        taken = ", ".join(f"--{name.replace('_', '-')} {n}" for name, n in ways.items())
        notes = [f"{given}; taken: {taken}"] if ways else []
        return replace(found, report=replace(found.report, notes=[*found.report.notes, *notes]))
    raise refusal


def _batches(chosen: Settings, batch: int) -> Iterator[dict[str, Any]]:
    """What to try in turn: the batch, the same in parts that divide it, then smaller batches."""
    yield {}
    if not chosen.class_weights and chosen.ignore_index is None:
        yield from ({"accumulate": n} for n in range(2, batch + 1) if batch % n == 0)
    while batch > 1:
        batch //= 2
        yield {"batch_size": batch}


def _of_module(
    module: nn.Module, example: Any, chosen: Settings, progress: Progress | None
) -> Optimized:
    """Of a PyTorch module, by way of a file."""
    name = type(module).__name__
    if not hasattr(module, "named_parameters"):
        raise UsageError(f"optimize: {name} found, expected a path, or a PyTorch module")
    try:
        from bnnopt.torch.exporting import check_module, export
    except ImportError:
        raise UsageError(
            f"optimize: {name} found, expected a path; for PyTorch modules "
            "pip install 'bnnopt[torch]'"
        ) from None
    if example is None:
        raise UsageError(
            f"optimize: {name} is a module, which needs example=x, a batch of its input"
        )
    batch_size = check_module(module, example)
    with tempfile.TemporaryDirectory() as folder:
        path = export(module, example, Path(folder) / f"{name}.onnx")
        chosen = replace(chosen, batch_size=chosen.batch_size or batch_size)
        return optimize(path, chosen, progress=progress)


def _stored(name: str, weight: NDArray[np.float32], kind: str) -> NDArray[np.generic]:
    """A weight as the step stores it."""
    largest = float(np.max(np.abs(weight), initial=0))
    if kind == "float16" and math.isfinite(largest) and largest > FLOAT16_MAX:
        raise UsageError(
            f"weight {name!r} reaches {largest:g}, expected at most {FLOAT16_MAX:g}, the largest "
            "of float16; --disable float16-state"
        )
    return weight.astype(kind)


def _check_kernels(path: Path, *steps: TrainingStep) -> None:
    for node in (node for step in steps for node in step.graph):
        if node.op_type not in KERNELS:
            raise ModelError(
                f"{path}: node {node.name!r} ({node.op_type}): there is no kernel for this "
                "operator; export the model without it"
            )


def _rewrite(
    reference: TrainingStep, settings: Settings, say: Progress
) -> tuple[str, TrainingStep, list[PassRecord], Spending | None]:
    """The level, the rewritten step, the ledger, and how a budget was spent."""
    asked = selected(settings, settings.level)
    if settings.time_budget is not None:
        spending = fit_time(_trials(reference, settings), asked, settings.time_budget, say)
        return settings.level, *_run(reference, settings, spending.chosen.passes, say), spending
    if settings.budget_bytes is None or settings.passes:
        step, records = _run(reference, settings, asked, say)
        _check_budget(step, settings)
        return settings.level, step, records, None
    budget = Budget(selected(settings, LEVELS[-1]), settings.budget_bytes, not settings.enable)
    spending = fit_budget(_trials(reference, settings), budget, say)
    chosen = spending.chosen.passes
    return _level_of(chosen), *_run(reference, settings, chosen, say), spending


def _trials(reference: TrainingStep, settings: Settings) -> Trials:
    return Trials(reference, kernel_passes(settings.disable))


def _level_of(passes: Sequence[Pass]) -> str:
    """What to call a choice: by its lossy passes, as a lossless one costs nothing at any level."""
    if not passes:
        return "O0"
    return f"O{max((p.level or 0 for p in passes if not p.lossless), default=1)}"


def _check_budget(step: TrainingStep, settings: Settings) -> None:
    """Refuse passes that were named and do not fit."""
    budget = settings.budget_bytes
    if budget is None:
        return
    peak, process = peak_bytes(step), process_bytes(step)
    if peak + process > budget:
        raise BudgetError(beyond(budget, peak, process))


def selected(settings: Settings, level: str) -> list[Pass]:
    """The passes of a level, but for those that are named, left out or added."""
    stored = settings.prune_stored
    also = [] if stored is None else [f"prune-stored{{sparsity={stored}}}"]
    return select(level, settings.passes, settings.disable, [*settings.enable, *also])


def _run(
    reference: TrainingStep, settings: Settings, asked: Sequence[Pass], say: Progress
) -> tuple[TrainingStep, list[PassRecord]]:
    """The rewritten step, and the ledger of the passes that were asked for."""
    step = TrainingStep(reference.model.clone())
    passes = in_order([*kernel_passes(settings.disable), *asked])
    records = run_passes(step, passes, lambda name: say(f"pass {name}"))
    names = {p.name for p in asked}
    return step, [record for record in records if record.name in names]


def _about(built: Built, training: TrainingStep, report: Report, settings: Settings) -> Artifact:
    rate = settings.learning_rate
    kernels = [p.spec for p in kernel_passes(settings.disable)]
    persistent = {
        str(value.name): value
        for step in (training, built.evaluation)
        for value in step.graph.inputs
        if role(value) in PERSISTENT
    }
    return Artifact(
        model=report.model,
        batch_size=report.batch_size,
        parts=settings.accumulate,
        level=report.level,
        optimizer=report.optimizer,
        loss=built.loss,
        loss_options=asdict(loss_options(settings)),
        learning_rate=built.optimizer.learning_rate if rate is None else rate,
        persistent={name: list(dims(value)) for name, value in persistent.items()},
        dtypes={name: str(dtype(value).numpy()) for name, value in persistent.items()},
        weights=[name for name in persistent if name in built.forward.weights],
        packed={name: list(shape) for name, shape in built.forward.packed.items()},
        latent=_latent(built.reference),
        classes=_classes(training, built.evaluation),
        passes=list(dict.fromkeys([*(r.spec for r in report.passes), *kernels])),
        pruning=_pruning(built.reference, settings),
        files={},
    )


def _elements(step: TrainingStep, kind: Role) -> dict[str, int]:
    """The weights of a role, by name, and how many numbers each holds."""
    return {str(value.name): math.prod(dims(value)) for value in step.inputs(kind)}


def _latent(reference: TrainingStep) -> list[str]:
    """The trained weights of which the network sees the signs."""
    parameters = reference.inputs(Role.PARAMETER)
    return [str(p.name) for p in parameters if any(traits(n).binarizes for n in readers(p))]


def _pruning(reference: TrainingStep, settings: Settings) -> dict[str, Any] | None:
    """The schedule, and the trained weights of layers that multiply by them as they are."""
    if settings.prune_weights is None:
        return None
    weights = [str(value.name) for value in real_weights(reference)]
    if not weights:
        raise UsageError("--prune-weights: the model trains no real-valued layer; leave it out")
    return Pruning(settings.prune_weights, settings.prune_end, weights)._asdict()


def _classes(training: TrainingStep, evaluation: TrainingStep) -> int:
    """Number of classes that integer labels name; 0 where there are none."""
    labels = training.inputs(Role.LABELS)
    if not labels or labels[0].dtype != ir.DataType.INT64:
        return 0
    shape = dims(evaluation.loss)
    if len(shape) < 2:  # of a folder of artifacts; a forward graph is compared with its loss
        raise ModelError(
            f"output {evaluation.loss.name!r} has shape {list(shape)}, but labels are of classes: "
            "expected (batch, classes); generate the artifacts again"
        )
    return shape[1]
