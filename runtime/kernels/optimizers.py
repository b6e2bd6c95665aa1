"""Optimiser steps. They return the new values and leave their inputs as they are."""

from __future__ import annotations

import inspect
import math

import numpy as np

from bnnopt.runtime.kernels import Array, Kernel
from bnnopt.runtime.kernels.packing import unpack_bits


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
    next_m = np.asarray(m * beta1)
    next_m += dw * (1 - beta1)
    next_v = np.asarray(dw * dw)
    next_v *= 1 - beta2
    next_v += v * beta2
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
    next_m = np.asarray(m * beta1)
    next_m += dw * (1 - beta1)
    next_v = np.asarray(dw * dw)
    next_v *= 1 - beta2
    next_v += v * beta2
    bottom = np.asarray(np.sqrt(next_v))
    bottom += epsilon
    next_w = np.asarray(next_m * (lr * adamw_correction(int(step), beta1, beta2)))
    next_w /= bottom
    np.subtract(w, next_w, out=next_w)
    next_w *= 1 - lr * decay
    return next_w, next_m, next_v


def adamw_correction(step: int, beta1: float, beta2: float) -> float:
    """What takes the bias out of both moments: sqrt(1 - beta2^step) / (1 - beta1^step)."""
    return math.sqrt(1 - beta2**step) / (1 - beta1**step)


def first_moment_step(
    w: Array,
    dw: Array,
    m: Array,
    lr: Array,
    step: Array,
    *,
    beta1: float,
    root: float,
    epsilon: float,
) -> tuple[Array, Array]:
    """Return next_w, next_m of Adam where |dw| has always been `root`.

    Parameters
    ----------
    w, dw, m : the same shape, float
    lr : scalar
    step : int64 scalar
        1 at the first step.
    """
    next_m = np.asarray(m * beta1)
    next_m += dw * (1 - beta1)
    factor = lr / (1 - beta1 ** int(step)) / (root + epsilon)
    next_w = np.asarray(next_m * factor)
    np.subtract(w, next_w, out=next_w)
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
