"""What is on the page: versions of a training step, each with its tensors over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx_ir as ir

from bnnopt.analysis import Buffer, VariableClass
from bnnopt.artifact import make_program
from bnnopt.metadata import Key
from bnnopt.ops import dims, dtype
from bnnopt.report.profile import Profile, inspect_step
from bnnopt.runtime.format import Program
from bnnopt.runtime.kernels.selection import kernels_of
from bnnopt.training_step import TrainingStep, phase

# In the picture from the bottom to the top: what is always there, then what is kept, then the rest.
STACK = (
    VariableClass.WEIGHTS,
    VariableClass.OPTIMIZER_STATE,
    VariableClass.STATISTICS,
    VariableClass.RETAINED,
    VariableClass.MASKS,
    VariableClass.WEIGHT_GRADIENTS,
    VariableClass.TRANSIENT,
    VariableClass.WORKSPACE,
)

# How a value is kept, by the operator that makes it; what is not here is kept as it is.
_CODECS = {
    "SignPack": "sign bits",
    "BinarizePack": "sign bits",
    "RangePack": "mask bits",
    "PackBits": "mask bits",
    "PoolIndexPack": "pool index",
    "PackedMaxPool": "pool index",
    "BitmapPack": "bitmap",
    "PrunedBitmapPack": "pruned bitmap",
    "Pow2Pack": "powers of two",
    "Int4Pack": "int4",
    "Int8Pack": "int8",
}


@dataclass(frozen=True)
class Measured:
    """What a profiled run took.

    Attributes
    ----------
    seen_bytes : int
        Growth of the process, the most that was seen.
    seconds : mapping of str to float
        Node name to its time in a step.
    """

    seen_bytes: int
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, profile: Mapping[str, Any]) -> Measured:
        """From what ``bnnopt train --profile`` writes."""
        nodes = profile["nodes"]
        seconds = {str(n["name"]): float(n["seconds"]) / max(int(n["calls"]), 1) for n in nodes}
        return cls(int(profile["seen_bytes"]), seconds)


@dataclass(frozen=True)
class Version:
    """One version of a training step.

    Attributes
    ----------
    label : str
        What to call it, such as ``-O1``.
    step : TrainingStep
        In its present order.
    passes : sequence of mapping
        The ledger that led to it, as `Report.to_dict` has it; empty of what no pass has changed.
    program : Program, optional
        What a device runs, where the step comes from a folder: outputs without a name are lost in
        a file, and kernels miss them.
    """

    label: str
    step: TrainingStep
    passes: Sequence[Mapping[str, Any]] = ()
    program: Program | None = None

    @cached_property
    def profile(self) -> Profile:
        """Its memory over time."""
        return inspect_step(self.step, self.label)

    @cached_property
    def nodes(self) -> list[ir.Node]:
        """In their order."""
        return list(self.step.graph)

    @cached_property
    def kernels(self) -> dict[str, str]:
        """Node name to its kernel; empty of a view."""
        program = self.program or make_program(self.step, self.profile.plan, self.step.batch_size)
        names = (step.name for step in program.steps)
        return dict(zip(names, kernels_of(program), strict=True))

    def alive_at_peak(self) -> list[Buffer]:
        """The buffers that are there at the fullest moment, the largest first."""
        at = self.profile.fullest
        alive = [b for b in self.profile.classes if b.persistent or b.first <= at <= b.last]
        return sorted(alive, key=lambda buffer: -buffer.n_bytes)

    def to_dict(self) -> dict[str, Any]:
        """For the pictures: nodes, tensors and scratch memory, in bytes and node positions."""
        plan, profile = self.profile.plan, self.profile
        position = {node: i for i, node in enumerate(self.nodes)}
        return {
            "label": self.label,
            "peak": plan.peak_bytes,
            "saved": plan.saved_bytes,
            "arena": plan.arena_bytes,
            "persistent": plan.persistent_bytes,
            "gaps": self._gaps,
            "fullest": profile.fullest,
            "nodes": [[n.name, n.op_type, phase(n), self.kernels[str(n.name)]] for n in self.nodes],
            "tensors": [self._tensor(buffer) for buffer in profile.classes if buffer.n_bytes],
            "scratch": [[position[n], *place] for n, place in plan.workspace.items()],
        }

    @property
    def _gaps(self) -> int:
        """What alignment and gaps add, which the timeline has everywhere."""
        at = self.profile.fullest
        scratch = self.profile.plan.workspace.get(self.nodes[at], (0, 0))[1]
        return self.profile.timeline[at][VariableClass.WORKSPACE] - scratch

    def _tensor(self, buffer: Buffer) -> list[Any]:
        """Name, class, bytes, first and last node, offset or -1, how it is kept, shape, pass."""
        value, last = buffer.values[0], len(self.nodes) - 1
        offset = -1 if buffer.persistent else self.profile.plan.offsets[value]
        return [
            str(value.name),
            STACK.index(self.profile.classes[buffer]),
            buffer.n_bytes,
            max(buffer.first, 0),
            min(buffer.last, last),
            offset,
            codec(value),
            " x ".join(map(str, dims(value))) or "scalar",
            value.metadata_props.get(Key.MADE_BY, ""),
        ]


def codec(value: ir.Value) -> str:
    """How a value is kept, in words."""
    producer, kind = value.producer(), str(dtype(value).numpy())
    if kind != "uint8" or producer is None:
        return kind
    name = str(value.name)
    if name.endswith(".signs"):
        return "sign bits"
    if name.endswith(".mask"):
        return "mask bits"
    return _CODECS.get(producer.op_type, "bits")


@dataclass(frozen=True)
class Page:
    """A page about some versions of a step, two or more, the first before any pass.

    Attributes
    ----------
    title : str
        What is shown.
    about : str
        Batch size, optimiser and the like, in a line.
    versions : sequence of Version
        The page opens with the first and the last of them.
    others : sequence of Version
        What else could be had, for the advice about the largest tensors.
    measured : Measured, optional
        Of the last version.
    """

    title: str
    about: str
    versions: Sequence[Version]
    others: Sequence[Version] = ()
    measured: Measured | None = None
    frontier: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def before(self) -> Version:
        """The first."""
        return self.versions[0]

    @property
    def after(self) -> Version:
        """The last."""
        return self.versions[-1]
