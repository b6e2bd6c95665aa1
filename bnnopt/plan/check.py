"""An independent check of a program: does every step read what was last written for it?

It shares nothing with the planner. Every stretch of the arena between two places where something
begins or ends, in cells of 64 bytes, remembers which value was written to it last; before a step
reads a value, all of that value's stretches must still be its own.
"""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.format import Program, StepSpec, ValueSpec

CELL = 64  # bytes
_FREE, _SCRATCH = -1, -2

# Their kernels read element i of an input before they write element i of an output, or read or copy
# all of it first: only they may write over what they read, and only from its first byte on.
_MAY_OVERWRITE = frozenset(
    {"Abs", "Add", "Clip", "Div", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mul"}
    | {"Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where"}
    | {"Binarize", "Ternarize", "StraightThrough", "Dropout", "ClipGrad", "ReluGrad"}
    | {"ApproxSignGrad", "HardSwishGrad", "Gelu", "GeluGrad", "TanhGeluGrad", "PReluGrad"}
    | {"SoftmaxGrad", "LayerNormalizationGrad"}
    | {"SwishSignGrad", "MaskedGrad", "BitmapReluGrad", "SoftmaxCrossEntropyGrad"}
    | {"BatchNormalizationTraining", "BatchNormalizationGrad", "BatchNormalizationSignsGrad"}
    | {"L1BatchNormalizationTraining", "L1BatchNormalizationGrad", "BatchNormalizationApply"}
    | {"BatchNormalization", "BinaryConvInputGrad", "BinaryConvInputGradInt8", "Int8Pack"}
)
_OPTIMIZER = "Step"  # all optimisers are elementwise, and end in this


class OverlapError(Exception):
    """A program would read memory that something else has overwritten; a defect of the planner."""


def check_program(program: Program) -> None:
    """Run the program on a shadow of its arena and of its persistent buffers.

    Raises
    ------
    OverlapError
        Naming the step and the value.
    """
    shadow = _Shadow(program)
    for step in program.steps:
        shadow.run(step)
    for index in program.outputs:
        shadow.read(index, "the end")


class _Shadow:
    """Which value was last written to each cell and to each persistent buffer.

    ``owner`` maps every value that is there to the value whose elements it shows: itself, unless
    it is a view.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.edges = _edges(program)
        self.cells = np.full(len(self.edges), _FREE, np.int32)
        self.latest: dict[str, int] = {}
        self.owner: dict[int, int] = {}
        made = {index for step in program.steps for index in step.outputs}
        fed = {index for indices in program.roles.values() for index in indices}
        for index, spec in enumerate(program.values):
            if index in fed or (spec.place != "arena" and index not in made):
                self.write(index, "the start")

    def run(self, step: StepSpec) -> None:
        where = f"step {step.name!r}"
        inputs = [index for index in step.inputs if index >= 0]
        outputs = [index for index in step.outputs if index >= 0]
        for index in inputs:
            self.read(index, where)
        if step.is_view:
            self.owner[outputs[0]] = self.owner[inputs[0]]
            self.read(outputs[0], where)
            return
        self._scratch(step, [*inputs, *outputs])
        for index in outputs:
            if step.operator not in _MAY_OVERWRITE and not step.operator.endswith(_OPTIMIZER):
                self._keep_apart(index, inputs, where)
            self.write(index, where)
        for index in outputs:
            self.read(index, f"after {where}, its reader")

    def read(self, index: int, where: str) -> None:
        """Check that the value is there, and still what it was."""
        spec = self.program.values[index]
        if index not in self.owner:
            raise OverlapError(f"{where} reads {spec.name!r} before it is made")
        owner = self.owner[index]
        if spec.place == "persistent" and self.latest[spec.buffer] != owner:
            raise OverlapError(f"{where} reads {spec.name!r} after its update")
        if spec.place != "arena":
            return
        found = self.cells[self._cells_of(index)]
        if not np.all(found == owner):
            other = int(found[found != owner][0])
            culprit = self.program.values[other].name if other >= 0 else "scratch memory"
            raise OverlapError(f"{where} reads {spec.name!r}, which {culprit!r} has overwritten")

    def write(self, index: int, where: str) -> None:
        """Make the value the owner of its place."""
        spec = self.program.values[index]
        self.owner[index] = index
        if spec.place == "persistent":
            self.latest[spec.buffer] = index
        if spec.place == "arena":
            self.cells[self._cells_of(index)] = index

    def _cells_of(self, index: int) -> slice:
        spec, size = self.program.values[index], self.program.arena_bytes
        start, stop = self._bytes_of(index)
        if start % CELL or start < 0 or stop > size:
            raise OverlapError(f"value {spec.name!r} at {start} leaves the arena or its alignment")
        return self._stretches(start, stop)

    def _stretches(self, start: int, stop: int) -> slice:
        return slice(self.edges[start // CELL], self.edges[-(-stop // CELL)])

    def _bytes_of(self, index: int) -> tuple[int, int]:
        """First byte in the arena and the one after the last; none for another place."""
        return _bytes_of(self.program, self.program.values[index])

    def _keep_apart(self, output: int, inputs: list[int], where: str) -> None:
        start, stop = self._bytes_of(output)
        for index in inputs:
            first, last = self._bytes_of(index)
            if first < stop and start < last:
                names = self.program.values[output].name, self.program.values[index].name
                raise OverlapError(f"{where} writes {names[0]!r} over {names[1]!r} as it reads it")

    def _scratch(self, step: StepSpec, own: list[int]) -> None:
        """Scratch must lie in the arena, and not touch an input or an output of its own step."""
        if not step.workspace_bytes:
            return
        start, end = step.workspace_offset, step.workspace_offset + step.workspace_bytes
        if start % CELL or start < 0 or end > self.program.arena_bytes:
            raise OverlapError(f"step {step.name!r}: its scratch memory leaves the arena")
        for index in own:
            first, last = self._bytes_of(index)
            if start < last and first < end:
                name = self.program.values[index].name
                raise OverlapError(f"step {step.name!r}: its scratch memory overlaps {name!r}")
        self.cells[self._stretches(start, end)] = _SCRATCH


def _edges(program: Program) -> dict[int, int]:
    """The cells where a value or scratch memory begins or ends, each with its place in order."""
    spans = [_bytes_of(program, spec) for spec in program.values]
    spans += [(s.workspace_offset, s.workspace_offset + s.workspace_bytes) for s in program.steps]
    cells = {edge for start, stop in spans for edge in (start // CELL, -(-stop // CELL))}
    return {cell: place for place, cell in enumerate(sorted(cells))}


def _bytes_of(program: Program, spec: ValueSpec) -> tuple[int, int]:
    """First byte in the arena and the one after the last; none for another place."""
    n_bytes = spec.n_bytes(program.batch_size) if spec.place == "arena" else 0
    return spec.offset, spec.offset + n_bytes
