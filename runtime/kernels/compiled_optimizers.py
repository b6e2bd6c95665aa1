"""The compiled optimiser steps: of a float gradient, and of one that is kept as sign bits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import (
    FLOAT16,
    FLOAT32,
    Arrays,
    Attributes,
    CompiledKernel,
    call,
    covered,
    integer,
    number,
    scalar,
)
from bnnopt.runtime.kernels.dropout import stream_start
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
    half: bool, of_signs: bool,
) -> bool:  # fmt: skip
    """The step of `rule`; each output may be the input that it replaces."""
    w, gradient, *states = inputs
    count = states.pop() if half or rule in _COUNTS_STEPS else np.array(0)
    lr = states.pop()
    stored = FLOAT16 if half else FLOAT32
    fits = _same_size(w, *states, *outputs, dtype=stored) and _is_scalar(lr)
    if not fits or count is None or count.size != 1:
        return False
    assert w is not None
    assert lr is not None
    if not (_has_rows(w, gradient) if of_signs else _is_like(w, gradient)):
        return False
    numbers = _RATES[rule](scalar(lr), int(count.reshape(-1)[0]), attributes)
    numbers += [number(attributes, name) if of_signs else 0 for name in ("scale", "limit")]
    rounding = [integer(attributes, "stochastic"), _stream(count, attributes)] if half else [0, 0]
    missing = [None] * (3 - len(outputs))
    dw, bits = (None, gradient) if of_signs else (gradient, None)
    number_of_rule = list(_RATES).index(_RULE_OF.get(rule, rule))
    call(
        "bnn_optimizer_step", number_of_rule, w, dw, bits, *states, *missing,
        *outputs, *missing, len(w) if w.ndim else 1, math.prod(w.shape[1:]),
        np.array(numbers, np.float32), int(half), *rounding,
    )  # fmt: skip
    if rule == "AdamWStep" and outputs[0] is not None:
        outputs[0] *= 1 - np.float32(scalar(lr)) * np.float32(number(attributes, "decay"))
    return True


def _stream(count: Array, attributes: Attributes) -> int:
    return stream_start(count, integer(attributes, "seed"))


def _same_size(*arrays: Array | None, dtype: np.dtype[Any]) -> bool:
    return covered(*arrays, dtype=dtype) and len({a.size for a in arrays if a is not None}) == 1


def _is_like(w: Array, dw: Array | None) -> bool:
    return dw is not None and covered(dw) and dw.size == w.size


def _is_scalar(lr: Array | None) -> bool:
    return lr is not None and covered(lr) and lr.size == 1


def _has_rows(w: Array, packed: Array | None) -> bool:
    """Whether `packed` has a bit for every element of w, in rows."""
    if w.ndim == 0 or packed is None or not covered(packed, dtype=np.uint8):
        return False
    return packed.shape == (len(w), -(-math.prod(w.shape[1:]) // 8))


def _bop(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, half: bool
) -> bool:
    """`optimizers.bop_step`; next_w may be w, next_m may be m."""
    w, dw, m, *counts = inputs
    next_w, next_m = outputs
    if not _same_size(m, next_m, dtype=FLOAT16 if half else FLOAT32) or m is None:
        return False
    if not (_has_rows(m, w) and _has_rows(m, next_w) and _is_like(m, dw)):
        return False
    count = counts[0] if half else None
    if half and (count is None or count.size != 1):
        return False
    stream = 0 if count is None else _stream(count, attributes)
    gamma, tau = number(attributes, "gamma"), number(attributes, "tau")
    rows, row = len(m), math.prod(m.shape[1:])
    arrays = w, dw, m, next_w, next_m
    call("bnn_bop_step", *arrays, rows, row, int(half), stream, 1 - gamma, gamma, tau)
    return True


COMPILED_OPTIMIZERS: dict[str, CompiledKernel] = {
    **{
        signs + half + rule: functools.partial(
            _step, rule=rule, half=bool(half), of_signs=bool(signs)
        )
        for signs in ("", "Sign")
        for half in ("", "Half")
        for rule in _RATES
        if not ((signs or half) and rule in _RULE_OF)
    },
    "BopStep": functools.partial(_bop, half=False),
    "HalfBopStep": functools.partial(_bop, half=True),
}
