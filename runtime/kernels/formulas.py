"""Numbers that the numpy kernels and the calls of the compiled ones both start from.

Written once, so that the two cannot drift apart; nothing here computes on arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bnnopt.runtime.kernels import Array

BLOCK = 1 << 19  # numbers of a weight gradient that are made at a time


def axes_of(x: Array, axes: Array | None, noop_with_empty_axes: int) -> tuple[int, ...]:
    """The axes of a reduction, counted from the front."""
    if axes is not None and np.size(axes):
        return tuple(int(axis) % x.ndim for axis in np.ravel(axes))
    return () if noop_with_empty_axes else tuple(range(x.ndim))


def slices_of(
    shape: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> tuple[slice, ...]:
    """The index that Slice applies; limits beyond the shape are clamped."""
    index = [slice(None)] * len(shape)
    along = range(len(starts)) if axes is None else axes
    strides = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(along, starts, ends, strides, strict=True):
        if step < 0 and start < -shape[axis]:
            start = 0  # ONNX clamps it to the first element; Python would select nothing
        index[axis] = slice(start, end, step)
    return tuple(index)


def rows_at_a_time(row: int) -> int:
    """Rows of a weight gradient in a block, of `row` numbers each."""
    return max(1, BLOCK // max(row, 1))


def row_blocks(n_rows: int, row: int) -> Iterator[slice]:
    """The rows of a weight gradient, some at a time: the sums of each are made by one product.

    The order of a sum depends on the shapes. This one is the same whether the gradient is
    kept, or stepped block by block.
    """
    size = rows_at_a_time(row)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def stream_start(step: Array, seed: int) -> int:
    """Where the counter of a step's random stream begins."""
    return (int(step) * 0x9E3779B1 + seed) & 0xFFFFFFFF


def adamw_correction(step: int, beta1: float, beta2: float) -> float:
    """What takes the bias out of both moments: sqrt(1 - beta2^step) / (1 - beta1^step)."""
    return math.sqrt(1 - beta2**step) / (1 - beta1**step)


def known_bottom(step: int, beta2: float, root: float, epsilon: float) -> float:
    """Root of the second moment without its bias, and AdamW's epsilon, where |dw| is `root`."""
    return root + epsilon / math.sqrt(1 - beta2**step)
