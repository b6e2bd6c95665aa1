"""Elements moved, in C, of any type of one to eight bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    INT64,
    Arrays,
    Attributes,
    covered,
    integer,
    integers,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction, is_dry_run
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel
from bnnopt.runtime.kernels.formulas import slices_of
from bnnopt.runtime.library import library

COPY = CFunction("void bnn_copy(void*, void*, i64*, i64)")
FILL = CFunction("void bnn_fill_f32(float*, i64, float)")
SET_INTEGERS = CFunction("void bnn_set_i64(i64*, i64*, i64)")
GATHER = CFunction("int bnn_gather_f32(float*, i64*, float*, i64, i64, i64)")
ONE_HOT = CFunction("void bnn_one_hot_f32(i64*, float*, float*, i64, i64, i64)")
TRANSPOSE = CFunction("void bnn_transpose_b32(uint32_t*, uint32_t*, i64*, i64*, i64)")
GATHER_GRAD = CFunction("int bnn_gather_grad_f32(float*, i64*, float*, i64, i64, i64)")

AXES = 6  # BNN_AXES in C


def copied(x: Array, y: Array) -> bool:
    """Copy one view to another of the same shape and dtype; whether C could."""
    if library() is None or x.dtype != y.dtype or x.shape != y.shape:
        return False
    columns = columns_of(x, y) if x.itemsize in (1, 2, 4, 8) else None
    return columns is not None and (x.size == 0 or COPY(x, y, columns, x.itemsize))


def columns_of(x: Array, y: Array) -> list[int] | None:
    """Lengths, strides of x, strides of y of six axes; None if they have more.

    Axes that go on in both are one.
    """
    axes = _joined(x, y)
    if len(axes) > AXES:
        return None
    padded = [(1, 0, 0)] * (AXES - len(axes)) + axes
    return [number for column in zip(*padded, strict=True) for number in column]


def _joined(*views: Array) -> list[tuple[int, ...]]:
    """The length of each axis, and its stride in each view, in elements of the first one.

    Axes that go on in all of them are one.
    """
    axes: list[tuple[int, ...]] = []
    for length, *strides in zip(views[0].shape, *(v.strides for v in views), strict=True):
        if length == 1:
            continue
        steps = [stride // views[0].itemsize for stride in strides]
        if axes and axes[-1][1:] == tuple(step * length for step in steps):
            length *= axes.pop()[0]
        axes.append((length, *steps))
    return axes


def are_whole(*arrays: Array | None) -> bool:
    """Whether C can move between them: contiguous, and of one dtype."""
    first = arrays[0]
    return first is not None and covered(*arrays, dtype=first.dtype)


def identity(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`elementwise.identity`."""
    x, y = inputs[0], outputs[0]
    return x is not None and y is not None and are_whole(x, y) and copied(x, y)


def slice_(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.slice_`, to the shape that the output has."""
    x, y = inputs[0], outputs[0]
    if x is None or y is None or not are_whole(x, y):
        return False
    starts, ends, axes, steps = (
        None if bounds is None else [int(bound) for bound in np.ravel(bounds)]
        for bounds in (*inputs[1:], None, None)[:4]
    )
    assert starts is not None
    assert ends is not None
    if is_dry_run() and 0 in (steps or ()):  # a stand-in
        steps = None
    part = x[slices_of(x.shape, starts, ends, axes, steps)]
    if is_dry_run() and part.shape != y.shape:  # the bounds are data
        part = y
    return copied(part, y)


def expand(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.expand`, to the shape that the output has."""
    x, y = inputs[0], outputs[0]
    if x is None or y is None or not are_whole(x, y):
        return False
    return copied(np.broadcast_to(x, y.shape), y)


def split(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.split`, to the lengths that the outputs have."""
    x, parts = inputs[0], [y for y in outputs if y is not None]
    if x is None or len(parts) < len(outputs) or not are_whole(x, *parts):
        return False
    axis = integer({"axis": 0, **attributes}, "axis")
    return all(copied(stretch, y) for stretch, y in _stretches(x, parts, axis))


def concat(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.concat`."""
    y, parts = outputs[0], [x for x in inputs if x is not None]
    if y is None or not are_whole(y, *parts):
        return False
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


def one_hot(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.one_hot` of int64, as deep as the output is."""
    indices, _, values = inputs
    y = outputs[0]
    if not covered(indices, dtype=INT64) or not covered(values, y):
        return False
    assert y is not None
    axis = integer({"axis": -1, **attributes}, "axis") % y.ndim
    sizes = math.prod(y.shape[:axis]), y.shape[axis], math.prod(y.shape[axis + 1 :])
    return y.size == 0 or ONE_HOT(indices, values, y, *sizes)


def _are_rows(x: Array | None, indices: Array | None, y: Array | None) -> bool:
    return covered(x, y) and covered(indices, dtype=INT64)


def transpose(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.transpose`; of 4 bytes and at most four axes, once runs are joined, by blocks."""
    x, y = inputs[0], outputs[0]
    if x is None or y is None or not are_whole(x, y):
        return False
    permutation = integers(attributes, "perm")
    view = np.transpose(x, permutation)
    axes = _joined(view) or [(1, 1)]
    if x.itemsize != 4 or len(axes) > 4 or x.size == 0:
        return copied(view, y)
    axes = [(1, 0)] * (4 - len(axes)) + axes
    shape, strides = zip(*axes, strict=True)
    return TRANSPOSE(x, y, shape, strides, strides.index(1))


KERNELS: dict[str, CompiledKernel] = {
    "Concat": CompiledKernel(concat, repeatable=True),
    "Expand": CompiledKernel(expand, repeatable=True),
    "Gather": CompiledKernel(gather),
    "GatherGrad": CompiledKernel(gather_grad),
    "Identity": CompiledKernel(identity, repeatable=True),
    "OneHot": CompiledKernel(one_hot, repeatable=True),
    "Pad": CompiledKernel(pad),
    "Shape": CompiledKernel(shape, repeatable=True),
    "Slice": CompiledKernel(slice_),
    "Split": CompiledKernel(split, repeatable=True),
    "Transpose": CompiledKernel(transpose, repeatable=True),
}
