"""How depthwise convolutions of bits are cut, and their gradients: plane by plane."""

from __future__ import annotations

import math

from bnnopt.runtime.kernels.tiling.shapes import STAGED_UNITS, Attributes, Convolution, Memory

PLANE_FLOATS = 1 << 13  # of a plane at a time
SUM_LANES = 16  # parts that a sum over positions is kept in


def of_y(g: Convolution, attributes: Attributes) -> Convolution:
    """BinaryConv and its weight gradient: rows of positions of a plane."""
    pitch = g.wo + (g.kw - 1) * g.dw // g.sw
    return g._replace(rows=max(1, PLANE_FLOATS // (g.sh * g.sw * pitch)))


def of_y_memory(g: Convolution) -> Memory:
    """Of `of_y`."""
    return _memory(g, (g.h, g.w), (g.ho, g.wo), (g.sh, g.sw))


def of_dx(g: Convolution, attributes: Attributes) -> Convolution:
    """BinaryConvInputGrad: rows of a plane of dx, for every phase of the strides."""
    pitch = math.ceil(g.w / g.sw) + (g.kw - 1) * g.dw // g.sw
    staged = min(g.n, math.ceil(STAGED_UNITS / g.c))
    return g._replace(rows=max(1, PLANE_FLOATS // pitch), staged=staged)


def of_dx_memory(g: Convolution) -> Memory:
    """Of `of_dx`."""
    phase = math.ceil(g.h / g.sh), math.ceil(g.w / g.sw)
    return _memory(g, (g.ho, g.wo), phase, (1, 1))


def _memory(
    g: Convolution, source: tuple[int, int], result: tuple[int, int], step: tuple[int, int]
) -> Memory:
    """Of a thread: a band with its padding, its sums, what is decoded of it, the taps.

    `source` and `result` are the planes that are read and made, `step` how far the positions of
    the result are apart in the source.
    """
    (height, width), (n_rows, cols), (step_y, step_x) = source, result, step
    rows = min(n_rows, g.rows)
    pitch = cols + (g.kw - 1) * g.dw // g.sw
    band = rows + (g.kh - 1) * g.dh // g.sh
    decoded = max(min(band * step_y, height) * width, rows * cols) + 8
    slack = 4 * SUM_LANES
    floats = [step_y * step_x * band * pitch + slack, rows * pitch + slack, decoded]
    floats += [g.taps * SUM_LANES] * 2 + [g.taps + 8] * 2
    return Memory(0, [*(4 * n for n in floats), 8 * g.taps, 24 * g.taps])
