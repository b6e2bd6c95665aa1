"""The compiled sums, means, maxima and softmax along axes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    Arrays,
    Attributes,
    KernelCall,
    covered,
    integer,
    optional,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction, is_dry_run
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel
from bnnopt.runtime.kernels.formulas import axes_of

LOG_SOFTMAX = CFunction("void bnn_log_softmax_f32(float*, float*, i64, i64, i64)")
SOFTMAX_GRAD = CFunction("void bnn_softmax_grad_f32(float*, float*, float*, i64, i64, i64)")
SOFTMAX = CFunction("void bnn_softmax_f32(float*, float*, i64, i64, i64)")
REDUCE_MAX = CFunction("void bnn_reduce_max_f32(float*, float*, i64, i64, i64, i64)")
REDUCE = CFunction("void bnn_reduce_f32(float*, float*, i64, i64, i64, i64, i64)")


def reduce(*, mean: bool) -> KernelCall:
    """`reduction.reduce_sum` or `reduction.reduce_mean`, with sums in float64."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        groups = _groups(inputs, outputs, attributes)
        if groups is None:
            return False
        divisor = groups[1] * groups[3] if mean else 1
        return REDUCE(inputs[0], outputs[0], *groups, divisor)

    return run


def reduce_max(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`reduction.reduce_max`."""
    groups = _groups(inputs, outputs, attributes)
    return groups is not None and REDUCE_MAX(inputs[0], outputs[0], *groups)


def _groups(inputs: Arrays, outputs: Arrays, attributes: Attributes) -> list[int] | None:
    """`groups_of` a reduction; None if it is not covered."""
    x, y = inputs[0], outputs[0]
    if x is None or y is None or not covered(x, y) or x.size == 0:
        return None
    noop = integer({"noop_with_empty_axes": 0, **attributes}, "noop_with_empty_axes")
    groups = groups_of(x.shape, axes_of(x, optional(inputs, 1), noop))
    if groups is None:
        return None
    fits = y.size == groups[0] * groups[2] or is_dry_run()  # axes are data
    return groups if fits else None


def global_average_pool(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`pooling.global_average_pool`, with sums in float64."""
    x, y = inputs[0], outputs[0]
    if x is None or not covered(x, y) or x.ndim < 3 or x.size == 0:
        return False
    planes, length = math.prod(x.shape[:2]), math.prod(x.shape[2:])
    return REDUCE(x, y, 1, 1, planes, length, length)


def along(function: CFunction) -> KernelCall:
    """A function of one input along one axis."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        x, y = inputs[0], outputs[0]
        if x is None or not covered(x, y) or not x.size:
            return False
        axis = integer({"axis": -1, **attributes}, "axis") % x.ndim
        return function(x, y, *around(x, axis))

    return run


def softmax_grad(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`activations.softmax_grad`."""
    (dy, y), dx = inputs, outputs[0]
    if not covered(dy, y, dx) or y is None or not y.size:
        return False
    return SOFTMAX_GRAD(dy, y, dx, *around(y, integer(attributes, "axis")))


def around(x: Array, axis: int) -> tuple[int, int, int]:
    """Elements in front of an axis, along it, and behind it."""
    return math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])


def groups_of(shape: Sequence[int], summed: Collection[int]) -> list[int] | None:
    """Lengths of what is kept, summed, kept and summed in turn; None if axes alternate more."""
    lengths = [1]
    for axis, length in enumerate(shape):
        last_is_summed = len(lengths) % 2 == 0
        if length == 1:
            continue
        if (axis in summed) == last_is_summed:
            lengths[-1] *= length
        else:
            lengths.append(length)
    if len(lengths) == 2:
        return [1, 1, *lengths]
    return [*lengths, 1, 1, 1][:4] if len(lengths) <= 4 else None


KERNELS: dict[str, CompiledKernel] = {
    "GlobalAveragePool": CompiledKernel(global_average_pool, repeatable=True),
    "LogSoftmax": CompiledKernel(along(LOG_SOFTMAX), repeatable=True),
    "ReduceMax": CompiledKernel(reduce_max),
    "ReduceMean": CompiledKernel(reduce(mean=True)),
    "ReduceSum": CompiledKernel(reduce(mean=False)),
    "Softmax": CompiledKernel(along(SOFTMAX), repeatable=True),
    "SoftmaxGrad": CompiledKernel(softmax_grad, repeatable=True),
}
