"""Binarisation that is written out in elementwise operators, known by the values that it gives.

What elementwise operators make of one tensor and constants is a function of one number. It is
sampled, so that it does not matter how it is written: ``where(x >= 0, 1, -1)``, ``(x > 0).float() *
2 - 1``. The same holds for the s of ``b.detach() - s.detach() + s``, which has the value of b and
the gradient of s; no file carries the ``detach``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from bnnopt.ops import dims
from bnnopt.training_step import is_constant, readers

Array = NDArray[Any]
COMPARISONS = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
ELEMENTWISE = COMPARISONS | {
    *("Abs", "Add", "And", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Not", "Or", "Sub"),
    "Where",
}
GRID = np.array([-4, -2, -1, -0.75, -0.5, -0.25, -1e-3, 0, 1e-3, 0.25, 0.5, 0.75, 1, 2, 4], "f4")


def written_out(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The tensor whose signs `node` gives by means of comparisons, and its value at 0, -1 or +1."""
    if node.domain or node.op_type not in ("Where", "Add", "Sub", "Mul"):
        return None
    y, source = node.outputs[0], _compared(node)
    if source is None or dims(source) != dims(y) or source.dtype != y.dtype:
        return None
    values = _sample(y, source, {})
    if values is None or not np.array_equal(values[GRID != 0], np.sign(GRID[GRID != 0])):
        return None
    zero = float(values[GRID == 0][0])
    return (source, zero) if abs(zero) == 1 else None


def detached(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The b and s of ``(b - s) + s``, where `node` is the sum."""
    if node.domain or node.op_type != "Add":
        return None
    for difference, s in (node.inputs, node.inputs[::-1]):
        sub = difference.producer() if difference is not None else None
        if s is None or is_constant(s) or sub is None or sub.op_type != "Sub":
            continue
        b = sub.inputs[0]
        if sub.inputs[1] is s and b is not None and dims(b) == dims(node.outputs[0]):
            return b, s
    return None


def own_estimator(b: ir.Value, source: ir.Value) -> tuple[str, float] | None:
    """The estimator, with its clip, that the file gives to b = sign(source) by ``(b - s) + s``."""
    for difference in readers(b):
        for node in readers(difference.outputs[0]):
            pair = detached(node)
            if pair is not None and pair[0] is b:
                return _estimator(_sample(pair[1], source, {}))
    return None


def _estimator(values: Array | None) -> tuple[str, float] | None:
    """The estimator whose integral has these values."""
    if values is None or values.shape != GRID.shape:
        return None
    if np.allclose(values, GRID, atol=1e-5):
        return "identity", 1.0
    clip = float(values.max())
    if clip > 0 and np.allclose(values, np.clip(GRID, -clip, clip), atol=1e-5):
        return "clipped", clip
    inner = np.clip(GRID, -1, 1)
    if np.allclose(values, inner * (2 - np.abs(inner)), atol=1e-5):
        return "approx-sign", 1.0
    return None


def _compared(node: ir.Node) -> ir.Value | None:
    """The one tensor that comparisons look at, where `node` depends on nothing else."""
    found: set[ir.Value | None] = set()
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        for value in current.inputs:
            if value is None or is_constant(value):
                continue
            producer = value.producer()
            if current.op_type in COMPARISONS:
                found.add(value)
            elif producer is None or producer.domain or producer.op_type not in ELEMENTWISE:
                return None
            elif producer not in seen:
                seen.add(producer)
                waiting.append(producer)
    return found.pop() if len(found) == 1 else None


def _sample(value: ir.Value, source: ir.Value, known: dict[ir.Value, Array]) -> Array | None:
    """`value` where `source` is each number of `GRID`; None if it depends on anything else."""
    if value is source:
        return GRID
    if value not in known:
        constant = value.const_value.numpy() if value.const_value is not None else None
        found = _run(value, source, known) if constant is None else _one_number(constant)
        if found is None:
            return None
        known[value] = found
    return known[value]


def _run(value: ir.Value, source: ir.Value, known: dict[ir.Value, Array]) -> Array | None:
    node = value.producer()
    if node is None or node.domain or node.op_type not in ELEMENTWISE:
        return None
    feeds = {str(v.name): _sample(v, source, known) for v in node.inputs if v is not None}
    if any(array is None for array in feeds.values()):
        return None
    (found,) = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    return np.asarray(found)


def _one_number(constant: Array) -> Array | None:
    """What all elements of a constant are, such as ``torch.ones_like`` leaves."""
    first = constant.reshape(-1)[:1]
    return first.reshape(()) if first.size and (constant == first).all() else None
