"""What the passes share about max pooling with places of a few bits instead of indices."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.ops import Emitter, NodeWindow, dims, n_index_bits, window
from bnnopt.passes.shared.rewriting import take_over
from bnnopt.training_step import TrainingStep, phase

MAX_WINDOW = 256  # elements: a place in the window is one byte before it is packed


def obstacle(pool: ir.Node) -> str | None:
    """Why PackedMaxPool cannot stand for this MaxPool; None if it can."""
    shape = _window(pool)
    kernel = shape.kernel_shape
    if len(kernel) != 2:
        return f"{len(kernel)}-D pooling"
    if math.prod(kernel) > MAX_WINDOW:
        return f"its window has more than {MAX_WINDOW} elements"
    if (kernel[-1] - 1) * shape.dilations[-1] >= shape.input_shape[-1]:
        return "its dilated kernel is wider than the input"
    if any(pad >= k for pad, k in zip(shape.pads, 2 * kernel, strict=True)):
        return "a window may lie in the padding"
    return None


def pack_places(step: TrainingStep, pool: ir.Node) -> ir.Value:
    """Put a PackedMaxPool before `pool`, let it have the readers of y, and return its places."""
    shape = _window(pool)
    emit = Emitter(step.graph, phase(pool))
    y, indices = pool.outputs[0], pool.outputs[1] if len(pool.outputs) > 1 else None
    new = emit(
        "PackedMaxPool",
        *(pool.inputs[0], emit.constant(_origin(shape), np.int32, "window_origin")),
        name=str(pool.name),
        n_outputs=2,
        kernel_shape=list(shape.kernel_shape),
        **shape.attributes(),
        **_places(shape),
    )
    (node,) = emit.nodes
    step.graph.insert_before(pool, node)
    node.name = pool.name
    node.outputs[1].name = f"{indices.name}.packed" if indices is not None else ""
    take_over(y, new)
    return node.outputs[1]


def grad_from_places(step: TrainingStep, grad: ir.Node, packed: ir.Value) -> None:
    """Replace a MaxPoolGrad by one that reads `packed`, which `pack_places` returned."""
    pool = packed.producer()
    assert pool is not None
    names = ("plane", "width", "kernel_width", "row_dilation", "column_dilation", "bit_values")
    emit = Emitter(step.graph, phase(grad))
    new = emit(
        "PackedMaxPoolGrad",
        *(grad.inputs[0], packed, pool.inputs[1]),
        name=str(grad.name),
        input_shape=list(grad.attributes["input_shape"].as_ints()),
        bit_shape=[*dims(pool.outputs[0])[1:], len(pool.attributes["bit_values"].as_ints())],
        **{name: pool.attributes[name].value for name in names},
    )
    (node,) = emit.nodes
    step.graph.insert_before(grad, node)
    node.metadata_props.update(grad.metadata_props)
    node.name = grad.name
    take_over(grad.outputs[0], new)
    step.graph.remove(grad, safe=True)


def _window(pool: ir.Node) -> NodeWindow:
    return window(pool, tuple(pool.attributes["kernel_shape"].as_ints()))


def _origin(shape: NodeWindow) -> NDArray[np.int64]:
    """Index in the plane of every window's first element; negative in the padding."""
    rows, columns = (
        np.arange(n) * stride - begin
        for n, stride, begin in zip(shape.output_shape, shape.strides, shape.begins, strict=True)
    )
    return rows[:, None] * shape.input_shape[1] + columns


def _places(shape: NodeWindow) -> dict[str, int | list[int]]:
    return {
        "plane": math.prod(shape.input_shape),
        "width": shape.input_shape[1],
        "kernel_width": shape.kernel_shape[1],
        "row_dilation": shape.dilations[0],
        "column_dilation": shape.dilations[1],
        "bit_values": [1 << i for i in range(n_index_bits(math.prod(shape.kernel_shape)))],
    }
