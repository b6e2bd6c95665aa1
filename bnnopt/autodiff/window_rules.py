"""Sliding windows as the gradient rules need them."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.autodiff.context import Context
from bnnopt.ops import NodeWindow, dims, transposed_window, window


def conv(node: ir.Node) -> NodeWindow:
    """The window of a Conv node."""
    return window(node, dims(node.inputs[1])[2:])


def conv_transpose(node: ir.Node) -> NodeWindow:
    """The window of the convolution whose transpose a ConvTranspose node is."""
    return transposed_window(node, dims(node.inputs[1])[2:])


def average_pool(node: ir.Node) -> NodeWindow:
    """The window of an AveragePool node."""
    return window(node, tuple(node.attributes["kernel_shape"].as_ints()))


def with_indices(g: Context) -> ir.Value:
    """The indices output of a MaxPool node, added where the file left it out."""
    if len(g.node.outputs) == 1:
        g.node.resize_outputs(2)
    indices = g.node.outputs[1]
    if not indices.name:
        indices.name = g.forward.unique(f"{g.y().name}.indices")
    indices.type = ir.TensorType(ir.DataType.INT64)
    indices.shape = ir.Shape(dims(g.y()))
    return indices


def counts(node: ir.Node, shape: NodeWindow) -> NDArray[np.float64]:
    """How many elements each window of an AveragePool divides by, (1, 1, *output_shape).

    With ``count_include_pad`` the declared padding counts, but never what ``ceil_mode`` adds.
    """
    include = node.attributes.get("count_include_pad")
    padded = include is not None and bool(include.as_int())
    rank = len(shape.kernel_shape)
    ends = _declared_ends(node, shape)
    axes = []
    for axis in range(rank):
        low = -shape.begins[axis] if padded else 0
        high = shape.input_shape[axis] + (ends[axis] if padded else 0)
        starts = np.arange(shape.output_shape[axis]) * shape.strides[axis] - shape.begins[axis]
        taps = starts[:, None] + np.arange(shape.kernel_shape[axis]) * shape.dilations[axis]
        axes.append(np.sum((taps >= low) & (taps < high), axis=1).astype(np.float64))
    product: NDArray[np.float64] = functools.reduce(np.multiply.outer, axes)
    return product.reshape(1, 1, *shape.output_shape)


def _declared_ends(node: ir.Node, shape: NodeWindow) -> tuple[int, ...]:
    """The end pads without what ``ceil_mode`` adds."""
    rank = len(shape.kernel_shape)
    if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() != "NOTSET":
        return shape.pads[rank:]
    declared = node.attributes.get("pads")
    return (0,) * rank if declared is None else tuple(declared.as_ints())[rank:]
