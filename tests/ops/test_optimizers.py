"""Optimiser and dropout kernels over several steps, against the published formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bnnopt.autodiff import OPTIMIZERS, make_optimizer
from bnnopt.runtime.kernels.reference.table import KERNELS
from tests.ops.harness import Array, assert_agree
from tests.ops.oracles import lowbias32

N_STEPS = 6
BOUNDS = {np.float32: 1e-6, np.float64: 1e-14}
each_dtype = pytest.mark.parametrize("dtype", BOUNDS)


def start(dtype: type[np.floating]) -> tuple[Array, list[Array], Array]:
    """Weights, one gradient a step, and the learning rate."""
    rng = np.random.default_rng(3)
    gradients = [rng.standard_normal((4, 3)).astype(dtype) for _ in range(N_STEPS)]
    return rng.standard_normal((4, 3)).astype(dtype), gradients, np.array(0.05, dtype)


@each_dtype
def test_sgd(dtype: type[np.floating]):
    w, gradients, lr = start(dtype)
    want = w.astype(np.float64) - float(lr) * np.sum(gradients, axis=0, dtype=np.float64)
    for dw in gradients:
        w = KERNELS["SgdStep"](w, dw, lr)
    assert_agree([w], [want.astype(dtype)], BOUNDS[dtype])


@each_dtype
def test_momentum(dtype: type[np.floating]):
    w, gradients, lr = start(dtype)
    want, m, velocity = w.astype(np.float64), np.zeros_like(w), np.zeros(w.shape)
    for dw in gradients:
        velocity = 0.9 * velocity + dw
        want = want - float(lr) * velocity
        w, m = KERNELS["MomentumStep"](w, dw, m, lr, momentum=0.9)
    assert_agree([w, m], [want.astype(dtype), velocity.astype(dtype)], BOUNDS[dtype])


@each_dtype
def test_adam(dtype: type[np.floating]):
    """Algorithm 1 of arXiv:1412.6980, line by line in float64."""
    theta, gradients, lr = start(dtype)
    w, m, v = theta, np.zeros_like(theta), np.zeros_like(theta)
    theta, m_t, v_t = theta.astype(np.float64), np.zeros(w.shape), np.zeros(w.shape)
    for t, g in enumerate(gradients, start=1):
        wide = g.astype(np.float64)
        m_t = 0.9 * m_t + (1 - 0.9) * wide
        v_t = 0.999 * v_t + (1 - 0.999) * wide**2
        m_hat = m_t / (1 - 0.9**t)
        v_hat = v_t / (1 - 0.999**t)
        theta = theta - float(lr) * m_hat / (np.sqrt(v_hat) + 1e-8)
        w, m, v = KERNELS["AdamStep"](
            w, g, m, v, lr, np.array(t), beta1=0.9, beta2=0.999, epsilon=1e-8
        )
    want = [theta.astype(dtype), m_t.astype(dtype), v_t.astype(dtype)]
    assert_agree([w, m, v], want, BOUNDS[dtype])


# What PyTorch calls it, with its own defaults but for what ours sets.
IN_PYTORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {}),
    "sgd": ("SGD", {"momentum": 0.9}),
    "rmsprop": ("RMSprop", {}),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", IN_PYTORCH)
def test_as_in_pytorch(name: str) -> None:
    assert _largest_difference(name) < 1e-6
    assert _largest_difference(name, lr=0.06) > 1e-3


def _largest_difference(name: str, **others: float) -> float:
    """Of weights, behind all steps of both."""
    torch = pytest.importorskip("torch")
    w, gradients, lr = start(np.float32)
    rule, (theirs, options) = make_optimizer(name), IN_PYTORCH[name]
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = getattr(torch.optim, theirs)([parameter], **{"lr": float(lr), **options, **others})
    states = [np.zeros_like(w) for _ in rule.states]
    for t, dw in enumerate(gradients, start=1):
        tail = [lr, np.array(t)] if rule.counts_steps else [lr]
        w, *states = KERNELS[rule.operator](w, dw, *states, *tail, **rule.attributes())
        parameter.grad = torch.from_numpy(dw)
        optimizer.step()
    return float(np.abs(parameter.detach().numpy() - w).max())


def test_every_optimizer_is_compared_with_pytorch() -> None:
    others = {"bop", "fixed-sign"}  # Adam for what is not binary; tests/autodiff has the rest
    assert IN_PYTORCH.keys() | others == set(OPTIMIZERS)


def draw(step: int, *, ratio: float = 0.3, seed: int = 5, size: int = 100_000) -> Array:
    ones = np.ones(size, np.float32)
    threshold, scale = round(ratio * 2**32), 1 / (1 - ratio)
    y, mask = KERNELS["Dropout"](ones, np.array(step), threshold=threshold, scale=scale, seed=seed)
    assert_agree([y], [np.where(mask, np.float32(scale), np.float32(0))], 0)
    return mask


def test_dropout_hash_is_the_published_one():
    step, seed, threshold = 7, 99, 2**31
    counters = [i + step * 0x9E3779B1 + seed for i in range(1000)]
    want = np.array([lowbias32(counter) >= threshold for counter in counters])
    assert_agree([draw(step, ratio=0.5, seed=seed, size=1000)], [want], 0)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.9])
def test_dropout_keeps_its_share(ratio: float):
    for step in range(1, 6):
        mask = draw(step, ratio=ratio)
        sigma = math.sqrt(ratio * (1 - ratio) / mask.size)
        assert abs(mask.mean() - (1 - ratio)) < 5 * sigma


def test_dropout_masks_differ_between_steps_and_seeds_and_repeat():
    assert_agree([draw(1)], [draw(1)], 0)
    sigma = math.sqrt(0.42 * 0.58 / 100_000)
    for other in [draw(2), draw(1, seed=6), draw(2**31), draw(1, seed=5 + 2**16)]:
        # Independent masks differ with probability 2 * 0.3 * 0.7.
        assert abs(np.mean(draw(1) != other) - 0.42) < 5 * sigma
