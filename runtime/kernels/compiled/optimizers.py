"""The compiled optimiser steps: of a float gradient, and of one that is kept as sign bits."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    FLOAT16,
    FLOAT32,
    Arrays,
    Attributes,
    check_finite,
    covered,
    diverged,
    integer,
    number,
    scalar,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction, again
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel
from bnnopt.runtime.kernels.formulas import adamw_correction, known_bottom, stream_start

OPTIMIZER_STEP = CFunction("void bnn_optimizer_step(bnn_update*, float*, float*, uint8_t*)")

Rates = Callable[[float, int, Attributes], Mapping[str, float]]
"""(learning rate, number of the step, attributes) to the numbers of an `Update`."""


class Update(ctypes.Structure):
    """A step of rows x row weights: `bnn_update` in C, which says what the fields are."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rule", "rows", "row")),
        *((name, ctypes.c_int64) for name in ("half", "stochastic", "stream", "of_signs")),
        *((name, ctypes.c_void_p) for name in ("w", "m", "v")),
        *((name, ctypes.c_void_p) for name in ("next_w", "next_m", "next_v", "dw")),
        ("diverged", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("rate", "keep1", "take1", "keep2", "take2")),
        *((name, ctypes.c_float) for name in ("correction2", "epsilon", "keep")),
        *((name, ctypes.c_float) for name in ("threshold", "scale", "limit")),
    )


def _sgd(lr: float, step: int, attributes: Attributes) -> Mapping[str, float]:
    return {"rate": lr}


def _momentum(lr: float, step: int, attributes: Attributes) -> Mapping[str, float]:
    return {"rate": lr, "keep1": number(attributes, "momentum")}


def _rms_prop(lr: float, step: int, attributes: Attributes) -> Mapping[str, float]:
    alpha = number(attributes, "alpha")
    epsilon = number(attributes, "epsilon")
    return {"rate": lr, "keep2": alpha, "take2": 1 - alpha, "epsilon": epsilon}


def _adam(lr: float, step: int, attributes: Attributes) -> Mapping[str, float]:
    beta1, beta2 = number(attributes, "beta1"), number(attributes, "beta2")
    return {
        "rate": float(np.float32(lr) / np.float32(1 - beta1**step)),
        "keep1": beta1,
        "take1": 1 - beta1,
        "keep2": beta2,
        "take2": 1 - beta2,
        "correction2": 1 - beta2**step,
        "epsilon": number(attributes, "epsilon"),
        "keep": 1.0,
    }


def _adamw(lr: float, step: int, attributes: Attributes) -> Mapping[str, float]:
    """Adam with another rate, nothing to take out of the second moment, and a decay."""
    correction = adamw_correction(step, number(attributes, "beta1"), number(attributes, "beta2"))
    return {
        **_adam(lr, step, attributes),
        "rate": float(np.float32(lr) * np.float32(correction)),
        "correction2": 1.0,
        "keep": _decayed(lr, attributes),
    }


def _first_moment(lr: float, step: int, attributes: Attributes) -> Mapping[str, float]:
    beta1 = number(attributes, "beta1")
    numbers = (number(attributes, name) for name in ("beta2", "root", "epsilon"))
    rate = np.float32(lr) / np.float32(1 - beta1**step) / np.float32(known_bottom(step, *numbers))
    keep = _decayed(lr, attributes)
    return {"rate": float(rate), "keep1": beta1, "take1": 1 - beta1, "keep": keep}


def _decayed(lr: float, attributes: Attributes) -> float:
    """What weight decay leaves of a weight."""
    return float(1 - np.float32(lr) * np.float32(number(attributes, "decay")))


def _bop(lr: float, step: int, attributes: Attributes) -> Mapping[str, float]:
    gamma = number(attributes, "gamma")
    return {"keep1": 1 - gamma, "take1": gamma, "threshold": number(attributes, "tau")}


class Rule(NamedTuple):
    """Its number in C's enum bnn_rule, the numbers that it reads, and its state in an `Update`."""

    number: int
    rates: Rates
    states: tuple[str, ...]
    counts_steps: bool = False


BOP = "BopStep"
RULES: dict[str, Rule] = {
    "SgdStep": Rule(0, _sgd, ()),
    "MomentumStep": Rule(1, _momentum, ("m",)),
    "AdamStep": Rule(2, _adam, ("m", "v"), counts_steps=True),
    "AdamWStep": Rule(2, _adamw, ("m", "v"), counts_steps=True),
    "FirstMomentStep": Rule(3, _first_moment, ("m",), counts_steps=True),
    BOP: Rule(4, _bop, ("m",)),
    "RmsPropStep": Rule(5, _rms_prop, ("v",)),
}


class Form(NamedTuple):
    """What an operator steps by, whether it keeps float16, and whether it reads sign bits."""

    rule: str
    half: bool
    of_signs: bool


FORMS: dict[str, Form] = {
    signs + half + rule: Form(rule, bool(half), bool(signs))
    for signs in ("", "Sign")
    for half in ("", "Half")
    for rule in RULES
    if not (signs and rule == BOP)
}


def make_update(
    operator: str, inputs: Arrays, outputs: Arrays, attributes: Attributes
) -> Update | None:
    """The step of an operator, whatever its gradient (input 1) is; None where C does not cover it.

    It holds addresses: the caller keeps the arrays alive.
    """
    name, half, of_signs = FORMS[operator]
    rule, is_bop = RULES[name], name == BOP
    w, _, *states = inputs
    count = states.pop() if half or rule.counts_steps else np.array(0)
    lr = states.pop() if not is_bop else np.zeros(1, np.float32)
    like, kept = (states[0], outputs[1:]) if is_bop else (w, [w, *outputs])
    if not _same_size(*kept, *states, dtype=FLOAT16 if half else FLOAT32) or like is None:
        return None
    if is_bop and not (_has_rows(like, w) and _has_rows(like, outputs[0])):
        return None
    if lr is None or not covered(lr) or lr.size != 1 or count is None or count.size != 1:
        return None
    names = ("w", *rule.states)
    arrays = dict(zip(names, (w, *states), strict=True))
    arrays |= zip((f"next_{name}" for name in names), outputs, strict=True)
    update = Update(
        rule=rule.number,
        rows=len(like) if like.ndim else 1,
        row=math.prod(like.shape[1:]),
        half=half,
        stochastic=integer(attributes, "stochastic") if half and not is_bop else 0,
        of_signs=of_signs,
        scale=number({"scale": 1.0, **attributes}, "scale"),
        limit=number({"limit": -1.0, **attributes}, "limit"),
        **{name: array.ctypes.data for name, array in arrays.items() if array is not None},
    )
    again(functools.partial(_set_numbers, update, rule.rates, lr, count, attributes))
    return update


def _set_numbers(
    update: Update, rates: Rates, lr: Array, count: Array, attributes: Attributes
) -> None:
    """What changes from step to step."""
    flag = diverged()
    update.diverged = None if flag is None else ctypes.addressof(flag)
    if update.half:
        update.stream = stream_start(count, integer(attributes, "seed"))
    for name, value in rates(scalar(lr), int(scalar(count)), attributes).items():
        setattr(update, name, value)


def optimizer_step(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, operator: str
) -> bool:
    """The step of `operator`; each output may be the input that it replaces."""
    with np.errstate(all="ignore"):
        update, gradient = make_update(operator, inputs, outputs, attributes), inputs[1]
    if update is None or gradient is None:
        return False
    w, of_signs = inputs[0], FORMS[operator].of_signs
    if of_signs and not (w is not None and _has_rows(w, gradient)):
        return False
    if not of_signs and not (covered(gradient) and gradient.size == update.rows * update.row):
        return False
    dw, bits = (None, gradient) if of_signs else (gradient, None)
    OPTIMIZER_STEP(update, dw, None, bits)
    again(check_finite)
    return True


def _same_size(*arrays: Array | None, dtype: np.dtype[Any]) -> bool:
    return covered(*arrays, dtype=dtype) and len({a.size for a in arrays if a is not None}) == 1


def _has_rows(w: Array, packed: Array | None) -> bool:
    """Whether `packed` has a bit for every element of w, in rows."""
    if w.ndim == 0 or packed is None or not covered(packed, dtype=np.uint8):
        return False
    return packed.shape == (len(w), -(-math.prod(w.shape[1:]) // 8))


KERNELS: dict[str, CompiledKernel] = {
    name: CompiledKernel(partial(optimizer_step, operator=name), repeatable=True) for name in FORMS
}
