"""Which kernel each step of a program runs on, found without running any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnnopt.runtime.executor import aligned_empty, read_as_floats
from bnnopt.runtime.format import Program, StepSpec, ValueSpec
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.functions import Note, dry_run
from bnnopt.runtime.kernels.compiled.optimizers import BEGIN_UPDATE
from bnnopt.runtime.kernels.compiled.table import COMPILED

NUMPY = "numpy"


@np.errstate(all="ignore")  # rates from the number of a step that is 0
def kernels_of(program: Program) -> list[str]:
    """For each step the C functions that do its work, ``numpy``, or nothing for a view.

    The wrappers are asked with small arrays of the right types: a batch of 1 where the program
    takes any, values with one place sharing their memory.
    """
    arrays = _stand_ins(program)
    return [_kernel_of(step, arrays) for step in program.steps]


def named_kernels(program: Program) -> list[tuple[str, str, str]]:
    """Name, operator and kernel of each step that runs; see `kernels_of`."""
    found = zip(program.steps, kernels_of(program), strict=True)
    return [(step.name, step.operator, kernel) for step, kernel in found if kernel]


def _kernel_of(step: StepSpec, arrays: Sequence[Array]) -> str:
    if step.is_view:
        return ""
    compiled = COMPILED.get(step.operator)
    if compiled is None:
        return NUMPY
    inputs, outputs = (
        [arrays[i] if i >= 0 else None for i in indices] for indices in (step.inputs, step.outputs)
    )
    scratch = _zeros(step.workspace_bytes)
    with dry_run() as notes:
        is_covered = compiled.call(inputs, outputs, step.attributes, scratch)
    functions = [note.function for note in notes if isinstance(note, Note)]
    names = [function.name for function in functions if function is not BEGIN_UPDATE]
    return ", ".join(dict.fromkeys(names)) if is_covered and names else NUMPY


def _stand_ins(program: Program) -> list[Array]:
    batch = program.batch_size if program.fixed_batch else 1
    places: dict[tuple[str, int, str], int] = {}
    for spec in program.values:
        places[_place(spec)] = max(places.get(_place(spec), 0), spec.n_bytes(batch))
    memory = {place: _zeros(n_bytes) for place, n_bytes in places.items()}
    arrays: list[Array] = [
        memory[_place(spec)][: spec.n_bytes(batch)].view(spec.dtype).reshape(spec.shape_at(batch))
        for spec in program.values
    ]
    for array in arrays:
        if array.ndim == 0 and array.dtype.kind == "i":
            array[...] = 1  # the number of the step, by which rates are divided
    read_as_floats(program, arrays)
    return arrays


def _zeros(n_bytes: int) -> Array:
    """Aligned; of zeros, since a wrapper may look at what a kernel before it made."""
    memory = aligned_empty(n_bytes)
    memory.fill(0)
    return memory


def _place(spec: ValueSpec) -> tuple[str, int, str]:
    return spec.place, spec.offset, spec.buffer
