"""Optimiser steps. Every output takes over the buffer of the input that it replaces.

Six rules, and one of binary weights. Forms of them, in narrow types and of sign bits, follow in
`optimizer_forms`.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims, dtype, like

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

# What Adam and AdamW share: both moments, and the powers that take their bias out.
_ADAM_MOMENTS = """
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
"""

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
    body=_ADAM_MOMENTS
    + """
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

ADAMW_STEP = Operator(
    summary="""AdamW: next_m and next_v as in AdamStep;
    next_w = (1 - lr decay) (w - rate next_m / (sqrt(next_v) + epsilon)),
    rate = lr sqrt(1 - b2^step) / (1 - b1^step).

    w, dw, m, v: the same shape, float. lr: scalar. step: int64 scalar, 1 at the first step. As
    onnxruntime-training's AdamWOptimizer with adam_mode 1: epsilon is added before the second
    moment's bias is taken out, and the weight decays after its step.
    Source: Loshchilov and Hutter, arXiv:1711.05101, algorithm 2.
    """,
    signature=(
        "AdamWStep <beta1, beta2, epsilon, decay> (w, dw, m, v, lr, step)"
        " => (next_w, next_m, next_v)"
    ),
    body=_ADAM_MOMENTS
    + """
        decay_value = Constant <value_float: float = @decay> ()
        decay_like = CastLike (decay_value, w)
        root_power = Sqrt (rest2_power)
        correction = Div (root_power, rest1_power)
        correction_like = CastLike (correction, w)
        rate = Mul (lr, correction_like)
        root = Sqrt (next_v)
        bottom = Add (root, epsilon_like)
        top = Mul (next_m, rate)
        change = Div (top, bottom)
        stepped = Sub (w, change)
        lost = Mul (lr, decay_like)
        kept = Sub (one_like, lost)
        next_w = Mul (stepped, kept)
    """,
    type_rule=like(0, 2, 3),
    in_place={0: 0, 1: 2, 2: 3},
)

RMS_PROP_STEP = Operator(
    summary="""RMSprop: next_v = alpha v + (1 - alpha) dw^2;
    next_w = w - lr dw / (sqrt(next_v) + epsilon).

    w, dw, v: the same shape, float. lr: scalar. As torch.optim.RMSprop without momentum.
    Source: Tieleman and Hinton, "Lecture 6.5: RMSProp", Neural networks for machine learning, 2012.
    """,
    signature="RmsPropStep <alpha, epsilon> (w, dw, v, lr) => (next_w, next_v)",
    body="""
        alpha_value = Constant <value_float: float = @alpha> ()
        epsilon_value = Constant <value_float: float = @epsilon> ()
        one = Constant <value_float = 1.0> ()
        alpha_like = CastLike (alpha_value, w)
        epsilon_like = CastLike (epsilon_value, w)
        one_like = CastLike (one, w)
        rest = Sub (one_like, alpha_like)
        kept = Mul (v, alpha_like)
        square = Mul (dw, dw)
        new = Mul (square, rest)
        next_v = Add (kept, new)
        root = Sqrt (next_v)
        bottom = Add (root, epsilon_like)
        top = Mul (dw, lr)
        change = Div (top, bottom)
        next_w = Sub (w, change)
    """,
    type_rule=like(0, 2),
    in_place={0: 0, 1: 2},
)

FIRST_MOMENT_STEP = Operator(
    summary="""Adam for gradients of one magnitude: next_m = b1 m + (1 - b1) dw;
    next_w = (1 - lr decay) (w - rate next_m), with
    rate = lr / (1 - b1^step) / (root + epsilon / sqrt(1 - b2^step)).

    w, dw, m: the same shape, float. lr: scalar. step: int64 scalar, 1 at the first step. `root` is
    that magnitude: where |dw| has always been `root`, Adam's second moment without its bias is
    root^2, whatever b2. AdamW adds epsilon before it takes the bias out, which is all that it needs
    b2 for; b2 = 0 and decay = 0 are Adam. Source: arXiv:1412.6980, algorithm 1, and
    arXiv:1711.05101, algorithm 2, with dw^2 = root^2.
    """,
    signature=(
        "FirstMomentStep <beta1, beta2, root, epsilon, decay> (w, dw, m, lr, step)"
        " => (next_w, next_m)"
    ),
    body="""
        beta1_value = Constant <value_float: float = @beta1> ()
        beta2_value = Constant <value_float: float = @beta2> ()
        root_value = Constant <value_float: float = @root> ()
        epsilon_value = Constant <value_float: float = @epsilon> ()
        decay_value = Constant <value_float: float = @decay> ()
        one = Constant <value_float = 1.0> ()
        beta1_like = CastLike (beta1_value, w)
        decay_like = CastLike (decay_value, w)
        one_like = CastLike (one, w)
        rest1 = Sub (one_like, beta1_like)
        kept = Mul (m, beta1_like)
        new = Mul (dw, rest1)
        next_m = Add (kept, new)
        step64 = Cast <to = 11> (step)
        beta1_64 = Cast <to = 11> (beta1_value)
        one_64 = Cast <to = 11> (one)
        beta1_power = Pow (beta1_64, step64)
        rest1_power = Sub (one_64, beta1_power)
        correction1 = CastLike (rest1_power, w)
        rate = Div (lr, correction1)
        beta2_64 = Cast <to = 11> (beta2_value)
        root_64 = Cast <to = 11> (root_value)
        epsilon_64 = Cast <to = 11> (epsilon_value)
        beta2_power = Pow (beta2_64, step64)
        rest2_power = Sub (one_64, beta2_power)
        rest2_root = Sqrt (rest2_power)
        epsilon_unbiased = Div (epsilon_64, rest2_root)
        bottom = Add (root_64, epsilon_unbiased)
        bottom_like = CastLike (bottom, w)
        factor = Div (rate, bottom_like)
        change = Mul (next_m, factor)
        stepped = Sub (w, change)
        lost = Mul (lr, decay_like)
        keep = Sub (one_like, lost)
        next_w = Mul (stepped, keep)
    """,
    type_rule=like(0, 2),
    in_place={0: 0, 1: 2},
)


def _wide(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.FLOAT, dims(node.inputs[1]))]


SIGN_GRAD = Operator(
    summary="""dw = +scale where the bit is set, else -scale; 0 where |w| > limit.

    packed: (M, ceil(K / 8)) uint8, the signs of a gradient of a binarised weight as BinarizePack
    lays them out. w: (M, *shape) float32 or float16, the weight before its sign; K = product of
    `shape`. dw: (M, *shape) float32. `scale` is 1 / sqrt(fan-in), `limit` where the weight's
    straight-through estimator ends. Source: Wang et al., arXiv:2102.04270, algorithm 2, line 18.
    """,
    signature="SignGrad <shape, scale, limit> (packed, w) => (dw)",
    body="""
        positive = bnnopt.UnpackBits <shape: ints = @shape> (packed)
        plus = Constant <value_float: float = @scale> ()
        minus = Neg (plus)
        signed = Where (positive, plus, minus)
        limit_value = Constant <value_float: float = @limit> ()
        wide = Cast <to = 1> (w)
        magnitude = Abs (wide)
        inside = LessOrEqual (magnitude, limit_value)
        factor = Cast <to = 1> (inside)
        dw = Mul (signed, factor)
    """,
    type_rule=_wide,
)


def _bop(node: ir.Node) -> list[TypedDims]:
    w, m = node.inputs[0], node.inputs[2]
    return [(ir.DataType.UINT8, dims(w)), (dtype(m), dims(m))]


BOP_STEP = Operator(
    summary="""Bop: next_m = (1 - gamma) m + gamma dw; a weight turns where |next_m| > tau and
    next_m has its sign.

    w, next_w: (M, ceil(K / 8)) uint8, the signs of binary weights as SignPack lays them out. dw, m,
    next_m: (M, *shape) float32; K = product of `shape`.
    Source: Helwegen et al., "Latent weights do not exist", arXiv:1906.02107, algorithm 1.
    """,
    signature="BopStep <shape, gamma, tau> (w, dw, m) => (next_w, next_m)",
    body="""
        gamma_value = Constant <value_float: float = @gamma> ()
        tau_value = Constant <value_float: float = @tau> ()
        one = Constant <value_float = 1.0> ()
        nil = Constant <value_float = 0.0> ()
        rest = Sub (one, gamma_value)
        kept = Mul (m, rest)
        new = Mul (dw, gamma_value)
        next_m = Add (kept, new)
        size = Abs (next_m)
        is_large = Greater (size, tau_value)
        is_plus = bnnopt.UnpackBits <shape: ints = @shape> (w)
        pushes_plus = Greater (next_m, nil)
        agrees = Equal (pushes_plus, is_plus)
        turns = And (is_large, agrees)
        next_plus = Xor (is_plus, turns)
        next_w = bnnopt.PackBits (next_plus)
    """,
    type_rule=_bop,
    in_place={0: 0, 1: 2},
)

RULES = (SGD_STEP, MOMENTUM_STEP, RMS_PROP_STEP, ADAM_STEP, ADAMW_STEP, FIRST_MOMENT_STEP)
OPERATORS = (SIGN_GRAD, BOP_STEP, *RULES)
