"""Operators that move, select or make elements without computing with them.

Those that need no new memory return views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.formulas import slices_of
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import OUT

_SCATTER: dict[str, np.ufunc] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def _ints(values: Array) -> tuple[int, ...]:
    return tuple(int(value) for value in np.ravel(values))


def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """View x in another shape; 0 keeps that dimension (unless `allowzero`), -1 is inferred."""
    dims = list(_ints(shape))
    if not allowzero:
        dims = [x.shape[i] if dim == 0 else dim for i, dim in enumerate(dims)]
    return x.reshape(dims)


def flatten(x: Array, *, axis: int = 1) -> Array:
    """View x as a matrix: the axes before `axis`, and the rest."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Array, axes: Array | None = None) -> Array:
    """View x without the given axes of length 1, or without all such axes."""
    return np.squeeze(x, None if axes is None else _ints(axes))


def unsqueeze(x: Array, axes: Array) -> Array:
    """View x with new axes of length 1, counted in the result."""
    return np.expand_dims(x, _ints(axes))


def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """Permute the axes, or reverse them without `perm`."""
    return np.transpose(x, perm)


def concat(*arrays: Array, axis: int, out: Array | None = None) -> Array:
    """Join the arrays along an axis, in `out` if given."""
    return np.concatenate(arrays, axis=axis, out=out)


def split(
    x: Array, split: Array | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Array, ...]:
    """Cut x along an axis into the given lengths, or into `num_outputs` parts, the last shorter.

    Raises
    ------
    ValueError
        If neither lengths nor a number of parts is given.
    """
    if split is not None:
        lengths = _ints(split)
    elif num_outputs is not None:
        part, length = -(-x.shape[axis] // num_outputs), x.shape[axis]
        lengths = tuple(min(part, max(length - i * part, 0)) for i in range(num_outputs))
    else:
        raise ValueError("Split: found neither the input 'split' nor 'num_outputs', expected one")
    ends = np.cumsum(lengths)[:-1]
    return tuple(np.split(x, ends, axis=axis))


def slice_(
    x: Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    """Cut x[start:end:step] along each of the axes; limits beyond x are clamped."""
    given = (None if values is None else _ints(values) for values in (axes, steps))
    return np.asarray(x[slices_of(x.shape, _ints(starts), _ints(ends), *given)])


def pad(
    x: Array,
    pads: Array,
    constant_value: Array | None = None,
    axes: Array | None = None,
    *,
    mode: str = "constant",
) -> Array:
    """Add elements at both ends of the axes; a negative pad removes them.

    Parameters
    ----------
    x : array
    pads : (2 n,) int64, all begins, then all ends
    constant_value : one element, default 0
    axes : (n,) int, default all
    mode : "constant", "reflect" (without the edge), "edge" or "wrap"
    """
    along = range(x.ndim) if axes is None else _ints(axes)
    amounts, index = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    flat = _ints(pads)
    for axis, begin, end in zip(along, flat[: len(along)], flat[len(along) :], strict=True):
        amounts[axis] = max(begin, 0), max(end, 0)
        index[axis] = slice(max(-begin, 0), x.shape[axis] - max(-end, 0))
    kept = x[tuple(index)]
    if mode == "constant":
        value = 0 if constant_value is None else constant_value.item()
        return np.pad(kept, amounts, constant_values=value)
    return np.pad(kept, amounts, mode=mode)  # type: ignore[call-overload, no-any-return]


def expand(x: Array, shape: Array) -> Array:
    """Broadcast x and `shape` to each other."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, _ints(shape)))


def tile(x: Array, repeats: Array) -> Array:
    """Repeat x along each axis."""
    return np.tile(x, _ints(repeats))


def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """Shape of x, or the dimensions [start, end) of it, int64."""
    return np.array(x.shape[start:end], dtype=np.int64)


def size(x: Array) -> Array:
    """Number of elements, 0-d int64."""
    return np.array(x.size, dtype=np.int64)


def range_(start: Array, limit: Array, delta: Array) -> Array:
    """Return start, start + delta, ... before limit, in the dtype of start."""
    first, last, step = start.item(), limit.item(), delta.item()
    count = max(math.ceil((last - first) / step), 0)
    return np.asarray(first + np.arange(count, dtype=start.dtype) * step).astype(start.dtype)


def constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    """Fill an array of a shape with the one element of `value`, default float32 0."""
    fill = np.zeros((), np.float32) if value is None else np.reshape(value, ())
    return np.full(_ints(shape), fill, dtype=fill.dtype)


def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Take the entries of x at the indices along an axis; negative ones count from the end."""
    return np.asarray(np.take(x, indices, axis=axis))


def gather_grad(dy: Array, indices: Array, *, axis: int, length: int) -> Array:
    """Add dy up at the indices along an axis of `length`; what `gather` has as its gradient."""
    before, behind = dy.shape[:axis], dy.shape[axis + indices.ndim :]
    dx = np.zeros((math.prod(before), length, *behind), dy.dtype)
    parts = dy.reshape(math.prod(before), indices.size, *behind)
    for place, part in zip(dx, parts, strict=True):
        np.add.at(place, indices.reshape(-1), part)
    return dx.reshape(*before, length, *behind)


def _along(indices: Array, axis: int) -> tuple[Array, ...]:
    """Index of numpy that applies the indices along one axis, element by element."""
    index = list(np.ogrid[tuple(slice(length) for length in indices.shape)])
    index[axis] = indices
    return tuple(index)


def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Take x at each index along an axis, the other coordinates being those of the index."""
    return np.asarray(x[_along(indices, axis)])


def scatter_elements(
    x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> Array:
    """Put (or add, mul, max, min) the updates into a copy of x at each index along an axis."""
    y = x.copy()
    if reduction == "none":
        y[_along(indices, axis)] = updates
    else:
        _SCATTER[reduction].at(y, _along(indices, axis), updates)
    return y


def _slices(indices: Array) -> tuple[Array, ...]:
    """Index of numpy of the slices that the last axis names."""
    return tuple(np.moveaxis(indices, -1, 0))


def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Take the slice of x that each row of the indices names; the first axes are shared."""
    if not batch_dims:
        return np.asarray(x[_slices(indices)])
    pairs = zip(x, indices, strict=True)
    return np.stack([gather_nd(a, i, batch_dims=batch_dims - 1) for a, i in pairs])


def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """Put (or add, mul, max, min) slices into a copy of x, where each row of the indices says."""
    y = x.copy()
    if reduction == "none":
        y[_slices(indices)] = updates
    else:
        _SCATTER[reduction].at(y, _slices(indices), updates)
    return y


def top_k(
    x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Array, Array]:
    """The k largest (or smallest) along an axis, in order, and where; of equal ones the first."""
    key = np.flip(x, axis) if largest else x
    order = np.argsort(key, axis=axis, kind="stable")
    if largest:
        order = np.flip(x.shape[axis] - 1 - order, axis)
    indices = np.take(order, np.arange(int(k.item())), axis=axis).astype(np.int64)
    return np.take_along_axis(x, indices, axis), np.ascontiguousarray(indices)


def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """Put values[1] where a new axis of length `depth` equals the index, values[0] elsewhere.

    Parameters
    ----------
    indices : (...) int or float; negative ones count from the end, others out of range are off
    depth : one element
    values : (2,), off and on
    """
    length = int(depth.item())
    axis = axis % (indices.ndim + 1)
    wrapped = np.expand_dims(np.where(indices < 0, indices + length, indices), axis)
    levels = np.arange(length).reshape((length,) + (1,) * (indices.ndim - axis))
    return np.asarray(np.where(wrapped == levels, values[1], values[0]))


def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Move channels into blocks of pixels.

    Parameters
    ----------
    x : (N, C, H, W)
    blocksize : side of a block, b
    mode : "DCR", channels are (b, b, C / b^2), or "CRD", channels are (C / b^2, b, b)

    Returns
    -------
    (N, C / b^2, H b, W b)
    """
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        blocks = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return blocks.copy().reshape(n, c // b**2, h * b, w * b)


def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """Keep the upper (or lower) triangle of the last two axes, from the k-th diagonal."""
    diagonal = 0 if k is None else int(k.item())
    return np.triu(x, diagonal) if upper else np.tril(x, diagonal)


KERNELS: dict[str, NumpyKernel] = {
    "Concat": NumpyKernel(concat, OUT),
    "Split": NumpyKernel(split),
    "Slice": NumpyKernel(slice_),
    "Pad": NumpyKernel(pad),
    "Flatten": NumpyKernel(flatten),
    "Reshape": NumpyKernel(reshape),
    "Transpose": NumpyKernel(transpose),
    "Squeeze": NumpyKernel(squeeze),
    "Unsqueeze": NumpyKernel(unsqueeze),
    "Expand": NumpyKernel(expand),
    "Tile": NumpyKernel(tile),
    "Shape": NumpyKernel(shape),
    "Size": NumpyKernel(size),
    "Range": NumpyKernel(range_),
    "ConstantOfShape": NumpyKernel(constant_of_shape),
    "Gather": NumpyKernel(gather, indexes=True),
    "GatherGrad": NumpyKernel(gather_grad, indexes=True),
    "GatherElements": NumpyKernel(gather_elements, indexes=True),
    "ScatterElements": NumpyKernel(scatter_elements, indexes=True),
    "GatherND": NumpyKernel(gather_nd, indexes=True),
    "ScatterND": NumpyKernel(scatter_nd, indexes=True),
    "TopK": NumpyKernel(top_k),
    "OneHot": NumpyKernel(one_hot),
    "DepthToSpace": NumpyKernel(depth_to_space),
    "Trilu": NumpyKernel(trilu),
}
