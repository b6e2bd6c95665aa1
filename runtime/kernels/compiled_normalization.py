"""The compiled batch normalisation: to floats or to bits, and its gradient."""

from __future__ import annotations

import math

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import (
    Arrays,
    Attributes,
    CompiledKernel,
    call,
    covered,
    number,
    optional,
    type_of,
)


def batch_normalization_training(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`normalization.batch_normalization_training`; y may be x, and any statistic left out."""
    y, statistics = outputs[0], [optional(outputs, i) for i in range(1, 5)]
    if not covered(y):
        return False
    return _normalize("training", inputs, [y], statistics, attributes)


def batch_normalization_signs(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`normalization.batch_normalization_signs`; one of the two bits may be left out."""
    *bits, mean, var, batch_mean, inv_std = [optional(outputs, i) for i in range(6)]
    present = [b for b in bits if b is not None]
    if not present or not covered(*present, dtype=np.uint8):
        return False
    plus = int(number(attributes, "zero") > 0)
    bounds = number(attributes, "low"), number(attributes, "high")
    statistics = [mean, var, batch_mean, inv_std]
    return _normalize("signs", inputs, bits, statistics, attributes, plus, *bounds)


def _normalize(
    kind: str,
    inputs: Arrays,
    results: Arrays,
    statistics: Arrays,
    attributes: Attributes,
    *options: float,
) -> bool:
    x, x_type = inputs[0], type_of(inputs[0])
    if x_type is None or not covered(*inputs[1:], *[s for s in statistics if s is not None]):
        return False
    assert x is not None
    if x.ndim < 2 or x.size == 0:
        return False
    momentum = number(attributes, "momentum")
    rates = number(attributes, "epsilon"), momentum, 1 - momentum
    name = f"bnn_batch_normalization_{kind}"
    call(name, *inputs, *results, *statistics, x_type, *_planes(x), *rates, *options)
    return True


def batch_normalization_apply(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`normalization.batch_normalization_apply` of floats; y may be x."""
    x, y = inputs[0], outputs[0]
    if not covered(*inputs, y):
        return False
    assert x is not None
    if x.ndim < 2 or x.size == 0:
        return False
    call("bnn_batch_normalization_apply_f32", *inputs, y, *_planes(x))
    return True


def batch_normalization_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`normalization.batch_normalization_grad`; dx may be dy."""
    dy, x, *channels = inputs
    dx, sums = outputs[0], [optional(outputs, i) for i in range(1, 3)]
    dy_type, x_type = type_of(dy), type_of(x)
    if dy_type is None or x_type is None or type_of(dx) != dy_type:
        return False
    assert x is not None
    if not covered(*channels, *[s for s in sums if s is not None]) or x.ndim < 2 or x.size == 0:
        return False
    call("bnn_batch_normalization_grad", *inputs, dx, *sums, dy_type, x_type, *_planes(x))
    return True


def _planes(x: Array) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


COMPILED_NORMALIZATION: dict[str, CompiledKernel] = {
    "BatchNormalizationApply": batch_normalization_apply,
    "BatchNormalizationGrad": batch_normalization_grad,
    "BatchNormalizationSigns": batch_normalization_signs,
    "BatchNormalizationTraining": batch_normalization_training,
}
