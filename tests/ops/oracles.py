"""Slow, literal versions of what the gradients differentiate: nothing shared with the kernels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Geometry:
    """A convolution or pooling: batch, channels, filters and windows. `pads`: begins, then ends."""

    n: int
    c: int
    m: int
    space: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1

    @property
    def extent(self) -> tuple[int, ...]:
        """Length of the dilated kernel along each axis."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def _slack(self) -> list[int]:
        rank = len(self.space)
        begins, ends = self.pads[:rank], self.pads[rank:]
        whole = zip(self.space, begins, ends, self.extent, strict=True)
        return [size + begin + end - extent for size, begin, end, extent in whole]

    @property
    def output(self) -> tuple[int, ...]:
        """Spatial shape of the output."""
        return tuple(a // s + 1 for a, s in zip(self._slack, self.strides, strict=True))

    @property
    def output_padding(self) -> tuple[int, ...]:
        """What the stride leaves unread of each axis."""
        return tuple(a % s for a, s in zip(self._slack, self.strides, strict=True))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.n, self.c, *self.space)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.m, self.c // self.group, *self.kernel)

    @property
    def conv_shape(self) -> tuple[int, ...]:
        return (self.n, self.m, *self.output)

    def window(self, position: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
        """The pairs (place in the kernel, place in the input) of an output that are not padding."""
        for place in itertools.product(*map(range, self.kernel)):
            at = tuple(
                p * s - pad + k * d
                for p, s, pad, k, d in zip(
                    position, self.strides, self.pads, place, self.dilations, strict=False
                )
            )
            if all(0 <= a < size for a, size in zip(at, self.space, strict=True)):
                yield place, at


def conv(x: Array, w: Array, g: Geometry) -> Array:
    """Convolution as a loop over positions and kernel places, one einsum each."""
    y = np.zeros(g.conv_shape, x.dtype)
    x_groups = x.reshape(g.n, g.group, -1, *g.space)
    w_groups = w.reshape(g.group, g.m // g.group, -1, *g.kernel)
    y_groups = y.reshape(g.n, g.group, -1, *g.output)
    for position in itertools.product(*map(range, g.output)):
        for place, at in g.window(position):
            y_groups[(..., *position)] += np.einsum(
                "ngc,gmc->ngm", x_groups[(..., *at)], w_groups[(..., *place)]
            )
    return y


def max_pool(x: Array, g: Geometry) -> tuple[Array, Array]:
    """Max pooling as a loop: the maxima, and their indices into the whole of x."""
    y = np.empty((g.n, g.c, *g.output), x.dtype)
    indices = np.empty(y.shape, np.int64)
    plane = math.prod(g.space)
    for n, c in itertools.product(range(g.n), range(g.c)):
        for position in itertools.product(*map(range, g.output)):
            places = [at for _, at in g.window(position)]
            best = max(places, key=lambda at: x[(n, c, *at)])
            y[(n, c, *position)] = x[(n, c, *best)]
            in_plane = int(np.ravel_multi_index(best, g.space))
            indices[(n, c, *position)] = (n * g.c + c) * plane + in_plane
    return y, indices


def window_origin(g: Geometry) -> Array:
    """(Ho, Wo) int32: row * width + column of each window's first element."""
    rows = np.arange(g.output[0]) * g.strides[0] - g.pads[0]
    columns = np.arange(g.output[1]) * g.strides[1] - g.pads[1]
    return (rows[:, None] * g.space[1] + columns).astype(np.int32)


def approx_sign(x: Array) -> Array:
    """The piecewise quadratic of Bi-Real Net, arXiv:1808.00278, equation 7."""
    inside = np.where(x < 0, 2 * x + x * x, 2 * x - x * x)
    return np.where(x < -1, -1.0, np.where(x < 1, inside, 1.0))


def swish_sign(x: Array, beta: float) -> Array:
    """SignSwish of BNN+, arXiv:1812.11800, equation 2."""
    sigmoid = 1 / (1 + np.exp(-beta * x))
    return 2 * sigmoid * (1 + beta * x * (1 - sigmoid)) - 1


def clear_bias(
    rng: np.random.Generator, x: Array, scale: Array, bounds: Sequence[float], *, l1: bool = False
) -> Array:
    """Biases (C,) with which no element of batch norm's output is within 1e-4 of any bound.

    Then kernels that round in other ways give the same bits. x should have few values a channel.
    """
    wide = np.moveaxis(x.astype(np.float64), 1, -1)
    axes = tuple(range(wide.ndim - 1))
    centred = wide - wide.mean(axes)
    variance = abs(centred).mean(axes) ** 2 if l1 else wide.var(axes)
    unit = centred / np.sqrt(variance + 1e-5)
    bias = rng.standard_normal(len(scale)).astype(np.float32)
    for _ in range(1000):
        y = unit * scale + bias
        near = np.any([abs(y - b).min(axes, initial=np.inf) < 1e-4 for b in bounds], axis=0)
        if not near.any():
            return bias
        bias[near] = rng.standard_normal(near.sum())
    raise AssertionError("no bias keeps clear of the bounds")


def lowbias32(value: int) -> int:
    """The hash as its author prints it, on Python integers."""
    value &= 0xFFFFFFFF
    value ^= value >> 16
    value = value * 0x7FEB352D & 0xFFFFFFFF
    value ^= value >> 15
    value = value * 0x846CA68B & 0xFFFFFFFF
    return value ^ value >> 16


def finite_difference(
    function: Callable[[Array], Array], x: Array, dy: Array, step: float = 1e-6
) -> Array:
    """d sum(function(x) * dy) / dx by central differences; all float64."""
    assert x.dtype == dy.dtype == np.float64
    dx = np.empty_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        dx[at] = np.sum((function(up) - function(down)) * dy) / (2 * step)
    return dx
