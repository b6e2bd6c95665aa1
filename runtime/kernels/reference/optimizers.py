"""Optimiser steps. They return the new values and leave their inputs as they are."""

from __future__ import annotations

import inspect
import math

import numpy as np

from bnnopt.runtime.kernels import Array, Kernel
from bnnopt.runtime.kernels.formulas import adamw_correction, known_bottom
from bnnopt.runtime.kernels.latents import widened
from bnnopt.runtime.kernels.reference.dropout import random_bits
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.latents import round_to_latents
from bnnopt.runtime.kernels.reference.packing import pack_bits, unpack_bits
from bnnopt.runtime.kernels.reference.parts import Axes, by_rows


def sgd_step(w: Array, dw: Array, lr: Array) -> Array:
    """Return w - lr dw."""
    next_w = np.asarray(dw * lr)
    np.subtract(w, next_w, out=next_w)
    return next_w


def momentum_step(
    w: Array, dw: Array, m: Array, lr: Array, *, momentum: float
) -> tuple[Array, Array]:
    """Return next_w = w - lr next_m and next_m = momentum m + dw."""
    next_m = np.asarray(m * momentum)
    next_m += dw
    return sgd_step(w, next_m, lr), next_m


def rms_prop_step(
    w: Array, dw: Array, v: Array, lr: Array, *, alpha: float, epsilon: float
) -> tuple[Array, Array]:
    """Return next_w = w - lr dw / (sqrt(next_v) + epsilon) and next_v of RMSprop.

    Parameters
    ----------
    w, dw, v : the same shape, float
    lr : scalar
    """
    next_v = _mean_square(dw, v, alpha)
    bottom = np.asarray(np.sqrt(next_v))
    bottom += epsilon
    next_w = np.asarray(dw * lr)
    next_w /= bottom
    np.subtract(w, next_w, out=next_w)
    return next_w, next_v


def _mean_square(dw: Array, v: Array, keep: float) -> Array:
    """keep v + (1 - keep) dw^2."""
    next_v = np.asarray(dw * dw)
    next_v *= 1 - keep
    next_v += v * keep
    return next_v


def _first_moment(dw: Array, m: Array, beta1: float) -> Array:
    """beta1 m + (1 - beta1) dw."""
    next_m = np.asarray(m * beta1)
    next_m += dw * (1 - beta1)
    return next_m


def _moments(dw: Array, m: Array, v: Array, beta1: float, beta2: float) -> tuple[Array, Array]:
    """Adam's two moments: next_m, and next_v = beta2 v + (1 - beta2) dw^2."""
    return _first_moment(dw, m, beta1), _mean_square(dw, v, beta2)


def adam_step(
    w: Array,
    dw: Array,
    m: Array,
    v: Array,
    lr: Array,
    step: Array,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> tuple[Array, Array, Array]:
    """Return next_w, next_m, next_v of Adam, with bias correction (arXiv:1412.6980).

    Parameters
    ----------
    w, dw, m, v : the same shape, float
    lr : scalar
    step : int64 scalar
        1 at the first step.
    """
    next_m, next_v = _moments(dw, m, v, beta1, beta2)
    bottom = np.asarray(next_v / (1 - beta2 ** int(step)))
    np.sqrt(bottom, out=bottom)
    bottom += epsilon
    next_w = np.asarray(next_m * (lr / (1 - beta1 ** int(step))))
    next_w /= bottom
    np.subtract(w, next_w, out=next_w)
    return next_w, next_m, next_v


def adamw_step(
    w: Array,
    dw: Array,
    m: Array,
    v: Array,
    lr: Array,
    step: Array,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> tuple[Array, Array, Array]:
    """Return next_w, next_m, next_v of Adam with decoupled weight decay (arXiv:1711.05101).

    Parameters
    ----------
    w, dw, m, v : the same shape, float
    lr : scalar
    step : int64 scalar
        1 at the first step.
    """
    next_m, next_v = _moments(dw, m, v, beta1, beta2)
    bottom = np.asarray(np.sqrt(next_v))
    bottom += epsilon
    next_w = np.asarray(next_m * (lr * adamw_correction(int(step), beta1, beta2)))
    next_w /= bottom
    np.subtract(w, next_w, out=next_w)
    next_w *= 1 - lr * decay
    return next_w, next_m, next_v


def first_moment_step(
    w: Array,
    dw: Array,
    m: Array,
    lr: Array,
    step: Array,
    *,
    beta1: float,
    beta2: float,
    root: float,
    epsilon: float,
    decay: float,
) -> tuple[Array, Array]:
    """Return next_w, next_m of AdamW where |dw| has always been `root`; see `ops.optimizers`.

    Parameters
    ----------
    w, dw, m : the same shape, float
    lr : scalar
    step : int64 scalar
        1 at the first step.
    """
    next_m = _first_moment(dw, m, beta1)
    factor = lr / (1 - beta1 ** int(step)) / known_bottom(int(step), beta2, root, epsilon)
    next_w = np.asarray(next_m * factor)
    np.subtract(w, next_w, out=next_w)
    next_w *= 1 - lr * decay
    return next_w, next_m


def sign_grad(packed: Array, w: Array, *, shape: list[int], scale: float, limit: float) -> Array:
    """Return dw = +-scale by the bits of `packed`, 0 where |w| > limit.

    Parameters
    ----------
    packed : (M, ceil(K / 8)) uint8
    w : (M, *shape) float
        K is the product of `shape`.

    Returns
    -------
    (M, *shape) float32, float64 where w is
    """
    plus = np.result_type(w.dtype, np.float32).type(scale)
    dw = np.where(unpack_bits(packed, shape=shape), plus, -plus)
    dw *= np.abs(w) <= limit
    return np.asarray(dw)


def of_signs(rule: Kernel) -> Kernel:
    """The kernel that reads packed signs, and SignGrad's attributes, where `rule` reads dw."""

    def step(
        w: Array, packed: Array, *rest: Array, shape: list[int], scale: float, limit: float,
        **attributes: float,
    ) -> Array | tuple[Array, ...]:  # fmt: skip
        dw = sign_grad(packed, w, shape=shape, scale=scale, limit=limit)
        return rule(w, dw, *rest, **attributes)

    parameters = dict(inspect.signature(rule).parameters)
    own = inspect.signature(sign_grad).parameters
    step.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(own["packed"] if name == "dw" else p for name, p in parameters.items()),
            *(own[name] for name in ("shape", "scale", "limit")),
        ]
    )
    return step


STATE_SCALE = 1024.0  # of a momentum, and of the root of a second moment, in float16
_HIGHEST = 65504.0


def round_to_half(x: Array, step: Array, *, stochastic: int, seed: int) -> Array:
    """Return x in float16: to nearest, or stochastically; too large is +-65504.

    Parameters
    ----------
    x : any shape, float
    step : int64 scalar
    stochastic : int
        1: up where 2^13 times the place between its neighbours and 13 random bits add up to 2^13.
    seed : int
        With `step`, of the bits; see `dropout.random_bits`.
    """
    if not stochastic:
        return np.clip(x, -_HIGHEST, _HIGHEST).astype(np.float16)
    magnitude = np.minimum(np.abs(x), _HIGHEST)
    gap = np.ldexp(x.dtype.type(1), np.maximum(np.frexp(magnitude)[1] - 11, -24))
    place = magnitude / gap
    below = np.floor(place)
    rest = np.floor((place - below) * 8192)
    rises = rest + (random_bits(x, step, seed=seed) >> 19) >= 8192
    return np.asarray(np.copysign((below + rises) * gap, x), np.float16)


N_PEAKS = 4  # columns of the peaks of a momentum in int8; see `ops.optimizer_forms`
_LEAST_UNIT = np.float32(1e-30)


def flat_rows(x: Array) -> Array:
    """x (M, ...) as (M, K)."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def round_to_byte(x: Array, unit: Array, step: Array, *, seed: int) -> Array:
    """Return x / unit in int8, rounded stochastically; at most 127, and 0 where the unit is 0.

    Parameters
    ----------
    x : (M, *shape) float32
    unit : (M, 1) float32
        Of each row.
    step : int64 scalar
    seed : int
        With `step`, of the bits; see `dropout.random_bits`.
    """
    inverse = np.where(unit > 0, 1 / np.where(unit > 0, unit, 1), 0).astype(x.dtype)
    with np.errstate(invalid="ignore"):
        place = flat_rows(x) * inverse
    magnitude = np.abs(place)
    magnitude = np.where(magnitude < 127, magnitude, x.dtype.type(127))
    below = np.floor(magnitude)
    drawn = (random_bits(x, step, seed=seed) & 0x7FFFF).reshape(place.shape)
    rises = np.floor((magnitude - below) * 2**19) + drawn >= 2**19
    rounded = (below + rises).astype(np.int8)
    return np.asarray(np.where(place < 0, -rounded, rounded)).reshape(x.shape)


class _HalfMomentum:
    """A momentum in float16: `STATE_SCALE` times as large."""

    def __init__(self, count: Array, seed: int, stochastic: bool) -> None:
        self._count, self._seed, self._stochastic = count, seed, stochastic

    def widened(self, m: Array) -> Array:
        """In float32."""
        return np.asarray(m.astype(np.float32) / STATE_SCALE)

    def narrowed(self, m: Array) -> tuple[Array, ...]:
        """In float16."""
        scaled, stochastic = np.asarray(m * STATE_SCALE), int(self._stochastic)
        return (round_to_half(scaled, self._count, stochastic=stochastic, seed=self._seed),)


class _ByteMomentum:
    """A momentum in int8, and the peaks of its rows; see `ops.optimizer_forms`."""

    def __init__(self, peaks: Array, count: Array, seed: int, headroom: float) -> None:
        self._peaks, self._count, self._seed = peaks, count, seed
        self._factor = np.float32(headroom) / np.float32(127)

    def _column(self, age: int) -> int:
        return (int(self._count) - age) % N_PEAKS

    def _unit(self, age: int) -> Array:
        """(M, 1): of the step `age` steps ago, by the peak of the step before."""
        scaled = self._peaks[:, self._column(age + 1), None] * self._factor
        return np.where(scaled >= _LEAST_UNIT, scaled, np.float32(0))

    def widened(self, m: Array) -> Array:
        """In float32."""
        return np.asarray(flat_rows(m) * self._unit(1)).reshape(m.shape)

    def narrowed(self, m: Array) -> tuple[Array, ...]:
        """The next peaks, and the momentum in int8."""
        peaks = self._peaks.copy()
        peaks[:, self._column(-1)] = 0
        now = peaks[:, self._column(0)]
        np.maximum(now, np.abs(flat_rows(m)).max(axis=1, initial=0), out=now)
        return peaks, round_to_byte(m, self._unit(0), self._count, seed=self._seed)


def _narrow(rule: Kernel, in_bytes: bool) -> Kernel:
    """The kernel of `rule` on a weight and a state that are kept in narrow types."""
    own = dict(inspect.signature(rule).parameters)
    names = [name for name, p in own.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    counts = names[-1] == "step"
    states = names[2 : names.index("lr")]  # m is a momentum, v a second moment
    n_read = 2 + len(states) + in_bytes  # before the rate

    def step(
        *inputs: Array,
        stochastic: int,
        seed: int,
        headroom: float = 1,
        w_unit: float = 0,
        **attributes: float,
    ) -> Array | tuple[Array, ...]:
        w, dw, *peaks = inputs[: n_read - len(states)]
        *kept, lr, count = inputs[n_read - len(states) :]
        of_m: _HalfMomentum | _ByteMomentum = _HalfMomentum(count, seed, stochastic=False)
        if peaks:
            of_m = _ByteMomentum(peaks[0], count, seed, headroom)
        wide = [
            of_m.widened(s) if name == "m" else np.square(s.astype(np.float32) / STATE_SCALE)
            for name, s in zip(states, kept, strict=True)
        ]
        tail = [lr, count] if counts else [lr]
        w32 = widened(w, w_unit) if w_unit else w.astype(np.float32)
        results = rule(w32, dw, *wide, *tail, **attributes)
        next_w, *next_states = results if isinstance(results, tuple) else (results,)
        outputs = [
            round_to_latents(next_w, count, unit=w_unit, seed=seed)
            if w_unit
            else round_to_half(next_w, count, stochastic=stochastic, seed=seed)
        ]
        for name, s in zip(states, next_states, strict=True):
            if name == "m":
                outputs += of_m.narrowed(s)
            else:
                root = np.asarray(np.sqrt(s) * STATE_SCALE)
                outputs.append(round_to_half(root, count, stochastic=1, seed=seed))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    parameters = [own[name] for name in names]
    if not counts:
        parameters.append(parameters[0].replace(name="step"))
    options = [p for name, p in own.items() if name not in names]
    rounding = inspect.signature(round_to_half).parameters
    options += [rounding["stochastic"], rounding["seed"]]
    options.append(rounding["seed"].replace(name="w_unit", annotation="float", default=0.0))
    if in_bytes:
        parameters.insert(2, parameters[0].replace(name="peaks"))
        options.append(rounding["seed"].replace(name="headroom", annotation="float"))
    step.__signature__ = inspect.Signature([*parameters, *options])  # type: ignore[attr-defined]
    return step


def bop_step(
    w: Array, dw: Array, m: Array, *, shape: list[int], gamma: float, tau: float
) -> tuple[Array, Array]:
    """Return next_w, next_m of Bop (arXiv:1906.02107): a weight turns where m agrees with it.

    Parameters
    ----------
    w : (M, ceil(K / 8)) uint8
        Signs; K is the product of `shape`.
    dw, m : (M, *shape) float
    """
    next_m = np.asarray(m * (1 - gamma))
    next_m += dw * gamma
    is_plus = unpack_bits(w, shape=shape)
    turns = (np.abs(next_m) > tau) & ((next_m > 0) == is_plus)
    return pack_bits(is_plus ^ turns), next_m


def half_bop_step(
    w: Array, dw: Array, m: Array, step: Array, *,
    shape: list[int], gamma: float, tau: float, seed: int,
) -> tuple[Array, ...]:  # fmt: skip
    """`bop_step` with m in float16, 1024 times the momentum, rounded stochastically."""
    of_m = _HalfMomentum(step, seed, stochastic=True)
    next_w, next_m = bop_step(w, dw, of_m.widened(m), shape=shape, gamma=gamma, tau=tau)
    return next_w, *of_m.narrowed(next_m)


def byte_bop_step(
    w: Array, dw: Array, peaks: Array, m: Array, step: Array, *,
    shape: list[int], gamma: float, tau: float, seed: int, headroom: float,
) -> tuple[Array, ...]:  # fmt: skip
    """`bop_step` with m in int8, in units of its rows, and their peaks (M, 4)."""
    of_m = _ByteMomentum(peaks, step, seed, headroom)
    next_w, next_m = bop_step(w, dw, of_m.widened(m), shape=shape, gamma=gamma, tau=tau)
    return next_w, *of_m.narrowed(next_m)


RULES: dict[str, Kernel] = {
    "SgdStep": sgd_step,
    "MomentumStep": momentum_step,
    "RmsPropStep": rms_prop_step,
    "AdamStep": adam_step,
    "AdamWStep": adamw_step,
    "FirstMomentStep": first_moment_step,
}
_HALVES = {f"Half{name}": _narrow(rule, in_bytes=False) for name, rule in RULES.items()}
_BYTES = {
    f"Byte{name}": _narrow(rule, in_bytes=True)
    for name, rule in RULES.items()
    if "m" in inspect.signature(rule).parameters
}
_SIGNS = {f"Sign{name}": of_signs(rule) for name, rule in (RULES | _HALVES | _BYTES).items()}
STEPS: dict[str, Kernel] = {
    "BopStep": bop_step,
    "HalfBopStep": half_bop_step,
    "ByteBopStep": byte_bop_step,
    **RULES,
    **_HALVES,
    **_BYTES,
    **_SIGNS,
}


KERNELS: dict[str, NumpyKernel] = {
    "RoundToHalf": NumpyKernel(round_to_half, Axes("0", "0")),
    "RoundToByte": NumpyKernel(round_to_byte, Axes("00", "0")),
    "SignGrad": NumpyKernel(sign_grad, Axes("00", "0")),
    **{name: NumpyKernel(step, by_rows, updates=True) for name, step in STEPS.items()},
}
