"""What the kernels that pick and place elements rely on; rows of `bnnopt.ops.shapes.RULES`.

Indices that are constants are compared with what they index, those that data decides when they are
read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bnnopt.ops.operands import Operands


def gather_elements(o: Operands) -> None:
    """x, and indices of the same rank that reach no further, but along the axis."""
    axis = _elements_axis(o)
    _require_range(o, [o.shape(0)[axis]])


def scatter_elements(o: Operands) -> None:
    """As `gather_elements`, and an update for each index."""
    axis = _elements_axis(o)
    o.require_shape(2, o.shape(1))
    _require_range(o, [o.shape(0)[axis]])


def gather_nd(o: Operands) -> None:
    """x, and indices (..., k) of its first k axes behind the batch."""
    batch = o.number("batch_dims", 0)
    _require_tuples(o, batch)
    x, indices = o.shape(0), o.shape(1)
    expected = f"{list(x[:batch])} in front"
    o.require(indices[:batch] == x[:batch], f"the shape of {o.name(1)}", indices, expected)


def scatter_nd(o: Operands) -> None:
    """x, indices (..., k), and updates (..., what the k axes leave)."""
    _require_tuples(o, 0)
    indices = o.shape(1)
    o.require_shape(2, (*indices[:-1], *o.shape(0)[indices[-1] :]))


def cum_sum(o: Operands) -> None:
    """An axis to go along, where it is known."""
    for axis in o.constant(1) or []:
        o.require_axis(axis, len(o.shape(0)))


def _elements_axis(o: Operands) -> int:
    """The axis, not negative, of indices with the rank of x."""
    x, indices, axis = o.shape(0), o.shape(1), o.number("axis", 0)
    o.require_rank(0, 1)
    o.require_axis(axis, len(x))
    o.require_rank(1, len(x), len(x))
    axis %= len(x)
    fits = all(n <= x[i] for i, n in enumerate(indices) if i != axis)
    expected = f"at most {list(x)} but along axis {axis}"
    o.require(fits, f"the shape of {o.name(1)}", indices, expected)
    return axis


def _require_tuples(o: Operands, batch: int) -> None:
    o.require_rank(0, 1)
    o.require_rank(1, 1)
    x, indices = o.shape(0), o.shape(1)
    expected = f"1 to {len(x) - batch} indices along its last axis"
    fits = 1 <= indices[-1] <= len(x) - batch
    o.require(fits, f"the shape of {o.name(1)}", indices, expected)
    _require_range(o, x[batch : batch + indices[-1]])


def _require_range(o: Operands, lengths: Sequence[int]) -> None:
    """Constant indices that the axes have; of more than one axis, one for each in a row."""
    indices = o.array(1)
    if indices is None:
        return
    columns: NDArray[np.int64] = indices.reshape(-1, len(lengths))
    for column, length in zip(columns.T, lengths, strict=True):
        outside = column[(column < -length) | (column >= length)]
        found = [int(i) for i in outside[:1]]
        o.require(not found, "an index", found, f"{-length} to {length - 1}")
