"""Elements moved, in C: what numpy does as well, for where there is none.

What a numpy kernel gives as a view of its input is copied as that view lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    INT64,
    Arrays,
    Attributes,
    KernelCall,
    covered,
    integer,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel

COPY = CFunction("void bnn_copy(void*, void*, i64*, i64)")
FILL = CFunction("void bnn_fill_f32(float*, i64, float)")
SET_INTEGERS = CFunction("void bnn_set_i64(i64*, i64*, i64)")
GATHER = CFunction("int bnn_gather_f32(float*, i64*, float*, i64, i64, i64)")
GATHER_GRAD = CFunction("int bnn_gather_grad_f32(float*, i64*, float*, i64, i64, i64)")

AXES = 6  # BNN_AXES in C


def copied(x: Array, y: Array) -> bool:
    """Copy one view to another of the same shape and dtype; whether C could."""
    if x.dtype != y.dtype or x.shape != y.shape or x.itemsize not in (1, 2, 4, 8):
        return False
    axes = _joined(x, y)
    if len(axes) > AXES:
        return False
    if not x.size:
        return True
    axes = [(1, 0, 0)] * (AXES - len(axes)) + axes
    return COPY(
        x, y, [number for column in zip(*axes, strict=True) for number in column], x.itemsize
    )


def _joined(x: Array, y: Array) -> list[tuple[int, int, int]]:
    """(length, stride of x, stride of y) of each axis; those that go on in both are one."""
    axes: list[tuple[int, int, int]] = []
    for length, *strides in zip(x.shape, x.strides, y.strides, strict=True):
        if length == 1:
            continue
        step = tuple(stride // x.itemsize for stride in strides)
        if axes and axes[-1][1:] == (step[0] * length, step[1] * length):
            length *= axes.pop()[0]
        axes.append((length, *step))
    return axes or [(1, 1, 1)]


def view(name: str) -> KernelCall:
    """The call of an operator whose numpy kernel gives views of its first input."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        from bnnopt.runtime.kernels.reference.table import KERNELS as NUMPY

        x = inputs[0]
        made = NUMPY[name].function(*inputs, **attributes)
        views = made if isinstance(made, tuple) else (made,)
        if x is None or not all(v.size == 0 or np.may_share_memory(v, x) for v in views):
            return False
        pairs = zip(views, outputs, strict=True)
        return all(y is None or copied(v.reshape(y.shape), y) for v, y in pairs)

    return run


def expand(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.expand`, to the shape that the output has."""
    x, y = inputs[0], outputs[0]
    return x is not None and y is not None and copied(np.broadcast_to(x, y.shape), y)


def split(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.split`, to the lengths that the outputs have."""
    x, parts = inputs[0], [y for y in outputs if y is not None]
    if x is None or len(parts) < len(outputs):
        return False
    axis = integer({"axis": 0, **attributes}, "axis")
    return all(copied(stretch, y) for stretch, y in _stretches(x, parts, axis))


def concat(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.concat`."""
    y, parts = outputs[0], [x for x in inputs if x is not None]
    assert y is not None
    axis = integer(attributes, "axis")
    return all(copied(x, stretch) for stretch, x in _stretches(y, parts, axis))


def _stretches(whole: Array, parts: Iterable[Array], axis: int) -> Iterator[tuple[Array, Array]]:
    """Views of `whole` as long as the parts, one behind the other along `axis`, each with its."""
    begin = 0
    for part in parts:
        end = begin + part.shape[axis]
        yield np.moveaxis(np.moveaxis(whole, axis, 0)[begin:end], 0, axis), part
        begin = end


def pad(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.pad` of all axes by a constant."""
    x, pads, y = inputs[0], inputs[1], outputs[0]
    value, axes = (*inputs[2:], None, None)[:2]
    if attributes.get("mode", "constant") != "constant" or axes is not None:
        return False
    if not covered(x, y) or pads is None or (value is not None and not covered(value)):
        return False
    assert x is not None
    assert y is not None
    begin = [int(pad) for pad in np.ravel(pads)[: x.ndim]]
    if min((*begin, *np.subtract(np.subtract(y.shape, x.shape), begin)), default=0) < 0:
        return False
    inside = y[tuple(slice(b, b + length) for b, length in zip(begin, x.shape, strict=True))]
    constant = 0.0 if value is None else float(value.reshape(-1)[0])
    return FILL(y, y.size, constant) and copied(x, inside)


def shape(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.shape`."""
    x, y = inputs[0], outputs[0]
    if x is None or not covered(y, dtype=INT64):
        return False
    bounds = {"start": 0, "end": x.ndim, **attributes}
    found = list(x.shape[integer(bounds, "start") : integer(bounds, "end")])
    return SET_INTEGERS(y, found, len(found))


def gather(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.gather` of rows."""
    (x, indices), y = inputs, outputs[0]
    if integer({"axis": 0, **attributes}, "axis") or not _are_rows(x, indices, y):
        return False
    assert x is not None
    assert indices is not None
    return GATHER(x, indices, y, indices.size, len(x), math.prod(x.shape[1:]))


def gather_grad(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.gather_grad` of rows."""
    (dy, indices), dx = inputs, outputs[0]
    if integer(attributes, "axis") or not _are_rows(dy, indices, dx):
        return False
    assert dx is not None
    assert indices is not None
    return GATHER_GRAD(dy, indices, dx, indices.size, len(dx), math.prod(dx.shape[1:]))


def _are_rows(x: Array | None, indices: Array | None, y: Array | None) -> bool:
    return covered(x, y) and covered(indices, dtype=INT64)


KERNELS: dict[str, CompiledKernel] = {
    "Concat": CompiledKernel(concat),
    "Expand": CompiledKernel(expand),
    "Gather": CompiledKernel(gather),
    "GatherGrad": CompiledKernel(gather_grad),
    "Identity": CompiledKernel(view("Identity")),
    "Pad": CompiledKernel(pad),
    "Shape": CompiledKernel(shape),
    "Slice": CompiledKernel(view("Slice")),
    "Split": CompiledKernel(split),
    "Transpose": CompiledKernel(view("Transpose")),
}
