"""How many elements of a value are not zero: measured by a calibration batch, or by rule."""

from __future__ import annotations

import math

import onnx_ir as ir

from bnnopt.metadata import Key
from bnnopt.ops import dims, is_view

# Where nothing was measured. Batch norm centres its output, so that ReLU keeps half; behind a sum
# with a shortcut it keeps more. A maximum is zero only where its whole window is: without a
# measurement, what is pooled counts as dense.
RELU_DENSITY = 0.6


def measured_density(value: ir.Value) -> float | None:
    """What calibration found; None where it did not look."""
    text = value.metadata_props.get(Key.DENSITY)
    return None if text is None else float(text)


def expected_density(value: ir.Value) -> float | None:
    """By rule; None where nothing says that there are zeros."""
    node = value.producer()
    if node is None or value is not node.outputs[0]:
        return None
    if node.op_type == "Relu" or (node.op_type == "Clip" and _bound(node, 1) == 0):
        return RELU_DENSITY
    source = node.inputs[0]
    if node.op_type == "Dropout" and "threshold" in node.attributes:
        kept = 1 - node.attributes["threshold"].as_int() / 2**32
        return kept * (_source_density(source) or 1)
    if is_view(node):
        return _source_density(source)
    return _joined(node) if node.op_type == "Concat" else None


def _source_density(value: ir.Value | None) -> float | None:
    return expected_density(value) if value is not None else None


def _joined(node: ir.Node) -> float | None:
    parts = [(_source_density(value), math.prod(dims(value))) for value in node.inputs]
    known = [(density or 1) * size for density, size in parts]
    sparse = any(density is not None for density, _ in parts)
    return sum(known) / sum(size for _, size in parts) if sparse else None


def _bound(node: ir.Node, index: int) -> float | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    return float(value.const_value.numpy().item())
