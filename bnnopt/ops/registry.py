"""The table of the domain's operators."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from bnnopt.ops import (
    binarize,
    binary_products,
    bitmap,
    convolution,
    dropout,
    loss,
    normalization,
    optimizers,
    packing,
    pooled_normalization,
    pooling,
    pow2,
    updates,
)
from bnnopt.ops.operator import DOMAIN, Operator

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for module in (
        binarize,
        convolution,
        dropout,
        loss,
        packing,
        pooling,
        bitmap,
        normalization,
        pooled_normalization,
        optimizers,  # a body's callees come before it: onnx's reference evaluator needs that
        binary_products,
        pow2,
        updates,
    )
    for operator in module.OPERATORS
}

# What reads dy, to the operator that reads it as packed powers of two.
POW2_FORMS = {**pow2.POW2_PRODUCTS, **updates.POW2_UPDATES}

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


def is_view(node: ir.Node) -> bool:
    """Whether the node's output is its first input's buffer under another shape."""
    return node.domain == "" and node.op_type in VIEWS


def is_binarization(node: ir.Node) -> bool:
    """Whether the node gives the signs of its input."""
    return node.domain == DOMAIN and node.op_type in ("Binarize", "Ternarize")


def functions_for(nodes: Iterable[ir.Node], opset: int) -> list[ir.Function]:
    """The functions that `nodes` call, directly or through one another, in table order."""
    needed = {node.op_type for node in nodes if node.domain == DOMAIN}
    pending = list(needed)
    while pending:
        body = OPERATORS[pending.pop()].body
        called = {name for name in OPERATORS if f"{DOMAIN}.{name} " in body} - needed
        needed |= called
        pending += called
    return [
        ir.serde.deserialize_function(operator.function(opset))
        for name, operator in OPERATORS.items()
        if name in needed
    ]
