"""Optimiser steps. Every output takes over the buffer of the input that it replaces."""

from __future__ import annotations

from bnnopt.ops.operator import Operator, like

SGD_STEP = Operator(
    summary="""next_w = w - lr dw: stochastic gradient descent.

    w, dw, next_w: the same shape, float. lr: scalar.
    """,
    signature="SgdStep (w, dw, lr) => (next_w)",
    body="""
        change = Mul (dw, lr)
        next_w = Sub (w, change)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

MOMENTUM_STEP = Operator(
    summary="""next_m = momentum m + dw; next_w = w - lr next_m: SGD with (heavy-ball) momentum.

    w, dw, m: the same shape, float. lr: scalar. As torch.optim.SGD without dampening.
    """,
    signature="MomentumStep <momentum> (w, dw, m, lr) => (next_w, next_m)",
    body="""
        momentum_value = Constant <value_float: float = @momentum> ()
        momentum_like = CastLike (momentum_value, m)
        kept = Mul (m, momentum_like)
        next_m = Add (kept, dw)
        change = Mul (next_m, lr)
        next_w = Sub (w, change)
    """,
    type_rule=like(0, 2),
    in_place={0: 0, 1: 2},
)

ADAM_STEP = Operator(
    summary="""Adam: next_m = b1 m + (1 - b1) dw; next_v = b2 v + (1 - b2) dw^2;
    next_w = w - lr (next_m / (1 - b1^step)) / (sqrt(next_v / (1 - b2^step)) + epsilon).

    w, dw, m, v: the same shape, float. lr: scalar. step: int64 scalar, 1 at the first step. The
    powers are float64: near 1, 1 - b2^step would lose half its digits.
    Source: Kingma and Ba, arXiv:1412.6980, algorithm 1.
    """,
    signature=(
        "AdamStep <beta1, beta2, epsilon> (w, dw, m, v, lr, step) => (next_w, next_m, next_v)"
    ),
    body="""
        beta1_value = Constant <value_float: float = @beta1> ()
        beta2_value = Constant <value_float: float = @beta2> ()
        epsilon_value = Constant <value_float: float = @epsilon> ()
        one = Constant <value_float = 1.0> ()
        beta1_like = CastLike (beta1_value, w)
        beta2_like = CastLike (beta2_value, w)
        epsilon_like = CastLike (epsilon_value, w)
        one_like = CastLike (one, w)
        rest1 = Sub (one_like, beta1_like)
        rest2 = Sub (one_like, beta2_like)
        m_kept = Mul (m, beta1_like)
        m_new = Mul (dw, rest1)
        next_m = Add (m_kept, m_new)
        v_kept = Mul (v, beta2_like)
        square = Mul (dw, dw)
        v_new = Mul (square, rest2)
        next_v = Add (v_kept, v_new)
        step64 = Cast <to = 11> (step)
        beta1_64 = Cast <to = 11> (beta1_value)
        beta2_64 = Cast <to = 11> (beta2_value)
        one_64 = Cast <to = 11> (one)
        beta1_power = Pow (beta1_64, step64)
        beta2_power = Pow (beta2_64, step64)
        rest1_power = Sub (one_64, beta1_power)
        rest2_power = Sub (one_64, beta2_power)
        correction1 = CastLike (rest1_power, w)
        correction2 = CastLike (rest2_power, w)
        v_unbiased = Div (next_v, correction2)
        root = Sqrt (v_unbiased)
        bottom = Add (root, epsilon_like)
        rate = Div (lr, correction1)
        top = Mul (next_m, rate)
        change = Div (top, bottom)
        next_w = Sub (w, change)
    """,
    type_rule=like(0, 2, 3),
    in_place={0: 0, 1: 2, 2: 3},
)

OPERATORS = (SGD_STEP, MOMENTUM_STEP, ADAM_STEP)
