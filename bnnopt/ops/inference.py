"""Types and shapes of one node at a time, so that every value of a graph is always typed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from bnnopt.ops.operator import DOMAIN, InferenceError, TypedDims, dims
from bnnopt.ops.registry import OPERATORS
from bnnopt.ops.shapes import check_inputs, check_outputs
from bnnopt.ops.traits import traits

# What onnx raises for a node that breaks its rules; ValueError for an element type of 0.
INVALID = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
    ir.serde.SerdeError,
)


@functools.cache
def _schema(op_type: str, domain: str, opset: int) -> onnx.defs.OpSchema:
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        name = f"{domain}.{op_type}" if domain else op_type
        raise InferenceError(f"there is no operator {name} in opset {opset}") from None


def infer_types(node: ir.Node, opset: int, may_vary: bool = False) -> None:
    """Set dtype and shape of the node's outputs.

    With `may_vary` an axis whose length depends on the data stays open; else that is an error.

    Raises
    ------
    InferenceError
        If they do not follow from the inputs: an unknown operator, or shapes that do not fit.
    """
    own = node.domain == DOMAIN
    if not own:
        check_inputs(node)
    typed = _own_types(node) if own else _standard_types(node, opset, may_vary)
    for output, (element, shape) in zip(node.outputs, typed, strict=False):
        output.type = ir.TensorType(element)
        output.shape = ir.Shape(shape)
    if not own:
        check_outputs(node)


def has_inference(node: ir.Node, opset: int) -> bool:
    """Whether onnx types what a node gives: a few have only a body, other domains nothing."""
    return (
        not node.domain and _schema(node.op_type, "", opset).has_type_and_shape_inference_function
    )


def _own_types(node: ir.Node) -> Sequence[TypedDims]:
    if node.op_type not in OPERATORS:
        raise InferenceError(f"there is no operator {DOMAIN}.{node.op_type}")
    return OPERATORS[node.op_type].type_rule(node)


OpenDims = tuple[ir.DataType, tuple[int | None, ...]]


class _Operand(NamedTuple):
    """Type and shape of an input, and its elements where they are known and read."""

    element: ir.DataType
    shape: tuple[int | None, ...]
    data: bytes | None


class _Call(NamedTuple):
    """All that the types of a node of a standard operator follow from; no names."""

    op_type: str
    domain: str
    opset: int
    attributes: tuple[tuple[str, ir.AttributeType, Any], ...]
    inputs: tuple[_Operand | None, ...]
    outputs: tuple[bool, ...]  # whether each is there


def _standard_types(node: ir.Node, opset: int, may_vary: bool) -> Sequence[OpenDims]:
    reads_data = not traits(node).elementwise  # those need shapes alone
    attributes = node.attributes.values()
    call = _Call(
        node.op_type,
        node.domain,
        opset,
        tuple((a.name, a.type, a.value) for a in attributes),
        tuple(_operand(value, reads_data) if value is not None else None for value in node.inputs),
        tuple(bool(output.name) for output in node.outputs),
    )
    infer = _inferred if _HASHED.issuperset(a.type for a in attributes) else _infer
    try:
        found = infer(call)
    except INVALID as error:
        raise InferenceError(str(error).strip().splitlines()[-1]) from None
    return [_closed(typed, node, may_vary) for typed in found]


def _operand(value: ir.Value, reads_data: bool) -> _Operand:
    if value.dtype is None or value.shape is None:
        raise InferenceError(f"input {value.name!r} has no type")
    sizes = tuple(d if isinstance(d, int) else None for d in value.shape.dims)
    return _Operand(value.dtype, sizes, _data(value) if reads_data else None)


def _data(value: ir.Value) -> bytes | None:
    """The value's elements, where they are known: a constant, or the shape of a typed value."""
    constant = value.const_value
    if constant is not None:
        is_read = constant.size <= 4096 and constant.dtype is not ir.DataType.STRING
        return constant.tobytes() if is_read else None
    producer = value.producer()
    if producer is None or producer.op_type != "Shape" or producer.attributes:
        return None
    if not is_static(producer.inputs[0]):
        return None
    return np.array(dims(producer.inputs[0]), np.int64).tobytes()


def _infer(call: _Call) -> list[OpenDims | None]:
    """What onnx says of the outputs; None where it says no shape."""
    schema = _schema(call.op_type, call.domain, call.opset)
    node = onnx.NodeProto(op_type=call.op_type, domain=call.domain)
    node.input.extend("" if x is None else f"x{i}" for i, x in enumerate(call.inputs))
    node.output.extend(f"y{i}" if there else "" for i, there in enumerate(call.outputs))
    for attribute in call.attributes:
        node.attribute.append(ir.serde.serialize_attribute(ir.Attr(*attribute)))
    there = {f"x{i}": operand for i, operand in enumerate(call.inputs) if operand is not None}
    types = {
        name: onnx.helper.make_tensor_type_proto(operand.element.value, operand.shape)
        for name, operand in there.items()
    }
    known = {
        name: onnx.TensorProto(
            data_type=operand.element.value,
            dims=[size for size in operand.shape if size is not None],
            raw_data=operand.data,
        )
        for name, operand in there.items()
        if operand.data is not None
    }
    inferred = onnx.shape_inference.infer_node_outputs(schema, node, types, known)
    return [_typed(inferred.get(name)) for name in node.output]


_inferred = functools.lru_cache(maxsize=4096)(_infer)  # layers, and copies of a graph, are alike
_HASHED = frozenset(
    {ir.AttributeType[kind] for kind in ("FLOAT", "FLOATS", "INT", "INTS", "STRING", "STRINGS")}
)


def _typed(proto: onnx.TypeProto | None) -> OpenDims | None:
    tensor = proto.tensor_type if proto is not None else None
    if tensor is None or not tensor.HasField("shape"):
        return None
    sizes = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return ir.DataType(tensor.elem_type), tuple(sizes)


def _closed(typed: OpenDims | None, node: ir.Node, may_vary: bool) -> OpenDims:
    if typed is not None and (may_vary or None not in typed[1]):
        return typed
    raise InferenceError(f"the shape that {node.op_type} gives depends on the data")


def is_static(value: ir.Value | None) -> bool:
    """Whether every axis of a value has a known length."""
    return value is not None and value.shape is not None and value.shape.is_static()
