"""What stands for floats and is read as such: bytes that are fed, weights kept in float16."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnopt.runtime.kernels import Array


def normalized(x: Array, factor: Array, shift: Array) -> Array:
    """``x * factor + shift`` in the dtype of these, rounded after each of the two.

    Parameters
    ----------
    x : (N, C, ...) of any dtype
    factor, shift : float32, broadcast to x
    """
    y = np.asarray(np.multiply(x, factor, dtype=factor.dtype, casting="unsafe"))
    y += shift
    return y


class OnRead(NDArray[Any]):
    """Numbers that stand for float32: whoever reads them makes floats of a piece at a time."""

    def floats(self) -> Array:
        """What they stand for, as an array of its own."""
        return np.asarray(self).astype(np.float32)


class Halves(OnRead):
    """Float16 of any shape that stands for the same numbers in float32."""


class Images(OnRead):
    """Bytes (N, ...) that stand for ``x * factor + shift`` in float32; see `of`.

    Attributes
    ----------
    factor, shift : (C,) float32
        Of each channel.
    plane : int
        Elements of a channel in a sample, which the shape need not show.
    whole : (N, ...) uint8
        All of them, of a part.
    """

    factor: NDArray[np.float32]
    shift: NDArray[np.float32]
    plane: int
    whole: Array

    @classmethod
    def of(cls, x: Array, factor: Array, shift: Array) -> Images:
        """x (N, C, ...) uint8 with a factor and a shift for each channel, (1, C, 1, ...)."""
        found = x.view(cls)
        found.factor, found.shift = factor.reshape(-1), shift.reshape(-1)
        found.plane, found.whole = math.prod(x.shape[2:]), x
        return found

    def __array_finalize__(self, source: Any) -> None:
        if isinstance(source, Images):
            self.factor, self.shift, self.plane = source.factor, source.shift, source.plane
            self.whole = source.whole

    def floats(self) -> Array:
        """What they stand for, as an array of its own; whole samples alone."""
        x = np.asarray(self).reshape(len(self), self.factor.size, self.plane)
        factor, shift = (values[:, None] for values in (self.factor, self.shift))
        return normalized(x, factor, shift).reshape(self.shape)
