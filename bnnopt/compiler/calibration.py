"""Measure on a user's data which activations are sparse, before any pass runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnnopt.analysis import kept_values
from bnnopt.artifact import make_program
from bnnopt.errors import UsageError
from bnnopt.metadata import Key
from bnnopt.ops import dims, dtype
from bnnopt.plan import make_plan
from bnnopt.runtime.executor import Executor
from bnnopt.runtime.feeding import check_finite
from bnnopt.runtime.format import StepSpec
from bnnopt.training_step import Role, TrainingStep, is_constant, phase

Array = NDArray[Any]
MAX_BATCHES = 8


def calibrate(
    step: TrainingStep, weights: Mapping[str, Array], batch_size: int, path: Path
) -> dict[str, float]:
    """Run the forward pass over the first batches of a file, and note how dense its values are.

    Parameters
    ----------
    step : TrainingStep
        Before any pass; what it keeps for the backward pass gets its density, see `Key.DENSITY`.
    weights : mapping of str to ndarray
        By input name; what is not there starts at 0.
    batch_size : int
        Samples of a step.
    path : Path
        ``.npz`` with an array for each data input, under its name, or ``x`` for a single one.

    Returns
    -------
    dict
        Value name to the largest share of elements that are not +0.0.

    Raises
    ------
    UsageError
        If the file cannot be read, or does not fit the model.
    """
    batches = _batches(step, batch_size, path)
    forward = _forward(step)
    program = make_program(forward, make_plan(forward), batch_size)
    executor = Executor(program, _buffers(forward, weights), _constants(forward))
    wanted = {str(root.name): root for root in kept_values(step) if root.dtype == ir.DataType.FLOAT}
    densities: dict[str, float] = {}

    def observe(spec: StepSpec, outputs: tuple[Array, ...]) -> None:
        made = [program.values[i].name for i in spec.outputs if i >= 0]
        for name, array in zip(made, outputs, strict=True):
            if name in wanted:
                share = int(np.count_nonzero(array.view(np.uint32))) / array.size
                densities[name] = max(densities.get(name, 0.0), share)

    for batch in batches:
        labels = tuple(np.zeros(dims(v), dtype(v).numpy()) for v in step.inputs(Role.LABELS))
        feeds = {"data": batch, "labels": labels, "step": (np.array(1),)}
        executor.run({r: feeds.get(r, ()) for r in program.roles}, batch_size, observe)
    for name, density in densities.items():
        wanted[name].metadata_props[Key.DENSITY] = repr(density)
    return densities


def _forward(step: TrainingStep) -> TrainingStep:
    """The forward nodes alone, all of them, up to the loss."""
    forward = TrainingStep(step.model.clone())
    graph = forward.graph
    graph.outputs[:] = [forward.loss]
    graph.remove([node for node in reversed(graph) if phase(node) != "forward"], safe=True)
    RemoveUnusedNodesPass()(forward.model)
    read = (Role.DATA, Role.LABELS)
    for value in list(graph.inputs):
        if not value.uses() and value not in forward.inputs(*read):
            graph.inputs.remove(value)
    return forward


def _buffers(step: TrainingStep, weights: Mapping[str, Array]) -> dict[str, Array]:
    roles = (Role.PARAMETER, Role.FROZEN, Role.NORMALIZATION, Role.STATISTIC)
    return {str(v.name): np.array(weights[str(v.name)]) for v in step.inputs(*roles)}


def _constants(step: TrainingStep) -> dict[str, Array]:
    values = step.graph.initializers.items()
    return {n: v.const_value.numpy() for n, v in values if is_constant(v) and v.const_value}


def _batches(step: TrainingStep, batch_size: int, path: Path) -> list[tuple[Array, ...]]:
    """The first full batches of the file, for every data input."""
    inputs = step.inputs(Role.DATA)
    arrays = [_array(path, v, len(inputs) == 1) for v in inputs]
    n_batches = min(MAX_BATCHES, min(map(len, arrays)) // batch_size)
    if not n_batches:
        raise UsageError(
            f"--calibrate {path}: {min(map(len, arrays))} samples found, expected at least one "
            f"batch of {batch_size}"
        )
    starts = range(0, n_batches * batch_size, batch_size)
    return [tuple(a[i : i + batch_size] for a in arrays) for i in starts]


def _array(path: Path, value: ir.Value, alone: bool) -> Array:
    name, shape, kind = str(value.name), dims(value)[1:], dtype(value).numpy()
    try:
        with np.load(path) as file:
            key = "x" if alone and name not in file else name
            if key not in file:
                found = ", ".join(list(file)[:5]) or "none"
                expected = " or ".join(dict.fromkeys((repr(name), "'x'" if alone else repr(name))))
                raise UsageError(f"--calibrate {path}: arrays {found} found, expected {expected}")
            array = np.asarray(file[key])
    except FileNotFoundError:
        raise UsageError(f"--calibrate {path}: no such file; check the path") from None
    except UsageError:
        raise
    except Exception:  # numpy raises whatever its readers do, from EOFError to TokenError
        raise UsageError(
            f"--calibrate {path}: not an .npz file; write it with numpy.savez(file, x=x)"
        ) from None
    is_type = array.dtype == kind if kind == np.uint8 else array.dtype.kind in "fiu"
    if array.shape[1:] != shape or not is_type:
        raise UsageError(
            f"--calibrate {path}: {key!r} is {array.dtype} {list(array.shape)}, expected {kind} "
            f"[n, {', '.join(map(str, shape))}]"
        )
    check_finite(array, f"--calibrate {path}: {key!r}")
    return array.astype(kind, copy=False)
