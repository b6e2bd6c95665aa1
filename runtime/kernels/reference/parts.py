"""Numpy kernels that run part by part, so that what they allocate stays small.

They return new arrays and take temporaries of the same size, which no plan counts. Where part of
the results depends on part of the inputs alone, a kernel sees half a MiB of them at a time: some
samples, some filters, or some channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bnnopt.runtime.kernels import Array

PART_ELEMENTS = 1 << 17  # of the widest array

Arrays = Sequence[Array | None]
Attributes = Mapping[str, Any]
Call = tuple[list[Array | None], Attributes, list[Array | None]]
"""Inputs, attributes, and the memory of the outputs."""


class Axes(NamedTuple):
    """Of each input and each output the axis that goes by parts.

    "0" or "1"; "b" are bits of (N, C, ...) that go by channels; an input with "-", or behind the
    last one named, is read whole by every part.
    """

    inputs: str
    outputs: str


AxesRule: TypeAlias = Callable[[Arrays, Arrays], Axes | None]
"""(inputs, outputs) to their axes; None where all goes at once."""

WHOLE, TILES, OUT = "whole", "tiles", "out"
How: TypeAlias = str | Axes | AxesRule
"""How a kernel may run.

``whole``; in ``tiles``, as its result has, at each place, what it makes of the inputs' elements
there; ``out``, as it writes to an argument of that name where all arrays are of one dtype; or part
by part along axes.
"""


def by_rows(inputs: Arrays, outputs: Arrays) -> Axes | None:
    """Of a step: by rows of the weight; the rate and the count are scalars."""
    n = len(inputs[0]) if inputs[0] is not None and inputs[0].ndim else 0
    return Axes(_rows(inputs, n), "0" * len(outputs)) if n else None


def by_filters(inputs: Arrays, outputs: Arrays) -> Axes:
    """Of a step behind its product: by filters of the weight, so by channels of dy."""
    w, _, _, *rest = inputs
    assert w is not None
    return Axes("0-1" + _rows(rest, len(w)), "0" * len(outputs))


def _rows(arrays: Arrays, n: int) -> str:
    own = [a is not None and a.ndim > 0 and len(a) == n for a in arrays]
    return "".join("0" if row else "-" for row in own)


def in_parts(
    how: How, inputs: Arrays, outputs: list[Array | None], attributes: Attributes
) -> Iterator[Call]:
    """Yield the calls that together do the work of a step; one of all, if it has no parts.

    They go from the last to the first: so a result may lie over a smaller input, row by row.
    """
    axes = _axes(how, inputs, outputs, attributes)
    parts = list(_parts([*inputs, *outputs], "".join(axes))) if axes is not None else []
    if axes is None or len(parts) < 2:
        yield [*inputs], attributes, outputs
        return
    for part in reversed(parts):
        # Contiguous, for the order of sums not to depend on what this is a part of.
        taken = [part.of(a, axis) for a, axis in zip(inputs, axes.inputs, strict=True)]
        taken = [np.ascontiguousarray(a) if a is not None and a.ndim else a for a in taken]
        places = [part.of(a, axis) for a, axis in zip(outputs, axes.outputs, strict=True)]
        yield taken, part.attributes(attributes, places), places


def _axes(how: How, inputs: Arrays, outputs: Arrays, attributes: Attributes) -> Axes | None:
    """The axis of every input and every output; None where all goes at once."""
    found = None if isinstance(how, str) else how
    if found is not None and not isinstance(found, Axes):
        found = found(inputs, outputs)
    if found is None:
        return None
    is_by_filters = "-1" in found.inputs
    if is_by_filters and attributes.get("group", 1) != 1:  # they share no channels
        return None
    return Axes(found.inputs.ljust(len(inputs), "-"), found.outputs[: len(outputs)])


class Part(NamedTuple):
    """Indices along the axis that goes by parts, and the elements of a channel in a map."""

    start: int
    stop: int
    plane: int

    def of(self, array: Array | None, axis: str) -> Array | None:
        """A view of the part of an operand."""
        if array is None or axis == "-":
            return array
        if axis == "b":
            return array[:, self.start * self.plane // 8 : -(-self.stop * self.plane // 8)]
        part = slice(self.start, self.stop)
        return array[part] if axis == "0" else array[:, part]

    def attributes(self, attributes: Attributes, outputs: Arrays) -> Attributes:
        """Those that are about a part: the channels of a map, and where a random stream begins."""
        own = dict(attributes)
        if self.plane and "shape" in own:
            own["shape"] = [self.stop - self.start, *own["shape"][1:]]
        if "seed" in own:
            drawn = next(a for a in reversed(outputs) if a is not None)
            own["seed"] += drawn.size // (self.stop - self.start) * self.start
        return own


def _parts(operands: Arrays, axes: str) -> Iterator[Part]:
    """Parts of about `PART_ELEMENTS`; by channels, such that their bits begin at whole bytes."""
    pairs = zip(operands, axes, strict=True)
    moving = [(a, int(axis)) for a, axis in pairs if a is not None and axis in "01"]
    array, axis = moving[0]
    length = array.shape[axis] if array.ndim else 1
    plane = math.prod(array.shape[2:]) if axes[0] == "1" else 0
    unit = 8 // math.gcd(8, plane) if plane else 1
    widest = max(a.size for a, _ in moving) // max(length, 1)
    step = max(PART_ELEMENTS // max(widest, 1) // unit, 1) * unit
    for start in range(0, length, step):
        yield Part(start, min(start + step, length), plane)
