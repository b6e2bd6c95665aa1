"""Weights that are binarised before every use, kept as their sign bits: no latent weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnnopt.errors import UsageError
from bnnopt.frontend.normalize import ForwardGraph
from bnnopt.ops import Emitter, dims, packed_row_bytes, traits
from bnnopt.training_step import Role, readers, role, set_role


def pack_binary_weights(forward: ForwardGraph, optimizer: str = "bop") -> None:
    """Replace every parameter that only a Binarize reads by the bits of its signs.

    w: (M, *shape) float32 becomes an input (M, ceil(K / 8)) uint8 of the same name, rows as
    SignPack lays them out, and `forward.packed` its former shape.

    Raises
    ------
    UsageError
        If there is no such parameter.
    """
    graph = forward.graph
    found = [v for v in graph.inputs if role(v) is Role.PARAMETER and dims(v) and _signs(v)]
    if not found:
        raise UsageError(
            f"--optimizer {optimizer}: no weight is binarised by Sign alone; expected Sign of a "
            "weight, without a scale or a clip of its latent values, which are not kept"
        )
    for value in found:
        zero = _signs(value)[0].attributes["zero"].as_float()
        _pack(forward, value, zero)


def fix_signs(forward: ForwardGraph) -> None:
    """Freeze the signs of binary weights, as bits, and train a scale for each output channel.

    y = x * sign(w) becomes y = (x * sign(w)) scale. The scale is a new parameter, ``W.scale`` of a
    weight ``W``, of ones: (M, 1, ..) behind a convolution, (M,) behind a dense layer.

    Raises
    ------
    UsageError
        If there is no binary weight.
    """
    pack_binary_weights(forward, "fixed-sign")
    graph = forward.graph
    for value in [v for v in graph.inputs if v.name in forward.packed]:
        set_role(value, Role.FROZEN)
        for index, product in enumerate(_products(readers(value)[0].outputs[0])):
            _scale(forward, f"{value.name}.scale{index or ''}", product)


def _products(signs: ir.Value) -> list[ir.Node]:
    """The products that read the signs as their weight, as they are or transposed."""
    found: list[ir.Node] = []
    for node in readers(signs):
        if traits(node).product:
            found.append(node)
        elif node.op_type == "Transpose" or traits(node).gives_signs:
            found += _products(node.outputs[0])
    return found


def _scale(forward: ForwardGraph, name: str, product: ir.Node) -> None:
    graph, y = forward.graph, product.outputs[0]
    emit = Emitter(graph, "forward")
    channels = dims(y)[1] if product.op_type == "Conv" else dims(y)[-1]
    shape = (channels, *[1] * (len(dims(y)) - 2)) if product.op_type == "Conv" else (channels,)
    scale = ir.val(emit.unique(name), dtype=ir.DataType.FLOAT, shape=shape)
    graph.inputs.append(set_role(scale, Role.PARAMETER))
    forward.weights[str(scale.name)] = np.ones(shape, np.float32)
    own = y.name
    scaled = emit("Mul", y, scale, name=f"{own}.scaled")
    y.replace_all_uses_with(scaled, replace_graph_outputs=True)
    emit.nodes[0].replace_input_with(0, y)
    y.name, scaled.name = f"{own}.unscaled", own
    graph.insert_after(product, emit.nodes)


def _signs(w: ir.Value) -> list[ir.Node]:
    """The Binarize nodes that read w, as it is or transposed; none where others do too."""
    found: list[ir.Node] = []
    for node in readers(w):
        inner = [node] if node.op_type == "Binarize" else []
        if node.op_type == "Transpose":
            inner = _signs(node.outputs[0])
        if not inner:
            return []
        found += inner
    return found


def _pack(forward: ForwardGraph, w: ir.Value, zero: float) -> None:
    name, shape, graph = str(w.name), dims(w), forward.graph
    emit = Emitter(graph, "forward")
    latent = forward.weights[name]
    bits = np.logical_not(latent < 0) if zero > 0 else latent > 0
    rows = bits.reshape(shape[0], -1)
    forward.weights[name] = np.packbits(rows, axis=1, bitorder="little")
    forward.packed[name] = shape
    users = readers(w)
    w.type, w.shape = (
        ir.TensorType(ir.DataType.UINT8),
        ir.Shape((shape[0], packed_row_bytes(shape))),
    )
    signs = emit("SignUnpack", w, name=f"{name}.unpacked", shape=list(shape[1:]))
    graph.insert_before(graph.node(0), emit.nodes)
    for node in users:
        node.replace_input_with(list(node.inputs).index(w), signs)
        if node.op_type == "Binarize":
            node.outputs[0].replace_all_uses_with(signs, replace_graph_outputs=True)
            graph.remove(node, safe=True)
