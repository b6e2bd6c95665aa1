"""Some steps of a program on either backend, and what they leave behind."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.artifact import make_program, portable_model
from bnnopt.ops import dims
from bnnopt.plan import make_plan
from bnnopt.runtime.executor import Executor
from bnnopt.runtime.format import Artifact
from bnnopt.training_step import Role, TrainingStep, is_constant

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Trajectory:
    """What some steps left behind: losses, gradients of each step, buffers after the last."""

    losses: list[Array]
    gradients: list[Arrays]
    persistent: Arrays


def run_native(
    step: TrainingStep,
    about: Artifact,
    feeds: list[Arrays],
    initial: Arrays,
    restart: bool,
    change: Callable[[str, Array], None] | None = None,
) -> Trajectory:
    """Each step goes on from the one before it, or from `initial` again if `restart`.

    `change` gets every value that a node has made, by its name, before another reads it.
    """
    program = make_program(step, make_plan(step), about.batch_size)
    constants = {
        name: value.const_value.numpy()
        for name, value in step.graph.initializers.items()
        if is_constant(value) and value.const_value is not None
    }
    persistent = {name: array.copy() for name, array in initial.items()}
    executor = Executor(program, persistent, constants)
    parameter_of = {index: name for name, index in program.gradients.items()}
    shapes = {str(value.name): dims(value) for value in step.inputs(Role.PARAMETER)}
    losses, gradients = [], []
    for feed in feeds:
        seen: Arrays = {}
        for name, array in persistent.items() if restart else ():
            np.copyto(array, initial[name])

        def observe(spec: Any, outputs: tuple[Array, ...], seen: Arrays = seen) -> None:
            written = [i for i in spec.outputs if i >= 0]
            for index, array in zip(written, outputs, strict=True):
                if change is not None:
                    change(program.values[index].name, array)
                if index in parameter_of:
                    name = parameter_of[index]
                    seen[name] = decoded(array, shapes[name])

        by_role = {
            role: tuple(feed[program.values[i].name] for i in indices)
            for role, indices in program.roles.items()
        }
        losses.append(np.array(executor.run(by_role, about.batch_size, observe)[0]))
        gradients.append(seen)
    return Trajectory(losses, gradients, persistent)


def decoded(gradient: Array, shape: tuple[int, ...]) -> Array:
    """A copy of a gradient; of one that is kept as sign bits (rows, ceil(K / 8)) the signs."""
    if gradient.dtype != np.uint8:
        return gradient.copy()
    row_length = math.prod(shape[1:])
    bits = np.unpackbits(gradient, axis=1, count=row_length, bitorder="little")
    return (bits.astype(np.float32) * 2 - 1).reshape(shape)


def run_onnxruntime(
    step: TrainingStep, about: Artifact, feeds: list[Arrays], initial: Arrays, restart: bool
) -> Trajectory:
    """As `run_native`, by stock onnxruntime."""
    from bnnopt.runtime.onnxruntime_backend import open_session

    names = {name: str(value.name) for name, value in step.gradients().items()}
    updates = {str(output.name): str(target.name) for target, output in step.updates()}
    outputs = set(step.graph.outputs)
    step.graph.outputs.extend(v for v in set(step.gradients().values()) if v not in outputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.onnx"
        ir.save(portable_model(step, about.batch_size), path)
        session = open_session(path)
    losses, gradients, persistent = [], [], initial
    shapes = {str(value.name): dims(value) for value in step.inputs(Role.PARAMETER)}
    reads = {value.name for value in session.get_inputs()}
    written = [value.name for value in session.get_outputs()]
    for feed in feeds:
        buffers = initial if restart else persistent
        given = {name: array for name, array in (buffers | feed).items() if name in reads}
        found = dict(zip(written, session.run(written, given), strict=True))
        losses.append(found[written[0]])
        gradients.append({n: decoded(found[value], shapes[n]) for n, value in names.items()})
        persistent = persistent | {target: found[name] for name, target in updates.items()}
    return Trajectory(losses, gradients, persistent)
