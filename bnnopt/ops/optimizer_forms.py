"""Forms of the optimiser steps: of states in float16, of momenta in int8, of sign bits.

They follow from the rules of `optimizers`. Every output takes over the buffer of the input that it
replaces.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import MIN_OPSET, Form, Operator, TypedDims, dims, like, passed_on
from bnnopt.ops.optimizers import BOP_STEP, RULES


def _half(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.FLOAT16, dims(node.inputs[0]))]


ROUND_TO_HALF = Operator(
    summary="""y = x in float16: to nearest even, or up or down by chance where `stochastic` is 1.

    x: any shape, float32; step: int64 scalar; y: float16. Too large is +-65504. With low and high
    the neighbours of |x| in float16 and f = floor(2^13 (|x| - low) / (high - low)), stochastic
    rounding takes high where f and the upper 13 of the element's RandomBits add up to 2^13: its
    mean is x (to 2^-13 of the gap for subnormal y, exactly for all others).
    """,
    signature="RoundToHalf <stochastic, seed> (x, step) => (y)",
    body="""
        highest = Constant <value_float = 65504.0> ()
        lowest = Neg (highest)
        fitting = Clip (x, lowest, highest)
        nearest16 = Cast <to = 10> (fitting)
        nearest32 = Cast <to = 1> (nearest16)
        nearest = Abs (nearest32)
        magnitude = Abs (fitting)
        is_above = Greater (nearest, magnitude)
        relative = Constant <value_float = 0.0006103515625> ()
        absolute = Constant <value_float = 4.470348358154297e-08> ()
        step_relative = Mul (nearest, relative)
        up = Max (step_relative, absolute)
        down = Neg (up)
        away = Where (is_above, down, up)
        beyond = Add (nearest, away)
        other16 = Cast <to = 10> (beyond)
        other = Cast <to = 1> (other16)
        low = Where (is_above, other, nearest)
        high = Where (is_above, nearest, other)
        gap = Sub (high, low)
        rest = Sub (magnitude, low)
        share = Div (rest, gap)
        steps = Constant <value_float = 8192.0> ()
        share_steps = Mul (share, steps)
        whole = Floor (share_steps)
        bits = bnnopt.RandomBits <seed: int = @seed> (x, step)
        cut = Constant <value_int = 524288> ()
        drawn64 = Div (bits, cut)
        drawn = Cast <to = 1> (drawn64)
        sum = Add (whole, drawn)
        rises = GreaterOrEqual (sum, steps)
        rounded = Where (rises, high, low)
        sign = Sign (fitting)
        chosen = Mul (rounded, sign)
        chosen16 = Cast <to = 10> (chosen)
        flag = Constant <value_int: int = @stochastic> ()
        is_stochastic = Cast <to = 9> (flag)
        y = Where (is_stochastic, chosen16, nearest16)
    """,
    type_rule=_half,
)


def _bytes(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.INT8, dims(node.inputs[0]))]


ROUND_TO_BYTE = Operator(
    summary="""y = x / unit in int8, up or down by chance, so that its mean is that; at most 127.

    x: (M, *shape) float32; unit: (M, 1) float32, that of a row; step: int64 scalar. y: (M, *shape)
    int8, 0 where the unit is 0. |x| / unit is rounded up where floor(2^19 times what is above a
    whole number) and the lower 19 of the element's RandomBits add up to 2^19.
    """,
    signature="RoundToByte <seed> (x, unit, step) => (y)",
    body="""
        rows = Flatten <axis = 1> (x)
        nil = Constant <value_float = 0.0> ()
        one = Constant <value_float = 1.0> ()
        is_used = Greater (unit, nil)
        divisor = Where (is_used, unit, one)
        whole_inverse = Div (one, divisor)
        inverse = Where (is_used, whole_inverse, nil)
        place = Mul (rows, inverse)
        size = Abs (place)
        highest = Constant <value_float = 127.0> ()
        fits = Less (size, highest)
        magnitude = Where (fits, size, highest)
        below = Floor (magnitude)
        rest = Sub (magnitude, below)
        bits = bnnopt.RandomBits <seed: int = @seed> (x, step)
        cut = Constant <value_int = 524288> ()
        drawn64 = Mod (bits, cut)
        drawn_like_x = Cast <to = 1> (drawn64)
        drawn = Flatten <axis = 1> (drawn_like_x)
        steps = Constant <value_float = 524288.0> ()
        share_steps = Mul (rest, steps)
        share = Floor (share_steps)
        sum = Add (share, drawn)
        rises = GreaterOrEqual (sum, steps)
        up = Cast <to = 1> (rises)
        rounded = Add (below, up)
        minus = Neg (rounded)
        is_negative = Less (place, nil)
        signed = Where (is_negative, minus, rounded)
        narrow = Cast <to = 3> (signed)
        shape = Shape (x)
        y = Reshape (narrow, shape)
    """,
    type_rule=_bytes,
)

# A float16 state holds the momentum times this, and the root of the second moment times this. So
# gradients from 6e-8 to 64 keep all digits; below, the error is at most 3e-11, 0.3 % of epsilon.
STATE_SCALE = 1024.0

# Columns of the peaks of a momentum in int8: the largest |m| of the last steps, by their number.
N_PEAKS = 4

_WIDEN = {
    "w": """w_float = Cast <to = 1> (w)
        w_latent = bnnopt.WidenLatents <unit: float = @w_unit> (w)
        w_size = Constant <value_float: float = @w_unit> ()
        no_size = Constant <value_float = 0.0> ()
        is_latent = Greater (w_size, no_size)
        w32 = Where (is_latent, w_latent, w_float)""",
    "m": """m_wide = Cast <to = 1> (m)
        m32 = Mul (m_wide, shrink)""",
    "v": """v_wide = Cast <to = 1> (v)
        v_root = Mul (v_wide, shrink)
        v32 = Mul (v_root, v_root)""",
}
_NARROW = {
    "next_w": """half_next_w = bnnopt.RoundToHalf <
            stochastic: int = @stochastic, seed: int = @seed
        > (wide_next_w, step)
        half_w = Cast <to = 1> (half_next_w)
        latent_next_w = bnnopt.RoundToLatents <unit: float = @w_unit, seed: int = @seed> (
            wide_next_w, step
        )
        latent_w = Cast <to = 1> (latent_next_w)
        chosen_w = Where (is_latent, latent_w, half_w)
        next_w = CastLike (chosen_w, w)""",
    "next_m": """m_scaled = Mul (wide_next_m, grow)
        highest = Constant <value_float = 65504.0> ()
        lowest = Neg (highest)
        m_fitting = Clip (m_scaled, lowest, highest)
        next_m = Cast <to = 10> (m_fitting)""",
    "next_v": """v_next_root = Sqrt (wide_next_v)
        v_scaled = Mul (v_next_root, grow)
        next_v = bnnopt.RoundToHalf <stochastic = 1, seed: int = @seed> (v_scaled, step)""",
}


def _of_halves(base: Operator) -> Operator:
    """The operator that keeps in float16 what `base` keeps in float32."""
    function = base.function(MIN_OPSET)
    own = ", ".join([*function.attribute, "stochastic", "seed", "w_unit"])
    given = list(function.input) if "step" in function.input else [*function.input, "step"]
    read = ", ".join(f"{name}32" if name in _WIDEN else name for name in function.input)
    lines = "\n        ".join(_WIDEN[name] for name in function.input if name in _WIDEN)
    narrowed = "\n        ".join(_NARROW[name] for name in function.output)
    return Operator(
        summary=f"""{base.name} in float32, of a weight and a state that are kept in float16.

        w, next_w: float16, rounded as in RoundToHalf by `stochastic` and `seed`; or, where `w_unit`
        is not 0, int8 as in WidenLatents, rounded as in RoundToLatents. m, next_m:
        float16, {STATE_SCALE:g} times the momentum, to nearest, at most 65504. v, next_v: float16,
        {STATE_SCALE:g} times the root of the second moment, rounded stochastically (to nearest it
        would stand still: it moves by less than half a digit a step). step: int64 scalar. All else
        as in {base.name}.
        """,
        signature=f"Half{base.name} <{own}> ({', '.join(given)}) => ({', '.join(function.output)})",
        body=f"""
        grow = Constant <value_float = {STATE_SCALE}> ()
        shrink = Reciprocal (grow)
        {lines}
        {", ".join(f"wide_{name}" for name in function.output)} =
            bnnopt.{base.name} {passed_on(function.attribute)} ({read})
        {narrowed}
        """,
        type_rule=base.type_rule,
        in_place=base.in_place,
        family=base.base,
        form=base.form | Form.HALF,
    )


_READ_PEAKS = f"""
        columns = Constant <value_ints = [{", ".join(map(str, range(N_PEAKS)))}]> ()
        n_columns = Constant <value_int = {N_PEAKS}> ()
        one_step = Constant <value_int = 1> ()
        two_steps = Constant <value_int = 2> ()
        by_row = Constant <value_ints = [1]> ()
        last_number = Sub (step, one_step)
        previous_number = Sub (step, two_steps)
        next_number = Add (step, one_step)
        now = Mod (step, n_columns)
        last = Mod (last_number, n_columns)
        previous = Mod (previous_number, n_columns)
        coming = Mod (next_number, n_columns)
        headroom_value = Constant <value_float: float = @headroom> ()
        places = Constant <value_float = 127.0> ()
        factor = Div (headroom_value, places)
        least_unit = Constant <value_float = 1e-30> ()
        zero = Constant <value_float = 0.0> ()
        last_peak = Gather <axis = 1> (peaks, last)
        last_scaled = Mul (last_peak, factor)
        last_is_used = GreaterOrEqual (last_scaled, least_unit)
        last_unit = Where (last_is_used, last_scaled, zero)
        unit = Unsqueeze (last_unit, by_row)
        previous_peak = Gather <axis = 1> (peaks, previous)
        previous_scaled = Mul (previous_peak, factor)
        previous_is_used = GreaterOrEqual (previous_scaled, least_unit)
        previous_column = Where (previous_is_used, previous_scaled, zero)
        previous_unit = Unsqueeze (previous_column, by_row)
        m_float = Cast <to = 1> (m)
        m_rows = Flatten <axis = 1> (m_float)
        m_scaled = Mul (m_rows, previous_unit)
        m_shape = Shape (m)
        m32 = Reshape (m_scaled, m_shape)"""
_WRITE_PEAKS = """next_m = bnnopt.RoundToByte <seed: int = @seed> (wide_next_m, unit, step)
        next_rows = Flatten <axis = 1> (wide_next_m)
        sizes = Abs (next_rows)
        largest = ReduceMax <keepdims = 1> (sizes, by_row)
        higher = Max (peaks, largest)
        is_coming = Equal (columns, coming)
        is_now = Equal (columns, now)
        cleared = Where (is_coming, zero, peaks)
        next_peaks = Where (is_now, higher, cleared)"""
_BYTES = f"""m, next_m: (M, *shape) int8, the momentum in units of its row, as in RoundToByte.
        peaks, next_peaks: (M, {N_PEAKS}) float32, the largest |m| of a row after step t in column t
        mod {N_PEAKS}, all 0 at first. A row's unit in step t is `headroom` / 127 times its peak
        after step t - 1 (0 below 1e-30), so that all of it is known before the first element is
        rounded; what has grown by more than `headroom` is cut off. The column of step t + 1 is
        cleared by step t."""


def _of_bytes(base: Operator) -> Operator:
    """The operator that keeps in int8 the momentum that `base` keeps in float32."""
    function = base.function(MIN_OPSET)
    names = [name for name in function.input if name in ("w", "v")]
    _, _, *behind = (name for name in function.input if name != "step")
    own = ", ".join([*function.attribute, "stochastic", "seed", "w_unit", "headroom"])
    read = ", ".join(f"{name}32" if name in _WIDEN else name for name in function.input)
    next_w, *next_states = function.output
    written = [_WRITE_PEAKS if name == "next_m" else _NARROW[name] for name in function.output]
    lines = "\n        ".join(_WIDEN[name] for name in names)
    narrowed = "\n        ".join(written)
    return Operator(
        summary=f"""{base.name} in float32, of a momentum that is kept in int8.

        {_BYTES}
        w and v as in Half{base.name}. step: int64 scalar. All else as in {base.name}.
        """,
        signature=(
            f"Byte{base.name} <{own}> (w, dw, peaks, {', '.join(behind)}, step)"
            f" => ({', '.join([next_w, 'next_peaks', *next_states])})"
        ),
        body=f"""
        grow = Constant <value_float = {STATE_SCALE}> ()
        shrink = Reciprocal (grow)
        {_READ_PEAKS.strip()}
        {lines}
        {", ".join(f"wide_{name}" for name in function.output)} =
            bnnopt.{base.name} {passed_on(function.attribute)} ({read})
        {narrowed}
        """,
        type_rule=like(0, *range(2, 3 + len(next_states))),
        in_place={0: 0} | {i: i + 1 for i in range(1, 2 + len(next_states))},
        family=base.base,
        form=base.form | Form.BYTES,
    )


def _of_signs(base: Operator) -> Operator:
    """The operator that reads `packed` signs where `base` reads dw."""
    function = base.function(MIN_OPSET)
    own = ", ".join(["shape", "scale", "limit", *function.attribute])
    read = ", ".join("packed" if name == "dw" else name for name in function.input)
    outputs = ", ".join(function.output)
    return Operator(
        summary=f"""{base.name} of dw = SignGrad(packed, w), which is nowhere written down.

        w: (M, *shape); packed: (M, ceil(K / 8)) uint8; all else as in {base.name}, the attributes
        `shape`, `scale` and `limit` as in SignGrad.
        """,
        signature=f"Sign{base.name} <{own}> ({read}) => ({outputs})",
        body=f"""
            dw = bnnopt.SignGrad {passed_on(["shape", "scale", "limit"])} (packed, w)
            {outputs} = bnnopt.{base.name} {passed_on(function.attribute)} (
                {", ".join(function.input)}
            )
        """,
        type_rule=base.type_rule,
        in_place=base.in_place,
        family=base.base,
        form=base.form | Form.SIGNS,
    )


HALF_BOP_STEP = Operator(
    summary="""BopStep in float32, of a momentum that is kept in float16.

    m, next_m: (M, *shape) float16, STATE_SCALE = 1024 times the momentum, rounded stochastically by
    `seed` (to nearest it would stand still: it moves by `gamma` of itself). step: int64 scalar. All
    else as in BopStep.
    """,
    signature="HalfBopStep <shape, gamma, tau, seed> (w, dw, m, step) => (next_w, next_m)",
    body="""
        grow = Constant <value_float = 1024.0> ()
        shrink = Reciprocal (grow)
        m_wide = Cast <to = 1> (m)
        m32 = Mul (m_wide, shrink)
        next_w, wide_next_m = bnnopt.BopStep <
            shape: ints = @shape, gamma: float = @gamma, tau: float = @tau
        > (w, dw, m32)
        m_scaled = Mul (wide_next_m, grow)
        next_m = bnnopt.RoundToHalf <stochastic = 1, seed: int = @seed> (m_scaled, step)
    """,
    type_rule=like(0, 2),
    in_place={0: 0, 1: 2},
    family="BopStep",
    form=Form.HALF,
)

BYTE_BOP_STEP = Operator(
    summary=f"""BopStep in float32, of a momentum that is kept in int8.

        {_BYTES}
        step: int64 scalar. All else as in BopStep.
    """,
    signature=(
        "ByteBopStep <shape, gamma, tau, seed, headroom> (w, dw, peaks, m, step)"
        " => (next_w, next_peaks, next_m)"
    ),
    body=f"""
        {_READ_PEAKS.strip()}
        next_w, wide_next_m = bnnopt.BopStep <
            shape: ints = @shape, gamma: float = @gamma, tau: float = @tau
        > (w, dw, m32)
        {_WRITE_PEAKS}
    """,
    type_rule=like(0, 2, 3),
    in_place={0: 0, 1: 2, 2: 3},
    family="BopStep",
    form=Form.BYTES,
)

_HALVES = tuple(_of_halves(rule) for rule in RULES)
_BYTE_STEPS = tuple(_of_bytes(rule) for rule in RULES if "m" in rule.function(MIN_OPSET).input)
OF_SIGNS = tuple(_of_signs(rule) for rule in (*RULES, *_HALVES, *_BYTE_STEPS))
OF_BITS = (BOP_STEP, HALF_BOP_STEP, BYTE_BOP_STEP)  # binary weights without latent ones
OF_FLOATS = (*RULES, *_HALVES, *_BYTE_STEPS)
OPERATORS = (
    *(ROUND_TO_HALF, ROUND_TO_BYTE, HALF_BOP_STEP, BYTE_BOP_STEP),
    *(*_HALVES, *_BYTE_STEPS, *OF_SIGNS),
)
