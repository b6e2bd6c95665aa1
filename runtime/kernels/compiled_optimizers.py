"""The compiled optimiser steps: of a float gradient, and of one that is kept as sign bits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import (
    Arrays,
    Attributes,
    CompiledKernel,
    call,
    covered,
    number,
    scalar,
)
from bnnopt.runtime.kernels.optimizers import adamw_correction

Rates = Callable[[float, int, Attributes], list[float]]
"""(learning rate, number of the step, attributes) to rate, beta1, 1 - beta1, beta2, .. epsilon."""


def _sgd(lr: float, step: int, attributes: Attributes) -> list[float]:
    return [lr, 0, 0, 0, 0, 0, 0]


def _momentum(lr: float, step: int, attributes: Attributes) -> list[float]:
    return [lr, number(attributes, "momentum"), 0, 0, 0, 0, 0]


def _adam(lr: float, step: int, attributes: Attributes) -> list[float]:
    beta1, beta2 = number(attributes, "beta1"), number(attributes, "beta2")
    rate = np.float32(lr) / np.float32(1 - beta1**step)
    epsilon = number(attributes, "epsilon")
    return [float(rate), beta1, 1 - beta1, beta2, 1 - beta2, 1 - beta2**step, epsilon]


def _adamw(lr: float, step: int, attributes: Attributes) -> list[float]:
    """Adam with another rate, and nothing to take out of the second moment."""
    beta1, beta2 = number(attributes, "beta1"), number(attributes, "beta2")
    rate = np.float32(lr) * np.float32(adamw_correction(step, beta1, beta2))
    return [float(rate), beta1, 1 - beta1, beta2, 1 - beta2, 1, number(attributes, "epsilon")]


def _first_moment(lr: float, step: int, attributes: Attributes) -> list[float]:
    beta1 = number(attributes, "beta1")
    bottom = number(attributes, "root") + number(attributes, "epsilon")
    rate = np.float32(lr) / np.float32(1 - beta1**step) / np.float32(bottom)
    return [float(rate), beta1, 1 - beta1, 0, 0, 0, 0]


# In the order of the rules in bnn_optimizers.c; then those that are one of them in other numbers.
_RATES: dict[str, Rates] = {
    "SgdStep": _sgd,
    "MomentumStep": _momentum,
    "AdamStep": _adam,
    "FirstMomentStep": _first_moment,
    "AdamWStep": _adamw,
}
_RULE_OF = {"AdamWStep": "AdamStep"}
_COUNTS_STEPS = ("AdamStep", "FirstMomentStep", "AdamWStep")


@np.errstate(all="ignore")
def _step(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, rule: str,
    of_signs: bool,
) -> bool:  # fmt: skip
    """The step of `rule`; each output may be the input that it replaces."""
    w, gradient, *states = inputs
    count = states.pop() if rule in _COUNTS_STEPS else None
    lr = states.pop()
    floats = [w, *states, *outputs] if of_signs else [w, gradient, *states, *outputs]
    if not _same_size(*floats) or not _is_scalar(lr) or (of_signs and not _has_rows(w, gradient)):
        return False
    if rule in _COUNTS_STEPS and (count is None or count.size != 1):
        return False
    assert w is not None
    assert lr is not None
    number_of_step = 0 if count is None else int(count.reshape(-1)[0])
    numbers = _RATES[rule](scalar(lr), number_of_step, attributes)
    numbers += [number(attributes, name) if of_signs else 0 for name in ("scale", "limit")]
    missing = [None] * (3 - len(outputs))
    dw, bits = (None, gradient) if of_signs else (gradient, None)
    number_of_rule = list(_RATES).index(_RULE_OF.get(rule, rule))
    call(
        "bnn_optimizer_step_f32", number_of_rule, w, dw, bits, *states, *missing,
        *outputs, *missing, len(w) if w.ndim else 1, math.prod(w.shape[1:]),
        np.array(numbers, np.float32),
    )  # fmt: skip
    if rule == "AdamWStep" and outputs[0] is not None:
        outputs[0] *= 1 - np.float32(scalar(lr)) * np.float32(number(attributes, "decay"))
    return True


def _same_size(*arrays: Array | None) -> bool:
    return covered(*arrays) and len({a.size for a in arrays if a is not None}) == 1


def _is_scalar(lr: Array | None) -> bool:
    return lr is not None and covered(lr) and lr.size == 1


def _has_rows(w: Array | None, packed: Array | None) -> bool:
    """Whether `packed` has a bit for every element of w, in rows."""
    if w is None or w.ndim == 0 or packed is None or not covered(packed, dtype=np.uint8):
        return False
    return packed.shape == (len(w), -(-math.prod(w.shape[1:]) // 8))


COMPILED_OPTIMIZERS: dict[str, CompiledKernel] = {
    prefix + rule: functools.partial(_step, rule=rule, of_signs=bool(prefix))
    for prefix in ("", "Sign")
    for rule in _RATES
    if not (prefix and rule in _RULE_OF)
}
