"""Types and shapes of one node at a time, so that every value of a graph is always typed."""

from __future__ import annotations

import functools
from collections.abc import Sequence

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


def _standard_types(node: ir.Node, opset: int, may_vary: bool) -> Sequence[OpenDims]:
    schema = _schema(node.op_type, node.domain, opset)
    present = [value for value in node.inputs if value is not None]
    types = {str(value.name): _type_proto(value) for value in present}
    reads = () if traits(node).elementwise else present  # those need shapes alone
    try:
        known = {str(value.name): data for value in reads if (data := _data(value)) is not None}
        proto = ir.serde.serialize_node(node)
        inferred = onnx.shape_inference.infer_node_outputs(schema, proto, types, known)
    except INVALID as error:
        raise InferenceError(str(error).strip().splitlines()[-1]) from None
    return [_typed(inferred.get(str(output.name)), node, may_vary) for output in node.outputs]


def _data(value: ir.Value) -> onnx.TensorProto | None:
    """The value's elements, where they are known: a constant, or the shape of a typed value."""
    if value.const_value is not None:
        small = value.const_value.size <= 4096
        return ir.serde.serialize_tensor(value.const_value) if small else None
    producer = value.producer()
    if producer is None or producer.op_type != "Shape" or producer.attributes:
        return None
    if not is_static(producer.inputs[0]):
        return None
    return onnx.numpy_helper.from_array(np.array(dims(producer.inputs[0]), np.int64))


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    if value.dtype is None or value.shape is None:
        raise InferenceError(f"input {value.name!r} has no type")
    sizes = [d if isinstance(d, int) else None for d in value.shape]
    return onnx.helper.make_tensor_type_proto(value.dtype.value, sizes)


def is_static(value: ir.Value | None) -> bool:
    """Whether every axis of a value has a known length."""
    return value is not None and value.shape is not None and value.shape.is_static()


def _typed(proto: onnx.TypeProto | None, node: ir.Node, may_vary: bool) -> OpenDims:
    tensor = proto.tensor_type if proto is not None else None
    if tensor is not None and tensor.HasField("shape"):
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        if may_vary or None not in sizes:
            return ir.DataType(tensor.elem_type), tuple(sizes)
    raise InferenceError(f"the shape that {node.op_type} gives depends on the data")
