"""Whether a program can run at all: its parts refer to one another, and lie where they may.

A checksum tells a damaged folder from a whole one. This tells a program that would read or write
outside of its memory, however that came about: every value lies in the arena or is the size of its
buffer, every step reads and writes values that are there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ArtifactError
from bnnopt.runtime.format import Program, StepSpec, ValueSpec

ALIGNMENT = 64  # bytes
DTYPES = frozenset(
    {"bool", "float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64"}
    | {"int8", "int16", "int32", "int64"}
)
ROLES = frozenset({"data", "labels", "rate", "step"})
MAX_RANK = 16
# Where x (N, C, ...), w (M, C / group, ...) and y (N, M, ...) of real convolutions are: an input,
# or -1 for the first output.
CONVOLUTIONS = {
    "Conv": (0, 1, -1),
    "RealConv": (0, 1, -1),
    "ConvInputGrad": (-1, 1, 0),
    "ConvWeightGrad": (0, -1, 1),
}
FUSED_STEP = (1, 0, 2)  # of a weight gradient and the step of an optimiser
MAX_ELEMENTS = 1 << 48


def check_runnable(
    program: Program, buffers: Mapping[str, Mapping[str, NDArray[np.generic]]], where: str
) -> None:
    """Refuse a program that would leave its memory.

    Parameters
    ----------
    program : Program
        As read from a folder.
    buffers : mapping of str to mapping of str to ndarray
        Those outside of the arena, by place and name.
    where : str
        Its file, for the message.

    Raises
    ------
    ArtifactError
        Naming what does not fit.
    """
    try:
        _check_whole(program)
        for spec in program.values:
            _check_value(spec, program, buffers)
        for step in program.steps:
            _check_step(step, program)
    except _MisfitError as error:
        raise ArtifactError(f"{where}: {error}; optimize again") from None
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise ArtifactError(f"{where}: is no program ({error!r}); optimize again") from None


class _MisfitError(Exception):
    pass


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise _MisfitError(what)


def _check_whole(program: Program) -> None:
    n = len(program.values)
    _require(_is_count(program.batch_size, 1), f"the batch size is {program.batch_size!r}")
    _require(_is_count(program.arena_bytes), f"the arena is {program.arena_bytes!r} bytes")
    _require(program.roles.keys() == ROLES, f"inputs have roles {sorted(program.roles)}")
    fed = [i for indices in program.roles.values() for i in indices]
    used = [*fed, *program.outputs, *program.gradients.values()]
    _require(all(_is_count(i) and i < n for i in used), f"an input or output is none of {n} values")
    _require(bool(program.outputs), "it has no output")


def _check_value(
    spec: ValueSpec,
    program: Program,
    buffers: Mapping[str, Mapping[str, NDArray[np.generic]]],
) -> None:
    name = f"value {spec.name!r}"
    _require(spec.dtype in DTYPES, f"{name} is of type {spec.dtype!r}")
    is_shape = len(spec.shape) <= MAX_RANK and all(_is_count(d, None) and d for d in spec.shape)
    _require(is_shape, f"{name} has shape {list(spec.shape)}")
    n_bytes = spec.n_bytes(program.batch_size)
    _require(n_bytes <= MAX_ELEMENTS, f"{name} takes {n_bytes} bytes")
    if spec.place == "arena":
        fits = _is_count(spec.offset) and spec.offset % ALIGNMENT == 0
        fits = fits and spec.offset + n_bytes <= program.arena_bytes
        _require(fits, f"{name} at {spec.offset} leaves the arena of {program.arena_bytes} bytes")
        return
    _require(spec.place in buffers, f"{name} lies in {spec.place!r}")
    buffer = buffers[spec.place].get(spec.buffer)
    _require(buffer is not None, f"{name} has no buffer {spec.buffer!r}")
    assert buffer is not None
    fits = buffer.dtype == spec.dtype and buffer.nbytes == n_bytes
    found = f"{buffer.dtype} of {buffer.nbytes} bytes"
    _require(fits, f"{name} is {spec.dtype} of {n_bytes} bytes, its buffer {found}")


def _check_step(step: StepSpec, program: Program) -> None:
    name = f"step {step.name!r}"
    used = [i for i in (*step.inputs, *step.outputs) if i != -1]
    n = len(program.values)
    _require(all(_is_count(i) and i < n for i in used), f"{name} uses none of {n} values")
    start, n_bytes = step.workspace_offset, step.workspace_bytes
    fits = _is_count(start) and _is_count(n_bytes) and start + n_bytes <= program.arena_bytes
    _require(fits, f"the scratch memory of {name} leaves the arena")
    _require(not step.is_view or len(used) >= 2, f"{name} is a view of nothing")
    places = CONVOLUTIONS.get(step.operator)
    if step.operator.startswith("Conv") and step.operator.endswith("Step"):
        places = FUSED_STEP if "Bop" not in step.operator else None  # whose weights are bits
    if places is not None:
        _check_convolution(step, program, places)


def _check_convolution(step: StepSpec, program: Program, places: tuple[int, int, int]) -> None:
    """Its kernel takes the geometry from two of x, w and y, and reads the third by it."""
    values = [*step.inputs, *step.outputs]
    first = len(step.inputs)
    x, w, y = (
        program.values[values[i if i >= 0 else first - i - 1]].shape_at(program.batch_size)
        for i in places
    )
    group, n = int(step.attributes.get("group", 1)), len(x) - 2  # type: ignore[arg-type]
    fits = n > 0 and len(w) == len(y) == len(x) and group > 0
    fits = fits and (x[0], w[0], w[1] * group) == (y[0], y[1], x[1]) and w[0] % group == 0
    _require(fits and _fits_windows(step, x, w, y), f"step {step.name!r}: {x}, {w} give no {y}")


def _fits_windows(
    step: StepSpec, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]
) -> bool:
    n = len(x) - 2
    strides, dilations = (_ints(step, name, [1] * n) for name in ("strides", "dilations"))
    pads = _ints(step, "pads", [0] * 2 * n)
    if (len(strides), len(dilations), len(pads)) != (n, n, 2 * n) or min(strides + dilations) < 1:
        return False
    if step.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return all(a == -(-b // s) for a, b, s in zip(y[2:], x[2:], strides, strict=True))
    return all(
        y[i + 2]
        == (x[i + 2] + pads[i] + pads[n + i] - dilations[i] * (w[i + 2] - 1) - 1) // strides[i] + 1
        for i in range(n)
    )


def _ints(step: StepSpec, name: str, default: list[int]) -> list[int]:
    found = step.attributes.get(name, default)
    assert isinstance(found, list)
    return [int(number) for number in found]


def _is_count(number: object, least: int | None = 0) -> bool:
    """Whether it is an integer, no boolean, and not below `least`."""
    return type(number) is int and (least is None or number >= least)
