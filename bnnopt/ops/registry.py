"""The table of the domain's operators."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from bnnopt.ops import (
    activations,
    binarize,
    binary_products,
    bitmap,
    convolution,
    dropout,
    filter_blocks,
    indexing,
    int4,
    int8,
    latents,
    layer_normalization,
    loss,
    normalization,
    on_read,
    optimizer_forms,
    optimizers,
    packing,
    pooled_filter_blocks,
    pooled_normalization,
    pooling,
    pow2,
    updates,
)
from bnnopt.ops.operator import DOMAIN, Form, Operator

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for module in (
        activations,
        binarize,
        convolution,
        dropout,
        indexing,
        loss,
        packing,
        pooling,
        bitmap,
        normalization,
        layer_normalization,
        on_read,
        pooled_normalization,
        latents,
        optimizers,
        optimizer_forms,  # a body's callees come before it: onnx's reference evaluator needs that
        binary_products,
        int8,
        int4,
        pow2,
        updates,
        filter_blocks,
        pooled_filter_blocks,
    )
    for operator in module.OPERATORS
}

_BY_FORM = {(operator.base, operator.form): name for name, operator in OPERATORS.items()}


def family(node: ir.Node) -> str:
    """The name of the plain operator that a node's operator is, or is a form of."""
    return OPERATORS[node.op_type].base if node.domain == DOMAIN else node.op_type


def form(node: ir.Node) -> Form:
    """The form of a node's operator."""
    return OPERATORS[node.op_type].form if node.domain == DOMAIN else Form.PLAIN


def in_form(base: str, wanted: Form) -> str | None:
    """The operator of family `base` in a form; None where there is none."""
    return _BY_FORM.get((base, wanted))


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
