"""Quantisers: QONNX's, and QuantizeLinear with DequantizeLinear behind it (QCDQ).

Forward: y = (clip(round(x / s + z), low, high) - z) s. Backward: the rounding passes the gradient
on, the clip where its input is within the range, as PyTorch's fake_quantize and Brevitas do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.frontend.composed.body import Body, Writer, number
from bnnopt.ops.operands import Operands

_ROUNDINGS = {"ROUND": "Round", "HALF_EVEN": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}


def _quant(o: Operands) -> Body:
    """QONNX's Quant (x, scale, zero point, bit width); scale and zero point stretch to x."""
    bits = o.reals(3)
    o.require(len(bits) == 1 and bits[0] >= 1, "the bit width", bits, "one constant from 1 on")
    mode = o.text("rounding_mode", "ROUND").upper()
    o.require(mode in _ROUNDINGS, "rounding_mode", mode, ", ".join(_ROUNDINGS))
    low, high = _range(bits[0], bool(o.number("signed", 1)), bool(o.number("narrow", 0)))
    return Body(f"""(x, s, z, bits) => (y) {{ {number("low", low)} {number("high", high)}
        ratio = Div (x, s) shifted = Add (ratio, z) rounded = {_ROUNDINGS[mode]} (shifted)
        level = Clip (rounded, low, high) centred = Sub (level, z) y = Mul (centred, s) }}""")


def _range(bits: float, signed: bool, narrow: bool) -> tuple[float, float]:
    if signed:
        return -(2.0 ** (bits - 1)) + narrow, 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1 - narrow


def _bipolar_quant(o: Operands) -> Body:
    """QONNX's BipolarQuant (x, scale): a sign, +1 at 0, times the scale."""
    return Body(f"""(x, s) => (y) {{ {number("nil", 0.0)} {number("up", 1.0)} {number("down", -1.0)}
        is_up = GreaterOrEqual (x, nil) sign = Where (is_up, up, down) y = Mul (sign, s) }}""")


def _dequantize_linear(o: Operands) -> Body | None:
    """What QuantizeLinear gave, perhaps behind a Clip, is what it read, on levels of a scale."""
    quantize, bounds = _quantizer(o.value(0))
    if quantize is None or quantize.inputs[0] is None:
        return None
    before = Operands(quantize)
    scale, other = before.array(1), o.array(1)
    zeros = [_zero(operands) for operands in (before, o)]
    o.require(
        scale is not None and other is not None and np.array_equal(scale, other)
        and np.array_equal(zeros[0], zeros[1]),
        *("its scale or zero point", "another one"),
        "constants, those of the QuantizeLinear before it",
    )  # fmt: skip
    assert scale is not None
    alike = len({int(z) for z in zeros[0].reshape(-1)}) == 1
    o.require(alike, "the zero point", zeros[0].reshape(-1).tolist(), "one number")
    low, high = _limits(quantize, bounds)
    zero = float(zeros[0].reshape(-1)[0])
    text = f"""(x) => (y) {{ {number("low", low - zero)} {number("high", high - zero)}
        ratio = Div (x, s) rounded = Round (ratio) level = Clip (rounded, low, high)
        y = Mul (level, s) }}"""
    scale = scale.astype(np.float32)
    if scale.size > 1:
        axis, rank = before.number("axis", 1), len(before.shape(0))
        scale = scale.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
    return Body(text, {"s": scale.reshape(()) if scale.size == 1 else scale}, (quantize.inputs[0],))


def _quantizer(value: ir.Value) -> tuple[ir.Node | None, list[NDArray[Any]]]:
    """The QuantizeLinear behind a value, and bounds that a Clip sets on the way."""
    node, bounds = value.producer(), []
    if node is not None and node.op_type == "Clip" and not node.domain and node.inputs[0]:
        given = [Operands(node).array(i) for i in (1, 2)]
        bounds = [bound for bound in given if bound is not None]
        node = node.inputs[0].producer()
    is_one = node is not None and node.op_type == "QuantizeLinear" and not node.domain
    return (node if is_one else None), bounds


def _zero(o: Operands) -> NDArray[Any]:
    zero = o.array(2)
    return np.zeros(1, np.int64) if zero is None else zero.astype(np.int64)


def _limits(quantize: ir.Node, bounds: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """The range of the integers, and of the Clip."""
    kind = quantize.outputs[0].dtype
    assert kind is not None
    n_bits, signed = int(kind.itemsize * 8), "U" not in kind.name
    low, high = _range(n_bits, signed, narrow=False)
    if len(bounds) == 2:
        low, high = max(low, float(bounds[0].item())), min(high, float(bounds[1].item()))
    return low, high


BODIES: dict[str, Writer] = {"DequantizeLinear": _dequantize_linear}
QONNX: dict[str, Writer] = {"BipolarQuant": _bipolar_quant, "Quant": _quant}
