"""Optimiser steps. Every output takes over the buffer of the input that it replaces.

Four rules are written down; the forms that read sign bits of the gradient follow from them.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import MIN_OPSET, Operator, TypedDims, dims, like

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
    body="""
        beta1_value = Constant <value_float: float = @beta1> ()
        beta2_value = Constant <value_float: float = @beta2> ()
        epsilon_value = Constant <value_float: float = @epsilon> ()
        decay_value = Constant <value_float: float = @decay> ()
        one = Constant <value_float = 1.0> ()
        beta1_like = CastLike (beta1_value, w)
        beta2_like = CastLike (beta2_value, w)
        epsilon_like = CastLike (epsilon_value, w)
        decay_like = CastLike (decay_value, w)
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

FIRST_MOMENT_STEP = Operator(
    summary="""Adam for gradients of one magnitude: next_m = b1 m + (1 - b1) dw;
    next_w = w - lr (next_m / (1 - b1^step)) / (root + epsilon).

    w, dw, m: the same shape, float. lr: scalar. step: int64 scalar, 1 at the first step. `root` is
    that magnitude: where |dw| has always been `root`, Adam's second moment without its bias is
    root^2, whatever b2. Source: arXiv:1412.6980, algorithm 1, with dw^2 = root^2.
    """,
    signature="FirstMomentStep <beta1, root, epsilon> (w, dw, m, lr, step) => (next_w, next_m)",
    body="""
        beta1_value = Constant <value_float: float = @beta1> ()
        root_value = Constant <value_float: float = @root> ()
        epsilon_value = Constant <value_float: float = @epsilon> ()
        one = Constant <value_float = 1.0> ()
        beta1_like = CastLike (beta1_value, w)
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
        bottom = Add (root_value, epsilon_value)
        bottom_like = CastLike (bottom, w)
        factor = Div (rate, bottom_like)
        change = Mul (next_m, factor)
        next_w = Sub (w, change)
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


def _of_signs(base: Operator) -> Operator:
    """The operator that reads `packed` signs where `base` reads dw."""
    function = base.function(MIN_OPSET)
    own = ", ".join(["shape", "scale", "limit", *function.attribute])
    passed = ", ".join(f"{name}: float = @{name}" for name in function.attribute)
    read = ", ".join("packed" if name == "dw" else name for name in function.input)
    outputs = ", ".join(function.output)
    return Operator(
        summary=f"""{base.name} of dw = SignGrad(packed, w), which is nowhere written down.

        w: (M, *shape); packed: (M, ceil(K / 8)) uint8; all else as in {base.name}, the attributes
        `shape`, `scale` and `limit` as in SignGrad.
        """,
        signature=f"Sign{base.name} <{own}> ({read}) => ({outputs})",
        body=f"""
            dw = bnnopt.SignGrad <
                shape: ints = @shape, scale: float = @scale, limit: float = @limit
            > (packed, w)
            {outputs} = bnnopt.{base.name} {f"<{passed}>" if passed else ""} (
                {", ".join(function.input)}
            )
        """,
        type_rule=base.type_rule,
        in_place=base.in_place,
    )


RULES = (SGD_STEP, MOMENTUM_STEP, ADAM_STEP, FIRST_MOMENT_STEP)
OPERATORS = (*RULES, ADAMW_STEP, SIGN_GRAD, *(_of_signs(rule) for rule in RULES))
