"""Binarisation and its straight-through estimators (STE)."""

from __future__ import annotations

from bnnopt.ops.operator import Operator, like

BINARIZE = Operator(
    summary="""y = -1 where x < 0, +1 where x > 0, `zero` elsewhere (also for NaN).

    x, y: any shape, floating point. `zero` is +1 (papers, BNN libraries) or -1 (Greater). `ste` and
    `clip` do not change y; they say how the gradient is taken.
    Source: Courbariaux et al., arXiv:1602.02830.
    """,
    signature="Binarize <zero, ste, clip> (x) => (y)",
    body="""
        zero_value = Constant <value_float: float = @zero> ()
        nil = Constant <value_float = 0.0> ()
        two = Constant <value_float = 2.0> ()
        zero_like = CastLike (zero_value, x)
        nil_like = CastLike (nil, x)
        two_like = CastLike (two, x)
        twice_zero = Mul (zero_like, two_like)
        is_plus = Greater (zero_value, nil)
        is_minus = Not (is_plus)
        below = Less (x, nil_like)
        above = Greater (x, nil_like)
        falls_below = And (below, is_plus)
        rises_above = And (above, is_minus)
        opposite = Or (falls_below, rises_above)
        opposite_like = CastLike (opposite, x)
        change = Mul (opposite_like, twice_zero)
        y = Sub (zero_like, change)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

TERNARIZE = Operator(
    summary="""y = sign(x) with sign(0) = 0, as ONNX Sign: a binarisation that keeps a third value.

    x, y: any shape, floating point. `ste` and `clip` are those of Binarize.
    """,
    signature="Ternarize <ste, clip> (x) => (y)",
    body="""
        y = Sign (x)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

STRAIGHT_THROUGH = Operator(
    summary="""y = b, with the gradient of s: PyTorch's ``s + (b - s).detach()``.

    b, y: any shape, floating point. s: a shape that broadcasts to it; its value is not used.
    Source: the straight-through estimator, Bengio et al., arXiv:1308.3432.
    """,
    signature="StraightThrough (b, s) => (y)",
    body="""
        y = Identity (b)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

CLIP_GRAD = Operator(
    summary="""dx = dy times (1 where low <= x <= high, else 0): of Clip, and the clipped STE.

    dy, x, dx: the same shape and floating dtype. Bounds included, as PyTorch's clamp does.
    Source: hard tanh estimator, arXiv:1602.02830, equation 4.
    """,
    signature="ClipGrad <low, high> (dy, x) => (dx)",
    body="""
        low_value = Constant <value_float: float = @low> ()
        high_value = Constant <value_float: float = @high> ()
        low_like = CastLike (low_value, x)
        high_like = CastLike (high_value, x)
        over = GreaterOrEqual (x, low_like)
        under = LessOrEqual (x, high_like)
        inside = And (over, under)
        factor = CastLike (inside, dy)
        dx = Mul (factor, dy)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

RELU_GRAD = Operator(
    summary="""dx = dy times (1 where y > 0, else 0): the gradient of y = Relu(x), from its output.

    dy, y, dx: the same shape and floating dtype.
    """,
    signature="ReluGrad (dy, y) => (dx)",
    body="""
        nil = Constant <value_float = 0.0> ()
        nil_like = CastLike (nil, y)
        positive = Greater (y, nil_like)
        factor = CastLike (positive, dy)
        dx = Mul (factor, dy)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

HARD_SWISH_GRAD = Operator(
    summary="""dx = dy (x / 3 + 1 / 2) where -3 <= x <= 3, dy above, 0 below: of y = HardSwish(x).

    dy, x, dx: the same shape and floating dtype.
    """,
    signature="HardSwishGrad (dy, x) => (dx)",
    body="""
        nil = Constant <value_float = 0.0> ()
        third = Constant <value_float = 0.3333333333333333> ()
        half = Constant <value_float = 0.5> ()
        low = Constant <value_float = -3.0> ()
        high = Constant <value_float = 3.0> ()
        nil_like = CastLike (nil, dy)
        third_like = CastLike (third, x)
        half_like = CastLike (half, x)
        low_like = CastLike (low, x)
        high_like = CastLike (high, x)
        scaled = Mul (x, third_like)
        slope = Add (scaled, half_like)
        inner = Mul (dy, slope)
        above = Greater (x, high_like)
        below = Less (x, low_like)
        upper = Where (above, dy, inner)
        dx = Where (below, nil_like, upper)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

APPROX_SIGN_GRAD = Operator(
    summary="""dx = dy * max(0, 2 - 2 |x|): the estimator of Bi-Real Net; it needs the value of x.

    dy, x, dx: the same shape and floating dtype. Source: Liu et al., arXiv:1808.00278, equation 7.
    """,
    signature="ApproxSignGrad (dy, x) => (dx)",
    body="""
        two = Constant <value_float = 2.0> ()
        two_like = CastLike (two, x)
        magnitude = Abs (x)
        twice = Mul (magnitude, two_like)
        slope = Sub (two_like, twice)
        factor = Relu (slope)
        dx = Mul (dy, factor)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

SWISH_SIGN_GRAD = Operator(
    summary="""dx = dy * b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)), b = `beta`.

    dy, x, dx: the same shape and floating dtype; NaN where x is infinite. With t = tanh(b x / 2)
    the fraction is (2 - b x t) (1 - t^2) / 2, which overflows nowhere.
    Source: the estimator of BNN+, Darabi et al., arXiv:1812.11800.
    """,
    signature="SwishSignGrad <beta> (dy, x) => (dx)",
    body="""
        beta_value = Constant <value_float: float = @beta> ()
        half = Constant <value_float = 0.5> ()
        one = Constant <value_float = 1.0> ()
        two = Constant <value_float = 2.0> ()
        beta_like = CastLike (beta_value, x)
        half_like = CastLike (half, x)
        one_like = CastLike (one, x)
        two_like = CastLike (two, x)
        bx = Mul (x, beta_like)
        half_bx = Mul (bx, half_like)
        tanh = Tanh (half_bx)
        bx_tanh = Mul (bx, tanh)
        bracket = Sub (two_like, bx_tanh)
        tanh_square = Mul (tanh, tanh)
        sech_square = Sub (one_like, tanh_square)
        bell = Mul (bracket, sech_square)
        half_beta = Mul (beta_like, half_like)
        factor = Mul (bell, half_beta)
        dx = Mul (dy, factor)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

OPERATORS = (
    *(BINARIZE, TERNARIZE, STRAIGHT_THROUGH),
    *(CLIP_GRAD, RELU_GRAD, HARD_SWISH_GRAD, APPROX_SIGN_GRAD, SWISH_SIGN_GRAD),
)
