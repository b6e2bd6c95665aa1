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
    INT8,
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
        *((name, ctypes.c_int64) for name in ("half", "stochastic", "seed", "first", "of_signs")),
        *((name, ctypes.c_void_p) for name in ("w", "m", "v")),
        *((name, ctypes.c_void_p) for name in ("next_w", "next_m", "next_v", "peaks", "dw")),
        ("diverged", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("beta1", "beta2", "root", "bottom")),
        ("decay", ctypes.c_float),
        *((name, ctypes.c_float) for name in ("keep1", "take1", "keep2", "take2", "epsilon")),
        *((name, ctypes.c_float) for name in ("threshold", "unit", "latent_unit")),
        *((name, ctypes.c_float) for name in ("scale", "limit")),
        *((name, ctypes.c_float) for name in ("rate", "correction2", "keep")),
        *((name, ctypes.c_int64) for name in ("stream", "number")),
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
    """What an operator steps by, what it keeps, and whether it reads sign bits.

    ``half``: weights and states in float16; ``bytes``: the momentum in int8, all else in float16.
    """

    rule: str
    half: bool
    bytes: bool
    of_signs: bool


FORMS: dict[str, Form] = {
    signs + kept + rule: Form(rule, bool(kept), kept == "Byte", bool(signs))
    for signs in ("", "Sign")
    for kept in ("", "Half", "Byte")
    for rule in RULES
    if not (signs and rule == BOP) and (kept != "Byte" or "m" in RULES[rule].states)
}
N_PEAKS = 4


def make_update(
    operator: str, inputs: Arrays, outputs: Arrays, attributes: Attributes, first: int = 0
) -> Update | None:
    """The step of an operator, whatever its gradient (input 1) is; None where C does not cover it.

    It holds addresses: the caller keeps the arrays alive. Of some rows of a layer's weights
    `first` is the number of weights before them.
    """
    form = FORMS[operator]
    rule, is_bop = RULES[form.rule], form.rule == BOP
    w, _, *states = inputs
    count = states.pop() if form.half or rule.rate != PLAIN else None
    lr = states.pop() if not is_bop else None
    peaks, next_peaks = None, None
    if form.bytes:
        peaks, *states = states
        next_w, next_peaks, *next_states = outputs
        outputs = [next_w, *next_states]
    like = states[0] if is_bop else w
    latents = _latent_unit(attributes) > 0
    if like is None or not _same_size(form, [w, *states], outputs, latents=latents):
        return None
    if form.bytes and not (_are_peaks(like, peaks) and _are_peaks(like, next_peaks)):
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
        half=form.half,
        stochastic=integer(attributes, "stochastic") if form.half and not is_bop else 0,
        seed=integer(attributes, "seed") if form.half else 0,
        first=first,
        of_signs=form.of_signs,
        scale=number({"scale": 1.0, **attributes}, "scale"),
        limit=number({"limit": -1.0, **attributes}, "limit"),
        latent_unit=_latent_unit(attributes),
        diverged=None if flag is None else ctypes.addressof(flag),
        **rule.numbers(attributes),
        **{name: array.ctypes.data for name, array in arrays.items() if array is not None},
    )
    if form.bytes:
        assert peaks is not None
        assert next_peaks is not None
        update.unit = float(np.float32(number(attributes, "headroom")) / np.float32(127))
        update.peaks = next_peaks.ctypes.data
        if peaks.ctypes.data != next_peaks.ctypes.data:
            again(partial(np.copyto, next_peaks, peaks))
    BEGIN_UPDATE(update, lr, count)
    return update


def _latent_unit(attributes: Attributes) -> float:
    """Of weights in int8; 0 of others."""
    return number({"w_unit": 0.0, **attributes}, "w_unit")


def _are_peaks(like: Array, peaks: Array | None) -> bool:
    return covered(peaks) and peaks is not None and peaks.shape == (len(like), N_PEAKS)


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


def _same_size(form: Form, inputs: Arrays, outputs: Arrays, *, latents: bool) -> bool:
    """Whether weights and states are what the form keeps, as many elements each."""
    kept = FLOAT16 if form.half else FLOAT32
    names = ("w", *RULES[form.rule].states)
    in_bytes = {"w": latents, "m": form.bytes}
    types = [INT8 if in_bytes.get(name, False) else kept for name in names]
    arrays = [*zip(inputs, types, strict=True), *zip(outputs, types, strict=True)]
    if form.rule == BOP:  # whose weights are bits
        arrays = arrays[1:2] + arrays[3:]
    is_covered = all(covered(array, dtype=dtype) for array, dtype in arrays)
    return is_covered and len({a.size for a, _ in arrays if a is not None}) == 1


def _has_rows(w: Array, packed: Array | None) -> bool:
    """Whether `packed` has a bit for every element of w, in rows."""
    if w.ndim == 0 or packed is None or not covered(packed, dtype=np.uint8):
        return False
    return packed.shape == (len(w), -(-math.prod(w.shape[1:]) // 8))


KERNELS: dict[str, CompiledKernel] = {
    name: CompiledKernel(partial(optimizer_step, operator=name), repeatable=True) for name in FORMS
}
