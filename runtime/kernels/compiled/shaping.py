"""The compiled permutation of axes."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes, covered, integers
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel

TRANSPOSE = CFunction("void bnn_transpose_b32(uint32_t*, uint32_t*, i64*, i64*, i64)")


def transpose(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.transpose` of elements of 4 bytes, at most four axes once runs are joined."""
    x, y = inputs[0], outputs[0]
    if x is None or y is None or x.dtype.itemsize != 4 or not covered(x, y, dtype=x.dtype):
        return False
    if x.size == 0:
        return True
    axes = _joined_axes(x, integers(attributes, "perm"))
    if len(axes) > 4:
        return False
    axes = [(1, 0)] * (4 - len(axes)) + axes
    shape, strides = zip(*axes, strict=True)
    return TRANSPOSE(x, y, shape, strides, strides.index(1))


def _joined_axes(x: Array, perm: list[int] | None) -> list[tuple[int, int]]:
    """The result's axes, as (length, stride in x in elements); those that stay together are one."""
    view = np.transpose(x, perm)
    axes: list[tuple[int, int]] = []
    for length, stride in zip(view.shape, view.strides, strict=True):
        if length == 1:
            continue
        step = stride // x.itemsize
        if axes and axes[-1][1] == step * length:
            length *= axes.pop()[0]
        axes.append((length, step))
    return axes or [(1, 1)]


KERNELS: dict[str, CompiledKernel] = {
    "Transpose": CompiledKernel(transpose, repeatable=True),
}
