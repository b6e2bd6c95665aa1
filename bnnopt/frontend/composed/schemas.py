"""Operators that ONNX itself defines by a function of others, where there is no kernel for them."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from bnnopt.ops import dims, dtype
from bnnopt.runtime.kernels.reference.table import KERNELS


def function_of(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    """The body that the standard gives for a typed node, its attributes put in."""
    schema = _schema(node, opset)
    if schema is None:
        return None
    if schema.has_context_dependent_function:
        types = [_type_of(value) for value in node.inputs]
        proto = ir.to_proto(node).SerializeToString()
        text = schema.get_context_dependent_function_with_opset_version(opset, proto, types)
        return _settled(onnx.FunctionProto.FromString(text), node, schema) if text else None
    return _settled(schema.function_body, node, schema) if schema.has_function else None


def has_function(node: ir.Node, opset: int) -> bool:
    """Whether there is such a body; whoever asks need not have typed the node."""
    schema = _schema(node, opset)
    has_one = schema is not None and (schema.has_function or schema.has_context_dependent_function)
    return bool(has_one)


def _schema(node: ir.Node, opset: int) -> Any:
    """The schema (of which onnx's type hints lack a part) of what has no kernel; else None."""
    if node.domain or node.op_type in KERNELS:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None


def _type_of(value: ir.Value | None) -> bytes:
    if value is None:
        return b""
    proto = onnx.helper.make_tensor_type_proto(dtype(value).value, dims(value))
    return bytes(proto.SerializeToString())


def _settled(function: onnx.FunctionProto, node: ir.Node, schema: Any) -> onnx.FunctionProto | None:
    """With the values of the node's attributes, or their defaults, for the names of them.

    None where a node of it has graphs of its own: a loop, or a choice.
    """
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    if any(attribute.type in graphs for inner in function.node for attribute in inner.attribute):
        return None
    given = {name: ir.serde.serialize_attribute(a) for name, a in node.attributes.items()}
    defaults = {name: a.default_value for name, a in schema.attributes.items()}
    settled = onnx.FunctionProto()
    settled.CopyFrom(function)
    for inner in settled.node:
        kept = [_value_of(attribute, given, defaults) for attribute in inner.attribute]
        del inner.attribute[:]
        inner.attribute.extend(attribute for attribute in kept if attribute is not None)
    return settled


def _value_of(
    attribute: onnx.AttributeProto,
    given: dict[str, onnx.AttributeProto],
    defaults: dict[str, onnx.AttributeProto],
) -> onnx.AttributeProto | None:
    if not attribute.ref_attr_name:
        return attribute
    found = given.get(attribute.ref_attr_name, defaults.get(attribute.ref_attr_name))
    if found is None or not found.type:
        return None
    value = onnx.AttributeProto()
    value.CopyFrom(found)
    value.name = attribute.name
    return value
