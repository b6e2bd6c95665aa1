"""float16-activations: real-valued maps of the forward pass in half precision."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import is_binary
from bnnopt.ops import Emitter, dims, infer_types, traits, window
from bnnopt.ops.emit import Attribute
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rebuilding import is_batch_norm
from bnnopt.passes.shared.rewriting import redirect, replace_node
from bnnopt.training_step import TrainingStep, phase, readers


@dataclass(frozen=True)
class Float16Activations(Pass):
    """Write real-valued maps in float16: outputs of real convolutions, residual sums, pooled maps.

    Forward:   x' = x + batch_norm(sign(x) * wb): x, x' and what batch norm gives are float16; so
               are conv(x, w) of a real x, relu(x), max_pool(x) and average_pool(x). All are
               computed in float32.
    Backward:  what is kept of them, or computed again, is float16 as well.
    Saves:     16 bits an element of each.
    Numbers:   lossy: a map is rounded to 11 digits (at most 65504). A sign whose input is next to 0
               may turn, some 1 in 10^5; a deep binary network with random weights amplifies even
               that (CNV: to a third of the last layer's signs), so this is another function, and
               gradients are compared with its own; training is not hurt.
    Skips:     a map that any other operator reads in float32, or a convolution that is left alone
               itself; one that has zeros, which bitmap keeps; one of which only signs are read; a
               convolution with a bias.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2 (Y in float16).
    """

    name: ClassVar[str] = "float16-activations"
    level: ClassVar[int] = 2
    lossless: ClassVar[bool] = False
    changes_function: ClassVar[bool] = True

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        narrow = _narrowable(step, trace)
        for node in [node for node in step.graph if node.outputs[0] in narrow]:
            _narrow(step, node, narrow)
        return len(narrow)


def _narrowable(step: TrainingStep, trace: Trace) -> set[ir.Value]:
    """The largest set of maps of which each is made from, and read by, what takes the others."""
    found = {node.outputs[0]: node for node in step.graph if _is_candidate(node)}
    while True:
        obstacles = {y: _obstacle(node, found.keys()) for y, node in found.items()}
        wide = {y: reason for y, reason in obstacles.items() if reason is not None}
        if not wide:
            return set(found)
        for y, reason in wide.items():
            trace.skip(found.pop(y), reason)


def _makes_map(node: ir.Node) -> bool:
    return is_batch_norm(node) or traits(node).follows_type or node.op_type == "Conv"


def _is_candidate(node: ir.Node) -> bool:
    """Whether a node makes a real-valued float32 map, which is read as more than signs."""
    if not _makes_map(node) or phase(node) != "forward":
        return False
    y = node.outputs[0]
    is_product_of_signs = node.op_type == "Conv" and all(map(is_binary, node.inputs[:2]))
    if y.dtype != ir.DataType.FLOAT or y.is_graph_output() or is_product_of_signs:
        return False
    later = [reader for reader in readers(y) if phase(reader) == "forward"]
    return any(reader.op_type != "Binarize" for reader in later)


def _obstacle(node: ir.Node, narrow: Collection[ir.Value]) -> str | None:
    """Why the node's output has to stay as it is while only the maps in `narrow` change."""
    if node.op_type == "Conv" and len(node.inputs) > 2:
        return "it has a bias"
    if traits(node).follows_type and not set(narrow).issuperset(node.inputs):
        return "what it reads is float32"
    for use in node.outputs[0].uses():
        if not _takes_half(use.node, use.idx, narrow):
            return f"{use.node.op_type} reads it, in float32"
    return None


def _takes_half(reader: ir.Node, index: int, narrow: Collection[ir.Value]) -> bool:
    """Whether an operator reads float16 there, as it is or behind a cast."""
    known = traits(reader)
    if reader.op_type == "Conv" or known.gives_dw:
        follows = known.gives_dw or reader.outputs[0] in narrow
        return index == 0 and follows and not _has_zeros(reader.inputs[0])
    if known.follows_type and reader.outputs[0] in narrow:
        return True
    return index in (known.map_input, known.compared_input) or known.read_widened


def _has_zeros(value: ir.Value | None) -> bool:
    """Whether the map is sparse, itself or as what it is pooled from."""
    while (maker := value.producer() if value is not None else None) is not None:
        if traits(maker).gives_zeros:
            return True
        if not traits(maker).passes_zeros:
            return False
        value = maker.inputs[0]
    return False


def _narrow(step: TrainingStep, node: ir.Node, narrow: Collection[ir.Value]) -> None:
    """Let the node write float16; its inputs are what they are to be."""
    if node.op_type == "Conv":
        _half_convolution(step, node)
    elif is_batch_norm(node):
        node.attributes["dtype"] = ir.AttrInt64("dtype", int(ir.DataType.FLOAT16))
    infer_types(node, step.opset)
    y = node.outputs[0]
    for reader in readers(y):
        if traits(reader).read_widened and reader.outputs[0] not in narrow:
            emit = Emitter(step.graph, "rebuild" if phase(reader) == "backward" else "forward")
            name, to = f"{y.name}.wide", int(ir.DataType.FLOAT)
            redirect(reader, y, emit("Cast", y, name=name, to=to))
            step.graph.insert_before(reader, emit.nodes)


def _half_convolution(step: TrainingStep, node: ir.Node) -> None:
    emit = Emitter(step.graph, phase(node))
    group = node.attributes.get("group")
    attributes: dict[str, Attribute] = {
        "dtype": int(ir.DataType.FLOAT16),
        "group": group.as_int() if group is not None else 1,
        **window(node, dims(node.inputs[1])[2:]).attributes(),
    }
    emit("RealConv", *node.inputs, name=str(node.name), n_outputs=1, **attributes)
    replace_node(step, node, emit)
