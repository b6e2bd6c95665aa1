"""Geometry of windows that slide over the spatial axes: convolutions and pooling.

Instead of copying a padded input, the kernels go through the *taps* of the window (its elements)
and slice, for each tap, the part of the input that lies inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

Slices = tuple[slice, ...]


class Window(NamedTuple):
    """A window of `kernel` taps at each of `result` positions over `source` elements.

    All tuples have one entry for each spatial axis. Position o puts tap k on the element
    ``o * stride + k * dilation - begin``, which lies in the padding if it is outside the source.
    """

    source: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether each position sees one element, its own."""
        ones = all(n == 1 for n in self.kernel + self.strides)
        return ones and self.source == self.result

    def taps(self) -> Iterator[tuple[int, Slices, Slices]]:
        """Yield (row-major number of the tap, slices of the source, slices of the result).

        The slices pair the elements inside the source with their positions; taps that lie in the
        padding everywhere are left out.
        """
        axes = [self._axis_taps(axis) for axis in range(len(self.kernel))]
        for taps in product(*axes):
            coordinates, source, result = zip(*taps, strict=True)
            number = 0
            for coordinate, length in zip(coordinates, self.kernel, strict=True):
                number = number * length + coordinate
            yield number, source, result

    def _axis_taps(self, axis: int) -> list[tuple[int, slice, slice]]:
        stride, taps = self.strides[axis], []
        for k in range(self.kernel[axis]):
            offset = k * self.dilations[axis] - self.begin[axis]
            first = max(0, -(offset // stride))
            last = min(self.result[axis] - 1, (self.source[axis] - 1 - offset) // stride)
            if first <= last:
                source = slice(first * stride + offset, last * stride + offset + 1, stride)
                taps.append((k, source, slice(first, last + 1)))
        return taps


def make_window(
    source: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    result: Sequence[int] | None = None,
) -> Window:
    """Make the window that the ONNX attributes describe.

    Parameters
    ----------
    source, kernel : spatial dimensions
    strides, dilations : one for each axis, default 1
    pads : all begins, then all ends, default 0; unused if `auto_pad` decides
    auto_pad : "NOTSET", "VALID", "SAME_UPPER" or "SAME_LOWER" (where an odd pad goes)
    ceil_mode : 1 adds a last, partial window if it begins inside the source or its front padding
    result : number of positions, default what the attributes give
    """
    rank = len(kernel)
    steps, spread = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True))
    flat = tuple(pads or ()) if auto_pad == "NOTSET" else ()
    begin, end = flat[:rank] or (0,) * rank, flat[rank:] or (0,) * rank
    if auto_pad.startswith("SAME"):
        begin, end = _same_pads(source, spans, steps, auto_pad)
    if result is None:
        sizes = zip(source, begin, end, spans, steps, strict=True)
        rounds_up = bool(ceil_mode) and auto_pad == "NOTSET"
        result = [_positions(*size, rounds_up=rounds_up) for size in sizes]
    return Window(tuple(source), tuple(kernel), tuple(result), steps, spread, begin, end)


def _same_pads(
    source: Sequence[int], spans: Sequence[int], strides: Sequence[int], auto_pad: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    totals = [
        max((math.ceil(n / stride) - 1) * stride + span - n, 0)
        for n, span, stride in zip(source, spans, strides, strict=True)
    ]
    less, more = tuple(n // 2 for n in totals), tuple(n - n // 2 for n in totals)
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def _positions(n: int, begin: int, end: int, span: int, stride: int, *, rounds_up: bool) -> int:
    room = n + begin + end - span
    if not rounds_up:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= n + begin else count
