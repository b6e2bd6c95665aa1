"""Optimiser steps. They return the new values and leave their inputs as they are."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array


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
