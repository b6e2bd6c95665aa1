"""A session's weights and statistics, by the names of the model file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.feeding import as_array, check_finite
from bnnopt.runtime.format import Artifact, Program, updating_steps, written_buffers
from bnnopt.runtime.kernels.latents import nearest

Array = NDArray[np.generic]


def written_weights(program: Program, about: Artifact, phase: str) -> list[str]:
    """The weights that the steps of a phase write: ``update`` or, of statistics, ``forward``."""
    updating = updating_steps(program)
    steps = [
        step
        for position, step in enumerate(program.steps)
        if (position in updating if phase == "update" else step.phase == phase)
    ]
    written = written_buffers(program, *steps)
    return [name for name in about.weights if name in written]


def stored_form(
    persistent: Mapping[str, Array],
    about: Artifact,
    name: str,
    value: ArrayLike,
    unit: float | None = None,
) -> Array:
    """A value as the step stores the weight of that name: in its type, or its signs as bits.

    With a `unit` it is a latent weight in int8.

    Raises
    ------
    UsageError
        If there is no such weight, or the value has another shape or is not finite.
    """
    from bnnopt.runtime.kernels.reference.packing import sign_pack

    if name not in about.weights:
        raise UsageError(f"load_parameters: there is no weight {name!r}")
    array = as_array(value, f"load_parameters: {name}")
    is_packed = name in about.packed
    expected = tuple(about.packed[name] if is_packed else persistent[name].shape)
    if array.shape != expected:
        found = list(array.shape)
        raise UsageError(f"load_parameters: {name!r} has shape {found}, expected {list(expected)}")
    if array.dtype.kind not in "fiub":
        raise UsageError(f"load_parameters: {name!r} is {array.dtype}, expected float32")
    with np.errstate(over="ignore"):
        array = sign_pack(array) if is_packed else array.astype(persistent[name].dtype)
    check_finite(array, f"load_parameters: {name!r}")
    return array if unit is None else nearest(as_array(value, name), unit)
