"""The compiled batch normalisation: to floats or to bits, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    Arrays,
    Attributes,
    KernelCall,
    covered,
    number,
    optional,
    type_of,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel

INFERENCE = CFunction(
    "void bnn_batch_normalization_f32(float*, float*, float*, float*, float*, float*, i64, i64, "
    "i64, float)"
)
TRAINING = CFunction(
    "void bnn_batch_normalization_training(void*, float*, float*, float*, float*, void*, float*, "
    "float*, float*, float*, i64, i64, i64, i64, i64, i64, float, float, float)"
)
SIGNS = CFunction(
    "void bnn_batch_normalization_signs(void*, float*, float*, float*, float*, uint8_t*, uint8_t*, "
    "float*, float*, float*, float*, float*, float*, i64, i64, i64, i64, i64, float, float, float, "
    "i64, float, float)"
)
APPLY = CFunction(
    "void bnn_batch_normalization_apply(void*, float*, float*, float*, float*, void*, i64, i64, "
    "i64, i64, i64)"
)
GRAD = CFunction(
    "void bnn_batch_normalization_grad(void*, void*, float*, float*, float*, void*, float*, "
    "float*, i64, i64, i64, i64, i64, i64)"
)
SIGNS_GRAD = CFunction(
    "void bnn_batch_normalization_signs_grad(void*, uint8_t*, uint8_t*, float*, float*, float*, "
    "float*, void*, float*, float*, i64, i64, i64, i64)"
)


def batch_normalization(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`reduction.batch_normalization`; y may be x."""
    x, y = inputs[0], outputs[0]
    if not covered(*inputs, y) or _is_empty(x) or attributes.get("training_mode", 0):
        return False
    epsilon = number({"epsilon": 1e-5, **attributes}, "epsilon")
    return INFERENCE(*inputs, y, *_planes(x), epsilon)


def training(*, l1: bool) -> KernelCall:
    """`normalization.batch_normalization_training`; y may be x, and any statistic left out."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        y, statistics = outputs[0], [optional(outputs, i) for i in range(1, 5)]
        y_type = _float_type(y)
        if y_type is None:
            return False
        return _normalize(TRAINING, inputs, [y], statistics, attributes, l1, y_types=[y_type])

    return run


def signs(*, l1: bool) -> KernelCall:
    """`normalization.batch_normalization_signs`; any output may be left out, but not all bits."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        found = [optional(outputs, i) for i in range(8)]
        bits, statistics, tables = found[:2], found[2:6], found[6:]
        present = [b for b in bits if b is not None]
        if not present or not covered(*present, dtype=np.uint8):
            return False
        if tables[0] is None and tables[1] is not None:
            return False
        plus = int(number(attributes, "zero") > 0)
        bounds = number(attributes, "low"), number(attributes, "high")
        kept = [*statistics, *tables]
        return _normalize(SIGNS, inputs, bits, kept, attributes, l1, [plus, *bounds])

    return run


def _normalize(
    function: CFunction,
    inputs: Arrays,
    results: Arrays,
    kept: Arrays,
    attributes: Attributes,
    l1: bool,
    options: Sequence[float] = (),
    y_types: Sequence[int] = (),
) -> bool:
    x, x_type = inputs[0], type_of(inputs[0])
    if x_type is None or not covered(*inputs[1:], *[k for k in kept if k is not None]):
        return False
    if _is_empty(x):
        return False
    momentum = number(attributes, "momentum")
    rates = number(attributes, "epsilon"), momentum, 1 - momentum
    sizes = int(l1), x_type, *y_types, *_planes(x)
    return function(*inputs, *results, *kept, *sizes, *rates, *options)


def batch_normalization_apply(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`normalization.batch_normalization_apply`; y may be x."""
    x, y = inputs[0], outputs[0]
    x_type, y_type = type_of(x), _float_type(y)
    if x_type is None or y_type is None or not covered(*inputs[1:]) or _is_empty(x):
        return False
    return APPLY(*inputs, y, x_type, y_type, *_planes(x))


def _float_type(y: Array | None) -> int | None:
    return type_of(y) if y is not None and y.dtype.kind == "f" else None


def grad(*, l1: bool) -> KernelCall:
    """`normalization.batch_normalization_grad`; dx may be dy."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        dy, x, *channels = inputs
        dx, sums = outputs[0], [optional(outputs, i) for i in range(1, 3)]
        dy_type, x_type = type_of(dy), type_of(x)
        if dy_type is None or x_type is None or type_of(dx) != dy_type:
            return False
        if not covered(*channels, *[s for s in sums if s is not None]) or _is_empty(x):
            return False
        sizes = int(l1), dy_type, x_type, *_planes(x)
        return GRAD(*inputs, dx, *sums, *sizes)

    return run


def batch_normalization_signs_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`normalization.batch_normalization_signs_grad`; dx may be dy."""
    dy, signs, mask, *channels = inputs
    dx, sums = outputs[0], [optional(outputs, i) for i in range(1, 3)]
    dy_type = type_of(dy)
    if dy_type is None or type_of(dx) != dy_type or _is_empty(dy):
        return False
    floats = [*channels, *[s for s in sums if s is not None]]
    if not covered(signs, mask, dtype=np.uint8) or not covered(*floats):
        return False
    return SIGNS_GRAD(*inputs, dx, *sums, dy_type, *_planes(dy))


def _is_empty(x: Array | None) -> bool:
    assert x is not None
    return x.ndim < 2 or x.size == 0


def _planes(x: Array | None) -> tuple[int, int, int]:
    assert x is not None
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


KERNELS: dict[str, CompiledKernel] = {
    "BatchNormalization": CompiledKernel(batch_normalization, repeatable=True),
    "BatchNormalizationApply": CompiledKernel(batch_normalization_apply, repeatable=True),
    "BatchNormalizationGrad": CompiledKernel(grad(l1=False), repeatable=True),
    "BatchNormalizationSigns": CompiledKernel(signs(l1=False), repeatable=True),
    "BatchNormalizationSignsGrad": CompiledKernel(batch_normalization_signs_grad, repeatable=True),
    "BatchNormalizationTraining": CompiledKernel(training(l1=False), repeatable=True),
    "L1BatchNormalizationGrad": CompiledKernel(grad(l1=True), repeatable=True),
    "L1BatchNormalizationSigns": CompiledKernel(signs(l1=True), repeatable=True),
    "L1BatchNormalizationTraining": CompiledKernel(training(l1=True), repeatable=True),
}
