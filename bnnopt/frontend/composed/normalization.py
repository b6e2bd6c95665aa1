"""Normalisations over axes of one sample, written out.

Forward: y = (x - mean) / sqrt(var + epsilon) scale + bias, the mean and variance of rows.
"""

from __future__ import annotations

from bnnopt.frontend.composed.body import Body, Writer, ints, number
from bnnopt.ops.operands import Operands


def _normal(axis: int, epsilon: float) -> str:
    """Statements from ``rows`` to ``normal``, with ``mean`` and ``inverse`` on the way."""
    return f"""{ints("axis", [axis])} {number("eps", epsilon)}
        mean = ReduceMean (rows, axis) centred = Sub (rows, mean) square = Mul (centred, centred)
        variance = ReduceMean (square, axis) above = Add (variance, eps) deviation = Sqrt (above)
        normal = Div (centred, deviation)"""


def _layer_normalization(o: Operands) -> Body | None:
    """Rows are all axes from `axis` on; the scale and the bias have these axes.

    Where they have them all, and nobody asks for the statistics, it stays as it is.
    """
    axis = o.number("axis", -1)
    row = o.shape(0)[axis:]
    if o.n_outputs == 1 and all(o.shape(i) == row for i in (1, 2) if o.has(i)):
        return None
    scaled = "scaled" if o.has(2) else "last"
    shift = "shift = Flatten <axis = 0> (b) last = Add (scaled, shift)" if o.has(2) else ""
    more = ""
    if o.n_outputs > 1:
        statistics = o.output(1)
        more += f"""{ints("small", [-1, *statistics[1:]])} average = Reshape (mean, small)
            inverted = Reciprocal (deviation) inverse = Reshape (inverted, small)"""
    return Body(f"""(x, g, b) => (y, average, inverse) {{ rows = Flatten <axis = {axis}> (x)
        {_normal(1, o.real("epsilon", 1e-5))}
        scale = Flatten <axis = 0> (g) {scaled} = Mul (normal, scale) {shift}
        shape = Shape (x) y = Reshape (last, shape) {more} }}""")


def _instance_normalization(o: Operands) -> Body:
    """Rows are the planes; a scale and a bias for each channel."""
    return Body(f"""(x, g, b) => (y) {{ {ints("split", [0, o.shape(0)[1], -1])}
        rows = Reshape (x, split) {_normal(2, o.real("epsilon", 1e-5))}
        {ints("column", [-1, 1])} scale = Reshape (g, column) scaled = Mul (normal, scale)
        shift = Reshape (b, column) shifted = Add (scaled, shift)
        shape = Shape (x) y = Reshape (shifted, shape) }}""")


def _group_normalization(o: Operands) -> Body:
    """Rows are groups of channels; a scale and a bias for each channel."""
    groups, channels = o.number("num_groups", 1), o.shape(0)[1]
    o.require(groups >= 1 and channels % groups == 0, "num_groups", groups, f"a part of {channels}")
    for index in (1, 2):
        o.require_shape(index, (channels,))
    return Body(f"""(x, g, b) => (y) {{ {ints("split", [0, groups, -1])}
        rows = Reshape (x, split) {_normal(2, o.real("epsilon", 1e-5))}
        {ints("parts", [0, channels, -1])} parted = Reshape (normal, parts)
        {ints("column", [-1, 1])} scale = Reshape (g, column) scaled = Mul (parted, scale)
        shift = Reshape (b, column) shifted = Add (scaled, shift)
        shape = Shape (x) y = Reshape (shifted, shape) }}""")


def _rms_normalization(o: Operands) -> Body:
    """y = x / sqrt(mean(x^2) + epsilon) scale, over all axes from `axis` on."""
    rank = len(o.shape(0))
    axes = ints("axes", range(o.number("axis", -1) % rank, rank))
    return Body(f"""(x, g) => (y) {{ {axes} {number("eps", o.real("epsilon", 1e-5))}
        square = Mul (x, x) mean = ReduceMean (square, axes) above = Add (mean, eps)
        root = Sqrt (above) normal = Div (x, root) y = Mul (normal, g) }}""")


BODIES: dict[str, Writer] = {
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
}
