"""Graphs for stock onnxruntime."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import DeduplicateInitializersPass, RemoveUnusedNodesPass

from bnnopt.analysis.batch import Known, scaled_shape, symbolic, with_one_more
from bnnopt.artifact.inlining import inline_calls, lift_constants
from bnnopt.ops import DOMAIN, InferenceError, dims, dtype, infer_types, is_static, is_view, traits
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.training_step import TrainingStep, drop_unread, replace_uses

SMALL = 4096  # elements of a value that is worked out beforehand


def portable_model(step: TrainingStep, batch_size: int) -> ir.Model:
    """The step in standard operators only, in its own order, for any batch size.

    onnxruntime expands a function after loading, and then its nodes get late places in the order: a
    pack would run when its unpacking is due, and nothing would be saved. So functions are inlined.
    It takes over a buffer only where it knows two shapes to be equal, so whatever does not depend
    on the batch is worked out here, and every shape is written down in terms of the batch. A graph
    that something ties to its batch keeps that.
    """
    model = step.model.clone()
    _write_out_outputs(model)
    _name_inner_nodes(model)
    inline_calls(model)
    _name_inner_values(model)
    _remove_unused(model)  # what makes an output that is left out
    lift_constants(model.graph)
    model.graph.opset_imports.pop(DOMAIN, None)
    for node in model.graph:
        _work_out(node, step.opset)
    _compute_wide(model.graph, step.opset)
    larger = _larger(model, step.opset)
    gone = []  # removed at once: each removal goes through all outputs of the graph
    for node in list(model.graph):
        for output in node.outputs:
            _write_shape(output, larger, batch_size)
        if _has_same_data(node, larger):
            _fold(model.graph, node)
        elif _casts_nothing(node):
            _bypass(node)
        elif node.op_type == "CastLike":
            _make_cast(model.graph, node)
        else:
            continue
        gone.append(node)
    for value in model.graph.inputs:
        if value in larger:
            value.shape = ir.Shape(("batch", *dims(value)[1:]))
    model.graph.remove(gone, safe=True)
    _remove_unused(model)
    DeduplicateInitializersPass()(model)
    return model


def _remove_unused(model: ir.Model) -> None:
    """Remove what nothing reads: nodes, initialisers, optional outputs and empty inputs."""
    drop_unread(model.graph)
    RemoveUnusedNodesPass()(model)


def _compute_wide(graph: ir.Graph, opset: int) -> None:
    """Let what computes with float16 do so in float32, between casts that are written down.

    onnxruntime has few float16 kernels for processors: it would put casts there by itself, and
    leave out those that undo each other, with the rounding.
    """
    number = itertools.count()
    for node in list(graph):
        halves = [i for i, value in enumerate(node.inputs) if _is_half(value)]
        if traits(node).moves_halves or is_view(node) or not halves:
            continue
        for i in halves:
            wide = _cast(node.inputs[i], ir.DataType.FLOAT, opset, f"wide.{next(number)}")
            graph.insert_before(node, wide)
            node.replace_input_with(i, wide.outputs[0])
        old = [output for output in node.outputs if _is_half(output)]
        _work_out(node, opset)
        for output in old:
            half = _cast(output, ir.DataType.FLOAT16, opset, f"half.{next(number)}")
            graph.insert_after(node, half)
            replace_uses(output, half.outputs[0])
            half.replace_input_with(0, output)
            output.name, half.outputs[0].name = half.outputs[0].name, output.name


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT16


def _cast(value: ir.Value | None, kind: ir.DataType, opset: int, name: str) -> ir.Node:
    assert value is not None
    attributes = ir.convenience.convert_attributes({"to": int(kind)})
    cast = ir.Node("", "Cast", [value], attributes, outputs=[ir.Value(name=name)], name=name)
    _work_out(cast, opset)
    return cast


def _write_out_outputs(model: ir.Model) -> None:
    """Give every call all outputs of its function: a file leaves out the last ones if unread."""
    for node in model.graph:
        function = model.functions.get(node.op_identifier())
        if function is not None:
            node.resize_outputs(len(function.outputs))


def _name_inner_nodes(model: ir.Model) -> None:
    """Name nodes of functions after what they give: the inliner counts up from equal names."""
    for function in model.functions.values():
        for node in function:
            node.name = node.name or f"{function.name}.{node.outputs[0].name}"


def _name_inner_values(model: ir.Model) -> None:
    """Name an output that a call left out where the function itself goes on to read it."""
    for number, node in enumerate(model.graph):
        for i, output in enumerate(node.outputs):
            if not output.name and output.uses():
                output.name = f"inner.{number}.{i}"


def _larger(model: ir.Model, opset: int) -> dict[ir.Value, Known]:
    """What differs with one more sample: nothing where something ties the model to its batch."""
    try:
        return with_one_more(model.graph, partial(_work_out, opset=opset))
    except InferenceError:
        return {}


def _work_out(node: ir.Node, opset: int) -> None:
    """Type the node's outputs, and compute them where they follow from constants and shapes."""
    infer_types(node, opset, may_vary=True)
    named = [output for output in node.outputs if output.name]
    if not all(is_static(output) for output in named):
        return
    if any(math.prod(dims(output)) > SMALL for output in named):
        return
    shape_only = traits(node).reads_shape
    known = [_elements(value, shape_only) for value in node.inputs]
    if any(a is None for a, value in zip(known, node.inputs, strict=True) if value is not None):
        return
    for output, array in zip(node.outputs, compute(node, known), strict=False):
        output.const_value = ir.Tensor(array)


def compute(
    node: ir.Node, inputs: Sequence[NDArray[np.generic] | None]
) -> Sequence[NDArray[np.generic]]:
    """What a node gives for these inputs, by its numpy kernel."""
    if node.op_type == "CastLike" and inputs[0] is not None:
        return [inputs[0].astype(dtype(node.outputs[0]).numpy())]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    results = KERNELS[node.op_type](*inputs, **attributes)
    return results if isinstance(results, tuple) else [results]


def _elements(value: ir.Value | None, shape_only: bool) -> NDArray[np.generic] | None:
    """The elements of a known value; any stand-in of the right shape where only that is read."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    usable = shape_only and is_static(value)
    return np.broadcast_to(np.int8(0), dims(value)) if usable else None


def _has_same_data(node: ir.Node, larger: Mapping[ir.Value, Known]) -> bool:
    """Whether the node's outputs are known, and the same whatever the batch."""
    return all(v.const_value is not None and v not in larger for v in node.outputs)


def _write_shape(value: ir.Value, larger: Mapping[ir.Value, Known], batch_size: int) -> None:
    if value.name and not is_static(value):
        return  # it depends on the data, and stays open
    shape = scaled_shape(value, larger, batch_size) if value.name else None
    value.shape = None if shape is None else symbolic(shape)


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    for output in node.outputs:
        constant = ir.val(output.name, type=output.type, const_value=output.const_value)
        constant.shape = output.shape
        output.replace_all_uses_with(constant)
        graph.register_initializer(constant)


def _casts_nothing(node: ir.Node) -> bool:
    """Whether the node casts to the type that its input has; onnxruntime drops such nodes."""
    if not traits(node).casts or node.outputs[0].is_graph_output():
        return False
    return dtype(node.inputs[0]) == dtype(node.outputs[0])


def _bypass(node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    node.outputs[0].replace_all_uses_with(source)


def _make_cast(graph: ir.Graph, node: ir.Node) -> None:
    """CastLike is a function to onnxruntime; Cast is not."""
    old = node.outputs[0]
    attributes = ir.convenience.convert_attributes({"to": int(dtype(old))})
    output = ir.Value(name=old.name, type=old.type, shape=old.shape)
    cast = ir.Node("", "Cast", node.inputs[:1], attributes, name=node.name, outputs=[output])
    graph.insert_before(node, cast)
    replace_uses(old, output)
