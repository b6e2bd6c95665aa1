"""The compiled optimiser steps: of a float gradient, and of one that is kept as sign bits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    FLOAT16,
    FLOAT32,
    INT64,
    Arrays,
    Attributes,
    check_finite,
    covered,
    diverged,
    integer,
    number,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction, again
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel

BEGIN_UPDATE = CFunction("void bnn_begin_update(bnn_update*, float*, i64*)")
OPTIMIZER_STEP = CFunction("void bnn_optimizer_step(bnn_update*, float*, float*, uint8_t*)")

Numbers: TypeAlias = Callable[[Attributes], Mapping[str, float]]
"""Attributes of an operator to the numbers of an `Update` that are the same in every step."""


PLAIN, UNBIASED, UNBIASED_RATE, KNOWN_ROOT = range(4)


class Update(ctypes.Structure):
    """A step of rows x row weights: `bnn_update` in C, which says what the fields are."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rule", "rows", "row", "rate_rule")),
        *((name, ctypes.c_int64) for name in ("half", "stochastic", "seed", "of_signs")),
        *((name, ctypes.c_void_p) for name in ("w", "m", "v")),
        *((name, ctypes.c_void_p) for name in ("next_w", "next_m", "next_v", "dw")),
        ("diverged", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("beta1", "beta2", "root", "bottom")),
        ("decay", ctypes.c_float),
        *((name, ctypes.c_float) for name in ("keep1", "take1", "keep2", "take2", "epsilon")),
        *((name, ctypes.c_float) for name in ("threshold", "scale", "limit")),
        *((name, ctypes.c_float) for name in ("rate", "correction2", "keep")),
        ("stream", ctypes.c_int64),
    )


def _sgd(attributes: Attributes) -> Mapping[str, float]:
    return {}


def _momentum(attributes: Attributes) -> Mapping[str, float]:
    return {"keep1": number(attributes, "momentum")}


def _rms_prop(attributes: Attributes) -> Mapping[str, float]:
    alpha = number(attributes, "alpha")
    return {"keep2": alpha, "take2": 1 - alpha, "epsilon": number(attributes, "epsilon")}


def _adam(attributes: Attributes) -> Mapping[str, float]:
    beta2 = number(attributes, "beta2")
    epsilon = number(attributes, "epsilon")
    second = {"beta2": beta2, "keep2": beta2, "take2": 1 - beta2, "epsilon": epsilon}
    return _moment(attributes) | second


def _adamw(attributes: Attributes) -> Mapping[str, float]:
    return {**_adam(attributes), "decay": number(attributes, "decay")}


def _first_moment(attributes: Attributes) -> Mapping[str, float]:
    names = {"beta2": "beta2", "root": "root", "bottom": "epsilon", "decay": "decay"}
    return _moment(attributes) | {key: number(attributes, name) for key, name in names.items()}


def _moment(attributes: Attributes) -> dict[str, float]:
    beta1 = number(attributes, "beta1")
    return {"beta1": beta1, "keep1": beta1, "take1": 1 - beta1}


def _bop(attributes: Attributes) -> Mapping[str, float]:
    gamma = number(attributes, "gamma")
    return {"keep1": 1 - gamma, "take1": gamma, "threshold": number(attributes, "tau")}


class Rule(NamedTuple):
    """Its number in C's enum bnn_rule, the numbers that it reads, and its state in an `Update`.

    ``rate`` is how its rate goes by the number of the step, as C's enum bnn_rate_rule has it.
    """

    number: int
    numbers: Numbers
    states: tuple[str, ...]
    rate: int = PLAIN


BOP = "BopStep"
RULES: dict[str, Rule] = {
    "SgdStep": Rule(0, _sgd, ()),
    "MomentumStep": Rule(1, _momentum, ("m",)),
    "AdamStep": Rule(2, _adam, ("m", "v"), UNBIASED),
    "AdamWStep": Rule(2, _adamw, ("m", "v"), UNBIASED_RATE),
    "FirstMomentStep": Rule(3, _first_moment, ("m",), KNOWN_ROOT),
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
    count = states.pop() if half or rule.rate != PLAIN else None
    lr = states.pop() if not is_bop else None
    like, kept = (states[0], outputs[1:]) if is_bop else (w, [w, *outputs])
    if not _same_size(*kept, *states, dtype=FLOAT16 if half else FLOAT32) or like is None:
        return None
    if is_bop and not (_has_rows(like, w) and _has_rows(like, outputs[0])):
        return None
    if not (is_bop or _is_one(lr, FLOAT32)) or not (count is None or _is_one(count, INT64)):
        return None
    names, flag = ("w", *rule.states), diverged()
    arrays = dict(zip(names, (w, *states), strict=True))
    arrays |= zip((f"next_{name}" for name in names), outputs, strict=True)
    update = Update(
        rule=rule.number,
        rows=len(like) if like.ndim else 1,
        row=math.prod(like.shape[1:]),
        rate_rule=rule.rate,
        half=half,
        stochastic=integer(attributes, "stochastic") if half and not is_bop else 0,
        seed=integer(attributes, "seed") if half else 0,
        of_signs=of_signs,
        scale=number({"scale": 1.0, **attributes}, "scale"),
        limit=number({"limit": -1.0, **attributes}, "limit"),
        diverged=None if flag is None else ctypes.addressof(flag),
        **rule.numbers(attributes),
        **{name: array.ctypes.data for name, array in arrays.items() if array is not None},
    )
    BEGIN_UPDATE(update, lr, count)
    return update


def _is_one(array: Array | None, dtype: np.dtype[Any]) -> bool:
    return array is not None and covered(array, dtype=dtype) and array.size == 1


def optimizer_step(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, operator: str
) -> bool:
    """The step of `operator`; each output may be the input that it replaces."""
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
